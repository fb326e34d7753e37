"""What is sent, and what becomes of each outcome: every state in which a record can find its order."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.books.changes import Changes, PendingCancel
from pipeline.model.halts import NO_HALTS, Halt, HaltBook
from pipeline.model.intents import NotSent
from pipeline.model.invariants import InvariantViolation
from pipeline.model.order import Order
from pipeline.model.venue import WINDOW_MIN, Confirmed, InDoubt, Refused
from pipeline.orders.execution import INTERRUPTED, CancelOutcome, Outcome, Plan, conclude, plan, reference_of, submission_of
from schemas.commands import HaltLevel, HaltScope
from schemas.orders import Mode, OrderStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, RoutedOrder
from tests.unit.builders import (
    NOW,
    ORDER_ID,
    RULES,
    TOPICS,
    account,
    changes_of,
    finals_of,
    order_of,
    outputs_on,
    pending_cancel,
    results_of,
    told,
)

S = OrderStatus
EPOCH = 4
MICROSECOND = timedelta(microseconds=1)
DAY = timedelta(hours=24)


def _work(action: Action = Action.SUBMIT, attempt: int = 1, order_id: str = ORDER_ID) -> RoutedOrder:
    return RoutedOrder(schema_version=1, action=action, order_id=order_id, user_id="alice", attempt=attempt)


def _planned(order: Order, *work: RoutedOrder, cancels: Sequence[PendingCancel] = (), halts: HaltBook = NO_HALTS) -> tuple[Plan, Changes]:
    changes = changes_of(order)
    if cancels:
        changes.cancels[ORDER_ID] = list(cancels)
    return plan(work, changes, EPOCH, 2, halts, RULES.usd_assets), changes


def test_accepted_order_is_sent_after_its_intent() -> None:
    """The intent carries the epoch, the partition, the attempt and the time that the signed request will carry."""
    decided, changes = _planned(order_of(), _work())
    order = changes.orders[ORDER_ID]
    assert (order.status, order.attempt, order.fencing_epoch, order.work_partition, order.submitting_at) == (S.SUBMITTING, 1, EPOCH, 2, NOW)
    assert decided.submissions == [submission_of(order)]
    assert decided.submissions[0].submitting_at == NOW
    assert not results_of(changes)


@pytest.mark.parametrize(
    ("now", "sent"),
    [(NOW + timedelta(seconds=30) - WINDOW_MIN, True), (NOW + timedelta(seconds=30) - WINDOW_MIN + MICROSECOND, False), (NOW + DAY, False)],
)
def test_order_is_not_sent_with_too_little_left_of_its_deadline(now: Any, sent: bool) -> None:
    """What could not be taken in before its deadline is refused as expired and its funds are free; what is sent carries the deadline."""
    changes = changes_of(order_of(), now=now)
    decided = plan([_work()], changes, EPOCH, 0, NO_HALTS, RULES.usd_assets)
    assert [submission.expires_at for submission in decided.submissions] == ([NOW + timedelta(seconds=30)] if sent else [])
    if not sent:
        (result,) = finals_of(changes)
        assert (result.status, result.reason_code) == (ResultStatus.REJECTED, ReasonCode.REQUEST_EXPIRED)
        assert changes.ledger.balance(account("USDT")).pending == 0


def test_order_submitting_under_an_older_epoch_is_in_doubt() -> None:
    """Another worker may have sent it: it is looked up, never sent blindly again, and its funds stay held."""
    decided, changes = _planned(order_of(status=S.SUBMITTING, fencing_epoch=EPOCH - 1), _work())
    assert decided == Plan()
    order = changes.orders[ORDER_ID]
    assert (order.status, order.reason, order.hold_amount) == (S.IN_DOUBT, INTERRUPTED[Mode.LIVE], 200)
    assert [result.status for result in results_of(changes)] == [ResultStatus.IN_DOUBT]


def test_order_submitting_under_this_epoch_is_sent_by_the_same_intent() -> None:
    """The commit of this very step was answered late: nothing was sent yet, and the time of the intent stays."""
    order = order_of(status=S.SUBMITTING, fencing_epoch=EPOCH)
    changes = changes_of(order)
    decided = plan([_work()], changes, EPOCH, 2, NO_HALTS, RULES.usd_assets, {(ORDER_ID, 1)})
    assert decided.submissions == [submission_of(order)]
    assert not changes.outputs


@pytest.mark.parametrize("own_intents", [set(), {(ORDER_ID, 2)}, {("o" + "2" * 32, 1)}])
def test_order_submitting_under_this_epoch_that_this_run_has_not_stored_is_in_doubt(own_intents: set[tuple[str, int]]) -> None:
    """An earlier batch of the same owner may have sent it: the epoch alone proves nothing."""
    changes = changes_of(order_of(status=S.SUBMITTING, fencing_epoch=EPOCH))
    assert plan([_work()], changes, EPOCH, 2, NO_HALTS, RULES.usd_assets, own_intents) == Plan()
    assert changes.orders[ORDER_ID].status is S.IN_DOUBT


@pytest.mark.parametrize(
    ("order", "work"),
    [
        (order_of(), _work(attempt=2)),
        (order_of(attempt=1), _work(attempt=1)),
        (order_of(status=S.SUBMITTING, attempt=2), _work(attempt=1)),
        (order_of(status=S.IN_DOUBT), _work()),
        (order_of(status=S.IN_DOUBT), _work(attempt=2)),
        *((order_of(status=status), _work()) for status in (S.NEW, S.PARTIALLY_FILLED, S.FILLED, S.CANCELED, S.EXPIRED, S.REJECTED)),
        *((order_of(status=status), _work(attempt=2)) for status in (S.NEW, S.FILLED, S.CANCELED)),
        *((order_of(status=status), _work(Action.CANCEL)) for status in (S.ACCEPTED, S.SUBMITTING, S.IN_DOUBT, S.FILLED, S.CANCELED)),
    ],
)
def test_record_of_another_attempt_or_state_sends_nothing(order: Order, work: RoutedOrder) -> None:
    """A record that an earlier or later one has overtaken changes nothing at all."""
    decided, changes = _planned(order, work)
    assert decided == Plan()
    assert not changes.outputs
    assert changes.orders[ORDER_ID] == order


@pytest.mark.parametrize("status", [S.NEW, S.PARTIALLY_FILLED])
def test_cancel_is_sent_for_a_resting_order(status: OrderStatus) -> None:
    """By the venue's id, which the order knows by then."""
    order = order_of(status=status, exchange_order_id="x1")
    decided, _ = _planned(order, _work(Action.CANCEL), cancels=[pending_cancel(1)])
    assert decided.cancels == [reference_of(order)]
    assert decided.cancels[0].exchange_order_id == "x1"


