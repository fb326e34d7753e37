"""What is not over yet: orders that the reconciler asks about, and work that waits to be sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from infra.postgres.database import Connection, Database
from infra.postgres.rows import order_of, readable
from pipeline.model.order import Order
from schemas.orders import OrderStatus
from schemas.routing import Action, RoutedOrder

# An order whose report could not be applied is asked about all the same, less often: each such report costs a batch its halves.
_SET_ASIDE_PAUSE: Final = timedelta(seconds=60)
_OVERDUE: Final = timedelta(seconds=60)
_UNFINISHED: Final = """
    SELECT orders.*, EXISTS (SELECT FROM cancels WHERE cancels.order_id = orders.order_id AND NOT ended) AS cancel_pending
    FROM orders
    WHERE exchange = $1 AND work_partition = ANY($2::integer[]) AND status = ANY($3::text[]) AND executed_at IS NULL
      AND order_id > $4
      AND NOT EXISTS (
        SELECT FROM quarantine WHERE state = 'open' AND subject = 'order ' || orders.order_id AND last_at > now() - $6::interval
      )
    ORDER BY order_id LIMIT $5
"""


@dataclass(frozen=True, slots=True)
class UnfinishedOrder:
    """`cancel_pending`: a cancel request waits for this order to end."""

    order: Order
    cancel_pending: bool


async def unfinished_orders(
    database: Database, exchange: str, work_partitions: Sequence[int], statuses: Sequence[OrderStatus], after_order_id: str, limit: int
) -> list[UnfinishedOrder]:
    """Orders of these statuses that were sent from these partitions of the exchange's queue, by order id from `after_order_id` on.

    Going on from the last order id, and from the beginning after the last page, every order has its turn however many there are. One whose
    row cannot be read is passed over and told of; one whose report was set aside a moment ago waits for its next turn.
    """
    found: list[UnfinishedOrder] = []
    async with database.connection() as connection:
        while len(found) < limit:
            wanted = limit - len(found)
            rows = await connection.fetch(
                _UNFINISHED, exchange, work_partitions, [status.value for status in statuses], after_order_id, wanted, _SET_ASIDE_PAUSE
            )
            found += readable(rows, lambda row: UnfinishedOrder(order_of(row), row["cancel_pending"]), "orders", "order_id")
            if len(rows) < wanted:
                break
            after_order_id = rows[-1]["order_id"]
    return found


async def waiting_to_be_sent(connection: Connection, exchange: str, limit: int) -> list[RoutedOrder]:
    """The work that the queue of an exchange should hold: orders and withdrawals that are accepted and not sent yet, the oldest first."""
    rows = await connection.fetch(
        """
        SELECT action, order_id, user_id, attempt FROM (
            SELECT 'submit' AS action, order_id, user_id, attempt, updated_at FROM orders
            WHERE exchange = $1 AND executed_at IS NULL AND status = 'accepted'
            UNION ALL SELECT 'withdraw', withdrawal_id, user_id, attempt, updated_at FROM withdrawals
            WHERE exchange = $1 AND executed_at IS NULL AND status = 'accepted'
        ) AS waiting ORDER BY updated_at, order_id LIMIT $2
        """,
        exchange,
        limit,
    )
    return [_next_attempt(*row) for row in map(tuple, rows)]


def _next_attempt(action: str, order_id: str, user_id: str, attempt: int) -> RoutedOrder:
    return RoutedOrder(schema_version=1, action=Action(action), order_id=order_id, user_id=user_id, attempt=attempt + 1)


@dataclass(frozen=True, slots=True)
class DueWork:
    """Work whose next attempt is due, and the partition of its exchange's queue that it was sent from before."""

    routed: RoutedOrder
    work_partition: int


async def due_work(
    database: Database, exchange: str, work_partitions: Sequence[int], now: datetime, answering_since: datetime | None, limit: int
) -> list[DueWork]:
    """Orders and withdrawals that wait for their next attempt and are due (pipeline/model/retries), the first due first.

    `answering_since`: the exchange answers now, and since then at least, so that also what failed before that is due. None while it answers
    nothing: only what must be answered itself is due then, as its deadline is over. What failed later than now did so by a clock that was
    set back since, so its time says nothing. What is overdue is due whoever owns its partition: that may be a worker of a release that
    does not know of it.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(
            """
            SELECT action, id, user_id, attempt, work_partition FROM (
                SELECT 'submit' AS action, order_id AS id, user_id, attempt, work_partition, retry_at, updated_at, expires_at FROM orders
                WHERE exchange = $1 AND retry_at IS NOT NULL
                UNION ALL
                SELECT 'withdraw', withdrawal_id, user_id, attempt, work_partition, retry_at, updated_at, expires_at FROM withdrawals
                WHERE exchange = $1 AND retry_at IS NOT NULL
            ) AS waiting
            WHERE (work_partition = ANY($2::integer[]) OR retry_at < $3::timestamptz - $6::interval)
                AND (expires_at <= $3 OR ($4::timestamptz IS NOT NULL AND (retry_at <= $3 OR updated_at < $4 OR updated_at > $3)))
            ORDER BY retry_at, id LIMIT $5
            """,
            exchange,
            work_partitions,
            now,
            answering_since,
            limit,
            _OVERDUE,
        )
    return [
        DueWork(_next_attempt(action, key, user_id, attempt), partition) for action, key, user_id, attempt, partition in map(tuple, rows)
    ]


async def watched_orders(
    database: Database, exchange: str, work_partitions: Sequence[int], now: datetime, after: tuple[datetime, str] | None, limit: int
) -> list[Order]:
    """Orders that ended without the exchange's own word and are looked up until `watched_until` all the same; those whose time is over
    first, from `after` (that time, and the order id) on."""
    begin, order_id = after or (now, "")
    async with database.connection() as connection:
        rows = await connection.fetch(
            """
            SELECT * FROM orders
            WHERE exchange = $1 AND work_partition = ANY($2::integer[]) AND watched_until > $3 AND (watched_until, order_id) > ($4, $5)
            ORDER BY watched_until, order_id LIMIT $6
            """,
            exchange,
            work_partitions,
            now,
            max(begin, now),
            order_id,
            limit,
        )
    return [order_of(row) for row in rows]
