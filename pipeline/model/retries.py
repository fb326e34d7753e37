"""When what its exchange did not take, provably, is tried again.

An exchange that is away for hours must neither fill the audit trail, where each attempt is two permanent events, nor be asked without end.
So the pauses between attempts grow, nothing is tried while the exchange answers nothing at all (agents/watches/retry_queue), and the
attempts are counted.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, TypeVar

from pipeline.model.detail import DETAIL_MAX
from pipeline.model.order import Order
from pipeline.model.venue import Refused
from pipeline.model.withdrawal import Withdrawal
from schemas.orders import OrderStatus, WithdrawalStatus
from schemas.reasons import ReasonCode

# After so many attempts it is refused: its deadline may be far ahead.
ATTEMPTS_MAX: Final = 100
_PAUSE: Final = timedelta(seconds=1)
_PAUSE_MAX: Final = timedelta(seconds=30)

Sent = TypeVar("Sent", Order, Withdrawal)


def retry_at(attempt: int, now: datetime, expires_at: datetime) -> datetime | None:
    """When it is queued again after its attempt number `attempt`, counted from 1; None for at once.

    The first is repeated at once: its turn may only have come too late. Whatever comes first, its deadline ends the wait, so that it is
    answered then.
    """
    if attempt <= 1:
        return None
    # Five doublings are more than the longest pause.
    pause = min(_PAUSE * (1 << min(attempt - 2, 5)), _PAUSE_MAX)
    return min(now + pause, expires_at)


def given_up(attempt: int, nothing_was: str, detail: str) -> Refused | None:
    """The refusal of what its exchange did not take in attempt number `attempt`, where it was the last; None where it is tried again."""
    if attempt < ATTEMPTS_MAX:
        return None
    text = f"the exchange was not available in {attempt} attempts; nothing was {nothing_was} and the funds are released. {detail}"
    return Refused(ReasonCode.EXCHANGE_UNAVAILABLE, text[:DETAIL_MAX])


def waiting_while_accepted(one: Sent) -> Sent:
    """An order or a withdrawal without its `retry_at` where it is not accepted any more: it waits for no further attempt."""
    if one.retry_at is None or one.status in {OrderStatus.ACCEPTED, WithdrawalStatus.ACCEPTED}:
        return one
    return replace(one, retry_at=None)
