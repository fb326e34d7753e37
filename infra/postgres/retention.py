"""Removes what is over and counts for nothing any more, in bounded parts: rows of the working tables, and snapshots of the state topic.

Never removed: orders, withdrawals, deposits, transfers and audit events. They are the books.

Invariants:
1. A statement deletes at most `PART` rows, and passes over what another worker has locked.
2. What decisions still look at is younger than what is deleted: results count for a day, a claim until its key's lifetime is over
   (`Rules.key_lifetime`), a closed quarantine entry for the window of its limit. For results the database refuses it as well.
3. `removing_until` is stored before snapshots are removed and `removed_until` after, so that verification knows at all times which may be
   missing, and a worker that dies in between begins that part again.
"""

from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final, Literal

from infra.postgres.database import Database
from infra.postgres.rows import KEY_LIVES_FROM
from schemas.times import EARLIEST

PART: Final = 5_000
_SECONDS_MAX: Final = 5.0

StateKind = Literal["order", "withdrawal", "deposit"]

# By table: the time that an index has, and what is over besides, as a condition on rows; `$1` is the time before which it must have been.
_OVER: Final = {
    "claims": ("claimed_at", f"result IS NOT NULL AND {KEY_LIVES_FROM} <= $1"),
    "cancels": ("decided_at", "ended"),
    "realised_results": ("recorded_at", "true"),
    "quarantine": ("moved_at", "true"),
    "doubt_looks": (
        "looked_at",
        "NOT EXISTS (SELECT FROM orders WHERE orders.order_id = doubt_looks.order_id AND orders.executed_at IS NULL) AND NOT EXISTS "
        "(SELECT FROM withdrawals WHERE withdrawal_id = doubt_looks.order_id AND withdrawals.executed_at IS NULL)",
    ),
}
TABLES: Final = tuple(table for table in _OVER if table != "claims")

# By kind: table, key, when it was over, and what is not over by that alone.
_ENDED: Final[dict[StateKind, tuple[str, str, str, str]]] = {
    "order": ("orders", "order_id", "executed_at", "executed_at IS NOT NULL"),
    "withdrawal": ("withdrawals", "withdrawal_id", "executed_at", "executed_at IS NOT NULL"),
    "deposit": ("deposits", "deposit_id", "updated_at", "status IN ('credited', 'reversed', 'rejected')"),
}


async def purge(database: Database, table: str, older_than: datetime) -> int:
    """Deletes rows of one table that were over at `older_than`; returns how many. Stops after some seconds; what is left goes the next
    time. Raises Retryable when the database is out of reach."""
    time, is_over = _OVER[table]
    purged, part = 0, PART
    stop_at = monotonic() + _SECONDS_MAX
    while part == PART and monotonic() < stop_at:
        async with database.connection() as connection:
            status = await connection.execute(
                f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("  # noqa: S608 — literals of this module
                f"SELECT ctid FROM {table} WHERE {time} <= $1 AND {is_over} ORDER BY {time} LIMIT $2 FOR UPDATE SKIP LOCKED))",
                older_than,
                PART,
            )
        part = int(status.rsplit(" ", 1)[-1])
        purged += part
    return purged


async def purge_claims(database: Database, older_than: datetime) -> int:
    """Deletes claims whose request was over at `older_than`; returns how many. A claim whose request still runs is kept, however old."""
    return await purge(database, "claims", older_than)


@dataclass(frozen=True, slots=True)
class EndedPart:
    """Keys of one kind that were over, in the order in which they were, and where the part ends."""

    kind: StateKind
    exchange: str
    keys: tuple[str, ...]
    until: datetime
    last_id: str


async def next_ended(database: Database, kind: StateKind, exchange: str, older_than: datetime, limit: int) -> EndedPart | None:
    """The next part of what was over at `older_than` and whose snapshots are not known to be removed; None where there is none.

    Stores that its removal begins. Raises Retryable when the database is out of reach.
    """
    table, key, over_at, is_over = _ENDED[kind]
    async with database.connection() as connection, connection.transaction():
        row = await connection.fetchrow(
            "SELECT removed_until, removed_id FROM state_retention WHERE kind = $1 AND exchange = $2", kind, exchange
        )
        after, after_id = (EARLIEST, "") if row is None else (row["removed_until"], row["removed_id"])
        rows = await connection.fetch(
            f"SELECT {key} AS key, {over_at} AS over_at FROM {table} "  # noqa: S608 — literals of this module
            f"WHERE exchange = $1 AND {is_over} AND ({over_at}, {key}) > ($2, $3) AND {over_at} <= $4 ORDER BY {over_at}, {key} LIMIT $5",
            exchange,
            after,
            after_id,
            older_than,
            limit,
        )
        if not rows:
            return None
        part = EndedPart(kind, exchange, tuple(row["key"] for row in rows), rows[-1]["over_at"], rows[-1]["key"])
        await connection.execute(
            "INSERT INTO state_retention (kind, exchange, removed_until, removed_id, removing_until) VALUES ($1, $2, $3, '', $4) "
            "ON CONFLICT (kind, exchange) DO UPDATE SET removing_until = greatest(state_retention.removing_until, EXCLUDED.removing_until)",
            kind,
            exchange,
            EARLIEST,
            part.until,
        )
    return part


async def note_removed(database: Database, part: EndedPart) -> None:
    """Notes that the snapshots of a part are gone. Raises Retryable when the database is out of reach."""
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE state_retention SET removed_until = $3, removed_id = $4 "
            "WHERE kind = $1 AND exchange = $2 AND (removed_until, removed_id) < ($3, $4)",
            part.kind,
            part.exchange,
            part.until,
            part.last_id,
        )
