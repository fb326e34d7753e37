"""Secrets: after a run with everything that goes right and wrong, no secret of it is anywhere but where a producer put it.

Looked through are all topics byte by byte, a dump of the whole database, the workers' logs at their most talkative, their metrics, what
commands print, and the logs of broker and database.
"""

import asyncio
import base64
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from infra.postgres.step import unpack
from tests.integration.gate_installation import (
    PARTITIONS,
    Authenticator,
    GateInstallation,
    Outgoing,
    bearer,
    cancel,
    gate_installation,
    order,
)
from tests.promises import assert_promises_hold
from tests.unit.tokens import Issuer

# An exchange's answer breaks off, is a page, is lost, is an error: what went wrong is told, and must be told without the request's secrets.
FAULTS = ("http_500_after_accept", "drop_after_accept", "html_200", "cut_json")
_FAULT_USERS = tuple(f"broken-{number}" for number in range(len(FAULTS)))
USERS = ("plain", "refused", "guessing", "suspect", "operator", *_FAULT_USERS)
_REASON = ("--reason", "a test", "--operator", "ana")


@dataclass
class Secrets:
    """What must be found nowhere. A code has six digits, which anything may have by chance: it counts where it stands alone."""

    plain: dict[str, str] = field(default_factory=dict)
    codes: set[str] = field(default_factory=set)

    def add(self, what: str, secret: str) -> str:
        self.plain[what] = secret
        return secret

    def token(self, header: bytes) -> bytes:
        """Notes a token whole, and its signature, without which nobody could use the rest."""
        token = header.removeprefix(b"Bearer ").decode()
        self.add(f"token {len(self.plain)}", token)
        self.add(f"signature {len(self.plain)}", token.rpartition(".")[2])
        return header

    def code(self, code: str) -> str:
        self.codes.add(code)
        return code

    def in_text(self, content: bytes) -> list[str]:
        """The names of the secrets that a content holds, as they are or in a form that is easily turned back."""
        found = [what for what, secret in self.plain.items() if any(form in content for form in _forms(secret))]
        codes = [code for code in self.codes if re.search(rb"(?<![\w.])" + code.encode() + rb"(?![\w.])", content)]
        return found + [f"code {code}" for code in codes]


def _forms(secret: str) -> Iterable[bytes]:
    raw = secret.encode()
    in_hex, in_base64 = raw.hex().encode(), base64.b64encode(raw).rstrip(b"=")
    return {raw, raw[::-1], in_hex, in_hex.upper(), in_base64, quote(secret, safe="").encode()}


