"""Differences between the ledger and the exchanges' balances: their columns, and reading them. Written with the batch (storing)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from asyncpg import Record
from asyncpg.pool import PoolConnectionProxy

from infra.postgres.rows import Columns
from pipeline.drift import StoredDrift

if TYPE_CHECKING:
    from infra.postgres.step import Database

_AMOUNT: Final = "numeric"
_TIME: Final = "timestamptz"

DRIFTS: Columns[StoredDrift] = Columns(
    "balance_drifts",
    (
        ("user_id", "text", lambda drift: drift.user_id),
        ("exchange", "text", lambda drift: drift.exchange),
        ("asset", "text", lambda drift: drift.asset),
        ("ledger_amount", _AMOUNT, lambda drift: drift.ledger_amount),
        ("exchange_amount", _AMOUNT, lambda drift: drift.exchange_amount),
        ("usd", _AMOUNT, lambda drift: drift.usd),
        ("first_seen_at", _TIME, lambda drift: drift.first_seen_at),
        ("last_seen_at", _TIME, lambda drift: drift.last_seen_at),
        ("found_at", _TIME, lambda drift: drift.found_at),
        ("above_since", _TIME, lambda drift: drift.above_since),
    ),
)


@dataclass(frozen=True, slots=True)
class DriftCount:
    """How many drifts of an exchange there are, and since when the oldest."""

    drifts: int
    oldest_at: datetime


def drift_of(row: Record) -> StoredDrift:
    """One row of `balance_drifts`."""
    return StoredDrift(**{name: row[name] for name, _, _ in DRIFTS.columns})


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