@pytest.mark.parametrize(
    ("order", "action"),
    [
        (order_of(), Action.SUBMIT),
        (order_of(status=S.NEW), Action.CANCEL),
    ],
)
def test_records_that_repeat_in_one_batch_make_one_call(order: Order, action: Action) -> None:
    """Two copies of a record never become two orders, nor two cancels whose answers cover each other."""
    cancels = [pending_cancel(1)] if action is Action.CANCEL else []
    decided, _ = _planned(order, _work(action), _work(action), _work(action), cancels=cancels)
    assert len(decided.submissions) + len(decided.cancels) == 1


def test_cancel_behind_its_order_in_one_batch_waits() -> None:
    """The order is being sent: its cancel stays pending until a look-up shows it resting."""
    decided, changes = _planned(order_of(), _work(), _work(Action.CANCEL))
    assert len(decided.submissions) == 1
    assert decided.cancels == []
    assert changes.orders[ORDER_ID].status is S.SUBMITTING


def test_queued_order_that_the_database_does_not_know_stops_the_batch() -> None:
    """Work without an order is a defect, or another installation's."""
    with pytest.raises(InvariantViolation, match="not in the database"):
        _planned(order_of(), _work(order_id="o" + "9" * 32))


@pytest.mark.parametrize(
    ("outcome", "status", "answers"),
    [
        (Confirmed(told(S.NEW)), S.NEW, [ResultStatus.OPEN]),
        (Confirmed(told(S.PARTIALLY_FILLED, "1", "100")), S.PARTIALLY_FILLED, [ResultStatus.OPEN]),
        (Confirmed(told(S.FILLED, "2", "200")), S.FILLED, [ResultStatus.EXECUTED]),
        (Confirmed(told(S.EXPIRED, "1", "100")), S.EXPIRED, [ResultStatus.EXECUTED]),
        (Confirmed(told(S.EXPIRED)), S.EXPIRED, [ResultStatus.CANCELED]),
        (Refused(ReasonCode.BALANCE_INSUFFICIENT, "no"), S.REJECTED, [ResultStatus.REJECTED]),
        (InDoubt("no answer"), S.IN_DOUBT, [ResultStatus.IN_DOUBT]),
        (NotSent("too late"), S.ACCEPTED, []),
    ],
)
def test_each_outcome_of_a_call_has_its_state_and_answer(outcome: Outcome, status: OrderStatus, answers: list[ResultStatus]) -> None:
    """What is proven is final, what is not is in doubt, what was not sent is queued again."""
    changes = changes_of(order_of(status=S.SUBMITTING))
    conclude({ORDER_ID: outcome}, {}, changes, RULES)
    order = changes.orders[ORDER_ID]
    assert order.status is status
    assert [result.status for result in results_of(changes)] == answers
    assert (order.hold_amount == 0) is (status in {S.FILLED, S.EXPIRED, S.REJECTED})
    assert len(outputs_on(changes, TOPICS.orders("binance"))) == (1 if status is S.ACCEPTED else 0)


