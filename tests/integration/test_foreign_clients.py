"""Whatever a client that is not ours publishes gets its answer or its dead letter, and the worker goes on with what is behind it.

Every case is published once, by kcat or librdkafka, to the same partition of one installation, each with a good order right behind it;
every test looks at what came of its own case. Start with `CASES`.
"""

import asyncio
import gzip
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from aiokafka import ConsumerRecord
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from embedded.services import Endpoints
from infra.kafka.topics import TopicsUnfit, ensure_topics
from infra.postgres.step import unpack
from infra.settings import Settings
from schemas.topics import DEAD_LETTER_KEY_BYTES_MAX, Topics
from tests import kcat
from tests.installation import Installation, installation, order
from tests.promises import assert_promises_hold
from tests.servers import fresh_database

# One worker of pytest-xdist runs all of them, so that the installation is made once.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("foreign_clients")]

_ANSWER_SECONDS_MAX = 90
_CASES_PARTITION = 0
# A transaction that is left open keeps the records behind it waiting: not those of the cases.
_TRANSACTIONS_PARTITION = 1
_TOKEN = "SECRET-eyJhbGciOiJFZERTQSJ9"  # not a secret: made up, to be looked for in what is published
_TOTP = "SECRET-731946"
_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Case:
    """One record of a foreign client. `code` is the reason code of its answer, None where it is executed.

    `anonymous`: nobody can be read from it, so it is a dead letter, and answered by its source alone.
    """

    name: str
    value: bytes | None
    code: str | None = None
    anonymous: bool = False
    dead_letter: bool = False
    key: str | None = None
    headers: tuple[bytes, ...] = ()
    codec: str = "none"
    properties: tuple[str, ...] = ()
    # Python's client has only text for the names of headers.
    needs_kcat: bool = False

    @property
    def is_buried(self) -> bool:
        return self.anonymous or self.dead_letter


def _request(name: str, **fields: Any) -> bytes:
    return json.dumps(order(0, idempotency_key=name, side="buy", **fields)).encode()


def _with(name: str, replaced: str, by: str) -> bytes:
    """A good request in which a part of the text is something else."""
    text = _request(name).decode()
    assert replaced in text
    return text.replace(replaced, by).encode()


def _executed(name: str, **fields: Any) -> Case:
    return Case(name, _request(name), **fields)


def _refused(name: str, code: str, **fields: Any) -> Case:
    return Case(name, _request(name, **fields), code)


def _mistyped(name: str, code: str, replaced: str, by: str) -> Case:
    return Case(name, _with(name, replaced, by), code)


def _unreadable(name: str, value: bytes | None, **fields: Any) -> Case:
    return Case(name, value, "SCHEMA_INVALID", anonymous=True, **fields)


