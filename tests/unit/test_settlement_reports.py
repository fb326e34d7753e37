"""What a look-up proves, and what it does not."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.changes import Changes, PendingCancel
from pipeline.invariants import InvariantViolation
from pipeline.order import Order
from pipeline.settlement import absence_is_proven, apply_report
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, Report, ReportedFee, RoutedOrder
from schemas.wire import SourceOffset
from tests.unit.builders import NOW, ORDER_ID, RULES, TOPICS, changes_of, finals_of, order_of, outputs_on, results_of

S = OrderStatus
MICROSECOND = timedelta(microseconds=1)
# Receive window 5 s and venue time-out 10 s after the intent, which is one second old.
HORIZON = NOW - timedelta(seconds=1) + timedelta(seconds=15)


def _found(status: OrderStatus, quantity: str = "0", quote: str = "0", **fields: Any) -> Report:
    values: dict[str, Any] = {
        "schema_version": 1, "order_id": ORDER_ID, "user_id": "alice", "attempt": 1, "found": True, "looked_up_at": NOW,
        "exchange_order_id": "x1", "order_status": status, "cum_quantity": Decimal(quantity), "cum_quote": Decimal(quote),
    }  # fmt: skip
    return Report(**{**values, **fields})


def _absent(looked_up_at: datetime, attempt: int = 1) -> Report:
    return Report(schema_version=1, order_id=ORDER_ID, user_id="alice", attempt=attempt, found=False, looked_up_at=looked_up_at)


def _cancel(number: int = 1, attempt: int = 1) -> PendingCancel:
    return PendingCancel(
        SourceOffset(TOPICS.requests, 0, 100 + number), ORDER_ID, "alice", f"cancel-{number}", f"rc{number}", NOW, NOW, attempt, None
    )


def _applied(order: Order, *reports: Report, cancels: tuple[PendingCancel, ...] = (), now: datetime = NOW) -> Changes:
    changes = changes_of(order, now=now)
    if cancels:
        changes.cancels[ORDER_ID] = list(cancels)
    for report in reports:
        apply_report(report, changes, RULES)
    return changes


def _queued(changes: Changes) -> list[RoutedOrder]:
    return [RoutedOrder.model_validate_json(output.value or b"") for output in outputs_on(changes, TOPICS.orders("binance"))]


IN_DOUBT = order_of(status=S.IN_DOUBT, expires_at=NOW + timedelta(minutes=5))


def test_doubt_ends_with_what_the_exchange_shows() -> None:
    """Found: the order is adopted with the exchange's own id and figures."""
    report = _found(S.FILLED, "2", "200", fees=(ReportedFee(asset="BTC", amount=Decimal("0.002")),))
    changes = _applied(IN_DOUBT, report)
    (result,) = finals_of(changes)
    assert (result.status, result.exchange_order_id, result.fee) == (ResultStatus.EXECUTED, "x1", Decimal("0.002"))
    assert b"ORDER_RESOLVED" in changes.trail.rows[0].body


@pytest.mark.parametrize(
    ("looked_up_at", "proven"), [(NOW, False), (HORIZON - MICROSECOND, False), (HORIZON, False), (HORIZON + MICROSECOND, True)]
)
def test_absence_counts_only_after_the_acceptance_horizon(looked_up_at: datetime, proven: bool) -> None:
    """Until the venue can no longer accept the order, "not found" proves nothing: funds stay held, nothing is sent."""
    assert absence_is_proven(IN_DOUBT, looked_up_at, RULES) is proven
    changes = _applied(IN_DOUBT, _absent(looked_up_at))
    assert changes.orders[ORDER_ID].status is (S.ACCEPTED if proven else S.IN_DOUBT)
    assert [work.attempt for work in _queued(changes)] == ([2] if proven else [])
    assert changes.orders[ORDER_ID].hold_amount == 200


def test_absence_of_an_order_without_an_intent_proves_nothing() -> None:
    """There is no horizon to be behind."""
    assert not absence_is_proven(order_of(), NOW + timedelta(days=1), RULES)


@pytest.mark.parametrize(("left", "requeued"), [(MICROSECOND, True), (timedelta(0), False)])
def test_absent_order_is_sent_again_only_inside_its_deadline(left: timedelta, requeued: bool) -> None:
    """Past it, the order is rejected as expired and its funds are free."""
    changes = _applied(order_of(status=S.IN_DOUBT, expires_at=NOW + left), _absent(HORIZON + MICROSECOND))
    assert len(_queued(changes)) == (1 if requeued else 0)
    if not requeued:
        (result,) = finals_of(changes)
        assert (result.status, result.reason_code) == (ResultStatus.REJECTED, ReasonCode.REQUEST_EXPIRED)
        assert changes.orders[ORDER_ID].hold_amount == 0


def test_absent_order_whose_user_canceled_it_is_not_sent_again() -> None:
    """It ends as canceled, and the cancel has done its work."""
    changes = _applied(IN_DOUBT, _absent(HORIZON + MICROSECOND), cancels=(_cancel(),))
    assert [result.status for result in finals_of(changes)] == [ResultStatus.CANCELED, ResultStatus.EXECUTED]
    assert not _queued(changes)


