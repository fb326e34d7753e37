"""Settlement: what the exchange's word does to an order, its funds and its answers.

Used by the execution agent (the answer to a call) and by the settlement agent (what a look-up proved), so that both end the same way.

Invariants:
1. Only differences are posted, for each of base, quote and every fee's asset by itself: figures are totals since the order began, so
   the same word twice changes nothing, and a fee or a value that is told later than its quantity is posted then.
2. A hold is released exactly when its order ends; it never expires by itself once the order is `submitting`.
3. `in_doubt` ends by `Found`, or by `Absent` as of a moment after the acceptance horizon of the newest attempt.
"""

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from pipeline.changes import Changes, PendingCancel, order_fields, result_of_order
from pipeline.cost import apply_cost
from pipeline.gate.conduct import after_exchange_refusal, after_success
from pipeline.invariants import InvariantViolation
from pipeline.ledger import AccountKey, book_of, clearing, fees
from pipeline.order import RESTING, TERMINAL, Order
from pipeline.rules import Rules
from pipeline.venue import Fee, Refused, VenueOrder, acceptance_horizon
from schemas.audit import EventType
from schemas.decimals import format_decimal
from schemas.orders import Mode, OrderStatus, RequestType, Side
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, Report, RoutedOrder

# Each attempt is two audit events; at one or two seconds an attempt this outlasts an outage of many minutes.
ATTEMPTS_MAX: Final = 1_000
DETAIL_MAX: Final = 300

_ABSENT: Final = {
    Mode.LIVE: "the exchange knows no such order after the acceptance horizon",
    Mode.PAPER: "the simulated order was interrupted before it was executed",
}

_EVENT_OF_STATUS: Final[dict[OrderStatus, EventType]] = {
    OrderStatus.NEW: EventType.ORDER_ACKNOWLEDGED,
    OrderStatus.PARTIALLY_FILLED: EventType.ORDER_PARTIALLY_FILLED,
    OrderStatus.FILLED: EventType.ORDER_FILLED,
    OrderStatus.CANCELED: EventType.ORDER_CANCELED,
    OrderStatus.EXPIRED: EventType.ORDER_EXPIRED,
    OrderStatus.REJECTED: EventType.ORDER_REFUSED,
}


def apply_venue_order(order: Order, venue_order: VenueOrder, changes: Changes) -> None:
    """Takes over what the venue's books show. Nothing happens when they show nothing new or less than is known already."""
    if order.status in TERMINAL or venue_order.cum_quantity < order.cum_quantity or venue_order.cum_quote < order.cum_quote:
        return
    status = _status_told(venue_order)
    if status is OrderStatus.NEW and order.status is OrderStatus.PARTIALLY_FILLED:
        status = OrderStatus.PARTIALLY_FILLED
    fee_totals = _fee_totals(order, venue_order)
    grown = venue_order.cum_quantity > order.cum_quantity or venue_order.cum_quote > order.cum_quote or fee_totals != order.fees
    if status is order.status and not grown:
        return
    transfers_from = len(changes.ledger.transfers)
    ended = status in TERMINAL
    after = replace(
        order,
        status=status,
        exchange_order_id=venue_order.exchange_order_id or order.exchange_order_id,
        cum_quantity=venue_order.cum_quantity,
        cum_quote=venue_order.cum_quote,
        fee=fee_totals[0].amount if fee_totals else Decimal(0),
        fee_asset=fee_totals[0].asset if fee_totals else None,
        fees=fee_totals,
        hold_amount=order.hold_amount - _post_fill(order, venue_order, changes),
        reason_code=ReasonCode.EXCHANGE_REFUSED if status is OrderStatus.REJECTED else None,
        reason="the exchange lists the order as rejected" if status is OrderStatus.REJECTED else None,
        updated_at=changes.now,
        executed_at=changes.now if ended else None,
    )
    is_real = order.mode is Mode.LIVE
    if is_real and (status in RESTING or venue_order.cum_quantity > 0):
        changes.move_conduct(order.user_id, after_success(changes.conduct_of(order.user_id)))
    realised = apply_cost(order, venue_order, fee_totals, changes.ledger)
    # A paper account has its average cost too, but no loss of it is one.
    if realised is not None and is_real:
        changes.realised.append(realised)
    if ended:
        # Before the fees: what is left of the hold may be all that there is to pay them from.
        after = _release(after, changes)
    _charge_fees(order, fee_totals, changes)
    event_type = EventType.ORDER_RESOLVED if order.status is OrderStatus.IN_DOUBT else _EVENT_OF_STATUS[status]
    changes.advance(order, after, event_type, transfers_from)
    _answer(after, changes)