_QUANTITY = '"quantity": "0.001"'
_SECRET_HEADERS = (f"authorization=Bearer {_TOKEN}".encode(), f"x-totp={_TOTP}".encode(), f"X-TOTP={_TOTP}".encode())
CASES = [
    # Good orders in every dress.
    _executed("without key and headers"),
    _executed("with key", key="user-0"),
    _executed("key of somebody else", key="user-7"),
    _executed("idempotent producer", properties=("enable.idempotence=true",)),
    *(_executed(f"codec {codec}", codec=codec) for codec in ("gzip", "snappy", "lz4", "zstd")),
    _executed("secrets in headers", headers=_SECRET_HEADERS),
    _executed("traceparent", headers=(f"traceparent={_TRACEPARENT}".encode(),)),
    _executed("traceparent that is none", headers=(b"traceparent=yes",)),
    _executed("header without a value", headers=(b"traceparent", b"authorization", b"other")),
    _executed("header named by no UTF-8", headers=(b"\xff\xfe=1", b"traceparent=\xff"), needs_kcat=True),
    _executed("header twice", headers=(b"a=1", b"a=2")),
    _executed("thousand headers", headers=tuple(b"h%d=%d" % (number, number) for number in range(1000))),
    _executed("key of idempotency with an emoji \N{ROCKET}"),
    Case("blanks around", b" \r\n\t" + _request("blanks around") + b"\n\n"),
    # Nobody can be read.
    _unreadable("broken JSON", b'{"user_id": "user-0", "idempotency_key": "broken", '),
    _unreadable("broken JSON with secrets in headers", b"{", headers=_SECRET_HEADERS),
    _unreadable("broken JSON with headers like ours", b"{", headers=(b"dlq-source=forged/0/0", b"dlq-reason-code=FORGED")),
    _unreadable("broken JSON in zstd", b"{" * 3000, codec="zstd"),
    _unreadable("broken JSON with a header named by no UTF-8", b"{", headers=(b"\xff\xfe=1",), key="\N{ROCKET}", needs_kcat=True),
    _unreadable("long key", b"{", key="k" * 100_000),
    _unreadable("long header", b"{", headers=(b"long=" + b"x" * 100_000,)),
    _unreadable("no JSON", b"BUY 1 BTC"),
    _unreadable("tombstone", None),
    _unreadable("tombstone with key", None, key="user-0"),
    _unreadable("empty object", b"{}"),
    _unreadable("array", b"[]"),
    _unreadable("null", b"null"),
    _unreadable("number", b"1e400"),
    _unreadable("NaN", b"NaN"),
    _unreadable("quantity is NaN", _with("quantity is NaN", _QUANTITY, '"quantity": NaN')),
    _unreadable("latin-1", _request("latin-1", symbol="BTC/\N{EURO SIGN}").decode().replace("\\u20ac", "\xa4").encode("latin-1")),
    _unreadable("UTF-16", _request("UTF-16").decode().encode("utf-16")),
    _unreadable("gzip by hand", gzip.compress(_request("gzip by hand"))),
    _unreadable("deep", b"[" * 60_000),
    _unreadable("long number", b"9" * 60_000),
    _unreadable("megabyte", b"\x00" * 990_000),
    _unreadable("megabyte in zstd", b"\x00" * 990_000, codec="zstd"),
    _unreadable("names twice", b'{"user_id": "user-0", "user_id": "user-1", "idempotency_key": "twice"}'),
    # A check of each name against all others would keep the worker busy for minutes.
    _unreadable("80,000 names, the last one twice", b"{" + b"".join(b'"%d":1,' % number for number in range(80_000)) + b'"79999":1}'),
    _unreadable("user with NUL", _request("user with NUL", user_id="user\x00")),
    _unreadable("key too long", _request("k" * 256)),
    # Somebody can be read, and is told by name.
    Case("too long", _request("too long", comment="x" * 100_000), "SCHEMA_INVALID", dead_letter=True),
    _mistyped("quantity is a number", "INVALID_DECIMAL", _QUANTITY, '"quantity": 1'),
    _mistyped("quantity is a float", "INVALID_DECIMAL", _QUANTITY, '"quantity": 0.001'),
    _mistyped("quantity is 10^30", "INVALID_DECIMAL", _QUANTITY, f'"quantity": 1{"0" * 30}'),
    _mistyped("quantity is 1e400", "INVALID_DECIMAL", _QUANTITY, '"quantity": 1e400'),
    _mistyped("quantity is an object", "INVALID_DECIMAL", _QUANTITY, '"quantity": {"$numberDecimal": "1"}'),
    _refused("quantity is the text NaN", "INVALID_DECIMAL", quantity="NaN"),
    _refused("quantity is the text 10^30", "INVALID_DECIMAL", quantity="1" + "0" * 30),
    _refused("quantity is the text 1e3", "INVALID_DECIMAL", quantity="1e3"),
    _refused("quantity in Arabic digits", "INVALID_DECIMAL", quantity="\u0661"),
    _refused("quantity is negative", "INVALID_DECIMAL", quantity="-1"),
    _refused("quantity is zero", "AMOUNT_BELOW_MINIMUM", quantity="0"),
    _refused("quantity is tiny", "AMOUNT_BELOW_MINIMUM", quantity="0.00" + "0" * 15 + "1"),
    _refused("quantity is huge", "AMOUNT_ABOVE_MAXIMUM", quantity="9" * 20),
    _refused("version 2", "SCHEMA_VERSION_UNSUPPORTED", schema_version=2),
    _refused("version as text", "SCHEMA_INVALID", schema_version="1"),
    _refused("type unknown", "SCHEMA_INVALID", type="swap"),
    _mistyped("side unknown", "SCHEMA_INVALID", '"buy"', '"hold"'),
    _refused("field unknown", "SCHEMA_INVALID", authorization=_TOKEN),
    _refused("exchange unknown", "EXCHANGE_UNKNOWN", exchange="mtgox"),
    _refused("user unknown", "USER_UNKNOWN", user_id="nobody"),
    _refused("API key unknown", "API_KEY_UNKNOWN", api_key_id="other"),
    _refused("symbol with NUL", "SYMBOL_INVALID", symbol="BTC/\x00"),
    _refused("symbol with half a surrogate", "SCHEMA_INVALID", symbol="BTC/\ud800"),
    _refused("symbol unknown", "SYMBOL_UNKNOWN", symbol="BTC/XYZ"),
    _refused("deadline is over", "REQUEST_EXPIRED", expires_at="2020-01-01T00:00:00Z"),
    _refused("deadline is a number", "SCHEMA_INVALID", expires_at=4_102_444_800),
    _refused("deadline out of time", "SCHEMA_INVALID", expires_at="9999-12-31T23:59:59-14:00"),
    _refused("stop order", "REQUEST_UNSUPPORTED", order_type="stop_loss", stop_price="30000"),
]


