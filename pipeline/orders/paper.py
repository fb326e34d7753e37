"""Paper: what becomes of a simulated order at a market price. Pure arithmetic; nothing here is ever sent.

The simulation is simpler than a market:
- the whole order trades at one price, or nothing of it does: no depth, no partial fills
- a market order, and a limit order that the market meets at once, trades at the market price
- IOC and FOK orders that the market does not meet at once end; the others rest
- an order that rests trades at its own price, as in an exchange's book, once the market reaches it

Invariants:
1. A limit order never trades worse than its limit.
2. The fee is the market's taker rate of what is received (base for a purchase, quote for a sale), as Binance takes it.
3. To 18 places, what is paid and the fee are rounded up and what is received is rounded down.
4. The same order and the same price give the same outcome, `paper-…` as its id at the exchange included.

Start with `at_submission`, then `at_rest`.
"""

from datetime import datetime
from decimal import Decimal
from typing import Final, assert_never

from pipeline.model.invariants import InvariantViolation
from pipeline.model.money import round_down, round_up
from pipeline.model.venue import Fee, Market, OrderReference, PaperTerms, Quote, Submission, VenueOrder
from schemas.order_kinds import ORDER_KINDS, Pricing
from schemas.orders import OrderStatus, OrderType, Side, TimeInForce

PAPER_ID_PREFIX: Final = "paper-"
_ZERO: Final = Decimal(0)


def paper_order_id(client_order_id: str) -> str:
    """What stands where a real order has the exchange's id: nobody can take it for one."""
    return f"{PAPER_ID_PREFIX}{client_order_id}"


def is_paper_id(exchange_order_id: str) -> bool:
    """Whether an id at the exchange is that of a simulated order."""
    return exchange_order_id.startswith(PAPER_ID_PREFIX)


def meets(side: Side, limit: Decimal, market_price: Decimal) -> bool:
    """Whether an order with this limit trades at this price; at its limit it does. Prices in quote per base."""
    return market_price <= limit if side is Side.BUY else market_price >= limit


def is_simulated(order_type: OrderType) -> bool:
    """Whether the simulation can execute such an order. What it cannot is refused, and never traded as if it were of another type."""
    return ORDER_KINDS[order_type].pricing in {Pricing.MARKET, Pricing.LIMIT}


def at_submission(submission: Submission, market: Market, quote: Quote) -> VenueOrder:
    """What becomes of an order when it comes to the market. Raises InvariantViolation for a type that is not simulated, and for a limit
    order without a price: what is not known to trade at once must not."""
    price = quote.price
    match ORDER_KINDS[submission.order_type].pricing:
        case Pricing.MARKET:
            pass
        case Pricing.LIMIT:
            if submission.price is None:
                raise InvariantViolation(f"limit order {submission.order_id} has no price; nothing was executed")
            if not meets(submission.side, submission.price, price):
                ends = submission.time_in_force in {TimeInForce.IOC, TimeInForce.FOK}
                return _unfilled(submission.client_order_id, OrderStatus.EXPIRED if ends else OrderStatus.NEW, quote.observed_at)
        case Pricing.MAKER | Pricing.TRIGGER:
            raise InvariantViolation(f"{submission.order_type} order {submission.order_id} is not simulated; nothing was executed")
        case pricing:
            assert_never(pricing)
    quantity = submission.quantity
    if quantity is None:
        quantity = round_down((submission.quote_quantity or _ZERO) / price, market.quantity_step)
    if quantity <= 0:
        # The amount does not pay for the smallest step.
        return _unfilled(submission.client_order_id, OrderStatus.EXPIRED, quote.observed_at)
    return _filled(submission.client_order_id, submission.side, quantity, price, market, quote.observed_at)


def at_rest(reference: OrderReference, terms: PaperTerms, market: Market, quote: Quote) -> VenueOrder | None:
    """What becomes of an order that rests; None while the market has not reached its price.

    A price from before the order was sent does not count: an order must not trade with what was there before it.
    """
    if reference.submitting_at is None or quote.observed_at <= reference.submitting_at:
        return None
    if not meets(terms.side, terms.price, quote.price):
        return None
    return _filled(reference.client_order_id, terms.side, terms.quantity, terms.price, market, quote.observed_at)


def resting(reference: OrderReference, at: datetime) -> VenueOrder:
    """An order that rests, as it stands."""
    return _unfilled(reference.client_order_id, OrderStatus.NEW, at)


def canceled(reference: OrderReference, at: datetime) -> VenueOrder:
    """An order that rested and was canceled."""
    return _unfilled(reference.client_order_id, OrderStatus.CANCELED, at)


def _unfilled(client_order_id: str, status: OrderStatus, at: datetime) -> VenueOrder:
    return VenueOrder(client_order_id, paper_order_id(client_order_id), status, _ZERO, _ZERO, (), at)


def _filled(client_order_id: str, side: Side, quantity: Decimal, price: Decimal, market: Market, at: datetime) -> VenueOrder:
    if side is Side.BUY:
        value = round_up(quantity * price)
        asset, received = market.base, quantity
    else:
        value = round_down(quantity * price)
        asset, received = market.quote, value
    fee = round_up(received * market.taker_fee_rate)
    fees = (Fee(asset, fee),) if fee > 0 else ()
    return VenueOrder(client_order_id, paper_order_id(client_order_id), OrderStatus.FILLED, quantity, value, fees, at)
