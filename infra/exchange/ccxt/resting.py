"""Orders that rest at a venue: asked for whatever has become of their market, and what a cancel of one came to."""

import copy
from typing import Any, Final

from infra.exchange.gateway import CancelOutcome
from infra.exchange.venues.venue import Venue
from pipeline.model.venue import Absent, Confirmed, InDoubt, LookUpFailed, LookUpOutcome, OrderReference, Refused
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode

_DETAIL_MAX: Final = 300


def knowing(exchange: Any, venue: Venue, reference: OrderReference) -> tuple[Any, str]:
    """The account's instance as one that knows the order's market, and the venue's name of it.

    ccxt looks every symbol up in the venue's list of today, and raises BadSymbol without asking where it is not there any more. An
    order outlives that: what was stored with it names its market.
    """
    listed = exchange.markets.get(reference.symbol)
    market_id = reference.market_id or (str(listed["id"]) if listed is not None else venue.market_id(reference.symbol))
    if listed is not None and listed["id"] == market_id:
        return exchange, market_id
    base, _, quote = reference.symbol.partition("/")
    market = exchange.safe_market_structure({
        "id": market_id, "symbol": reference.symbol, "base": base, "quote": quote, "baseId": base, "quoteId": quote, "type": "spot",
        "spot": True, "margin": False, "swap": False, "future": False, "option": False, "contract": False, "active": False,
    })
    # A copy for this call: what is offered for trading stays the venue's own list.
    knowing = copy.copy(exchange)
    knowing.markets = {**exchange.markets, reference.symbol: market}
    knowing.markets_by_id = {**exchange.markets_by_id, market_id: [market]}
    return knowing, market_id


def after_cancel(found: LookUpOutcome, gone: bool) -> CancelOutcome:
    """What a cancel came to, by the venue's books after it. `gone`: the venue said there was nothing to cancel, which it also says to the
    second copy of a cancel that succeeded."""
    if isinstance(found, LookUpFailed):
        return InDoubt(f"the cancel was answered, but the order could not be read afterwards: {found.detail}"[:_DETAIL_MAX])
    if isinstance(found, Absent):
        if gone:
            return Refused(ReasonCode.ORDER_NOT_FOUND, "the venue's books do not know the order", by_venue=True)
        return InDoubt("the venue confirmed the cancel of an order that its books do not show")
    status = found.order.order_status
    if status in {OrderStatus.CANCELED, OrderStatus.EXPIRED}:
        return Confirmed(found.order)
    if status in {OrderStatus.FILLED, OrderStatus.REJECTED}:
        return Refused(ReasonCode.ORDER_NOT_CANCELABLE, f"the order is {status}: it ended before the cancel arrived", by_venue=True)
    return InDoubt(f"the order still stands as {status} after the cancel was answered")
