"""The quarantine in the database: what was set aside, whether there is room for more, and what operators do with it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgpack
from asyncpg import Record
from asyncpg.pool import PoolConnectionProxy

from infra.postgres.rows import SOURCE, Columns, plain, source_of
from pipeline.model.quarantine import QuarantinedRecord, QuarantineState
from schemas.wire import SourceOffset

# The newest open entry of the same subject and failure stands for what is found again and again.
_SAME: Final = """
    UPDATE quarantine SET repeats = repeats + 1, last_at = $5
    WHERE quarantine_id = (
        SELECT quarantine_id FROM quarantine
        WHERE source_topic = $1 AND subject = $2 AND subject <> '' AND error = $3 AND place = $4 AND state = 'open'
        ORDER BY set_aside_at DESC LIMIT 1
    )
"""
# A user whose rows are damaged meets each of his records: he alone must not use up what all share.
_ROOM: Final = """
    SELECT coalesce(sum(least(records, $4)), 0)::integer AS shared, coalesce(sum(records), 0)::integer AS all
    FROM (
        SELECT count(*) AS records FROM quarantine
        WHERE source_topic = $1 AND source_partition = $2 AND set_aside_at > $3
        GROUP BY CASE user_id WHEN '' THEN quarantine_id ELSE user_id END
    ) AS of_user
"""

QUARANTINE: Columns[QuarantinedRecord] = Columns(
    "quarantine",
    (
        *plain(text="quarantine_id", timestamptz="appended_at", bigint="value_bytes", boolean="sparing"),
        *SOURCE,
        ("record_key", "bytea", lambda one: one.key),
        ("record_value", "bytea", lambda one: one.value),
        ("record_headers", "bytea", lambda one: msgpack.packb(one.headers)),
        ("stage", "text", lambda one: one.failure.stage.value),
        ("error", "text", lambda one: one.failure.error),
        ("place", "text", lambda one: one.failure.place),
        ("what", "text", lambda one: one.failure.text),
        ("user_id", "text", lambda one: one.named.user_id),
        ("subject", "text", lambda one: one.named.subject),
    ),
)


@dataclass(frozen=True, slots=True)
class Room:
    """How many records of a partition were set aside within the window: each user's counted up to a share, and all."""

    shared: int
    all: int


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry as `quarantine retry` and `drop` need it. `value_bytes` tells whether `value` is whole."""

    quarantine_id: str
    source: SourceOffset
    key: bytes | None
    value: bytes | None
    value_bytes: int
    headers: tuple[tuple[str, bytes], ...]
    subject: str
    state: QuarantineState


async def room_of(connection: PoolConnectionProxy, topic: str, partition: int, since: datetime, user_share: int) -> Room:
    """What was set aside of a partition since then. `user_share` is how many of one user count at most."""
    row = await connection.fetchrow(_ROOM, topic, partition, since, user_share)
    return Room(row["shared"], row["all"]) if row is not None else Room(0, 0)


async def is_kept(connection: PoolConnectionProxy, quarantine_id: str) -> bool:
    """Whether there is such an entry."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM quarantine WHERE quarantine_id = $1)", quarantine_id))


async def note_repeat(connection: PoolConnectionProxy, topic: str, subject: str, error: str, place: str, now: datetime) -> bool:
    """Counts the same failure of the same subject again; False where no open entry stands for it."""
    status: str = await connection.execute(_SAME, topic, subject, error, place, now)
    return status != "UPDATE 0"


def kept_of(row: Record) -> Kept:
    """One row of `quarantine`."""
    return Kept(
        quarantine_id=row["quarantine_id"],
        source=source_of(row),
        key=row["record_key"],
        value=row["record_value"],
        value_bytes=row["value_bytes"],
        headers=tuple((name, value) for name, value in msgpack.unpackb(row["record_headers"])),
        subject=row["subject"],
        state=QuarantineState(row["state"]),
    )
