"""What tests of the whole gate share: an installation with two workers, users as an operator would have set them up, and requests with
headers on the partitions that a test chooses.

Start with `gate_installation`, then `GateInstallation.send`.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import asyncpg
import pyotp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import RecordMetadata

from agents.process.keys import KEPT_SECONDS
from infra.keyring import StoredSecret, keyring_of
from simulator.records import OrderAccepted
from tests.installation import Installation, installation
from tests.orchestrator import Ended, orchestrator
from tests.unit.tokens import AUDIENCE, ISSUER, Issuer, issuer

PARTITIONS = 4
# Requests, commands, reports, orders of one exchange.
_INPUT_TOPICS = 4
STEP_SECONDS = 30
_PREFIX = "ORCHESTRATOR_"
# Prices are looked at once more often than a busy machine takes to answer, so that no request is refused for want of one.
_PATIENT = {"ORCHESTRATOR_PRICE_AGE_MS_MAX": "60000"}

Result = dict[str, Any]


@dataclass(frozen=True)
class Outgoing:
    """A record to be published: its value, where to, and its headers. `partition` None: wherever its user's records go."""

    value: dict[str, Any] | bytes
    partition: int | None = None
    token: bytes | None = None
    code: str | None = None

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        named = (("authorization", self.token), ("x-totp", None if self.code is None else self.code.encode()))
        return [(name, value) for name, value in named if value is not None]


def order(user_id: str, key: str, **fields: Any) -> dict[str, Any]:
    """A small market purchase; `fields` replace or (None) remove."""
    request = {
        "schema_version": 1,
        "type": "trade",
        "idempotency_key": key,
        "user_id": user_id,
        "mode": "live",
        "exchange": "binance",
        "api_key_id": "main",
        "symbol": "BTC/USDT",
        "side": "buy",
        "order_type": "market",
        "quantity": "0.001",
        "expires_at": "2100-01-01T00:00:00Z",
        **fields,
    }
    return {name: value for name, value in request.items() if value is not None}


def resting(user_id: str, key: str, side: str, quantity: str, price: str, **fields: Any) -> dict[str, Any]:
    """A limit order that stays open where its price is far enough from the market's."""
    limit = {"side": side, "order_type": "limit", "quantity": quantity, "price": price, "time_in_force": "GTC"}
    return order(user_id, key, **{**limit, **fields})


def cancel(user_id: str, key: str, target_key: str) -> dict[str, Any]:
    """A cancel of the order that `target_key` made."""
    named = {"user_id": user_id, "idempotency_key": key, "target_idempotency_key": target_key}
    return {"schema_version": 1, "type": "cancel", "mode": "live", **named}


class Results:
    """Every result on `trade.results` as it comes, by the record that it answers."""

    def __init__(self) -> None:
        self.all: dict[tuple[int, int], list[Result]] = {}
        self._came = asyncio.Condition()

    async def follow(self, consumer: AIOKafkaConsumer) -> None:
        async for record in consumer:
            result = json.loads(record.value)
            async with self._came:
                source = result["source"]
                self.all.setdefault((source["partition"], source["offset"]), []).append(result)
                self._came.notify_all()

    async def until(self, sent: RecordMetadata, is_enough: Callable[[Result], bool], within_seconds: float) -> Result:
        """The first result of a record that is enough. Fails when none comes in time."""

        def found() -> Result | None:
            return next((result for result in self.all.get((sent.partition, sent.offset), []) if is_enough(result)), None)

        async with self._came:
            try:
                async with asyncio.timeout(within_seconds):
                    await self._came.wait_for(lambda: found() is not None)
            except TimeoutError:
                seen = self.all.get((sent.partition, sent.offset))
                raise AssertionError(f"record {sent.partition}/{sent.offset}: no such answer, only {seen}") from None
            result = found()
            assert result is not None
            return result


@dataclass
class Authenticator:
    """A user's authenticator app. It gives each step's code once; two are good at once, so a third waits."""

    secret: str
    last_step: int = -1

    def at(self, step: int) -> str:
        code: str = pyotp.TOTP(self.secret).at(step * STEP_SECONDS)
        return code

    async def code(self) -> str:
        """The code of a step that gave none yet: this one's, or the next one's, which is good already."""
        self.last_step = max(self.last_step + 1, step_now())
        while self.last_step > step_now() + 1:
            await asyncio.sleep(0.2)
        return self.at(self.last_step)

    def wrong_code(self, number: int = 0) -> str:
        """A code that is wrong for minutes; another for each number."""
        right = {self.at(step) for step in range(step_now() - 6, step_now() + 7)}
        return [code for code in (f"{guess:06}" for guess in range(100_000, 100_100)) if code not in right][number]


