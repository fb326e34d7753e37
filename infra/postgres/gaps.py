"""Missing records of input partitions, as the database remembers them: found by a worker, accepted by an operator, passed by a worker.

Invariants:
1. A partition has at most one gap that is not passed. A gap that was found stays one, even where the log has grown over it since.
2. It is passed in the database transaction that moves the partition's row, and only when it was accepted as it is.
3. Who accepted it, when and why stands in the row and in the audit trail of administration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from infra.postgres.database import Connection, Database, InputPartition
from pipeline.model.gaps import Gap

_OPEN: Final = """
    SELECT topic, partition, position, log_start, log_end, found_at, accepted_at, accepted_by, reason FROM offset_gaps
    WHERE consumer_group = $1 AND passed_at IS NULL ORDER BY topic, partition
"""
_FOUND: Final = """
    INSERT INTO offset_gaps (consumer_group, topic, partition, position, log_start, log_end, found_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (consumer_group, topic, partition) WHERE passed_at IS NULL
    DO UPDATE SET log_start = EXCLUDED.log_start, log_end = EXCLUDED.log_end, found_at = EXCLUDED.found_at
    WHERE offset_gaps.accepted_at IS NULL AND EXCLUDED.log_start > offset_gaps.log_start
"""
_PASSED: Final = """
    UPDATE offset_gaps SET passed_at = $4 WHERE consumer_group = $1 AND topic = $2 AND partition = $3 AND passed_at IS NULL
        AND accepted_at IS NOT NULL AND position = $5
"""


@dataclass(frozen=True, slots=True)
class OpenGap:
    """A gap that its partition stands at. `accepted_by` is None until an operator has accepted the loss."""

    topic: str
    partition: int
    gap: Gap
    found_at: datetime
    accepted_at: datetime | None
    accepted_by: str | None
    reason: str | None


async def open_gaps(database: Database, consumer_group: str) -> Sequence[OpenGap]:
    """Every gap of the group that is not passed yet. Raises Retryable when the database is out of reach."""
    async with database.connection() as connection:
        return await open_gaps_in(connection, consumer_group)


async def open_gaps_in(connection: Connection, consumer_group: str) -> list[OpenGap]:
    rows = await connection.fetch(_OPEN, consumer_group)
    return [OpenGap(row[0], row[1], Gap(row[2], row[3], row[4]), *row[5:]) for row in map(tuple, rows)]


async def open_gap(database: Database, partition: InputPartition) -> OpenGap | None:
    """The gap that a partition stands at. Raises Retryable when the database is out of reach."""
    found = await open_gaps(database, partition.consumer_group)
    return next((row for row in found if (row.topic, row.partition) == (partition.topic, partition.partition)), None)


async def note_gap(database: Database, partition: InputPartition, gap: Gap, now: datetime) -> None:
    """Remembers a gap; one that has grown since, and that nobody has accepted yet, is noted as it is now."""
    async with database.connection() as connection:
        await connection.execute(
            _FOUND, partition.consumer_group, partition.topic, partition.partition, gap.position, gap.log_start, gap.log_end, now
        )


async def note_passed(connection: Connection, partition: InputPartition, position: int, now: datetime) -> bool:
    """Closes an accepted gap, in the transaction that moves its partition; False where there is none at this position."""
    status = await connection.execute(_PASSED, partition.consumer_group, partition.topic, partition.partition, now, position)
    return status == "UPDATE 1"
