"""Reads topics from their beginning to their end as of now, as a fresh read_committed consumer without a group sees them.

A reading that makes no progress for `SILENT_SECONDS_MAX` ends with Retryable instead of waiting for ever.
"""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from infra.kafka.connection import client_options
from infra.settings import Settings
from pipeline.model.invariants import Retryable
from schemas.results import RESULT
from schemas.topics import Topics
from schemas.wire import SourceOffset
from verification.promises.answers import Answers
from verification.promises.dead_letters import DeadLetters
from verification.promises.progress import PartitionProgress
from verification.promises.trail import TopicTrail

SILENT_SECONDS_MAX: Final = 30.0
_TIMEOUT_MS: Final = 15_000
_FETCH_BYTES_MAX: Final = 16 * 1024 * 1024

Take = Callable[[ConsumerRecord], None]


class TopicReader:
    """What the topics say. Filled by `read`."""

    def __init__(self, topics: Topics) -> None:
        self.answers = Answers()
        self.trail = TopicTrail()
        self.dead_letters = DeadLetters()
        self.snapshots: dict[str, bytes] = {}
        self.takes: dict[str, Take] = {
            topics.requests: self._request,
            topics.results: self._result,
            topics.audit: self._audit,
            topics.state: self._state,
            topics.requests_dlq: self._dead_letter,
        }

    def _request(self, record: ConsumerRecord) -> None:
        source = SourceOffset(record.topic, record.partition, record.offset)
        self.answers.add_request(source, record.timestamp)
        self.dead_letters.add_request(source, record.key, record.value)

    def _dead_letter(self, record: ConsumerRecord) -> None:
        where = f"{record.topic}/{record.partition}/{record.offset}"
        self.dead_letters.add_dead_letter(record.key, record.value, list(record.headers), where)

    def _result(self, record: ConsumerRecord) -> None:
        try:
            result = RESULT.validate_json(record.value or b"")
        except ValueError:
            self.answers.unreadable.append(f"{record.topic}/{record.partition}/{record.offset} is no result as the contract has it")
            return
        self.answers.add_result(result, record.value, record.timestamp)

    def _audit(self, record: ConsumerRecord) -> None:
        self.trail.add(record.key, record.value, f"{record.topic}/{record.partition}/{record.offset}")

    def _state(self, record: ConsumerRecord) -> None:
        # One key is always on one partition, so the last one read is the newest.
        key = (record.key or b"").decode(errors="replace")
        if record.value is None:
            self.snapshots.pop(key, None)
        else:
            self.snapshots[key] = record.value


async def read_topics(settings: Settings, bootstrap_servers: str, takes: Mapping[str, Take]) -> None:
    """Hands every record of the topics to its function, per partition in order. Raises Retryable without a broker or a topic."""
    consumer = AIOKafkaConsumer(
        **client_options(settings, bootstrap_servers),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=_TIMEOUT_MS,
        fetch_max_wait_ms=100,
        fetch_max_bytes=_FETCH_BYTES_MAX,
        max_partition_fetch_bytes=_FETCH_BYTES_MAX // 4,
    )
    try:
        await consumer.start()
        try:
            partitions = await _partitions_of(settings, bootstrap_servers, list(takes))
            await _read_to_end(consumer, partitions, takes)
        finally:
            await consumer.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        raise Retryable(f"the broker is out of reach ({type(error).__name__}: {error})") from error


async def _read_to_end(consumer: AIOKafkaConsumer, partitions: list[TopicPartition], takes: Mapping[str, Take]) -> None:
    ends = await consumer.end_offsets(partitions)
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    left = set(partitions)
    heard_at = monotonic()
    while left:
        fetched = await consumer.getmany(timeout_ms=500, max_records=5_000)
        for records in fetched.values():
            for record in records:
                takes[record.topic](record)
        # The position also moves past the markers of transactions, which no record shows.
        done = {partition for partition in left if await consumer.position(partition) >= ends[partition]}
        if fetched or done:
            heard_at = monotonic()
        elif monotonic() - heard_at > SILENT_SECONDS_MAX:
            raise Retryable(f"no more records of {', '.join(sorted({tp.topic for tp in left}))} came for {SILENT_SECONDS_MAX:.0f} s")
        left -= done
        for partition in done:
            consumer.pause(partition)


async def _partitions_of(settings: Settings, bootstrap_servers: str, topics: Sequence[str]) -> list[TopicPartition]:
    admin = AIOKafkaAdminClient(**client_options(settings, bootstrap_servers), request_timeout_ms=_TIMEOUT_MS)
    try:
        await admin.start()
        described = await admin.describe_topics(list(topics))
    finally:
        await admin.close()
    missing = [row["topic"] for row in described if row["error_code"]]
    if missing:
        raise Retryable(f"topics are missing: {', '.join(sorted(missing))}. Workers create them when they start")
    return [TopicPartition(row["topic"], partition["partition"]) for row in described for partition in row["partitions"]]


async def read_ends(settings: Settings, bootstrap_servers: str, names: Sequence[str]) -> dict[TopicPartition, int]:
    """Where a read_committed consumer sees the end of each partition of these topics. Raises Retryable without a broker or a topic."""
    options = client_options(settings, bootstrap_servers)
    consumer = AIOKafkaConsumer(**options, isolation_level="read_committed", enable_auto_commit=False, request_timeout_ms=_TIMEOUT_MS)
    try:
        await consumer.start()
        try:
            partitions = await _partitions_of(settings, bootstrap_servers, names)
            ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        finally:
            await consumer.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        raise Retryable(f"the broker is out of reach ({type(error).__name__}: {error})") from error
    return ends


async def read_offsets(settings: Settings, bootstrap_servers: str) -> list[PartitionProgress]:
    """End and committed offset of every input partition, without the database's part. Raises Retryable without a broker."""
    topics = Topics(settings.topic_prefix)
    names = [topics.requests, topics.reports, topics.commands, *(topics.orders(exchange) for exchange in settings.exchanges)]
    ends = await read_ends(settings, bootstrap_servers, names)
    admin = AIOKafkaAdminClient(**client_options(settings, bootstrap_servers), request_timeout_ms=_TIMEOUT_MS)
    try:
        try:
            await admin.start()
            committed = await admin.list_consumer_group_offsets(settings.consumer_group, partitions=list(ends))
        finally:
            await admin.close()
    except (KafkaError, OSError, TimeoutError) as error:
        raise Retryable(f"the broker is out of reach ({type(error).__name__}: {error})") from error
    found = {partition: row.offset for partition, row in committed.items() if row.offset >= 0}
    return [PartitionProgress(tp.topic, tp.partition, ends[tp], found.get(tp), None) for tp in sorted(ends)]
