"""When an order or a withdrawal in doubt is proven not to be at its exchange, and how long it is looked for all the same.

Start with `absence_is_proven`.
"""

from datetime import datetime

from pipeline.model.order import Order
from pipeline.model.rules import Rules
from pipeline.model.withdrawal import Withdrawal
from schemas.orders import Mode


def absence_is_proven(one: Order | Withdrawal, looked_up_at: datetime, rules: Rules) -> bool:
    """Whether a look that began at `looked_up_at`, by the exchange's clock, and found nothing proves that it was not and will not be
    accepted.

    It is the second look that counts: `absent_since` is when the first began, after the newest intent. From then on the exchange may have
    taken it in for the receive window and worked on it for its time-out, and its books may not have shown it for their lag. No clock of
    ours is compared with that of the exchange, so one that is set in between proves nothing wrong.

    What is simulated is executed by storing its outcome alone, which only the newest owner of its partition can: one in doubt was not.
    """
    if one.submitting_at is None:
        return False
    if one.mode is Mode.PAPER:
        return True
    shown = shown_by(one, rules)
    return shown is not None and looked_up_at >= shown


def shown_by(one: Order | Withdrawal, rules: Rules) -> datetime | None:
    """When the exchange's books must show what the first look did not find, by its clock; None before such a look."""
    if one.absent_since is None:
        return None
    lag = rules.read_lag(one.exchange) if isinstance(one, Order) else rules.withdrawal_history_lag
    return one.absent_since + rules.receive_window + rules.venue_timeout + lag


def is_watched(one: Order | Withdrawal, now: datetime) -> bool:
    """Whether what counts as not executed is still looked for."""
    return one.watched_until is not None and now < one.watched_until
