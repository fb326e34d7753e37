"""How a user's conduct moves: the message clock, failures in a row, the cooldown.

Invariants:
1. Between two moments, no more messages pass than the burst and the rate times the time between them.
2. What counts as a failure stands in one table, `COUNTS`, which names every code.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from pipeline.gate.limits import Limits
from pipeline.model.conduct import Conduct
from schemas.reasons import ReasonCode

_SECOND: Final = timedelta(seconds=1)

# Which refusals count towards a cooldown: what an exchange refused of the user's own doing, and what breaks a limit or looks like misuse.
# Not what was written wrongly (nothing could have come of it), what the user cannot help (halts, prices, an exchange that is down or
# closed), what has a lock-out of its own (the second factor: who holds a stolen token must not be able to shut its owner out), and what
# waiting alone cures.
COUNTS: Final[Mapping[ReasonCode, bool]] = {
    **dict.fromkeys(
        (
            ReasonCode.EXCHANGE_REFUSED,
            ReasonCode.BALANCE_INSUFFICIENT,
            ReasonCode.AMOUNT_ABOVE_MAXIMUM,
            ReasonCode.PRICE_OUT_OF_BAND,
            ReasonCode.DAILY_VOLUME_EXCEEDED,
            ReasonCode.HOURLY_TRADES_EXCEEDED,
            ReasonCode.DAILY_WITHDRAWAL_EXCEEDED,
            ReasonCode.POSITION_LIMIT_EXCEEDED,
            ReasonCode.LOSS_LIMIT_EXCEEDED,
            ReasonCode.OPEN_ORDERS_EXCEEDED,
            ReasonCode.EXPOSURE_EXCEEDED,
            ReasonCode.SELF_TRADE,
            ReasonCode.DUPLICATE_ORDER,
            ReasonCode.SUSPICIOUS_ACTIVITY,
            ReasonCode.ADDRESS_NOT_ALLOWED,
        ),
        True,
    ),
    **dict.fromkeys(
        (
            # written wrongly
            ReasonCode.SCHEMA_INVALID,
            ReasonCode.SCHEMA_VERSION_UNSUPPORTED,
            ReasonCode.INVALID_DECIMAL,
            ReasonCode.REQUEST_UNSUPPORTED,
            ReasonCode.EXCHANGE_UNKNOWN,
            ReasonCode.SYMBOL_INVALID,
            ReasonCode.SYMBOL_UNKNOWN,
            ReasonCode.PRICE_INVALID,
            ReasonCode.PRECISION_INVALID,
            ReasonCode.AMOUNT_BELOW_MINIMUM,
            ReasonCode.API_KEY_UNKNOWN,
            ReasonCode.API_KEY_REVOKED,
            ReasonCode.API_KEY_EXPIRED,
            ReasonCode.API_KEY_PERMISSION,
            ReasonCode.ORDER_NOT_FOUND,
            ReasonCode.ORDER_NOT_CANCELABLE,
            ReasonCode.OPEN_DEPOSITS_EXCEEDED,
            ReasonCode.IDEMPOTENCY_KEY_REUSED,
            ReasonCode.IDEMPOTENCY_IN_PROGRESS,
            # nothing that the user can help
            ReasonCode.TRADING_HALTED,
            ReasonCode.REDUCE_ONLY,
            ReasonCode.PRICE_UNAVAILABLE,
            ReasonCode.EXCHANGE_UNAVAILABLE,
            ReasonCode.ORDER_NOT_EXECUTED,
            ReasonCode.INTERNAL_ERROR,
            ReasonCode.APPROVAL_NOT_ALLOWED,
            ReasonCode.APPROVAL_NOT_PENDING,
            ReasonCode.APPROVAL_REFUSED,
            ReasonCode.USER_UNKNOWN,
            ReasonCode.USER_INACTIVE,
            ReasonCode.USER_UNVERIFIED,
            # a lock-out of its own
            ReasonCode.AUTH_TOKEN_MISSING,
            ReasonCode.AUTH_TOKEN_INVALID,
            ReasonCode.AUTH_TOKEN_EXPIRED,
            ReasonCode.AUTH_USER_MISMATCH,
            ReasonCode.TOTP_MISSING,
            ReasonCode.TOTP_INVALID,
            ReasonCode.TOTP_REPLAYED,
            ReasonCode.TOTP_LOCKED,
            ReasonCode.SESSION_UNKNOWN,
            ReasonCode.SESSION_EXPIRED,
            ReasonCode.SESSION_REVOKED,
            ReasonCode.SESSION_LIMIT_EXCEEDED,
            ReasonCode.SESSION_SYMBOL_NOT_ALLOWED,
            ReasonCode.SESSION_TOO_WIDE,
            ReasonCode.SESSIONS_EXCEEDED,
            # time
            ReasonCode.COOLDOWN_ACTIVE,
            ReasonCode.MESSAGE_RATE_EXCEEDED,
            ReasonCode.REQUEST_STALE,
            ReasonCode.REQUEST_EXPIRED,
        ),
        False,
    ),
}


def message_conforms(conduct: Conduct, limits: Limits, now: datetime) -> bool:
    """Whether one more message keeps the rate (generic cell rate algorithm, ITU-T I.371 annex A). A rate or burst of 0 lets none pass."""
    if limits.messages_per_second_max <= 0 or limits.messages_burst_max <= 0:
        return False
    clock = conduct.message_clock
    return clock is None or now >= clock - (limits.messages_burst_max - 1) * (_SECOND / limits.messages_per_second_max)


def after_message(conduct: Conduct, limits: Limits, appended_at: datetime, now: datetime) -> Conduct:
    """Counts a message, unless it breaks the rate; `appended_at` is the broker's time of its record.

    What breaks the rate is not counted: who sends too much waits until the excess ends, not until all of it is worked off. A message is
    counted from when it was appended and let through by the time of its decision: messages that kept the rate when they were sent are not
    refused because they waited for a worker, nor is one that comes late from another partition.
    """
    if not message_conforms(conduct, limits, now):
        return conduct
    begin = min(appended_at, now)
    clock = conduct.message_clock
    if clock is not None and clock > begin:
        begin = clock
    return Conduct(conduct.failures_in_row, conduct.failed_at, begin + _SECOND / limits.messages_per_second_max)


def after_failure(conduct: Conduct, limits: Limits, code: ReasonCode, now: datetime) -> Conduct:
    """Counts a request that a check refused. Codes that do not count (`COUNTS`) change nothing. What failed before a cooldown that
    is over is over."""
    if not COUNTS.get(code, False):
        return conduct
    is_over = conduct.failures_in_row >= limits.cooldown_failures and cooldown_end(conduct, limits, now) is None
    return replace(conduct, failures_in_row=1 if is_over else conduct.failures_in_row + 1, failed_at=now)


def after_exchange_refusal(conduct: Conduct, code: ReasonCode, now: datetime) -> Conduct:
    """Counts an order that its exchange refused; the user's limits need not be known there."""
    return conduct if not COUNTS.get(code, False) else replace(conduct, failures_in_row=conduct.failures_in_row + 1, failed_at=now)


def cooldown_end(conduct: Conduct, limits: Limits, now: datetime) -> datetime | None:
    """Until when no orders are taken, not including that moment; None when no cooldown runs. It begins with the failure that makes
    `cooldown_failures` in a row."""
    if conduct.failed_at is None or conduct.failures_in_row < limits.cooldown_failures:
        return None
    until = conduct.failed_at + limits.cooldown
    return until if now < until else None


def after_success(conduct: Conduct) -> Conduct:
    """Begins the count of failures anew: an exchange took an order of the user."""
    return replace(conduct, failures_in_row=0) if conduct.failures_in_row else conduct
