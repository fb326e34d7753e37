"""How a user's conduct moves: the message clock, failures in a row, the cooldown.

Invariants:
1. Between two moments, no more messages pass than the burst and the rate times the time between them.
2. Only what a user can do better counts as a failure: not a halt, not a price that nobody knows, not an exchange that is down.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from pipeline.gate.context import Conduct, Limits
from schemas.reasons import ReasonCode

_SECOND: Final = timedelta(seconds=1)

# What is refused as these says nothing about whether the user's requests are right.
NO_FAILURE: Final = frozenset(
    {
        ReasonCode.COOLDOWN_ACTIVE,
        ReasonCode.MESSAGE_RATE_EXCEEDED,
        ReasonCode.TRADING_HALTED,
        ReasonCode.REDUCE_ONLY,
        ReasonCode.PRICE_UNAVAILABLE,
        ReasonCode.EXCHANGE_UNAVAILABLE,
        ReasonCode.REQUEST_STALE,
        ReasonCode.REQUEST_EXPIRED,
        ReasonCode.IDEMPOTENCY_KEY_REUSED,
        ReasonCode.IDEMPOTENCY_IN_PROGRESS,
        # The second factor has a lock-out of its own, and who holds a stolen token must not be able to shut its owner out.
        ReasonCode.TOTP_MISSING,
        ReasonCode.TOTP_INVALID,
        ReasonCode.TOTP_REPLAYED,
        ReasonCode.TOTP_LOCKED,
        # So has a session its own bounds.
        ReasonCode.SESSION_UNKNOWN,
        ReasonCode.SESSION_EXPIRED,
        ReasonCode.SESSION_REVOKED,
        ReasonCode.SESSION_LIMIT_EXCEEDED,
        ReasonCode.SESSION_SYMBOL_NOT_ALLOWED,
        ReasonCode.SESSION_TOO_WIDE,
        ReasonCode.SESSIONS_EXCEEDED,
        ReasonCode.USER_UNKNOWN,
        ReasonCode.USER_UNVERIFIED,
        ReasonCode.USER_INACTIVE,
    }
)


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
    """Counts a request that a check refused. Codes of `NO_FAILURE` change nothing. What failed before a cooldown that is over is over."""
    if code in NO_FAILURE:
        return conduct
    is_over = conduct.failures_in_row >= limits.cooldown_failures and cooldown_end(conduct, limits, now) is None
    return replace(conduct, failures_in_row=1 if is_over else conduct.failures_in_row + 1, failed_at=now)


def after_exchange_refusal(conduct: Conduct, code: ReasonCode, now: datetime) -> Conduct:
    """Counts an order that its exchange refused; the user's limits need not be known there."""
    return conduct if code in NO_FAILURE else replace(conduct, failures_in_row=conduct.failures_in_row + 1, failed_at=now)


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
