"""What a look-up proves, and what it does not."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.books.audit import ChainHead
from pipeline.books.changes import Changes, PendingCancel
from pipeline.model.absence import absence_is_proven
from pipeline.model.invariants import InvariantViolation, LocksMissing
from pipeline.model.order import Order
from pipeline.orders.settlement import apply_report
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT, HaltLevel, HaltScope
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, Report, ReportedFee, RoutedOrder
from schemas.wire import SourceOffset
from tests.unit.builders import NOW, ORDER_ID, RULES, TOPICS, account, changes_of, finals_of, order_of, outputs_on, results_of

S = OrderStatus
MICROSECOND = timedelta(microseconds=1)
# Receive window 5 s, venue time-out 10 s, and the read lag of an exchange of which nothing is said.
APART = timedelta(seconds=15 + 120)
# Far enough behind everything.
HORIZON = NOW + timedelta(hours=1)


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


@pytest.mark.parametrize(("after", "proven"), [(timedelta(0), False), (APART - MICROSECOND, False), (APART, True), (APART * 9, True)])
def test_absence_needs_two_looks_as_far_apart_as_the_exchange_may_lag(after: timedelta, proven: bool) -> None:
    """One look that finds nothing proves nothing, however late it is; the second does when what could still be accepted at the first must
    be shown by then. Until then the funds stay held, and nobody is told anything."""
    late = NOW + timedelta(hours=1)
    changes = _applied(IN_DOUBT, _absent(late), now=late)
    assert (changes.orders[ORDER_ID], changes.outputs) == (replace(IN_DOUBT, absent_since=late), [])
    assert absence_is_proven(changes.orders[ORDER_ID], late + after, RULES) is proven
    apply_report(_absent(late + after), changes, RULES)
    order = changes.orders[ORDER_ID]
    if proven:
        (result,) = finals_of(changes)
        assert (result.status, result.reason_code) == (ResultStatus.REJECTED, ReasonCode.ORDER_NOT_EXECUTED)
        assert (order.hold_amount, order.watched_until) == (0, late + RULES.watch_time)
    else:
        assert (order, changes.outputs) == (replace(IN_DOUBT, absent_since=late), [])
    assert not _queued(changes)


def test_looks_are_apart_as_far_as_the_venue_itself_lags() -> None:
    """The read lag is a fact of each exchange."""
    slow = replace(RULES, read_lags={"binance": timedelta(minutes=30)})
    order = replace(IN_DOUBT, absent_since=NOW)
    assert not absence_is_proven(order, NOW + APART, slow)
    assert absence_is_proven(order, NOW + APART + timedelta(minutes=28), slow)


@pytest.mark.parametrize("step", [timedelta(hours=-3), timedelta(0), timedelta(hours=3)])
def test_absence_is_judged_by_the_exchanges_clock_alone(step: timedelta) -> None:
    """This machine's clock may be set between the intent and the looks: by how much the looks are apart stays the same."""
    changes = _applied(IN_DOUBT, _absent(NOW), now=NOW + step)
    apply_report(_absent(NOW + APART - MICROSECOND), changes, RULES)
    assert changes.orders[ORDER_ID].status is S.IN_DOUBT
    apply_report(_absent(NOW + APART), changes, RULES)
    assert changes.orders[ORDER_ID].status is S.REJECTED


def test_first_absent_look_counts_however_many_come_between() -> None:
    """A look in between neither shortens nor lengthens the wait."""
    changes = _applied(IN_DOUBT, *(_absent(NOW + APART * part / 5) for part in range(5)))
    assert changes.orders[ORDER_ID].absent_since == NOW
    assert not changes.outputs


def test_absence_of_an_order_without_an_intent_proves_nothing() -> None:
    """There is nothing that could have been accepted."""
    assert not absence_is_proven(order_of(absent_since=NOW), NOW + timedelta(days=1), RULES)


@pytest.mark.parametrize("left", [timedelta(days=1), timedelta(0)])
def test_absent_order_is_not_sent_again_inside_its_deadline_either(left: timedelta) -> None:
    """It ends, its funds are free, and its producer decides: twice sent is twice executed where the proof is wrong."""
    changes = _applied(order_of(status=S.IN_DOUBT, expires_at=NOW + left, absent_since=NOW), _absent(NOW + APART))
    assert not _queued(changes)
    (result,) = finals_of(changes)
    assert (result.status, result.reason_code) == (ResultStatus.REJECTED, ReasonCode.ORDER_NOT_EXECUTED)
    assert changes.orders[ORDER_ID].hold_amount == 0


