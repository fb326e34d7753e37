"""What may stop trading by itself, asked of the database: orders in doubt, losses, and an audit trail that does not add up.

Each question is bounded: it reads unfinished orders, the sales of the last seconds, and the newest events of a few accounts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from infra.postgres.database import Connection

_IN_DOUBT: Final = """
    SELECT exchange, count(*) AS orders FROM (
        SELECT exchange FROM orders
        WHERE executed_at IS NULL AND status = 'in_doubt' AND mode = 'live' AND submitting_at < $2
        UNION ALL SELECT exchange FROM withdrawals WHERE executed_at IS NULL AND status = 'in_doubt' AND submitting_at < $2
    ) AS doubtful
    GROUP BY exchange HAVING count(*) >= $1
"""
# Only who has sold since the last look can have crossed the line since then.
_LOSSES: Final = """
    SELECT sellers.user_id, -sum(results.usd) AS lost
    FROM (SELECT DISTINCT user_id FROM realised_results WHERE recorded_at > $1) AS sellers
    JOIN realised_results AS results ON results.user_id = sellers.user_id AND results.recorded_at > $2
    LEFT JOIN user_limits AS own ON own.user_id = sellers.user_id AND own.name = 'daily_loss_usd_max'
    GROUP BY sellers.user_id, own.amount HAVING -sum(results.usd) >= COALESCE(own.amount, $3)
"""
_NEWEST_EVENTS: Final = """
    SELECT chains.account, chains.seq AS head_seq, chains.hash AS head_hash, events.seq, events.hash, events.body
    FROM (SELECT account, seq, hash FROM audit_chains WHERE account > $1 AND seq > 0 ORDER BY account LIMIT $2) AS chains
    LEFT JOIN LATERAL (
        SELECT seq, hash, body FROM audit_events WHERE audit_events.account = chains.account ORDER BY seq DESC LIMIT $3
    ) AS events ON true
    ORDER BY chains.account, events.seq
"""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One of the newest events of an account, beside the head that the account's row names. `seq` is None where there is no event."""

    account: str
    head_seq: int
    head_hash: str
    seq: int | None
    hash: str | None
    body: str | None


async def exchanges_in_doubt(connection: Connection, orders: int, intended_before: datetime) -> dict[str, int]:
    """Exchanges with so many orders and withdrawals in doubt or more, all of them sent before a time, with their number."""
    return {row["exchange"]: row["orders"] for row in await connection.fetch(_IN_DOUBT, orders, intended_before)}


async def users_over_loss_limit(connection: Connection, sold_since: datetime, since: datetime, limit: Decimal) -> dict[str, Decimal]:
    """Users who have sold since `sold_since` and whose losses since `since` have reached their limit, with the loss in US dollars."""
    return {row["user_id"]: row["lost"] for row in await connection.fetch(_LOSSES, sold_since, since, limit)}


async def newest_events(connection: Connection, after_account: str, accounts: int, events: int) -> Sequence[StoredEvent]:
    """The newest events of some accounts, those after one account in the database's order."""
    rows = await connection.fetch(_NEWEST_EVENTS, after_account, accounts, events)
    return [StoredEvent(*row) for row in map(tuple, rows)]