@dataclass
class Harvest:
    """What was published where, and what came of it. `source` and `behind`: (partition, offset) of a case and of the order after it."""

    made: Installation
    source: dict[str, tuple[int, int]] = field(default_factory=dict)
    behind: dict[str, tuple[int, int]] = field(default_factory=dict)
    finals: dict[tuple[int, int], list[dict[str, Any]]] = field(default_factory=dict)
    dead_letters: dict[str, list[ConsumerRecord]] = field(default_factory=dict)

    def final(self, name: str) -> dict[str, Any]:
        """The one final answer to a case."""
        self._skip_unpublished(name)
        answers = self.finals.get(self.source[name], [])
        assert len(answers) == 1
        return answers[0]

    def _skip_unpublished(self, name: str) -> None:
        if name not in self.source:
            pytest.skip("kcat is not installed")

    def assert_executed(self, place: tuple[int, int]) -> None:
        """Fails unless the record at a place was answered once, as executed."""
        assert [result["status"] for result in self.finals.get(place, [])] == ["executed"]

    def buried(self, name: str) -> list[ConsumerRecord]:
        """The dead letters of a case."""
        self._skip_unpublished(name)
        partition, offset = self.source[name]
        return self.dead_letters.get(f"{self.made.topics.requests}/{partition}/{offset}", [])


class Librdkafka:
    """librdkafka as a Python program uses it, for one installation's requests."""

    def __init__(self, made: Installation, **options: Any) -> None:
        self._topic = made.topics.requests
        servers = made.settings.kafka_bootstrap_servers or ""
        self.producer = Producer({"bootstrap.servers": servers, "message.timeout.ms": 20_000, **options})

    def publish(self, value: bytes | None, partition: int, **fields: Any) -> tuple[int, int]:
        """Publishes one record, returns where it is. Raises KafkaException."""
        reports: list[tuple[KafkaError | None, Message]] = []
        self.producer.produce(
            self._topic, value, partition=partition, on_delivery=lambda error, record: reports.append((error, record)), **fields
        )
        if self.producer.flush(30) or not reports:
            raise RuntimeError("no word from the broker")
        error, record = reports[0]
        if error is not None:
            raise KafkaException(error)
        return record.partition(), record.offset()


class Transactions:
    """A foreign program that publishes in transactions: one that it commits, one that it gives up, one that it leaves open."""

    def __init__(self, made: Installation) -> None:
        self._made = made
        self._open: Librdkafka | None = None

    def publish(self, harvest: Harvest) -> None:
        ours = Librdkafka(self._made)
        steady = self._begin("steady")
        for name in ("in a committed transaction", "broken in a committed transaction"):
            value = b"{" if name.startswith("broken") else _request(name)
            harvest.source[name] = steady.publish(value, _TRANSACTIONS_PARTITION)
        steady.producer.commit_transaction(20)
        steady.producer.begin_transaction()
        harvest.source["in an aborted transaction"] = steady.publish(_request("in an aborted transaction"), _TRANSACTIONS_PARTITION)
        steady.producer.abort_transaction(20)
        harvest.behind["aborted"] = ours.publish(_request("behind an aborted transaction"), _TRANSACTIONS_PARTITION)
        # Its program is gone, as far as the broker can tell: it hears nothing of it until the transaction's time is over.
        self._open = self._begin("gone", **{"transaction.timeout.ms": 5_000, "message.timeout.ms": 5_000})
        harvest.source["in a transaction left open"] = self._open.publish(_request("in a transaction left open"), _TRANSACTIONS_PARTITION)
        harvest.behind["left open"] = ours.publish(_request("behind a transaction left open"), _TRANSACTIONS_PARTITION)

    def _begin(self, name: str, **options: Any) -> Librdkafka:
        client = Librdkafka(self._made, **{"transactional.id": f"{self._made.settings.topic_prefix}{name}", **options})
        client.producer.init_transactions(20)
        client.producer.begin_transaction()
        return client