def test_absent_order_whose_user_canceled_it_waits_for_the_same_proof_and_ends_as_canceled() -> None:
    """The cancel has done its work only when nothing can come any more; the order is watched like any other."""
    changes = _applied(IN_DOUBT, _absent(NOW), cancels=(_cancel(),))
    assert not changes.outputs
    apply_report(_absent(NOW + APART), changes, RULES)
    assert [result.status for result in finals_of(changes)] == [ResultStatus.CANCELED, ResultStatus.EXECUTED]
    assert not _queued(changes)
    assert changes.orders[ORDER_ID].watched_until is not None


def _not_executed(**fields: Any) -> Order:
    values = {"reason_code": ReasonCode.ORDER_NOT_EXECUTED, "watched_until": NOW + timedelta(hours=1), **fields}
    return order_of(status=S.REJECTED, **values)


def _corrected(order: Order, *reports: Report, funds: Mapping[str, str] | None = None, now: datetime = NOW) -> Changes:
    heads = {account: ChainHead() for account in ("alice", COMMANDS_ACCOUNT, TRIPS_ACCOUNT)}
    changes = changes_of(order, now=now, heads=heads, funds=funds)
    for report in reports:
        apply_report(report, changes, RULES)
    return changes


def test_order_that_shows_up_after_all_is_booked_corrected_and_halts_its_user() -> None:
    """The one final answer stays the only one; what corrects it says so, has the figures, and is what copies are told from now on."""
    report = _found(S.FILLED, "2", "200", fees=(ReportedFee(asset="BTC", amount=Decimal("0.002")),))
    changes = _corrected(_not_executed(), report)
    (result,) = results_of(changes)
    assert (result.final, result.corrects, result.status, result.filled_quantity) == (False, True, ResultStatus.EXECUTED, Decimal(2))
    assert changes.corrected == {("alice", "key-1"): result}
    assert not changes.finished
    assert b'"corrects":true' in outputs_on(changes, TOPICS.results)[0].value
    assert b"ORDER_RESULT_CORRECTED" in changes.trail.rows[0].body
    halt = changes.halts[HaltScope.USER, "alice"]
    assert (halt.halt.level, halt.set_by) == (HaltLevel.HALT, TRIPS_ACCOUNT)
    order = changes.orders[ORDER_ID]
    assert (order.status, order.corrected_at, order.watched_until) == (S.FILLED, NOW, None)
    bought = changes.ledger.balances[account("BTC")].posted
    assert bought == Decimal(100) + 2 - Decimal("0.002")


def test_fills_beyond_the_funds_of_an_order_that_shows_up_after_all_are_advanced() -> None:
    """Its hold was released and may be spent: nobody goes below zero, and the house sees what it advanced."""
    changes = _corrected(_not_executed(), _found(S.FILLED, "2", "200"), funds={"USDT": "50", "BTC": "0"})
    assert changes.ledger.balances[account("USDT")].posted == 0
    advanced = [transfer.amount for transfer in changes.ledger.transfers if transfer.debit.owner == "@shortfall"]
    assert advanced == [150]


def test_stray_order_that_rests_is_canceled_at_the_exchange_until_it_is_gone() -> None:
    """Each look that still finds it sends the cancel once more; its end is told as a correction too."""
    changes = _corrected(_not_executed(), _found(S.PARTIALLY_FILLED, "1", "100"))
    assert [work.action for work in _queued(changes)] == [Action.CANCEL]
    apply_report(_found(S.PARTIALLY_FILLED, "1", "100"), changes, RULES)
    assert [work.action for work in _queued(changes)] == [Action.CANCEL] * 2
    apply_report(_found(S.CANCELED, "1", "100"), changes, RULES)
    assert [(result.status, result.final, result.corrects) for result in results_of(changes)] == [
        (ResultStatus.OPEN, False, True), (ResultStatus.CANCELED, False, True),
    ]  # fmt: skip
    assert changes.orders[ORDER_ID].status is S.CANCELED


def test_order_that_shows_up_as_it_was_said_corrects_nothing() -> None:
    """Canceled there with nothing executed, and called canceled here: nobody was told anything wrong."""
    order = order_of(status=S.CANCELED, watched_until=NOW + timedelta(hours=1))
    assert not _corrected(order, _found(S.CANCELED)).outputs
    assert not _corrected(_not_executed(), _found(S.REJECTED)).outputs


def test_order_is_not_corrected_once_its_time_is_over() -> None:
    """A day, not for ever: what is reported later is nobody's look any more."""
    assert not _corrected(_not_executed(watched_until=NOW), _found(S.FILLED, "2", "200")).outputs


def test_correction_without_the_locks_of_the_halts_begins_again() -> None:
    """A step that finds out that it needs them takes them all, in their order."""
    with pytest.raises(LocksMissing):
        _applied(_not_executed(), _found(S.FILLED, "2", "200"))


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
