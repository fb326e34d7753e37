"""Settlement: what the exchange's word does to an order, its funds and its answers.

Used by the execution agent (the answer to a call) and by the settlement agent (what a look-up proved), so that both end the same way.

Invariants:
1. Only differences are posted, for each of base, quote and every fee's asset by itself: figures are totals since the order began, so
   the same word twice changes nothing, and a fee or a value that is told later than its quantity is posted then.
2. A hold is released exactly when its order ends; it never expires by itself once the order is `submitting`.
3. `in_doubt` ends by `Found`, by an operator's word (pipeline/commands/doubts), or by two look-ups that find nothing, so far apart by the
   exchange's own clock that what it could still accept when the first began must be shown to the second (pipeline/model/absence).
4. A real order that was in doubt is not sent again: it ends as not executed. It is looked up for a day all the same, and what the
   exchange shows then corrects what was said (pipeline/orders/corrections).
"""

from dataclasses import replace
from datetime import datetime
from typing import Final

from pipeline.books.changes import Changes
from pipeline.books.order_words import ORDER_LIFE
from pipeline.gate.throttle import after_exchange_refusal
from pipeline.model.absence import absence_is_proven, is_watched
from pipeline.model.detail import storable
from pipeline.model.invariants import InvariantViolation
from pipeline.model.order import RESTING, TERMINAL, Order
from pipeline.model.retries import given_up, retry_at
from pipeline.model.rules import Rules
from pipeline.model.venue import Fee, Refused, VenueOrder
from pipeline.orders.booking import EVENT_OF_STATUS, answer_order, book_venue_order, has_grown, release, status_told
from pipeline.orders.cancels import repeat_pending_cancels
from pipeline.orders.corrections import cancel_stray, correct
from schemas.audit import EventType
from schemas.orders import Mode, OrderStatus
from schemas.reasons import ReasonCode
from schemas.routing import Action, Report

_ABSENT: Final = {
    Mode.LIVE: "it was in doubt, and the exchange's books do not show it although they would by now: it was not executed",
    Mode.PAPER: "the simulated order was interrupted before it was executed",
}


def apply_venue_order(order: Order, venue_order: VenueOrder, changes: Changes) -> None:
    """Takes over what the venue's books show. Nothing happens when they show nothing new or less than is known already."""
    if order.status in TERMINAL or venue_order.cum_quantity < order.cum_quantity or venue_order.cum_quote < order.cum_quote:
        return
    status = status_told(venue_order)
    if status is OrderStatus.NEW and order.status is OrderStatus.PARTIALLY_FILLED:
        status = OrderStatus.PARTIALLY_FILLED
    if status is order.status and not has_grown(order, venue_order):
        return
    event_type = EventType.ORDER_RESOLVED if order.status is OrderStatus.IN_DOUBT else EVENT_OF_STATUS[status]
    book_venue_order(order, venue_order, status, event_type, changes)


def apply_refusal(order: Order, refused: Refused, changes: Changes) -> None:
    """Ends an order that the venue provably did not accept."""
    if order.mode is Mode.LIVE:
        changes.move_conduct(order.user_id, after_exchange_refusal(changes.conduct_of(order.user_id), refused.reason_code, changes.now))
    ended = replace(order, status=OrderStatus.REJECTED, reason_code=refused.reason_code, reason=storable(refused.detail))
    end_order_unsent(ended, order, EventType.ORDER_REFUSED, changes)


def end_order_unsent(ended: Order, before: Order, event_type: EventType, changes: Changes) -> None:
    """Ends an order of which nothing stands at the exchange: releases its hold and answers it. `ended` says as what, and why."""
    after = release(replace(ended, updated_at=changes.now, executed_at=changes.now), changes)
    ORDER_LIFE.advance(before, after, event_type, changes)
    answer_order(after, changes)


def mark_in_doubt(order: Order, detail: str, changes: Changes) -> None:
    """No proof either way: the funds stay held and the order is looked up until the exchange proves what became of it."""
    after = replace(order, status=OrderStatus.IN_DOUBT, reason=storable(detail), updated_at=changes.now, absent_since=None)
    ORDER_LIFE.advance(order, after, EventType.ORDER_IN_DOUBT, changes)
    answer_order(after, changes)