async def _publish(made: Installation, case: Case, directory: Path) -> None:
    servers, topic = made.settings.kafka_bootstrap_servers or "", made.topics.requests
    if kcat.IS_INSTALLED:
        dress = {"key": case.key, "headers": case.headers, "codec": case.codec, "properties": case.properties}
        await kcat.Kcat(servers, topic).publish(case.value, directory, partition=_CASES_PARTITION, **dress)
        return
    client = Librdkafka(made, **{"compression.type": case.codec, **dict(text.split("=") for text in case.properties)})
    headers = [(name.decode(), text if equals else None) for name, equals, text in (header.partition(b"=") for header in case.headers)]
    await asyncio.to_thread(client.publish, case.value, _CASES_PARTITION, key=case.key, headers=headers)


async def _publish_all(harvest: Harvest, directory: Path) -> None:
    made = harvest.made
    ours = Librdkafka(made)
    published = [case for case in CASES if kcat.IS_INSTALLED or not case.needs_kcat]
    for number, case in enumerate(published):
        await _publish(made, case, directory)
        behind = await asyncio.to_thread(ours.publish, _request(f"behind {number}"), _CASES_PARTITION)
        if behind[1] != 2 * number + 1:
            raise RuntimeError(f"{case.name} is not one record")
        harvest.behind[case.name] = behind
        harvest.source[case.name] = (_CASES_PARTITION, behind[1] - 1)


async def _collect(harvest: Harvest, wanted: Sequence[tuple[int, int]]) -> None:
    """Waits until each of these records is answered, at most for a while: the tests say what is missing."""
    made = harvest.made
    deadline = monotonic() + _ANSWER_SECONDS_MAX
    while True:
        finals: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
        for result in await made.results():
            if result["final"]:
                finals[result["source"]["partition"], result["source"]["offset"]].append(result)
        if set(wanted) <= set(finals) or made.workers[0].poll() is not None or monotonic() > deadline:
            break
        await asyncio.sleep(0.3)
    harvest.finals = finals
    for record in await made.read(made.topics.requests_dlq):
        harvest.dead_letters.setdefault(dict(record.headers)["dlq-source"].decode(), []).append(record)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def harvest(
    servers: Endpoints, database_template: str | None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Harvest]:
    """Every case published and worked off."""
    directory = tmp_path_factory.mktemp("foreign_clients")
    prefix = f"t{uuid4().hex[:6]}."
    with fresh_database(servers.database_url, database_template) as database_url:
        async with installation(servers.kafka_bootstrap_servers, database_url, prefix, directory) as made:
            made.start_worker()
            running = Harvest(made)
            transactions = Transactions(made)
            await asyncio.to_thread(transactions.publish, running)
            await _publish_all(running, directory)
            unseen = {"in an aborted transaction", "in a transaction left open"}
            await _collect(running, [*(place for name, place in running.source.items() if name not in unseen), *running.behind.values()])
            yield running


@pytest.mark.prefers_kcat
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_foreign_record_is_answered_once_and_the_order_behind_it_executed(harvest: Harvest, case: Case) -> None:
    """One final answer with the right reason, a dead letter with the original bytes where nobody can be read, and work goes on."""
    result = harvest.final(case.name)
    assert (result["status"], result["reason_code"]) == ("executed" if case.code is None else "rejected", case.code)
    assert (result["user_id"] is None) == (result["idempotency_key"] is None) == case.anonymous
    letters = harvest.buried(case.name)
    assert [letter.value for letter in letters] == ([case.value] if case.is_buried else [])
    for letter in letters:
        # A tombstone without a key may get an empty one: not every client sends records that have neither.
        assert (letter.key or None) == (case.key.encode()[:DEAD_LETTER_KEY_BYTES_MAX] if case.key is not None else None)
        assert dict(letter.headers)["dlq-reason-code"].decode() == case.code
    harvest.assert_executed(harvest.behind[case.name])


async def test_dead_letter_keeps_the_headers_that_are_no_secrets(harvest: Harvest) -> None:
    """A name that is no UTF-8 is told as far as it can be; `authorization` and `x-totp` are gone, however they are written."""
    (letter,) = harvest.buried("broken JSON with a header named by no UTF-8")
    assert ("\\xff\\xfe", b"1") in letter.headers
    (letter,) = harvest.buried("broken JSON with secrets in headers")
    assert {name for name, _ in letter.headers} == {"dlq-source", "dlq-reason-code", "dlq-reason"}


async def test_records_of_a_committed_transaction_are_worked_off(harvest: Harvest) -> None:
    """A good order in a foreign transaction is executed, a broken record is answered and buried."""
    assert harvest.final("in a committed transaction")["status"] == "executed"
    assert harvest.final("broken in a committed transaction")["reason_code"] == "SCHEMA_INVALID"
    assert len(harvest.buried("broken in a committed transaction")) == 1


