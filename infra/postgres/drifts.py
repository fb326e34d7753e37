"""Differences between the ledger and the exchanges' balances: columns, how a batch writes them (infra/postgres/storing), and reading."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from asyncpg import Record
from asyncpg.pool import PoolConnectionProxy

from infra.postgres.rows import Columns, columns_of, fields_of, plain
from pipeline.books.changes import Changes
from pipeline.model.drift import StoredDrift

if TYPE_CHECKING:
    from infra.postgres.database import Database

DRIFTS: Columns[StoredDrift] = Columns(
    "balance_drifts",
    plain(
        text="user_id exchange asset",
        numeric="ledger_amount exchange_amount usd",
        timestamptz="first_seen_at last_seen_at found_at above_since",
    ),
)


# A part of a batch's statement: its name, its text from the number of its first parameter on, its parameters, and the rows it must write.
Part = tuple[str, Callable[[int], str], list[list[object]], int]


@dataclass(frozen=True, slots=True)
class DriftCount:
    """How many drifts of an exchange there are, and since when the oldest."""

    drifts: int
    oldest_at: datetime


def drift_of(row: Record) -> StoredDrift:
    """One row of `balance_drifts`. Raises RowUnreadable."""
    return StoredDrift(**fields_of(row, DRIFTS))


def drift_parts(changes: Changes) -> list[Part]:
    """What a batch writes and removes."""
    moved = sorted(changes.drifts_moved)
    kept = {key: changes.drifts[key[:2]].get(key[2]) for key in moved}
    rows = [drift for drift in kept.values() if drift is not None]
    gone = [key for key, drift in kept.items() if drift is None]
    parts: list[Part] = []
    if rows:
        parts.append(("drifts_seen", lambda first: DRIFTS.upsert(first, 3), DRIFTS.arrays(rows), len(rows)))
    if gone:
        parts.append(("drifts_gone", _gone, columns_of(gone, 3), len(gone)))
    return parts


def _gone(first: int) -> str:
    return (
        "DELETE FROM balance_drifts USING "  # noqa: S608 — literals
        f"unnest(${first}::text[], ${first + 1}::text[], ${first + 2}::text[]) AS given (user_id, exchange, asset) "
        "WHERE balance_drifts.user_id = given.user_id AND balance_drifts.exchange = given.exchange AND balance_drifts.asset = given.asset"
    )


async def drifts_of_users(connection: PoolConnectionProxy, user_ids: Sequence[str]) -> dict[tuple[str, str], dict[str, StoredDrift]]:
    """The drifts of these users, by (user, exchange) and asset."""
    found: dict[tuple[str, str], dict[str, StoredDrift]] = {}
    for row in await connection.fetch(f"SELECT {DRIFTS.names} FROM balance_drifts WHERE user_id = ANY($1::text[])", user_ids):  # noqa: S608
        found.setdefault((row["user_id"], row["exchange"]), {})[row["asset"]] = drift_of(row)
    return found


async def drift_counts(database: "Database") -> dict[str, DriftCount]:
    """The drifts in the whole database, by exchange. Raises Retryable when it is out of reach."""
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT exchange, count(*) AS drifts, min(first_seen_at) AS at FROM balance_drifts GROUP BY exchange")
    return {row["exchange"]: DriftCount(row["drifts"], row["at"]) for row in rows}