def requeue(order: Order, detail: str, changes: Changes) -> None:
    """Has an order tried again of which the last attempt provably reached nothing: this process did not send it, or it is a simulated one.

    One that its user canceled meanwhile ends instead: it must not be sent once more and perhaps be executed. When it is tried, and how
    often: pipeline/model/retries.
    """
    if changes.cancels.get(order.order_id):
        end_order_unsent(replace(order, status=OrderStatus.CANCELED, reason=None), order, EventType.ORDER_CANCELED, changes)
        return
    refused = given_up(order.attempt, "executed", detail)
    if refused is not None:
        apply_refusal(order, refused, changes)
        return
    due = retry_at(order.attempt, changes.now, order.expires_at)
    after = replace(order, status=OrderStatus.ACCEPTED, reason=None, updated_at=changes.now, retry_at=due)
    ORDER_LIFE.advance(order, after, EventType.ORDER_REQUEUED, changes, {"reason": storable(detail)})
    # The retry queue takes up what waits.
    if due is None:
        changes.route(Action.SUBMIT, order.order_id, order.attempt + 1, order, order.traceparent)


def apply_report(report: Report, changes: Changes, rules: Rules) -> None:
    """Applies what a look-up proved. A report of an older attempt, or one that proves nothing new, changes nothing.

    Raises LocksMissing where a correction needs the halts.
    """
    order = changes.orders.get(report.order_id)
    if order is None:
        raise InvariantViolation(f"a report names order {report.order_id}, which is not in the database; nothing was written.")
    if report.attempt != order.attempt:
        return
    if order.status in TERMINAL:
        if report.found and is_watched(order, changes.now):
            correct(order, _venue_order_of(report, order), changes)
        return
    if report.found:
        if order.status not in RESTING | {OrderStatus.IN_DOUBT}:
            # The call is still under way under its own worker, which will record the outcome itself.
            return
        apply_venue_order(order, _venue_order_of(report, order), changes)
        after = changes.orders[order.order_id]
        if after.corrected_at is not None:
            cancel_stray(after, changes)
        repeat_pending_cancels(after, changes, rules)
        return
    if order.status is OrderStatus.IN_DOUBT:
        _apply_absent_look(order, report.looked_up_at, changes, rules)


def _apply_absent_look(order: Order, looked_up_at: datetime, changes: Changes, rules: Rules) -> None:
    if not absence_is_proven(order, looked_up_at, rules):
        if order.absent_since is None and order.submitting_at is not None:
            # Stored with the order, so that a restart does not begin anew. Nobody is told: nothing is proven yet.
            changes.orders.keep(order.order_id, replace(order, absent_since=looked_up_at))
        return
    if order.mode is Mode.PAPER and changes.now < order.expires_at and not changes.cancels.get(order.order_id):
        requeue(order, _ABSENT[order.mode], changes)
    else:
        apply_absence(order, _ABSENT[order.mode], changes, rules)


def apply_absence(order: Order, detail: str, changes: Changes, rules: Rules) -> None:
    """Ends an order in doubt that is proven not to be executed: as canceled where its user asked for that, else as rejected.

    Its producer decides whether it is sent again. A real one is watched for a while: the proof rests on what its exchange is known to do.
    """
    watched_until = changes.now + rules.watch_time if order.mode is Mode.LIVE else None
    ended = replace(order, absent_since=None, watched_until=watched_until)
    if changes.cancels.get(order.order_id):
        ended = replace(ended, status=OrderStatus.CANCELED, reason=None)
    elif order.mode is Mode.PAPER:
        reason = f"{detail}, and the deadline for executing it is over; no funds were moved"
        ended = replace(ended, status=OrderStatus.REJECTED, reason_code=ReasonCode.REQUEST_EXPIRED, reason=reason)
    else:
        reason = f"{detail}; the funds are released, and it is not sent again by itself"
        ended = replace(ended, status=OrderStatus.REJECTED, reason_code=ReasonCode.ORDER_NOT_EXECUTED, reason=storable(reason))
    end_order_unsent(ended, order, EventType.ORDER_RESOLVED, changes)


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
