"""Corrections: an order that counted as not executed, and that its exchange shows after all.

The proof of absence rests on what an exchange is known to do (its read lag); an operator's word on what somebody has seen. Both may be
wrong, so an order that ended by one of them is looked up for a day all the same.

Invariants:
1. A correction is an event of its own, and its result says that it corrects; the final answer that was given stays the only final one.
2. The user is halted with it: what the account holds is not what was said.
3. What rests at the exchange is canceled there, again at each look that still finds it: nobody waits for it any more.

Start with `correct`.
"""

from dataclasses import replace

from pipeline.books.changes import Changes
from pipeline.books.order_words import order_fields
from pipeline.books.trip import halt_user, require_halts_locked
from pipeline.model.order import RESTING, Order
from pipeline.model.venue import VenueOrder
from pipeline.orders.booking import book_venue_order, has_grown, status_told
from schemas.audit import EventType
from schemas.orders import OrderStatus
from schemas.routing import Action


def correct(order: Order, venue_order: VenueOrder, changes: Changes) -> None:
    """Books an order that counted as not executed, or as executed otherwise, and that the exchange shows after all; halts its user.

    What the funds do not cover is advanced (`@shortfall`), as the hold was released. What still rests there is canceled: nobody waits for
    it any more. Nothing happens where the exchange shows what was said. Raises LocksMissing where the halts are not locked.
    """
    status = status_told(venue_order)
    grown = has_grown(order, venue_order)
    less = venue_order.cum_quantity < order.cum_quantity or venue_order.cum_quote < order.cum_quote
    if not grown and not less and (status is order.status or status is OrderStatus.REJECTED):
        return
    require_halts_locked(changes, f"order {order.order_id} shows up after all")
    what = f"order {order.order_id} was said to be {order.status}, and the exchange shows it as {status}"
    if less:
        # What was posted by an operator's word cannot be taken back by a machine: a person must compare.
        changes.orders.keep(order.order_id, replace(order, watched_until=None))
        what += " with less executed"
        changes.audit(order.user_id, order.order_id, EventType.ORDER_RESULT_CORRECTED, {**order_fields(order), "reason": what}, None)
    else:
        found = replace(order, corrected_at=changes.now)
        book_venue_order(found, venue_order, status, EventType.ORDER_RESULT_CORRECTED, changes)
        cancel_stray(changes.orders[order.order_id], changes)
    halt_user(order.user_id, f"order:{order.order_id}", f"{what}: compare the account with the exchange", changes)


def cancel_stray(order: Order, changes: Changes) -> None:
    """Has an order canceled that rests at the exchange although it was said not to be executed; again at each look that finds it so."""
    if order.status in RESTING:
        changes.route(Action.CANCEL, order.order_id, 1, order, order.traceparent)
