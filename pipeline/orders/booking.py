"""Booking: what an order's new figures do to its funds and its answers. Whether they are to be believed is decided elsewhere.

Invariants:
1. Only differences are posted, for each of base, quote and every fee's asset by itself: figures are totals since the order began, so
   the same word twice changes nothing, and a fee or a value that is told later than its quantity is posted then.
2. What a hold does not cover is charged; what an account does not have either, the house advances (`@shortfall`).
3. A final answer is given once; what is told of the order after it corrects it (schemas/results).

Start with `book_venue_order`.
"""

from dataclasses import replace
from decimal import Decimal
from typing import Final

from pipeline.books.changes import Changes
from pipeline.books.cost import apply_cost
from pipeline.books.ledger import AccountKey, book_of, clearing, fees
from pipeline.books.order_words import ORDER_LIFE, result_of_order
from pipeline.gate.throttle import after_success
from pipeline.model.order import RESTING, TERMINAL, Order
from pipeline.model.venue import Fee, VenueOrder
from pipeline.orders.cancels import end_cancel
from schemas.audit import EventType
from schemas.decimals import format_decimal
from schemas.orders import Mode, OrderStatus, Side
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus

EVENT_OF_STATUS: Final[dict[OrderStatus, EventType]] = {
    OrderStatus.NEW: EventType.ORDER_ACKNOWLEDGED,
    OrderStatus.PARTIALLY_FILLED: EventType.ORDER_PARTIALLY_FILLED,
    OrderStatus.FILLED: EventType.ORDER_FILLED,
    OrderStatus.CANCELED: EventType.ORDER_CANCELED,
    OrderStatus.EXPIRED: EventType.ORDER_EXPIRED,
    OrderStatus.REJECTED: EventType.ORDER_REFUSED,
}


def has_grown(order: Order, venue_order: VenueOrder) -> bool:
    """Whether the venue tells of fills or fees that are not booked yet."""
    more = venue_order.cum_quantity > order.cum_quantity or venue_order.cum_quote > order.cum_quote
    return more or _fee_totals(order, venue_order) != order.fees


def book_venue_order(order: Order, venue_order: VenueOrder, status: OrderStatus, event_type: EventType, changes: Changes) -> None:
    """Posts what is new of an order, moves it to `status` and answers it."""
    fee_totals = _fee_totals(order, venue_order)
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
        absent_since=None,
        watched_until=None,
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
        after = release(after, changes)
    _charge_fees(order, fee_totals, changes)
    ORDER_LIFE.advance(order, after, event_type, changes)
    answer_order(after, changes)


def status_told(venue_order: VenueOrder) -> OrderStatus:
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


def release(order: Order, changes: Changes) -> Order:
    """The order with what is left of its hold released."""
    if order.hold_amount <= 0:
        return order
    account = AccountKey(order.user_id, order.exchange, book_of(order.mode), order.hold_asset)
    changes.ledger.release(f"{order.order_id}:release", order.order_id, account, order.hold_amount)
    return replace(order, hold_amount=Decimal(0))


def answer_order(order: Order, changes: Changes) -> None:
    """Tells what became of an order, and with its end of the cancels that waited for it."""
    changes.tell(result_of_order(order), order.traceparent)
    if order.status not in TERMINAL:
        return
    for cancel in changes.cancels.pop(order.order_id, []):
        if order.status is OrderStatus.CANCELED:
            end_cancel(cancel, order, changes, ResultStatus.EXECUTED, None, None)
        else:
            reason = f"the order was {order.status} before the cancel reached it"
            end_cancel(cancel, order, changes, ResultStatus.REJECTED, ReasonCode.ORDER_NOT_CANCELABLE, reason)
