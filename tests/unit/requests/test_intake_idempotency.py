"""The idempotency ladder: what a copy of a request is answered."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from pipeline.books.changes import Changes, Claim
from pipeline.intake import decide
from pipeline.model.tracked import Tracked
from pipeline.requests.record import Arrival
from schemas.audit import EventType
from schemas.reasons import ReasonCode
from schemas.results import Result, ResultStatus
from tests.unit.builders import (
    EXCHANGE,
    NOW,
    TOPICS,
    USER,
    EveryUser,
    account_state,
    arrival,
    cancel,
    changes_of,
    finals_of,
    intake_state,
    limit,
    market_data,
    outputs_on,
    results_of,
    trade,
)

KEY = (USER, "key-1")
DAY = timedelta(hours=24)
MICROSECOND = timedelta(microseconds=1)


def _decided(*arrivals: Arrival, changes: Changes | None = None, now: datetime = NOW) -> Changes:
    batch = changes_of(now=now) if changes is None else changes
    decide(arrivals, intake_state(), batch)
    return batch


def _after(changes: Changes, now: datetime = NOW) -> Changes:
    """The next batch, with what the first one left in the database."""
    later = changes_of(now=now)
    later.claims = dict(changes.claims)
    later.orders = Tracked(changes.orders)
    later.trail.heads.update(changes.trail.heads)
    later.ledger.balances.update(changes.ledger.balances)
    return later


def _ended(changes: Changes, status: ResultStatus = ResultStatus.EXECUTED, at: datetime = NOW) -> Result:
    """Gives the running request of `key-1` its final answer, as the execution agent would."""
    first = results_of(changes)[0]
    result = replace(first, status=status, final=True, order_id=first.order_id)
    changes.claims[KEY] = replace(changes.claims[KEY], result=result, ended_at=at)
    return result


def test_first_record_is_accepted_and_queued_once() -> None:
    """One order, one hold, one record for the exchange, one progress answer that names the record."""
    changes = _decided(arrival(trade(), 7))
    (result,) = results_of(changes)
    assert (result.status, result.final, result.replayed, result.source.offset) == (ResultStatus.ACCEPTED, False, False, 7)
    assert len(outputs_on(changes, TOPICS.orders("binance"))) == 1
    assert len(changes.ledger.transfers) == 1
    assert changes.claims[KEY].result is None


@pytest.mark.parametrize("same_batch", [True, False])
def test_copy_while_the_first_runs_is_a_duplicate(same_batch: bool) -> None:
    """The copy executes nothing and is told which request to wait for, in one batch and across batches."""
    copy = arrival(trade(request_id="copy"), 1)
    if same_batch:
        changes = _decided(arrival(trade(request_id="first"), 0), copy)
    else:
        changes = _decided(copy, changes=_after(_decided(arrival(trade(request_id="first"), 0))))
    (answer,) = finals_of(changes)
    assert (answer.status, answer.reason_code) == (ResultStatus.DUPLICATE, ReasonCode.IDEMPOTENCY_IN_PROGRESS)
    assert (answer.request_id, answer.duplicate_of, answer.replayed, answer.source.offset) == ("copy", "first", True, 1)
    assert answer.order_id == changes.claims[KEY].order_id
    assert len(outputs_on(changes, TOPICS.orders("binance"))) == (1 if same_batch else 0)


def test_copy_of_an_executed_request_gets_the_stored_answer() -> None:
    """Same answer, marked as a replay, under the copy's own source and request id."""
    changes = _after(_decided(arrival(trade(request_id="first"), 0)))
    first = changes.claims[KEY]
    before = replace(_ended_of(first), executed_at=NOW)
    changes.claims[KEY] = replace(first, result=before)
    _decided(arrival(trade(request_id="copy"), 5), changes=changes)
    (answer,) = finals_of(changes)
    assert answer == replace(before, request_id="copy", source=answer.source, replayed=True, duplicate_of="first")
    assert answer.source.offset == 5
    assert not outputs_on(changes, TOPICS.orders("binance"))


