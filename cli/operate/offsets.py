"""`offsets`: where each input partition stands in the database, what its log still holds, and losses that an operator accepts.

Start with `measure_offsets`. What a worker does where records are missing is in `agents.steps.gap_watch`.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from sqlalchemy import text

from cli.access.administration import asking, change
from cli.access.confirmation import confirm
from cli.access.database import reading
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.show.lag import input_topics
from cli.terminal.exits import Exit
from cli.terminal.output import Cell, print_table, printable, reason_of, say
from infra.kafka.connection import client_options
from infra.postgres.admin.administration import Done
from infra.postgres.admin.gaps import accept_loss
from infra.postgres.admin.operators import By
from infra.postgres.database import Database
from pipeline.model.gaps import Gap, gap_of

_SECONDS_MAX: Final = 12.0
_PARTITIONS: Final = text("""
    SELECT stored.topic, stored.partition, stored.next_offset, gaps.position, gaps.log_start, gaps.log_end, gaps.accepted_by
    FROM input_partitions AS stored
    LEFT JOIN offset_gaps AS gaps ON gaps.passed_at IS NULL
        AND (gaps.consumer_group, gaps.topic, gaps.partition) = (stored.consumer_group, stored.topic, stored.partition)
    WHERE stored.consumer_group = :group AND stored.topic = ANY(:topics) ORDER BY stored.topic, stored.partition
""")


@dataclass(frozen=True, slots=True)
class PartitionOffsets:
    """`position` is what the database says is done; the log has records from `log_start` to before `log_end`. `gap` is what is missing, as
    a worker has found it or as it shows now; `accepted_by` who lets the partition go on without it."""

    topic: str
    partition: int
    position: int
    log_start: int
    log_end: int
    gap: Gap | None
    accepted_by: str | None

    def row(self) -> dict[str, Cell]:
        return {
            "topic": self.topic,
            "partition": self.partition,
            "position": self.position,
            "log_start": self.log_start,
            "log_end": self.log_end,
            "missing": "" if self.gap is None else f"{self.gap.lost[0]}-{self.gap.lost[1] - 1}",
            "resume_at": None if self.gap is None else self.gap.resume_at,
            "accepted_by": self.accepted_by,
        }


async def measure_offsets(installation: Installation) -> list[PartitionOffsets]:
    """One row per input partition that a worker has owned. Raises CommandFailed when broker or database is out of reach."""
    settings = installation.settings
    async with reading(installation) as connection:
        arguments = {"group": settings.consumer_group, "topics": list(input_topics(settings))}
        rows = (await connection.execute(_PARTITIONS, arguments)).all()
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            ranges = await _log_ranges(client_options(settings, installation.kafka), [TopicPartition(row[0], row[1]) for row in rows])
    except (KafkaError, OSError, TimeoutError) as error:
        raise installation.out_of_reach("broker", installation.kafka, reason_of(error)) from None
    found = []
    for topic, partition, next_offset, position, log_start, log_end, accepted_by in rows:
        known = None if position is None else Gap(position, log_start, log_end)
        start, end = ranges.get(TopicPartition(topic, partition), (0, 0))
        # A worker that has just begun with a partition has -1 there for a moment.
        gap = known or gap_of(max(0, next_offset), start, end)
        found.append(PartitionOffsets(topic, partition, next_offset, start, end, gap, accepted_by))
    return found


async def _log_ranges(client: dict[str, Any], partitions: list[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
    consumer = AIOKafkaConsumer(**client, enable_auto_commit=False, request_timeout_ms=8_000)
    await consumer.start()
    try:
        # Only what is there: a client waits for a topic that is not until its time is up.
        known = await consumer.topics()
        present = [partition for partition in partitions if partition.topic in known]
        if not present:
            return {}
        consumer.assign(present)
        begins, ends = await consumer.beginning_offsets(present), await consumer.end_offsets(present)
    finally:
        await consumer.stop()
    return {partition: (begins[partition], ends[partition]) for partition in present}


async def show_offsets(installation: Installation, *, as_json: bool) -> Exit:
    """Prints every input partition; NOT_SO where records are missing."""
    found = await measure_offsets(installation)
    columns = ("topic", "partition", "position", "log_start", "log_end", "missing", "resume_at", "accepted_by")
    print_table([row.row() for row in found], columns, as_json=as_json, nothing="No worker has owned an input partition yet.")
    missing = [row for row in found if row.gap is not None]
    for row in missing:
        say(f"{row.topic}/{row.partition}: {row.gap}.")
    if missing:
        say(
            "These partitions stand, the others go on. Find the records elsewhere (a mirror, the producers), or accept the loss with "
            "`orchestrator offsets accept-loss TOPIC PARTITION --from POSITION --to RESUME_AT --reason TEXT`."
        )
    return Exit.NOT_SO if missing else Exit.DONE


async def accept(
    installation: Installation,
    *,
    topic: str,
    partition: int,
    position: int,
    resume_at: int,
    reason: str,
    yes: bool,
    credentials: Credentials,
) -> None:
    """Lets a partition go on that stands at just these missing records. Raises CommandFailed."""
    asked = asking("offsets accept-loss", f"{topic}/{partition}", credentials, reason)
    missing = printable(f"records {position} to {resume_at - 1} of {topic}/{partition}")
    await asyncio.to_thread(confirm, "offsets accept-loss", missing, yes)

    async def accepted(database: Database, by: By) -> Done:
        return await accept_loss(database, installation.settings.consumer_group, topic, partition, position, resume_at, by)

    await change(installation, asked, accepted)