def apply_refusal(order: Order, refused: Refused, changes: Changes) -> None:
    """Ends an order that the venue provably did not accept."""
    if order.mode is Mode.LIVE:
        changes.move_conduct(order.user_id, after_exchange_refusal(changes.conduct_of(order.user_id), refused.reason_code, changes.now))
    after = replace(
        order,
        status=OrderStatus.REJECTED,
        reason_code=refused.reason_code,
        reason=storable(refused.detail),
        updated_at=changes.now,
        executed_at=changes.now,
    )
    end_order_unsent(order, after, EventType.ORDER_REFUSED, changes)


def end_order_unsent(before: Order, after: Order, event_type: EventType, changes: Changes) -> None:
    """Ends an order of which nothing stands at the exchange: releases its hold and answers it."""
    transfers_from = len(changes.ledger.transfers)
    after = _release(after, changes)
    changes.advance(before, after, event_type, transfers_from)
    _answer(after, changes)


def mark_in_doubt(order: Order, detail: str, changes: Changes) -> None:
    """No proof either way: the funds stay held and the order is looked up until the exchange proves what became of it."""
    after = replace(order, status=OrderStatus.IN_DOUBT, reason=storable(detail), updated_at=changes.now)
    changes.advance(order, after, EventType.ORDER_IN_DOUBT, len(changes.ledger.transfers))
    _answer(after, changes)


def requeue(order: Order, detail: str, changes: Changes) -> None:
    """Queues an order again of which the last attempt provably reached nothing: not sent, or absent after the horizon.

    One that its user canceled meanwhile ends instead: it must not be sent once more and perhaps be executed. After `ATTEMPTS_MAX` it is
    refused: a deadline far ahead must not let an exchange that is down fill the audit trail.
    """
    if changes.cancels.get(order.order_id):
        canceled = replace(order, status=OrderStatus.CANCELED, reason=None, updated_at=changes.now, executed_at=changes.now)
        end_order_unsent(order, canceled, EventType.ORDER_CANCELED, changes)
        return
    if order.attempt >= ATTEMPTS_MAX:
        text = f"the exchange was not available in {order.attempt} attempts; nothing was executed and the funds are released. {detail}"
        apply_refusal(order, Refused(ReasonCode.EXCHANGE_UNAVAILABLE, text[:DETAIL_MAX]), changes)
        return
    after = replace(order, status=OrderStatus.ACCEPTED, reason=None, updated_at=changes.now)
    changes.advance(order, after, EventType.ORDER_REQUEUED, len(changes.ledger.transfers), {"reason": storable(detail)})
    routed = RoutedOrder(schema_version=1, action=Action.SUBMIT, order_id=order.order_id, user_id=order.user_id, attempt=order.attempt + 1)
    changes.route(routed, order.exchange, order.traceparent)


def apply_report(report: Report, changes: Changes, rules: Rules) -> None:
    """Applies what a look-up proved. A report of an older attempt, or one that proves nothing new, changes nothing."""
    order = changes.orders.get(report.order_id)
    if order is None:
        raise InvariantViolation(f"a report names order {report.order_id}, which is not in the database; nothing was written.")
    if order.status in TERMINAL or report.attempt != order.attempt:
        return
    if report.found:
        if order.status not in RESTING | {OrderStatus.IN_DOUBT}:
            # The call is still under way under its own worker, which will record the outcome itself.
            return
        apply_venue_order(order, _venue_order_of(report, order), changes)
        repeat_pending_cancels(changes.orders[order.order_id], changes, rules)
        return
    if order.status is OrderStatus.IN_DOUBT and absence_is_proven(order, report.looked_up_at, rules):
        if changes.now < order.expires_at and not changes.cancels.get(order.order_id):
            requeue(order, _ABSENT[order.mode], changes)
        else:
            apply_absence(order, changes)