def _ended_of(claim: Claim) -> Result:
    changes = _decided(arrival(trade(request_id=claim.request_id), 0))
    return _ended(changes)


def test_key_with_another_payload_is_refused_and_executes_nothing() -> None:
    """The same key for another amount is an error of the producer, whatever the first one came to."""
    changes = _decided(arrival(trade(request_id="first"), 0), arrival(trade(quantity="0.002", request_id="second"), 1))
    (answer,) = finals_of(changes)
    assert (answer.reason_code, answer.status) == (ReasonCode.IDEMPOTENCY_KEY_REUSED, ResultStatus.REJECTED)
    assert (answer.replayed, answer.duplicate_of, answer.request_id) == (True, "first", "second")
    assert len(outputs_on(changes, TOPICS.orders("binance"))) == 1


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (trade(order_type="stop_loss", stop_price="1"), ReasonCode.REQUEST_UNSUPPORTED),
        (trade(quantity="0.1x"), ReasonCode.INVALID_DECIMAL),
        (trade(quantity="10"), None),
        (cancel(idempotency_key="key-1", target_idempotency_key="none"), ReasonCode.ORDER_NOT_FOUND),
    ],
)
def test_rejection_keeps_its_key(first: dict[str, Any], code: ReasonCode | None) -> None:
    """A copy of a refused request is refused again with the same words; it must not be executed when funds have come meanwhile."""
    poor = changes_of(funds={"USDT": "100"})
    changes = _decided(arrival(first, 0), changes=poor)
    (rejection,) = finals_of(changes)
    assert rejection.reason_code is (code or ReasonCode.BALANCE_INSUFFICIENT)
    later = _decided(arrival(first, 1), changes=_after(changes))
    (again,) = finals_of(later)
    assert again == replace(rejection, source=again.source, replayed=True, duplicate_of=rejection.request_id)
    assert not later.orders.made


def test_unreadable_copy_of_a_running_request_is_another_payload() -> None:
    """What cannot be read is never taken for the same."""
    changes = _decided(arrival(trade(), 0), arrival(trade(quantity=0.001), 1))
    assert [result.reason_code for result in finals_of(changes)] == [ReasonCode.IDEMPOTENCY_KEY_REUSED]


def test_users_have_keys_of_their_own() -> None:
    """The same key of two users is two requests."""
    changes = changes_of(users=("alice", "bob"))
    state = intake_state(
        accounts=EveryUser({user: account_state(user) for user in ("alice", "bob")}),
        api_keys={(user, "k1"): intake_state().api_keys[USER, "k1"] for user in ("alice", "bob")},
    )
    decide([arrival(trade(), 0), arrival(trade(user_id="bob"), 1)], state, changes)
    assert len(changes.orders.made) == 2


@pytest.mark.parametrize(
    ("appended", "decided", "executed_again"),
    [
        # 24 hours after the first was decided its key is free, and not a microsecond before
        (NOW + DAY, NOW + DAY, True),
        (NOW + DAY - MICROSECOND, NOW + DAY, False),
        # a copy that waited in the topic while the system was down does not find its key free
        (NOW + timedelta(hours=1), NOW + DAY + timedelta(minutes=30), False),
        # the broker's clock is ahead: the copy is no later than the decision
        (NOW + DAY, NOW + DAY - MICROSECOND, False),
    ],
)
def test_key_is_free_for_records_appended_24_hours_after_the_decision(appended: datetime, decided: datetime, executed_again: bool) -> None:
    """A copy appended within a key's lifetime is never executed, however late it is read."""
    changes = _decided(arrival(trade(), 0))
    _ended(changes)
    later = _after(changes, now=decided)
    copy = arrival(trade(), 9, appended_at=appended)
    decide([copy], intake_state(market_data={EXCHANGE: market_data(observed_at=decided)}), later)
    assert len(later.orders.made) == (1 if executed_again else 0)
    if executed_again:
        assert later.claims[KEY].source == copy.source
        assert KEY in later.claimed
    else:
        assert finals_of(later)[0].replayed