async def _records(kafka: str, prefix: str) -> dict[str, list[ConsumerRecord]]:
    """Every record of every topic of the installation, those of aborted transactions too."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, isolation_level="read_uncommitted", auto_offset_reset="earliest")
    await consumer.start()
    try:
        names = sorted(name for name in await consumer.topics() if name.startswith(prefix))
        partitions = [TopicPartition(name, number) for name in names for number in range(PARTITIONS)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        found: dict[str, list[ConsumerRecord]] = {name: [] for name in names}
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    found[record.topic].append(record)
        return found
    finally:
        await consumer.stop()


def _bytes_of(record: ConsumerRecord) -> bytes:
    headers = b"\n".join(name.encode() + b": " + (value or b"") for name, value in record.headers)
    return b"\n".join((record.key or b"", record.value or b"", headers))


async def _dump(pool: asyncpg.Pool) -> list[tuple[str, bytes]]:
    """Every table as text; what is stored as bytes also as it is."""
    tables = await pool.fetch("SELECT quote_ident(tablename) AS name FROM pg_tables WHERE schemaname = 'public'")
    contents: list[tuple[str, bytes]] = []
    for table in [row["name"] for row in tables]:
        rows = await pool.fetch(f"SELECT whole::text AS text, whole.* FROM {table} AS whole")  # noqa: S608 — names from the catalogue
        contents.append((table, "\n".join(row["text"] for row in rows).encode()))
        contents.append((f"{table}, bytes", b"\n".join(value for row in rows for value in row.values() if isinstance(value, bytes))))
    return contents


async def _watch_outputs(pool: asyncpg.Pool, seen: set[bytes]) -> None:
    """Notes what steps store to be published, packed; it is gone as soon as Kafka has it."""
    while True:
        for row in await pool.fetch("SELECT outputs, carried FROM input_partitions"):
            seen.update(value for value in row.values() if value is not None)
        await asyncio.sleep(0.1)


async def _trade(gate: GateInstallation, known: Secrets, signer: Issuer) -> None:
    """Requests of every kind, with what goes wrong about tokens, codes, keys and the exchange."""
    factors: dict[str, Authenticator] = {}
    for user_id in USERS:
        factors[user_id] = await gate.enrol(user_id)
        known.add(f"second factor of {user_id}", factors[user_id].secret)
        if user_id != "operator":
            await _new_credentials(gate, known, user_id, taken=user_id != "refused")
    await gate.until_keys_are_forgotten()
    tokens = {user_id: known.token(bearer(user_id, signer)) for user_id in USERS if user_id != "operator"}

    async def code(user_id: str) -> str:
        return known.code(await factors[user_id].code())

    plain = order("plain", "k")
    first = Outgoing(plain, 0, tokens["plain"], await code("plain"))
    assert (await gate.answer(first))["status"] == "executed"
    assert (await gate.answer(first))["replayed"]
    forged = Issuer("HS256", secrets.token_bytes(48), signer.key_id)
    for token in (
        known.token(bearer("plain", forged)), known.token(bearer("plain", signer, seconds=-600)), tokens["refused"],
        tokens["plain"].replace(b"Bearer", b"Basic"), tokens["plain"] + b"x", tokens["plain"][:-9],
    ):  # fmt: skip
        assert (await gate.answer(Outgoing(order("plain", "k2"), None, token, await code("plain"))))["reason_code"].startswith("AUTH_")
        factors["plain"].last_step -= 1
    wrong = [known.code(factors["guessing"].wrong_code(number)) for number in range(6)]
    for number, guess in enumerate(wrong):
        assert (await gate.answer(Outgoing(order("guessing", f"g{number}"), None, tokens["guessing"], guess)))["status"] == "rejected"
    refused = await gate.answer(Outgoing(order("refused", "k"), None, tokens["refused"], await code("refused")))
    assert refused["reason_code"] == "API_KEY_PERMISSION"
    await gate.limit("suspect", suspicion_block=30)
    suspect = await gate.answer(Outgoing(order("suspect", "k", quantity="3"), None, tokens["suspect"], await code("suspect")))
    assert suspect["reason_code"] == "SUSPICIOUS_ACTIVITY"
    await _unreadable(gate, tokens["plain"], known.code(factors["plain"].wrong_code(7)))
    await gate.answer(Outgoing(cancel("plain", "c", "k"), None, tokens["plain"]))
    for user_id, kind in zip(_FAULT_USERS, FAULTS, strict=True):
        await gate.made.faults({"kind": kind, "next_n": 1})
        broken = await gate.answer(Outgoing(order(user_id, "k"), None, tokens[user_id], await code(user_id)))
        assert broken["status"] == "executed"
    await _command(gate, tokens["plain"], known.token(bearer("operator", signer, scope="operate")), await code("operator"))


async def _new_credentials(gate: GateInstallation, known: Secrets, user_id: str, *, taken: bool) -> None:
    """A random API secret, which the exchange has too, or an API key that it does not know."""
    api_key = known.add(f"API key of {user_id}", f"key-{user_id}" if taken else secrets.token_hex(24))
    secret = known.add(f"API secret of {user_id}", secrets.token_urlsafe(36))
    await gate.replace_key(user_id, api_key, secret)
    if taken:
        # The account is there already, with its balances: this replaces its secret.
        await gate.set_at_the_exchange("accounts", [{"label": user_id, "api_key": api_key, "secret": secret}])


async def _unreadable(gate: GateInstallation, token: bytes, code: str) -> None:
    """Records that go to the dead-letter topic, whose headers hold secrets under names in any case."""
    for number, value in enumerate((b"{", b"\xff\xfe", b"x" * 70_000, b"[]")):
        named = ("authorization", "x-totp") if number % 2 else ("Authorization", "X-TOTP")
        headers = [(named[0], token), (named[1], code.encode()), ("trace", b"kept")]
        sent = await gate.producer.send_and_wait(gate.made.topics.requests, value, headers=headers)
        await gate.results.until(sent, lambda result: bool(result["final"]), 60)


async def _command(gate: GateInstallation, trader: bytes, operator: bytes, code: str) -> None:
    """A halt on `trade.commands`: by somebody who may not, and by an operator."""
    await gate.pool.execute("UPDATE users SET role = 'operator' WHERE user_id = 'operator'")
    for number, token in enumerate((trader, operator)):
        value = {
            "schema_version": 1, "command_id": f"c{number}", "command": "halt", "scope": "symbol", "target": "SOL/USDT",
            "operator": "operator", "reason": "a test",
        }  # fmt: skip
        headers = [("authorization", token), ("x-totp", code.encode())]
        await gate.producer.send_and_wait(gate.made.topics.commands, json.dumps(value).encode(), headers=headers, partition=0)
    async with asyncio.timeout(30):
        while not await gate.fetch("SELECT FROM halts"):
            await asyncio.sleep(0.2)
    file = gate.made.log_directory.parent / "operator.token"
    file.write_bytes(operator.removeprefix(b"Bearer "))
    proof = ("--token-file", str(file), "--totp", code)
    await gate.command("limits", "set", "plain", "open_orders_max", "6", "--reason", "a test", *proof, code=None)
    file.unlink()
    # What follows is done as in an installation without operators.
    await gate.pool.execute("UPDATE users SET role = 'trader' WHERE user_id = 'operator'")


async def _administer(gate: GateInstallation, known: Secrets, password: str, directory: Path) -> None:
    """Every command that reads or changes what secrets belong to; those that show one on purpose are looked at by themselves."""
    uri = (await gate.command("users", "enrol-totp", "plain", "--replace", "--yes", "--json")).json["otpauth_uri"]
    known.add("new second factor", uri.partition("secret=")[2].partition("&")[0])
    gate.said[-2] = ""
    credentials = [known.add(f"new credential {number}", secrets.token_urlsafe(30)) for number in range(2)]
    await gate.command("keys", "add", "plain", "second", "--exchange", "binance", "--operator", "ana", given="\n".join(credentials))
    (order_id,) = {row["order_id"] for row in await gate.fetch("SELECT order_id FROM orders WHERE user_id = 'plain'")}
    commands: tuple[tuple[str, ...], ...] = (
        ("users", "list"), ("users", "show", "plain", "--json"), ("users", "unlock-totp", "guessing", *_REASON), ("keys", "list", "--json"),
        ("keys", "check", "plain", "main"), ("keys", "revoke", "plain", "second", "--yes", *_REASON), ("keys", "rotate"),
        ("limits", "set", "plain", "open_orders_max", "5", *_REASON), ("order", order_id), ("order", order_id, "--json"), ("status",),
    )  # fmt: skip
    for arguments in commands:
        await gate.command(*arguments)
    wrong: tuple[tuple[int, tuple[str, ...], str], ...] = (
        (2, ("keys", "add", "plain", "third", "--exchange", "binance"), f"{credentials[0]}\n{credentials[0]}"),
        (2, ("keys", "add", "plain", "third", "--exchange", "binance"), f"{credentials[0]} {credentials[1]}"),
        (1, ("keys", "check", "refused", "main"), ""),
    )
    for code, arguments, given in wrong:
        await gate.command(*arguments, given=given, code=code)
    # Where the database is away, its address is told.
    away = f"postgresql://postgres:{password}@127.0.0.1:1/none"
    for command in ("orders", "doctor"):
        await gate.command(command, code=None, DATABASE_URL=away)


async def _one_worker_without_database(gate: GateInstallation, password: str) -> None:
    """A further worker that cannot reach its database, and says so."""
    number = len(gate.made.workers)
    lost = {**gate.worker_settings, "ORCHESTRATOR_DATABASE_URL": f"postgresql://postgres:{password}@127.0.0.1:1/none"}
    worker = gate.made.start_worker(**lost)
    await gate.made.event(number, "waiting_to_start", 60)
    worker.terminate()
    await asyncio.to_thread(worker.wait, 30)


def _assert_looked(known: Secrets, looked: dict[str, bytes], given: bytes) -> None:
    """That the search would have found something: what producers put into their records is found there, and no content was missed."""
    put = known.in_text(given)
    assert {f"code {code}" for code in known.codes} <= set(put)
    assert {what for what in known.plain if re.fullmatch(r"(token|signature) \d+", what)} <= set(put)
    topics = [what for what in looked if "trade." in what]
    assert {what.partition("trade.")[2] for what in topics} >= {"results", "audit", "state", "reports", "requests.dlq", "orders.binance"}
    logs = [f"worker {number}, {what}" for number, what in ((0, "log"), (1, "log"), (2, "log"), (0, "metrics"), (1, "metrics"))]
    for what in (*topics, *logs, "what commands printed", "stored outputs"):
        assert looked[what], f"{what} was empty"
    # Dead letters keep what is no secret.
    assert b"trace: kept" in next(content for what, content in looked.items() if what.endswith("requests.dlq"))
    assert {"users", "api_keys", "second_factors", "audit_events", "orders", "claims"} <= looked.keys()


async def test_no_secret_leaves_where_its_producer_put_it(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path, servers_directory: Path
) -> None:
    """Nothing that was used in a whole run is in any topic, table, log, metric or output; where producers put it, it is found."""
    known = Secrets()
    signer = Issuer("HS256", secrets.token_urlsafe(48).encode(), "hs")
    known.add("token signing secret", signer.private_key.decode())
    password = known.add("database password", secrets.token_hex(16))
    with_password = database_url.replace("//postgres@", f"//postgres:{password}@")
    assert password in with_password
    async with gate_installation(
        kafka, with_password, unique_prefix, tmp_path, USERS, "--walk-ms", "0",
        issuers=[signer], settings={"LOG_LEVEL": "debug"},
    ) as gate:  # fmt: skip
        master_key = gate.made.settings.master_key
        assert master_key is not None
        known.add("master key", master_key.get_secret_value())
        await gate.set_at_the_exchange("price", {"symbol": "BTCUSDT", "price": "40000"})
        gate.start_workers()
        await gate.until_shared()
        stored: set[bytes] = set()
        watching = asyncio.create_task(_watch_outputs(gate.pool, stored), name="stored outputs")
        await _trade(gate, known, signer)
        watching.cancel()
        await _administer(gate, known, password, tmp_path)
        await _one_worker_without_database(gate, password)
        contents = [(f"worker {number}, log", gate.made.worker_log(number).encode()) for number in range(3)]
        contents += [(f"worker {number}, metrics", (await gate.metrics(number)).encode()) for number in range(2)]
        contents += [("what commands printed", "\n".join(gate.said).encode())]
        contents += [*await _dump(gate.pool), ("stored outputs", b"\n".join(repr(unpack(packed)).encode() for packed in stored))]
        # What is called so in the broker's own data are the topics themselves.
        contents += [(path.name, path.read_bytes()) for path in servers_directory.rglob("*.log") if not path.stem.isdecimal()]
        records = await _records(kafka, unique_prefix)
        given = {gate.made.topics.requests, gate.made.topics.commands}
        contents += [(topic, b"\n".join(map(_bytes_of, found))) for topic, found in records.items() if topic not in given]
        leaks = [f"{what}: {found}" for what, content in contents if (found := known.in_text(content))]
        assert not leaks, "\n".join(leaks)
        _assert_looked(known, dict(contents), b"\n".join(_bytes_of(record) for topic in given for record in records[topic]))
        await assert_promises_hold(gate.made)