def step_now() -> int:
    return int(time.time()) // STEP_SECONDS


@dataclass
class GateInstallation:
    """An installation whose requests carry tokens and codes. `worker_settings` are environment variables of each worker and command."""

    made: Installation
    worker_settings: dict[str, str]
    producer: AIOKafkaProducer
    pool: asyncpg.Pool
    results: Results
    said: list[str] = field(default_factory=list)

    def start_workers(self, count: int = 2) -> None:
        for _ in range(count):
            self.made.start_worker(**self.worker_settings)

    async def until_shared(self, within_seconds: float = 90) -> None:
        """Waits until each worker owns input partitions, and together they own all."""
        deadline = monotonic() + within_seconds
        while True:
            owned = [await self.metric(number, "orchestrator_partitions_assigned") for number in range(len(self.made.workers))]
            if all(owned) and sum(owned) == PARTITIONS * _INPUT_TOPICS:
                return
            if monotonic() > deadline or any(worker.poll() is not None for worker in self.made.workers):
                logs = "\n".join(self.made.worker_log(number)[-3_000:] for number in range(len(self.made.workers)))
                raise AssertionError(f"the workers own {owned} partitions:\n{logs}")
            await asyncio.sleep(0.2)

    async def metrics(self, worker: int) -> str:
        """What a worker's `/metrics` says; empty while it has none."""
        address = next((event["health"] for event in self.made.events(worker) if event.get("event") == "worker_started"), None)
        if address is None:
            return ""
        async with aiohttp.ClientSession() as session, session.get(f"{address}/metrics") as response:
            return await response.text()

    async def metric(self, worker: int, name: str) -> float:
        """The value of one line of `/metrics`, given with its labels; 0 where there is none."""
        lines = (await self.metrics(worker)).splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)

    async def send(self, *records: Outgoing) -> list[RecordMetadata]:
        """Publishes records, all at once; returns what the broker said of each."""
        sends = []
        for record in records:
            value = json.dumps(record.value).encode() if isinstance(record.value, dict) else record.value
            key = str(record.value["user_id"]).encode() if isinstance(record.value, dict) else None
            topic = self.made.topics.requests
            sends.append(await self.producer.send(topic, value, key=key, partition=record.partition, headers=record.headers))
        return list(await asyncio.gather(*sends))

    async def answer(self, record: Outgoing, within_seconds: float = 60) -> Result:
        """Publishes a record and waits for its final answer."""
        (sent,) = await self.send(record)
        return await self.results.until(sent, lambda result: bool(result["final"]), within_seconds)

    async def fetch(self, statement: str, *values: object) -> list[asyncpg.Record]:
        return list(await self.pool.fetch(statement, *values))

    async def events(self, user_id: str) -> list[dict[str, Any]]:
        """The user's audit events, in the order of the chain: the order in which all that concerns the user was decided."""
        rows = await self.fetch("SELECT body FROM audit_events WHERE account = $1 ORDER BY seq", user_id)
        return [json.loads(row["body"]) for row in rows]

    async def enrol(self, user_id: str) -> Authenticator:
        """Gives the user a second factor, as `users enrol-totp` does."""
        secret = pyotp.random_base32(32)
        keyring = keyring_of(self.made.settings)
        await self.pool.execute(
            "INSERT INTO second_factors (user_id, encryption_key_id, ciphertext, enrolled_at) VALUES ($1, $2, $3, now())",
            user_id, keyring.key_id, keyring.encrypt_second_factor(user_id, secret),
        )  # fmt: skip
        return Authenticator(secret)

    async def replace_key(self, user_id: str, api_key: str, secret: str) -> bytes:
        """Puts other credentials under the user's key, encrypted; returns the ciphertext of those before."""
        keyring = keyring_of(self.made.settings)
        before = await self.pool.fetchval("SELECT ciphertext FROM api_keys WHERE user_id = $1 AND api_key_id = 'main'", user_id)
        ciphertext = keyring.encrypt(user_id, "main", StoredSecret(api_key, secret))
        await self.pool.execute("UPDATE api_keys SET ciphertext = $2 WHERE user_id = $1", user_id, ciphertext)
        return bytes(before)

    @staticmethod
    async def until_keys_are_forgotten() -> None:
        """Waits until no worker remembers a key as it was: the watch of deposits may have read it a moment before it was replaced."""
        await asyncio.sleep(KEPT_SECONDS)

    async def limit(self, user_id: str, **limits: Decimal | int) -> None:
        """Limits of the user's own, as `limits set` stores them."""
        await self.pool.executemany(
            "INSERT INTO user_limits (user_id, name, amount, changed_at, changed_by) VALUES ($1, $2, $3, now(), 'test')",
            [(user_id, name, Decimal(amount)) for name, amount in limits.items()],
        )

    def at_the_exchange(self, user_id: str) -> list[OrderAccepted]:
        """The user's orders that the exchange's own log says it accepted."""
        return [record for record in self.made.accepted_orders() if record.label == user_id]

    async def set_at_the_exchange(self, what: str, value: object) -> None:
        async with aiohttp.ClientSession() as session, session.post(f"{self.made.simulator_url}/simulator/{what}", json=value) as response:
            response.raise_for_status()

    async def command(self, *arguments: str, given: str = "", code: int | None = 0, **settings: str) -> Ended:
        """Runs `orchestrator` as an operator of this installation does. It must end with `code`, None for any; `settings` replace those of
        the installation. What it printed is kept."""
        environment = self.made.environment(self.worker_settings)
        own = {name.removeprefix(_PREFIX): value for name, value in environment.items() if name.startswith(_PREFIX)}
        ended = await asyncio.to_thread(
            orchestrator, self.made.log_directory, *arguments, given=given, settings={**own, **settings}
        )
        self.said += [ended.output, ended.errors]
        assert code in (None, ended.code), ended.errors
        return ended