@pytest.mark.parametrize("report", [_found(S.FILLED, "2", "200", attempt=2), _absent(HORIZON + MICROSECOND, attempt=2)])
def test_report_of_another_attempt_changes_nothing(report: Report) -> None:
    """What was true of attempt 1 says nothing about attempt 2, nor the other way round."""
    assert not _applied(IN_DOUBT, report).outputs
    older = report.model_copy(update={"attempt": 1})
    assert not _applied(order_of(status=S.IN_DOUBT, attempt=2), older).outputs


@pytest.mark.parametrize("status", [S.ACCEPTED, S.SUBMITTING])
@pytest.mark.parametrize("found", [True, False])
def test_report_on_an_order_that_is_being_sent_changes_nothing(status: OrderStatus, found: bool) -> None:
    """The worker that sends it records the outcome itself."""
    order = order_of(status=status, attempt=1)
    assert not _applied(order, _found(S.NEW) if found else _absent(HORIZON + MICROSECOND)).outputs


@pytest.mark.parametrize("status", [S.NEW, S.PARTIALLY_FILLED])
def test_resting_order_that_the_exchange_does_not_find_stays_as_it_is(status: OrderStatus) -> None:
    """It was there: "not found" is no proof that it is gone without a fill."""
    changes = _applied(order_of(status=status), _absent(HORIZON + timedelta(days=1)))
    assert not changes.outputs
    assert changes.orders[ORDER_ID].hold_amount == 200


@pytest.mark.parametrize("status", [S.FILLED, S.CANCELED, S.EXPIRED, S.REJECTED])
def test_report_on_an_order_that_is_over_changes_nothing(status: OrderStatus) -> None:
    """An answer that was given is never given again."""
    for report in (_found(S.FILLED, "2", "200"), _found(S.CANCELED), _absent(HORIZON + MICROSECOND)):
        assert not _applied(order_of(status=status), report).outputs


def test_reports_that_repeat_or_come_out_of_order_change_nothing_more() -> None:
    """Totals only grow: the newest wins, whenever the others come."""
    order = order_of(status=S.NEW)
    one, two, end = _found(S.PARTIALLY_FILLED, "1", "100"), _found(S.PARTIALLY_FILLED, "1.5", "150"), _found(S.FILLED, "2", "200")
    shuffled = _applied(order, two, one, one, end, two, end)
    assert shuffled.ledger.balances == _applied(order, one, two, end).ledger.balances
    assert len(results_of(shuffled)) == 2


@pytest.mark.parametrize("missing", ["order_status", "cum_quantity", "cum_quote", "exchange_order_id"])
def test_found_without_figures_stops_the_batch(missing: str) -> None:
    """Half a proof is none."""
    with pytest.raises(InvariantViolation):
        _applied(IN_DOUBT, _found(S.NEW, **{missing: None}))


def test_report_on_an_unknown_order_stops_the_batch() -> None:
    """Another installation's report, or a defect."""
    with pytest.raises(InvariantViolation, match="not in the database"):
        _applied(IN_DOUBT, _found(S.NEW).model_copy(update={"order_id": "o" + "9" * 32}))


def test_pending_cancel_is_repeated_while_the_order_rests() -> None:
    """Each look-up that finds it resting sends the cancel once more, one call for all cancels of the order."""
    changes = _applied(order_of(status=S.NEW), _found(S.NEW), cancels=(_cancel(1, attempt=1), _cancel(2, attempt=2)))
    (work,) = _queued(changes)
    assert work.action is Action.CANCEL
    assert [cancel.attempt for cancel in changes.cancels_repeated] == [2, 3]
    assert changes.cancels[ORDER_ID] == changes.cancels_repeated


def test_cancel_that_was_never_sent_is_not_counted_by_its_reports() -> None:
    """However often a look-up finds the order resting: what the exchange did not get, it did not fail to confirm. Time alone ends it, and
    its sender is told that nothing was sent."""
    order, cancel = order_of(status=S.NEW), _cancel(1, attempt=50)
    assert len(_queued(_applied(order, _found(S.NEW), cancels=(cancel,), now=NOW + RULES.cancel_time_max - MICROSECOND))) == 1
    changes = _applied(order, _found(S.NEW), cancels=(cancel,), now=NOW + RULES.cancel_time_max)
    (result,) = finals_of(changes)
    assert (result.reason_code, result.order_status) == (ReasonCode.EXCHANGE_UNAVAILABLE, S.NEW)
    assert "no cancel could be sent" in (result.reason or "")
    assert changes.cancels_ended == [cancel]
    assert changes.cancels[ORDER_ID] == []
    assert not _queued(changes)


def test_cancel_that_was_sent_as_often_as_allowed_is_given_up() -> None:
    """After the last call its sender is told that the order still stands and its funds are held."""
    cancel = replace(_cancel(1), attempts_sent=RULES.cancel_attempts_max)
    changes = _applied(order_of(status=S.NEW), _found(S.NEW), cancels=(cancel,))
    (result,) = finals_of(changes)
    assert (result.reason_code, result.order_status) == (ReasonCode.EXCHANGE_UNAVAILABLE, S.NEW)
    assert changes.cancels_ended == [cancel]
    assert not _queued(changes)


def test_cancel_ends_with_the_order_that_a_report_ends() -> None:
    """A look-up that shows the order canceled answers order and cancel."""
    changes = _applied(order_of(status=S.NEW), _found(S.CANCELED, "1", "100"), cancels=(_cancel(),))
    assert [result.status for result in finals_of(changes)] == [ResultStatus.CANCELED, ResultStatus.EXECUTED]
    assert not _queued(changes)
