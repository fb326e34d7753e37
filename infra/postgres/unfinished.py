"""What the reconciler asks: orders whose end is not known yet, and claims that have outlived their day."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from infra.postgres.rows import order_of
from infra.postgres.step import Database
from pipeline.order import Order

_CLAIMS_PURGED_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class UnfinishedOrder:
    """`cancel_pending`: a cancel request waits for this order to end."""

    order: Order
    cancel_pending: bool


async def unfinished_orders(database: Database, exchange: str, work_partitions: Sequence[int], limit: int) -> list[UnfinishedOrder]:
    """Orders in doubt or resting that were sent from these partitions of the exchange's queue: in doubt first, oldest change first."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            """
            SELECT orders.*, EXISTS (SELECT FROM cancels WHERE cancels.order_id = orders.order_id AND NOT ended) AS cancel_pending
            FROM orders
            WHERE exchange = $1 AND work_partition = ANY($2::integer[]) AND executed_at IS NULL
              AND status IN ('in_doubt', 'new', 'partially_filled')
            ORDER BY status = 'in_doubt' DESC, updated_at LIMIT $3
            """,
            exchange,
            work_partitions,
            limit,
        )
    return [UnfinishedOrder(order_of(row), row["cancel_pending"]) for row in rows]


async def purge_claims(database: Database, older_than: datetime) -> int:
    """Deletes a bounded number of expired claims; returns how many. A claim whose request still runs is kept, however old."""
    async with database.connection() as connection:
        status = await connection.execute(
            """
            DELETE FROM claims WHERE (user_id, idempotency_key) IN (
                SELECT user_id, idempotency_key FROM claims WHERE claimed_at <= $1 AND result IS NOT NULL
                ORDER BY claimed_at LIMIT $2 FOR UPDATE SKIP LOCKED
            )
            """,
            older_than,
            _CLAIMS_PURGED_MAX,
        )
    return int(status.rsplit(" ", 1)[-1])