@pytest.mark.parametrize(
    ("name", "behind"),
    [("in an aborted transaction", "aborted"), ("in a transaction left open", "left open")],
    ids=["aborted", "left open"],
)
async def test_order_of_a_transaction_without_commit_is_never_executed(harvest: Harvest, name: str, behind: str) -> None:
    """Nobody answers or executes what its own producer did not commit; the order behind it is executed."""
    harvest.assert_executed(harvest.behind[behind])
    assert harvest.source[name][1] < harvest.behind[behind][1]
    assert harvest.source[name] not in harvest.finals
    keys = [result["idempotency_key"] for results in harvest.finals.values() for result in results]
    assert name not in keys


async def test_exchange_has_the_executed_orders_and_no_other(harvest: Harvest) -> None:
    """By the exchange's own log: one order for each executed answer."""
    executed = [result["client_order_id"] for results in harvest.finals.values() for result in results if result["status"] == "executed"]
    accepted = [record.client_order_id for record in harvest.made.accepted_orders()]
    assert sorted(accepted) == sorted(executed)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_broker_refuses_what_grows_beyond_the_limit_when_it_is_unpacked(harvest: Harvest, codec: str) -> None:
    """Eight megabytes that travel as a few kilobytes never reach a worker, whatever they are packed with; the producer is told."""
    client = Librdkafka(harvest.made, **{"compression.type": codec, "message.max.bytes": 20_000_000})
    with pytest.raises(KafkaException) as refused:
        await asyncio.to_thread(client.publish, b"\x00" * 8_000_000, _CASES_PARTITION)
    assert refused.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE


async def test_requests_topic_that_keeps_what_producers_packed_is_refused(kafka: str, unique_prefix: str) -> None:
    """On a topic that was made without us, and lets any codec through, no worker starts: it could stop for ever at the first record."""
    settings = Settings(topic_prefix=unique_prefix)
    requests = next(spec for spec in Topics(unique_prefix).specs(()) if spec.name.endswith("trade.requests"))
    config = {**requests.config, "cleanup.policy": requests.cleanup_policy, "compression.type": "producer"}
    admin = AdminClient({"bootstrap.servers": kafka})
    await asyncio.to_thread(admin.create_topics([NewTopic(requests.name, 1, 1, config=config)])[requests.name].result, 20)
    with pytest.raises(TopicsUnfit, match=r"compression\.type is producer, must be uncompressed"):
        await ensure_topics(settings, kafka)


async def test_secrets_in_headers_and_unknown_fields_are_nowhere(harvest: Harvest) -> None:
    """No topic but the producers' own, no table, no log has a token or a code that came in a header or in a field that is none."""
    made = harvest.made
    places: dict[str, Iterable[bytes]] = {
        f"log of {file.name}": [file.read_bytes()] for file in [*made.log_directory.glob("*.log"), made.exchange_log]
    }
    topics = made.topics
    for topic in (topics.orders("binance"), topics.reports, topics.results, topics.audit, topics.state, topics.requests_dlq):
        places[topic] = [_all_of(record) for record in await made.read(topic)]
    places |= await _tables(made)
    secrets = [text.encode() for text in (_TOKEN, _TOTP)]
    assert [name for name, texts in places.items() if any(secret in text for text in texts for secret in secrets)] == []
    # What is looked at is not nothing.
    assert [name for name in (topics.results, "table orders") if _TRACEPARENT.encode() not in b"".join(places[name])] == []


def _all_of(record: ConsumerRecord) -> bytes:
    headers = b"".join(name.encode() + b"=" + (text or b"") for name, text in record.headers)
    return (record.key or b"") + (record.value or b"") + headers


async def _tables(made: Installation) -> dict[str, list[bytes]]:
    """Each table's rows as text, and what input partitions are about to publish."""
    if made.settings.database_url is None:
        raise RuntimeError("an installation has a database")
    connection = await asyncpg.connect(made.settings.database_url.get_secret_value(), timeout=10)
    try:
        names = [row["tablename"] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        found = {}
        for name in names:
            rows = await connection.fetch(f'SELECT row_to_json(rows)::text AS text FROM "{name}" AS rows')  # noqa: S608 — names of tables
            found[f"table {name}"] = [row["text"].encode() for row in rows]
        packed = await connection.fetch("SELECT outputs, carried FROM input_partitions")
        found["outputs"] = [repr(unpack(text)).encode() for row in packed for text in row]
    finally:
        await connection.close(timeout=10)
    return found


async def test_promises_hold_after_foreign_records(harvest: Harvest) -> None:
    """After all of that: nothing lost, answered twice or executed twice, and nothing is behind."""
    await assert_promises_hold(harvest.made)