def bearer(user_id: str, signer: Issuer | None = None, *, seconds: int = 3_600, **claims: Any) -> bytes:
    """The `authorization` header with a token for so many seconds from now on."""
    now = int(time.time())
    given = {"sub": user_id, "iat": now - 1, "exp": now + seconds, "scope": "trade", **claims}
    return (signer or issuer()).bearer(None, **given)


def write_trusted_keys(file: Path, issuers: Sequence[Issuer]) -> None:
    """Puts a JWK set in place in one step, as whoever rotates keys does."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"keys": [each.jwk() for each in issuers]}))
    new.replace(file)


@asynccontextmanager
async def gate_installation(
    kafka: str,
    database_url: str,
    prefix: str,
    directory: Path,
    users: Sequence[str],
    *simulator_options: str,
    issuers: Sequence[Issuer] = (),
    settings: dict[str, str] | None = None,
    **overrides: Any,
) -> AsyncIterator[GateInstallation]:
    """Starts everything but workers. With `issuers`, each request needs a token of one of them, and real money a code.

    `settings` are further environment variables of workers and commands, named without their prefix.
    """
    given = {**_PATIENT, **{f"{_PREFIX}{name}": value for name, value in (settings or {}).items()}}
    if issuers:
        keys_file = directory / "trusted.json"
        write_trusted_keys(keys_file, issuers)
        overrides |= {"authentication": "required", "token_keys_file": keys_file}
        given |= {"ORCHESTRATOR_TOKEN_KEYS_FILE": str(keys_file)}
        given |= {"ORCHESTRATOR_TOKEN_ISSUER": ISSUER, "ORCHESTRATOR_TOKEN_AUDIENCE": AUDIENCE}
    overrides = {"kafka_partitions": PARTITIONS, **overrides}
    async with installation(kafka, database_url, prefix, directory, *simulator_options, users=users, **overrides) as made:
        producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=2)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka, isolation_level="read_committed", auto_offset_reset="earliest", fetch_max_wait_ms=100
        )
        results = Results()
        pool = await asyncpg.create_pool(database_url, min_size=1, max_size=4, timeout=10)
        await producer.start()
        await consumer.start()
        consumer.assign([TopicPartition(made.topics.results, number) for number in range(PARTITIONS)])
        following = asyncio.create_task(results.follow(consumer), name="results")
        try:
            yield GateInstallation(made, given, producer, pool, results)
        finally:
            following.cancel()
            await consumer.stop()
            await producer.stop()
            await pool.close()