@pytest.mark.parametrize("status", [S.ACCEPTED, S.IN_DOUBT, S.NEW, S.FILLED, S.CANCELED])
def test_outcome_for_an_order_that_moved_meanwhile_stops_the_batch(status: OrderStatus) -> None:
    """Only this worker may move an order that it is sending."""
    with pytest.raises(InvariantViolation):
        conclude({ORDER_ID: Confirmed(told(S.NEW))}, {}, changes_of(order_of(status=status)), RULES)


def test_confirmed_cancel_ends_the_order_and_every_cancel_of_it() -> None:
    """One call, and the order and both of its cancels have their final answers; what was filled before stays."""
    changes = changes_of(order_of(status=S.NEW))
    changes.cancels[ORDER_ID] = [pending_cancel(1), pending_cancel(2)]
    conclude({}, {ORDER_ID: Confirmed(told(S.CANCELED, "0.5", "50"))}, changes, RULES)
    assert [(result.status, result.filled_quantity) for result in finals_of(changes)] == [
        (ResultStatus.CANCELED, Decimal("0.5")), (ResultStatus.EXECUTED, Decimal("0.5")), (ResultStatus.EXECUTED, Decimal("0.5")),
    ]  # fmt: skip
    assert len(changes.cancels_ended) == 2
    assert ORDER_ID not in changes.cancels


def test_cancel_that_came_too_late_is_refused_when_the_order_fills() -> None:
    """The race is decided by the exchange: the order is executed, the cancel is told so."""
    changes = changes_of(order_of(status=S.SUBMITTING))
    changes.cancels[ORDER_ID] = [pending_cancel(1)]
    conclude({ORDER_ID: Confirmed(told(S.FILLED, "2", "200"))}, {}, changes, RULES)
    order, refused = finals_of(changes)
    assert (order.status, refused.status, refused.reason_code) == (
        ResultStatus.EXECUTED, ResultStatus.REJECTED, ReasonCode.ORDER_NOT_CANCELABLE,
    )  # fmt: skip


@pytest.mark.parametrize("outcome", [Confirmed(told(S.NEW)), Confirmed(told(S.PARTIALLY_FILLED, "1", "100"))])
def test_cancel_that_came_while_its_order_was_sent_is_queued_again(outcome: Confirmed) -> None:
    """Its own record found the order `submitting`; now that the order rests, the cancel goes out."""
    changes = changes_of(order_of(status=S.SUBMITTING))
    changes.cancels[ORDER_ID] = [pending_cancel(1)]
    conclude({ORDER_ID: outcome}, {}, changes, RULES)
    (work,) = [RoutedOrder.model_validate_json(output.value or b"") for output in outputs_on(changes, TOPICS.orders("binance"))]
    assert work.action is Action.CANCEL
    assert [cancel.attempt for cancel in changes.cancels_repeated] == [2]


def test_order_that_was_not_sent_and_is_canceled_meanwhile_is_not_sent_again() -> None:
    """Proven unsent is proof enough for its cancel: a second attempt could be executed against its user's word."""
    changes = changes_of(order_of(status=S.SUBMITTING))
    changes.cancels[ORDER_ID] = [pending_cancel(1)]
    conclude({ORDER_ID: NotSent("its turn came too late")}, {}, changes, RULES)
    assert [result.status for result in finals_of(changes)] == [ResultStatus.CANCELED, ResultStatus.EXECUTED]
    assert not outputs_on(changes, TOPICS.orders("binance"))
    assert changes.ledger.balance(account("USDT")).pending == 0


@pytest.mark.parametrize(
    ("outcome", "sent"),
    [
        (InDoubt("no answer"), 1),
        (Refused(ReasonCode.ORDER_NOT_FOUND, "gone", by_venue=True), 1),
        (Refused(ReasonCode.API_KEY_PERMISSION, "no", by_venue=True), 1),
        (Refused(ReasonCode.EXCHANGE_UNAVAILABLE, "too many requests", by_venue=True), 0),
        (Refused(ReasonCode.API_KEY_UNKNOWN, "no key here"), 0),
        (NotSent("the key could not be read"), 0),
    ],
)
def test_unproven_cancel_answers_nobody_and_counts_only_when_it_was_handed_over(outcome: CancelOutcome, sent: int) -> None:
    """The next look-up shows how the order stands. A call that never reached the exchange is none that it failed to confirm."""
    changes = changes_of(order_of(status=S.NEW))
    changes.cancels[ORDER_ID] = [pending_cancel(1)]
    conclude({}, {ORDER_ID: outcome}, changes, RULES)
    assert not changes.outputs
    assert changes.cancels[ORDER_ID] == [pending_cancel(1, attempts_sent=sent)]
    assert changes.cancels_repeated == ([pending_cancel(1, attempts_sent=1)] if sent else [])