def apply_absence(order: Order, changes: Changes) -> None:
    """Ends an order that is proven absent and must not be sent any more: its deadline is over, or its user canceled it."""
    if changes.cancels.get(order.order_id):
        after = replace(order, status=OrderStatus.CANCELED, reason=None, updated_at=changes.now, executed_at=changes.now)
        end_order_unsent(order, after, EventType.ORDER_RESOLVED, changes)
        return
    reason = f"{_ABSENT[order.mode]}, and the deadline for sending it is over; no funds were moved"
    after = replace(
        order,
        status=OrderStatus.REJECTED,
        reason_code=ReasonCode.REQUEST_EXPIRED,
        reason=reason,
        updated_at=changes.now,
        executed_at=changes.now,
    )
    end_order_unsent(order, after, EventType.ORDER_RESOLVED, changes)


def absence_is_proven(order: Order, looked_up_at: datetime, rules: Rules) -> bool:
    """Whether a look-up that began at `looked_up_at` and found nothing proves that nothing can come any more.

    A simulated order is executed by storing its outcome alone, which only the newest owner of its partition can: one in doubt was not.
    """
    if order.submitting_at is None:
        return False
    if order.mode is Mode.PAPER:
        return True
    return looked_up_at > acceptance_horizon(order.submitting_at, rules.receive_window, rules.venue_timeout)


def refuse_cancel(cancel: PendingCancel, order: Order, code: ReasonCode, reason: str, changes: Changes) -> None:
    """The final answer to a cancel that did not end its order."""
    _end_cancel(cancel, order, changes, ResultStatus.REJECTED, code, reason)


def _venue_order_of(report: Report, order: Order) -> VenueOrder:
    if report.order_status is None or report.cum_quantity is None or report.cum_quote is None or report.exchange_order_id is None:
        raise InvariantViolation(f"a report says that order {order.order_id} was found but not how it stands; nothing was written.")
    return VenueOrder(
        client_order_id=order.client_order_id,
        exchange_order_id=report.exchange_order_id,
        order_status=report.order_status,
        cum_quantity=report.cum_quantity,
        cum_quote=report.cum_quote,
        fees=tuple(Fee(fee.asset, fee.amount) for fee in report.fees),
        updated_at=report.looked_up_at,
    )


def _status_told(venue_order: VenueOrder) -> OrderStatus:
    """The venue's status, made to agree with its own figures: what was executed in part is neither untouched nor rejected."""
    status = venue_order.order_status
    if venue_order.cum_quantity > 0 or venue_order.cum_quote > 0 or any(fee.amount > 0 for fee in venue_order.fees):
        if status is OrderStatus.NEW:
            return OrderStatus.PARTIALLY_FILLED
        if status is OrderStatus.REJECTED:
            return OrderStatus.CANCELED
    return status


def _fee_totals(order: Order, venue_order: VenueOrder) -> tuple[Fee, ...]:
    """The fees known now, one entry per asset. A total never falls: what was charged once was told by the venue."""
    totals = {fee.asset: fee.amount for fee in order.fees}
    for fee in venue_order.fees:
        if fee.amount > totals.get(fee.asset, Decimal(0)):
            totals[fee.asset] = fee.amount
    return tuple(Fee(asset, amount) for asset, amount in totals.items())


def _post_fill(order: Order, venue_order: VenueOrder, changes: Changes) -> Decimal:
    """Posts what was filled since the last word; returns how much of the hold it used, in units of the hold's asset."""
    book = book_of(order.mode)
    base = AccountKey(order.user_id, order.exchange, book, order.base), venue_order.cum_quantity, order.cum_quantity
    quote = AccountKey(order.user_id, order.exchange, book, order.quote), venue_order.cum_quote, order.cum_quote
    (pays, paid, paid_before), (receives, received, received_before) = (quote, base) if order.side is Side.BUY else (base, quote)
    due = paid - paid_before
    from_hold = min(due, order.hold_amount)
    paid_to = clearing(order.exchange, book, pays.asset)
    # Totals grow with every fill, so the ids differ from fill to fill and repeat for a repeated word.
    if from_hold > 0:
        changes.ledger.post_held(f"{order.order_id}:pay:{format_decimal(paid)}", order.order_id, pays, paid_to, from_hold)
    if due > from_hold:
        changes.ledger.charge(f"{order.order_id}:pay_more:{format_decimal(paid)}", order.order_id, pays, paid_to, due - from_hold)
    if received > received_before:
        source = clearing(order.exchange, book, receives.asset)
        transfer_id = f"{order.order_id}:receive:{format_decimal(received)}"
        changes.ledger.post(transfer_id, order.order_id, source, receives, received - received_before)
    return from_hold


