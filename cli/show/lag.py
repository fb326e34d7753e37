"""`lag`: how far each agent is behind its input topic, and what waits in the database, each with the age of the oldest.

Start with `measure_lag`.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from cli.access.database import Row, reading
from cli.access.installation import Installation
from cli.show.waiting import halted_exchanges, unpublished_rows, waiting_rows
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import Cell, reason_of, say, table_lines, to_json, write_line
from infra.kafka.connection import client_options
from infra.settings import Settings
from schemas.topics import Topics

_SECONDS_MAX: Final = 12.0
# A record that is there is told at once; none comes where the rest of the partition belongs to an open transaction.
_RECORD_SECONDS_MAX: Final = 2.0
_UNKNOWN_GROUP_OFFSET: Final = -1


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """`committed` None: no worker has ever finished a batch. `oldest` is the append time of the first record that is not worked off, None
    where there is none or where it is not readable yet."""

    topic: str
    partition: int
    committed: int | None
    end: int
    behind: int
    oldest: datetime | None

    def row(self, now: datetime) -> dict[str, Cell]:
        age = None if self.oldest is None else max(0, round((now - self.oldest).total_seconds()))
        return {
            "topic": self.topic,
            "partition": self.partition,
            "committed": self.committed,
            "end": self.end,
            "behind": self.behind,
            "oldest_at": self.oldest,
            "age_seconds": age,
        }


def input_topics(settings: Settings) -> tuple[str, ...]:
    """The topics that agents read."""
    topics = Topics(settings.topic_prefix)
    return (topics.requests, *(topics.orders(exchange) for exchange in settings.exchanges), topics.reports, topics.commands)


async def committed_offsets(client: dict[str, Any], group: str, topics: tuple[str, ...]) -> dict[TopicPartition, int]:
    """The group's committed offsets for these topics, -1 where a partition has none. Topics that do not exist are left out.

    Raises what aiokafka raises when the broker is out of reach.
    """
    admin = AIOKafkaAdminClient(**client, request_timeout_ms=8_000)
    try:
        await asyncio.wait_for(admin.start(), 8)
        existing = set(await admin.list_topics())
        wanted = [topic for topic in topics if topic in existing]
        described = await admin.describe_topics(wanted) if wanted else []
        partitions = [TopicPartition(topic["topic"], row["partition"]) for topic in described for row in topic["partitions"]]
        stored = await admin.list_consumer_group_offsets(group, partitions=partitions) if partitions else {}
        return {partition: stored[partition].offset if partition in stored else _UNKNOWN_GROUP_OFFSET for partition in partitions}
    finally:
        await admin.close()


async def measure_lag(installation: Installation) -> list[PartitionLag]:
    """One row per input partition, by topic and number. Raises CommandFailed when the broker is out of reach or has no topics."""
    settings = installation.settings
    client = client_options(settings, installation.kafka)
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            offsets = await committed_offsets(client, settings.consumer_group, input_topics(settings))
            return await _measured(client, offsets)
    except (KafkaError, OSError, TimeoutError) as error:
        raise installation.out_of_reach("broker", installation.kafka, reason_of(error)) from None


async def _measured(client: dict[str, Any], offsets: dict[TopicPartition, int]) -> list[PartitionLag]:
    if not offsets:
        raise CommandFailed(
            "The broker has none of the topics yet: no worker has started against it. Nothing waits. Check ORCHESTRATOR_TOPIC_PREFIX, or "
            "start a worker.",
            Exit.OUT_OF_REACH,
        )
    partitions = sorted(offsets)
    consumer = AIOKafkaConsumer(**client, isolation_level="read_committed", enable_auto_commit=False, request_timeout_ms=8_000)
    await consumer.start()
    try:
        consumer.assign(partitions)
        begins, ends = await asyncio.gather(consumer.beginning_offsets(partitions), consumer.end_offsets(partitions))
        starts = {partition: offset if offset >= 0 else begins[partition] for partition, offset in offsets.items()}
        behind = {partition: max(0, ends[partition] - starts[partition]) for partition in partitions}
        oldest = await _oldest(consumer, {partition: starts[partition] for partition in partitions if behind[partition]})
    finally:
        await consumer.stop()
    return [
        PartitionLag(
            partition.topic,
            partition.partition,
            offsets[partition] if offsets[partition] >= 0 else None,
            ends[partition],
            behind[partition],
            oldest.get(partition),
        )
        for partition in partitions
    ]


async def _oldest(consumer: AIOKafkaConsumer, starts: dict[TopicPartition, int]) -> dict[TopicPartition, datetime]:
    """The append time of the first readable record from each offset on."""
    found: dict[TopicPartition, datetime] = {}
    if not starts:
        return found
    consumer.assign(list(starts))
    for partition, offset in starts.items():
        consumer.seek(partition, offset)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _RECORD_SECONDS_MAX
    while len(found) < len(starts) and (left := deadline - loop.time()) > 0:
        missing = [partition for partition in starts if partition not in found]
        for partition, records in (await consumer.getmany(*missing, timeout_ms=int(left * 1000) + 1, max_records=len(missing))).items():
            if records:
                found.setdefault(partition, datetime.fromtimestamp(records[0].timestamp / 1000, UTC))
    return found


async def show_lag(installation: Installation, *, as_json: bool) -> Exit:
    """Prints the lag of every input partition, and all that waits in the database. Raises CommandFailed without a broker.

    Returns OUT_OF_REACH where the database does not answer: what is in Kafka is shown all the same.
    """
    partitions = await measure_lag(installation)
    now = datetime.now(UTC)
    committed = {(lag.topic, lag.partition): lag.committed for lag in partitions if lag.committed is not None}
    failure: CommandFailed | None = None
    waiting: list[Row] = []
    halted: tuple[bool, frozenset[str]] = (False, frozenset())
    try:
        async with reading(installation) as connection:
            waiting = await waiting_rows(connection, now)
            waiting += await unpublished_rows(connection, installation.settings.consumer_group, committed, now)
            halted = await halted_exchanges(connection)
    except CommandFailed as error:
        failure = error
    rows = [_with_reason(installation, lag.row(now), halted) for lag in partitions]
    if as_json:
        write_line(to_json([*rows, *({**_NO_PARTITION, **row, "behind": row["count"]} for row in waiting)]))
    else:
        columns = ("topic", "partition", "committed", "end", "behind", "oldest_at", "age_seconds", "held_by")
        lines = ["== records that no worker has finished", *table_lines(rows, columns), "", "== what waits in the database"]
        lines += table_lines(waiting, _WAITING_COLUMNS) if waiting else ["not known" if failure is not None else "nothing"]
        write_line("\n".join(lines))
    if failure is None:
        return Exit.DONE
    say(str(failure))
    return Exit.OUT_OF_REACH


_WAITING_COLUMNS: Final = ("what", "exchange", "status", "count", "oldest_at", "age_seconds", "held_by")
# In JSON every row has every name.
_NO_PARTITION: Final[Row] = {"topic": None, "partition": None, "committed": None, "end": None}
_NO_DATABASE_ROW: Final[Row] = {"what": "records", "exchange": None, "status": None}


def _with_reason(installation: Installation, row: Row, halted: tuple[bool, frozenset[str]]) -> Row:
    """A partition's row with who holds it up: a halt holds the queue of its exchange, else it is the workers' turn."""
    topics = Topics(installation.settings.topic_prefix)
    exchange = next((name for name in installation.settings.exchanges if topics.orders(name) == row["topic"]), None)
    is_halted = exchange is not None and (halted[0] or exchange in halted[1])
    held_by = None if not row["behind"] else "a halt" if is_halted else "workers"
    return {**row, **_NO_DATABASE_ROW, "exchange": exchange, "count": row["behind"], "held_by": held_by}