@pytest.mark.parametrize(
    ("appended_before_the_key_is_free", "executed_again"),
    [(timedelta(0), True), (MICROSECOND, False), (DAY, False), (DAY + MICROSECOND, False)],
)
def test_key_of_a_request_that_ran_long_lives_from_its_end(appended_before_the_key_is_free: timedelta, executed_again: bool) -> None:
    """An order that rested for 30 hours: no copy that was appended while it ran, or within 24 hours after, becomes a second order."""
    end = NOW + timedelta(hours=30)
    appended = end + DAY - appended_before_the_key_is_free
    read = max(appended, end) + timedelta(seconds=1)
    changes = _decided(arrival(limit(), 0))
    _ended(changes, at=end)
    later = _after(changes, now=read)
    decide([arrival(limit(), 1, appended_at=appended)], intake_state(market_data={EXCHANGE: market_data(observed_at=read)}), later)
    assert len(later.orders.made) == (1 if executed_again else 0)


def test_key_of_an_end_that_nobody_knows_is_never_free() -> None:
    """What a claim does not say is not guessed: its answer is given again."""
    changes = _decided(arrival(limit(), 0))
    result = _ended(changes)
    for known, free in ((replace(result, executed_at=NOW), True), (result, False)):
        later = _after(changes, now=NOW + DAY)
        later.claims[KEY] = replace(later.claims[KEY], result=known, ended_at=None)
        state = intake_state(market_data={EXCHANGE: market_data(observed_at=NOW + DAY)})
        decide([arrival(limit(), 1, appended_at=NOW + DAY)], state, later)
        assert bool(later.orders.made) is free


def test_running_request_keeps_its_key_for_as_long_as_it_runs() -> None:
    """An order that rests for a month is still running: a copy of it is a duplicate, not a second order."""
    changes = _decided(arrival(limit(), 0))
    month = NOW + timedelta(days=30)
    later = _decided(arrival(limit(), 1, appended_at=month), changes=_after(changes, now=month))
    assert [result.status for result in finals_of(later)] == [ResultStatus.DUPLICATE]
    assert not later.orders.made


def test_stale_record_is_refused_and_its_key_kept() -> None:
    """A record from before yesterday, come back by an offset reset, executes nothing; nor does its copy."""
    old = NOW - DAY - MICROSECOND
    changes = _decided(arrival(trade(), 0, appended_at=old), arrival(trade(), 1, appended_at=old))
    first, second = finals_of(changes)
    assert first.reason_code is second.reason_code is ReasonCode.REQUEST_STALE
    assert (first.replayed, second.replayed) == (False, True)
    assert not changes.orders.made


def test_redelivered_record_of_an_expired_key_gets_its_answer_again() -> None:
    """A record that is read again a day later asks under the time at which it was appended: it is a copy of itself."""
    changes = _decided(arrival(trade(), 0))
    _ended(changes)
    later = _decided(arrival(trade(), 0), changes=_after(changes, now=NOW + DAY + timedelta(hours=1)))
    assert finals_of(later)[0].replayed
    assert not later.orders.made


def test_copies_are_audited_without_an_order() -> None:
    """Each record leaves one event, and only the acceptance belongs to an order."""
    changes = _decided(arrival(trade(), 0), arrival(trade(), 1), arrival(trade(side="sell"), 2))
    bodies = [row.body for row in changes.trail.rows]
    for event_type, body in zip(
        (EventType.ORDER_ACCEPTED, EventType.REQUEST_REPLAYED, EventType.REQUEST_REJECTED), bodies, strict=True
    ):
        assert f'"event_type":"{event_type.value}"'.encode() in body
    assert [row.order_id is not None for row in changes.trail.rows] == [True, False, False]