def _charge_fees(order: Order, fee_totals: tuple[Fee, ...], changes: Changes) -> None:
    """Charges what the fees' totals have grown by. `order` is the order as it was before."""
    book = book_of(order.mode)
    known = {fee.asset: fee.amount for fee in order.fees}
    for fee in fee_totals:
        amount = fee.amount - known.get(fee.asset, Decimal(0))
        if amount > 0:
            account = AccountKey(order.user_id, order.exchange, book, fee.asset)
            transfer_id = f"{order.order_id}:fee:{fee.asset}:{format_decimal(fee.amount)}"
            changes.ledger.charge(transfer_id, order.order_id, account, fees(order.exchange, book, fee.asset), amount)


def storable(detail: str) -> str:
    """A venue's text as the database can keep it: without NUL and without halves of surrogate pairs."""
    return detail.replace("\x00", "?").encode("utf-8", "replace").decode()


def _release(order: Order, changes: Changes) -> Order:
    if order.hold_amount <= 0:
        return order
    account = AccountKey(order.user_id, order.exchange, book_of(order.mode), order.hold_asset)
    changes.ledger.release(f"{order.order_id}:release", order.order_id, account, order.hold_amount)
    return replace(order, hold_amount=Decimal(0))


def _answer(order: Order, changes: Changes) -> None:
    result = result_of_order(order)
    if not result.final:
        changes.answer(result, order.traceparent)
        return
    changes.finish((order.user_id, order.idempotency_key), result, order.traceparent)
    for cancel in changes.cancels.pop(order.order_id, []):
        if order.status is OrderStatus.CANCELED:
            _end_cancel(cancel, order, changes, ResultStatus.EXECUTED, None, None)
        else:
            reason = f"the order was {order.status} before the cancel reached it"
            _end_cancel(cancel, order, changes, ResultStatus.REJECTED, ReasonCode.ORDER_NOT_CANCELABLE, reason)


def _end_cancel(
    cancel: PendingCancel, order: Order, changes: Changes, status: ResultStatus, code: ReasonCode | None, reason: str | None
) -> None:
    changes.cancels_ended.append(cancel)
    event_type = EventType.CANCEL_EXECUTED if status is ResultStatus.EXECUTED else EventType.CANCEL_REFUSED
    fields = {**order_fields(order), "request_id": cancel.request_id, "reason_code": code.value if code else None, "reason": reason}
    fields["idempotency_key"] = cancel.idempotency_key
    changes.audit(order.user_id, order.order_id, event_type, fields, cancel.traceparent)
    result = replace(
        result_of_order(order),
        request_id=cancel.request_id,
        idempotency_key=cancel.idempotency_key,
        type=RequestType.CANCEL,
        status=status,
        reason_code=code,
        reason=reason,
        final=True,
        requested_at=cancel.requested_at,
        decided_at=cancel.decided_at,
        executed_at=changes.now,
        source=cancel.source,
    )
    changes.finish((cancel.user_id, cancel.idempotency_key), result, cancel.traceparent)


def repeat_pending_cancels(order: Order, changes: Changes, rules: Rules) -> None:
    """Sends the cancels of a resting order again whose outcome is not known: a second cancel cannot do harm."""
    if order.status not in RESTING:
        return
    for position, cancel in enumerate(list(changes.cancels.get(order.order_id, []))):
        if cancel.attempt >= rules.cancel_attempts_max:
            changes.cancels[order.order_id].remove(cancel)
            reason = f"the exchange did not confirm {cancel.attempt} cancels; the order is still {order.status} and its funds held"
            refuse_cancel(cancel, order, ReasonCode.EXCHANGE_UNAVAILABLE, reason, changes)
            continue
        repeated = replace(cancel, attempt=cancel.attempt + 1)
        changes.cancels[order.order_id][changes.cancels[order.order_id].index(cancel)] = repeated
        changes.cancels_repeated.append(repeated)
        if position == 0:
            routed = RoutedOrder(
                schema_version=1, action=Action.CANCEL, order_id=order.order_id, user_id=order.user_id, attempt=repeated.attempt
            )
            changes.route(routed, order.exchange, cancel.traceparent)
