"""How conduct moves: the message clock, failures in a row, the cooldown."""

from datetime import timedelta

import pytest

from pipeline.gate.limits import Limits
from pipeline.gate.throttle import (
    COUNTS,
    after_exchange_refusal,
    after_failure,
    after_message,
    after_success,
    cooldown_end,
    message_conforms,
)
from pipeline.model.conduct import Conduct
from schemas.reasons import ReasonCode
from tests.unit.builders import NOW
from tests.unit.gate_builders import MICROSECOND

LIMITS = Limits()
SECOND = timedelta(seconds=1)


def _sent(count: int, conduct: Conduct, limits: Limits = LIMITS) -> tuple[int, Conduct]:
    """How many of so many messages at one moment conform, and the conduct behind them."""
    passed = 0
    for _ in range(count):
        passed += message_conforms(conduct, limits, NOW)
        conduct = after_message(conduct, limits, NOW, NOW)
    return passed, conduct


def test_message_burst_passes_and_no_more() -> None:
    """Of 150 messages at one moment exactly the burst passes; what was refused does not put off the next."""
    passed, conduct = _sent(150, Conduct())
    assert passed == 100
    interval = SECOND / 20
    assert not message_conforms(conduct, LIMITS, NOW + interval - MICROSECOND)
    assert message_conforms(conduct, LIMITS, NOW + interval)


def test_message_rate_passes_for_ever() -> None:
    """Who keeps the rate is never refused, behind a burst too."""
    _, conduct = _sent(100, Conduct())
    for count in range(1, 200):
        now = NOW + count * SECOND / 20
        assert message_conforms(conduct, LIMITS, now)
        conduct = after_message(conduct, LIMITS, now, now)


def test_message_that_waited_for_a_worker_counts_from_when_it_was_sent() -> None:
    """Messages of ten seconds at the allowed rate that are decided all at once all pass."""
    conduct = Conduct()
    for count in range(200):
        appended_at = NOW - timedelta(seconds=10) + count * SECOND / 20
        assert message_conforms(conduct, LIMITS, NOW)
        conduct = after_message(conduct, LIMITS, appended_at, NOW)


def test_message_that_comes_late_from_another_partition_is_not_refused() -> None:
    """A message that was sent a minute before the newest one passes when the rate is kept now."""
    conduct = after_message(Conduct(), LIMITS, NOW, NOW)
    assert message_conforms(conduct, LIMITS, NOW)
    late = after_message(conduct, LIMITS, NOW - timedelta(minutes=1), NOW)
    assert late.message_clock == NOW + 2 * SECOND / 20


def test_message_from_a_fast_broker_clock_counts_from_now() -> None:
    """A broker whose clock is ahead does not use up the burst."""
    assert after_message(Conduct(), LIMITS, NOW + timedelta(hours=1), NOW).message_clock == NOW + SECOND / 20


@pytest.mark.parametrize("limits", [Limits(messages_per_second_max=0), Limits(messages_burst_max=0)])
def test_message_without_a_rate_never_passes(limits: Limits) -> None:
    """A rate or burst of 0 forbids, and counts nothing."""
    assert not message_conforms(Conduct(), limits, NOW)
    assert after_message(Conduct(), limits, NOW, NOW) == Conduct()


def test_cooldown_begins_with_the_last_failure_in_a_row() -> None:
    """The third failure begins five minutes from then, whether a check or the exchange refused."""
    conduct = Conduct()
    for expected in (1, 2):
        conduct = after_failure(conduct, LIMITS, ReasonCode.BALANCE_INSUFFICIENT, NOW)
        assert conduct == Conduct(failures_in_row=expected, failed_at=NOW)
        assert cooldown_end(conduct, LIMITS, NOW) is None
    conduct = after_exchange_refusal(conduct, ReasonCode.EXCHANGE_REFUSED, NOW + SECOND)
    assert cooldown_end(conduct, LIMITS, NOW + SECOND) == NOW + SECOND + timedelta(minutes=5)


def test_failure_after_a_cooldown_is_the_first_of_a_new_row() -> None:
    """What failed before a cooldown that is over does not begin the next one."""
    conduct = Conduct(3, NOW)
    ended = NOW + timedelta(minutes=5)
    assert after_failure(conduct, LIMITS, ReasonCode.SELF_TRADE, ended) == Conduct(1, ended)
    # Unlike one that comes while it runs, of an order that was on its way.
    during = after_failure(conduct, LIMITS, ReasonCode.SELF_TRADE, ended - MICROSECOND)
    assert cooldown_end(during, LIMITS, ended) == ended - MICROSECOND + timedelta(minutes=5)


def test_success_begins_the_count_anew() -> None:
    """Two failures, a success and two failures begin no cooldown."""
    conduct = after_success(Conduct(failures_in_row=2, message_clock=NOW))
    assert conduct == Conduct(message_clock=NOW)
    assert after_success(conduct) is conduct


@pytest.mark.parametrize("count", [0, 1])
def test_cooldown_needs_one_failure_at_least(count: int) -> None:
    """With one failure or none asked for, the first one begins the cooldown."""
    conduct = after_failure(Conduct(), Limits(cooldown_failures=count), ReasonCode.SELF_TRADE, NOW)
    assert cooldown_end(conduct, Limits(cooldown_failures=count), NOW) == NOW + timedelta(minutes=5)
    assert cooldown_end(Conduct(), Limits(cooldown_failures=count), NOW) is None


@pytest.mark.parametrize("code", ReasonCode)
def test_failure_is_what_its_user_can_do_better(code: ReasonCode) -> None:
    """Each code moves the count as the table says, from a check and from the exchange."""
    after = after_failure(Conduct(failures_in_row=1, message_clock=NOW), LIMITS, code, NOW)
    assert after.failures_in_row == (2 if COUNTS[code] else 1)
    assert after.message_clock == NOW
    assert after_exchange_refusal(Conduct(failures_in_row=1), code, NOW).failures_in_row == after.failures_in_row


def test_every_code_either_counts_or_does_not() -> None:
    """The table names each code of the enum, so that a new one is thought about."""
    assert set(COUNTS) == set(ReasonCode)


@pytest.mark.parametrize(
    "code",
    ["SCHEMA_INVALID", "INVALID_DECIMAL", "PRECISION_INVALID", "SYMBOL_UNKNOWN", "SYMBOL_INVALID", "AMOUNT_BELOW_MINIMUM"],
)
def test_what_was_written_wrongly_begins_no_cooldown(code: str) -> None:
    """Any number of typing errors locks nobody out."""
    conduct = Conduct()
    for _ in range(20):
        conduct = after_failure(conduct, LIMITS, ReasonCode(code), NOW)
    assert cooldown_end(conduct, LIMITS, NOW) is None