@pytest.mark.parametrize(
    ("cancel", "passed", "code", "words"),
    [
        (
            pending_cancel(1, attempts_sent=RULES.cancel_attempts_max - 1),
            timedelta(0),
            ReasonCode.EXCHANGE_UNAVAILABLE,
            "was sent 3 cancels",
        ),
        (pending_cancel(1), RULES.cancel_time_max, ReasonCode.EXCHANGE_UNAVAILABLE, "confirmed none of the cancels sent to it (1)"),
        (pending_cancel(1, expires_at=NOW + DAY), DAY, ReasonCode.REQUEST_EXPIRED, "the deadline passed"),
    ],
)
def test_cancel_that_is_never_confirmed_is_answered_in_bounded_time(
    cancel: PendingCancel, passed: timedelta, code: ReasonCode, words: str
) -> None:
    """By the calls that were sent, by time, and by its own deadline. Its sender is told that one that was sent may still end the order."""
    changes = changes_of(order_of(status=S.NEW), now=NOW + passed)
    changes.cancels[ORDER_ID] = [cancel]
    conclude({}, {ORDER_ID: InDoubt("no answer")}, changes, RULES)
    (result,) = finals_of(changes)
    assert (result.status, result.reason_code, result.order_status) == (ResultStatus.REJECTED, code, S.NEW)
    assert words in (result.reason or "")
    assert "may yet end it" in (result.reason or "")
    assert len(changes.cancels_ended) == 1
    assert changes.cancels[ORDER_ID] == []


def test_queued_cancel_that_nobody_waits_for_any_more_is_not_sent() -> None:
    """Its sender was told that the order stands: a copy in the queue must not end it. A halt that asks for cancels needs no request."""
    decided, changes = _planned(order_of(status=S.NEW), _work(Action.CANCEL))
    assert decided == Plan()
    decided, changes = _planned(order_of(status=S.NEW), _work(Action.CANCEL), cancels=[pending_cancel(1, expires_at=NOW)])
    assert decided == Plan()
    assert [result.reason_code for result in finals_of(changes)] == [ReasonCode.REQUEST_EXPIRED]
    rows = frozenset({Halt(HaltScope.ALL, "", HaltLevel.HALT)})
    # One that keeps orders from being sent and leaves alone what rests.
    decided, _ = _planned(order_of(status=S.NEW), _work(Action.CANCEL), halts=HaltBook(rows))
    assert not decided.cancels
    decided, _ = _planned(order_of(status=S.NEW), _work(Action.CANCEL), halts=HaltBook(rows, canceling=rows))
    assert len(decided.cancels) == 1


def test_order_whose_cancel_waits_is_not_sent() -> None:
    """A cancel that came before the order was sent ends it: both get their answer, and the funds are free."""
    decided, changes = _planned(order_of(), _work(), cancels=[pending_cancel(1)])
    assert decided == Plan()
    assert [result.status for result in finals_of(changes)] == [ResultStatus.CANCELED, ResultStatus.EXECUTED]
    assert changes.ledger.balance(account("USDT")).pending == 0


def test_confirmed_cancel_of_an_order_that_ended_meanwhile_changes_nothing() -> None:
    """A report was faster."""
    changes = changes_of(order_of(status=S.FILLED))
    conclude({}, {ORDER_ID: Confirmed(told(S.CANCELED))}, changes, RULES)
    assert not changes.outputs


def test_submission_without_an_intent_cannot_be_made() -> None:
    """No recorded time, no signature."""
    with pytest.raises(InvariantViolation):
        submission_of(replace(order_of(status=S.SUBMITTING), submitting_at=None))


@pytest.mark.parametrize(
    ("deadlines", "halted", "before"),
    [
        ([NOW + DAY, NOW + 2 * DAY], False, NOW + 2 * DAY),
        ([NOW + DAY, None], False, None),
        ([NOW + DAY], True, None),
        ([], True, None),
    ],
    ids=["the last deadline", "one without end", "a halt as well", "a halt alone"],
)
def test_cancel_goes_out_for_as_long_as_somebody_wants_it(deadlines: list[Any], halted: bool, before: Any) -> None:
    """What comes after that is not handed over any more; a halt wants it without end."""
    cancels = [pending_cancel(number, expires_at=deadline) for number, deadline in enumerate(deadlines)]
    rows = frozenset({Halt(HaltScope.ALL, "", HaltLevel.HALT)}) if halted else frozenset()
    decided, _ = _planned(order_of(status=S.NEW), _work(Action.CANCEL), cancels=cancels, halts=HaltBook(rows, canceling=rows))
    assert [reference.cancel_before for reference in decided.cancels] == [before]
