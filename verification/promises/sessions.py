"""Sessions: what each has confirmed, by its own count, is what the audit trail says was confirmed by it, within its bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from pipeline.model.order import Order
from schemas.decimals import format_decimal
from verification.promises.finding import Check, Finding


@dataclass(frozen=True, slots=True)
class SessionCount:
    """A session as its row counts: orders and US dollars, used of how many at most."""

    orders_used: int
    orders_max: int
    amount_usd_used: Decimal
    amount_usd_max: Decimal


def check_sessions(
    sessions: Mapping[str, SessionCount], confirmed: Mapping[str, Sequence[str]], orders: Mapping[str, Order]
) -> Finding:
    """`confirmed` has, by session, the ids of the orders whose acceptance says that it confirmed them, since the session last began. Those
    that are long over are removed, so an acceptance may name one that is not there any more."""
    check = Check("sessions_match_orders", "each session has confirmed the orders and the amount that it counts, within its bounds")
    for session_id, count in sessions.items():
        check.checked += 1
        named = confirmed.get(session_id, ())
        worth = sum((orders[order_id].usd_value for order_id in named if order_id in orders), Decimal(0))
        if len(named) != count.orders_used:
            check.breach(f"session {session_id} counts {count.orders_used} orders, the audit trail has {len(named)}")
        if worth != count.amount_usd_used:
            counted = format_decimal(count.amount_usd_used)
            check.breach(f"session {session_id} counts {counted} USD, its orders are worth {format_decimal(worth)}")
        if count.orders_used > count.orders_max or count.amount_usd_used > count.amount_usd_max:
            check.breach(f"session {session_id} has confirmed more than it may")
    return check.finding()
