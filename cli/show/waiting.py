"""What waits in the database, whoever holds it up: orders and payments under way, cancels, what an operator must decide, deposits.

`lag` shows it beside what waits in Kafka. Reads only.

Start with `waiting_rows`.
"""

from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.access.database import Row

# What each state waits for. Orders that rest at an exchange wait for the market, not for anybody.
_HELD_BY: Final = {
    ("order", "accepted"): "a worker",
    ("order", "submitting"): "the exchange's answer",
    ("order", "in_doubt"): "the exchange's proof",
    ("cancel", "pending"): "the exchange's answer",
    ("withdrawal", "pending_approval"): "an operator",
    ("withdrawal", "accepted"): "a worker",
    ("withdrawal", "submitting"): "the exchange's answer",
    ("withdrawal", "in_doubt"): "the exchange's proof",
    ("withdrawal", "processing"): "the exchange",
    ("deposit", "detected"): "the network",
    ("deposit", "confirming"): "the network",
    ("announcement", "expected"): "the sender",
}
_WAITING: Final = text("""
    SELECT 'order' AS what, exchange, status, retry_at IS NOT NULL AS is_tried_again, count(*) AS count, min(requested_at) AS oldest_at
    FROM orders WHERE executed_at IS NULL AND status IN ('accepted', 'submitting', 'in_doubt')
    GROUP BY exchange, status, retry_at IS NOT NULL
    UNION ALL
    SELECT 'cancel', orders.exchange, 'pending', false, count(*), min(cancels.requested_at) FROM cancels JOIN orders USING (order_id)
    WHERE NOT cancels.ended GROUP BY orders.exchange
    UNION ALL
    SELECT 'withdrawal', exchange, status, retry_at IS NOT NULL, count(*), min(requested_at)
    FROM withdrawals WHERE executed_at IS NULL GROUP BY exchange, status, retry_at IS NOT NULL
    UNION ALL
    SELECT 'deposit', exchange, status, false, count(*), min(detected_at) FROM deposits
    WHERE status IN ('detected', 'confirming') GROUP BY exchange, status
    UNION ALL
    SELECT 'announcement', exchange, 'expected', false, count(*), min(requested_at) FROM deposit_announcements
    WHERE executed_at IS NULL GROUP BY exchange
    ORDER BY 1, 2, 3, 4
""")
_HALTS: Final = text("SELECT scope, target FROM halts WHERE scope IN ('all', 'exchange') AND level = 'halt'")
_STORED: Final = text("""
    SELECT topic, partition, base_offset, next_offset, updated_at FROM input_partitions
    WHERE consumer_group = :group AND next_offset > base_offset
""")
# A batch is published within this after it was stored, unless its worker died or the broker is away.
_PUBLISHED_WITHIN_SECONDS: Final = 1.0


async def halted_exchanges(connection: AsyncConnection) -> tuple[bool, frozenset[str]]:
    """Whether everything is halted, and which exchanges are."""
    rows = (await connection.execute(_HALTS)).all()
    return any(scope == "all" for scope, _ in rows), frozenset(target for scope, target in rows if scope == "exchange")


async def waiting_rows(connection: AsyncConnection, now: datetime) -> list[Row]:
    """One row for each kind, exchange and state of which there is one: how many, the oldest, and who holds them up."""
    everything, exchanges = await halted_exchanges(connection)
    rows: list[Row] = []
    for what, exchange, status, is_tried_again, count, oldest_at in await connection.execute(_WAITING):
        # Its last attempt reached nothing; nothing is tried while the exchange answers nothing.
        held_by = "the exchange, which takes nothing" if is_tried_again else _HELD_BY.get((what, status), "–")
        if status == "accepted" and (everything or exchange in exchanges):
            held_by = "a halt"
        rows.append({
            "what": what,
            "exchange": exchange,
            "status": status,
            "count": count,
            "oldest_at": oldest_at,
            "age_seconds": _age(oldest_at, now),
            "held_by": held_by,
        })
    return rows


async def unpublished_rows(
    connection: AsyncConnection, group: str, committed: dict[tuple[str, int], int], now: datetime
) -> list[Row]:
    """One row for each partition whose newest batch is stored but not published. `committed` are the group's offsets in Kafka."""
    rows: list[Row] = []
    for topic, partition, base, following, updated_at in await connection.execute(_STORED, {"group": group}):
        age = _age(updated_at, now)
        if committed.get((topic, partition)) == base and age >= _PUBLISHED_WITHIN_SECONDS:
            rows.append({
                "what": "batch",
                "exchange": None,
                "status": f"stored, not published: {topic}/{partition}",
                "count": following - base,
                "oldest_at": updated_at,
                "age_seconds": age,
                "held_by": "the broker or a worker",
            })
    return rows


def _age(since: datetime, now: datetime) -> int:
    return max(0, round((now - since).total_seconds()))
