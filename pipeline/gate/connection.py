"""Step 6, the exchange connection: would the exchange take this order as it is?

What the venue itself would refuse is refused here, by the numbers that it publishes about the market, before funds are held and an order is
sent in vain; for simulated orders as for real ones. Nothing is cut or rounded to fit: what passes is sent exactly as it was asked for.

Binance spot API, "Filters", names each rule. Two numbers of the venue's own are not known here, and stand-ins are used: where it averages
the price over some minutes (`avgPriceMins`), the last price; and of the orders and funds of an account, those that this system knows. What
passes by such a difference, the venue refuses, and its funds are released.
"""

from decimal import Decimal
from typing import Final

from pipeline.books.ledger import AccountKey, book_of
from pipeline.gate.check import Check, Step, check
from pipeline.gate.context import UNTOUCHED, ZERO, TradeContext
from pipeline.gate.valuation import unlisted, unpriced
from pipeline.model.money import is_multiple, round_down
from pipeline.model.refusal import Refusal
from pipeline.model.venue import Lot, Market
from schemas.decimals import format_decimal
from schemas.order_kinds import ORDER_KINDS, Pricing
from schemas.orders import Side
from schemas.reasons import ReasonCode


@check(Step.CONNECTION, ReasonCode.EXCHANGE_UNAVAILABLE, ReasonCode.SYMBOL_UNKNOWN)
def market_is_trading(context: TradeContext) -> Refusal | None:
    """The exchange's list of markets is at hand, has the symbol, and says that it trades. No unit. Source: the venue's own list."""
    return unlisted(context)


@check(Step.CONNECTION, ReasonCode.REQUEST_UNSUPPORTED)
def market_takes_the_kind(context: TradeContext) -> Refusal | None:
    """The exchange takes the order type for the symbol, and `quote_quantity` where it is given. No unit. Source: the venue's market list
    (Binance: `orderTypes`, `quoteOrderQtyMarketAllowed`)."""
    request, market = context.request, context.market
    if market is None:
        return unpriced(context)
    if market.order_types is not None and request.order_type not in market.order_types:
        text = f"the exchange takes no {request.order_type} orders for {market.symbol} (orderTypes)"
    elif request.quote_quantity is not None and not market.quote_quantity_taken:
        text = f"the exchange takes no quote_quantity for {market.symbol} (quoteOrderQtyMarketAllowed); give quantity"
    else:
        return None
    return Refusal(ReasonCode.REQUEST_UNSUPPORTED, f"{text}. {UNTOUCHED} Send another kind of order under a new key.")


@check(Step.CONNECTION, ReasonCode.PRICE_UNAVAILABLE)
def market_price_is_fresh(context: TradeContext) -> Refusal | None:
    """The symbol's market price is no older than `ORCHESTRATOR_PRICE_AGE_MS_MAX`. Unit: milliseconds. Source: when the venue told the
    price; without one, neither amounts nor the band can be judged."""
    return unpriced(context) if context.market_price is None else None


@check(Step.CONNECTION, ReasonCode.PRECISION_INVALID)
def price_is_on_tick(context: TradeContext) -> Refusal | None:
    """A price that is given is a multiple of the exchange's tick. Unit: quote per base. Source: the venue's market list (Binance:
    PRICE_FILTER)."""
    price, market = context.request.price, context.market
    if price is None:
        return None
    if market is None:
        return unpriced(context)
    if is_multiple(price, market.price_tick):
        return None
    text = f"price must be a multiple of {format_decimal(market.price_tick)} (PRICE_FILTER)"
    return Refusal(ReasonCode.PRECISION_INVALID, f"{text}. {UNTOUCHED} Send it so under a new key.")


@check(Step.CONNECTION, ReasonCode.PRICE_OUT_OF_BAND)
def price_is_within_bounds(context: TradeContext) -> Refusal | None:
    """A price that is given is within the exchange's least and greatest, and within its band around the market price for the side. Unit:
    quote per base. Source: the venue's market list (Binance: PRICE_FILTER, PERCENT_PRICE, PERCENT_PRICE_BY_SIDE)."""
    price, market, reference = context.request.price, context.market, context.market_price
    if price is None:
        return None
    if market is None or reference is None:
        return unpriced(context)
    least, greatest, rule = market.price_min, market.price_max, "PRICE_FILTER"
    if least <= price and (greatest is None or price <= greatest):
        if market.percent_band is None:
            return None
        below, above = market.percent_band.of(context.request.side)
        least, greatest, rule = reference * below, reference * above, "PERCENT_PRICE"
        if least <= price <= greatest:
            return None
    span = f"from {format_decimal(least)} to {format_decimal(greatest)}" if greatest is not None else f"of {format_decimal(least)} or more"
    text = f"the exchange takes a {context.request.side} price {span} {market.quote} ({rule})"
    return Refusal(ReasonCode.PRICE_OUT_OF_BAND, f"{text}. {UNTOUCHED} Send another price under a new key.")


def _is_at_market(context: TradeContext) -> bool:
    return ORDER_KINDS[context.request.order_type].pricing is Pricing.MARKET


def _worth_in_base(context: TradeContext, market: Market, price: Decimal) -> Decimal:
    """What a quote quantity is worth at a price, in whole steps."""
    return round_down((context.request.quote_quantity or ZERO) / price, market.quantity_step)


def _misfit(quantity: Decimal, lot: Lot, rule: str, base: str) -> tuple[ReasonCode, str] | None:
    """Why a quantity breaks a rule about lots, None when it keeps it."""
    if not is_multiple(quantity, lot.step):
        return ReasonCode.PRECISION_INVALID, f"quantity must be a multiple of {format_decimal(lot.step)} ({rule})"
    if quantity < lot.least:
        return ReasonCode.AMOUNT_BELOW_MINIMUM, f"the exchange takes no less than {format_decimal(lot.least)} {base} ({rule})"
    if lot.greatest is not None and quantity > lot.greatest:
        return ReasonCode.AMOUNT_ABOVE_MAXIMUM, f"the exchange takes no more than {format_decimal(lot.greatest)} {base} ({rule})"
    return None


@check(Step.CONNECTION, ReasonCode.PRECISION_INVALID, ReasonCode.AMOUNT_BELOW_MINIMUM, ReasonCode.AMOUNT_ABOVE_MAXIMUM)
def quantity_fits_the_lot(context: TradeContext) -> Refusal | None:
    """A quantity that is given is a multiple of the exchange's step, and within its least and greatest; of market orders by both rules.
    Unit: base. Source: the venue's market list (Binance: LOT_SIZE, MARKET_LOT_SIZE)."""
    request, market = context.request, context.market
    if request.quantity is None:
        return None
    if market is None:
        return unpriced(context)
    misfit = _misfit(request.quantity, Lot(market.quantity_step, market.quantity_min, market.quantity_max), "LOT_SIZE", market.base)
    if misfit is None and _is_at_market(context):
        misfit = _misfit(request.quantity, market.market_lot, "MARKET_LOT_SIZE", market.base)
    if misfit is None:
        return None
    code, text = misfit
    return Refusal(code, f"{text}. {UNTOUCHED} Send another quantity under a new key.")


@check(Step.CONNECTION, ReasonCode.PRECISION_INVALID, ReasonCode.AMOUNT_BELOW_MINIMUM, ReasonCode.AMOUNT_ABOVE_MAXIMUM)
def quote_quantity_fits(context: TradeContext) -> Refusal | None:
    """A quote quantity has no more places than the exchange takes, and is worth a quantity that it takes. Unit: quote, and base. Source:
    the venue's market list (Binance: `quoteAssetPrecision`, LOT_SIZE, MARKET_LOT_SIZE)."""
    asked, market, price = context.request.quote_quantity, context.market, context.market_price
    if asked is None:
        return None
    if market is None or price is None:
        return unpriced(context)
    if market.quote_places is not None and asked % Decimal(1).scaleb(-market.quote_places) != 0:
        text = f"quote_quantity may have {market.quote_places} decimal places, as {market.quote} has at the exchange (quoteAssetPrecision)"
        return Refusal(ReasonCode.PRECISION_INVALID, f"{text}. {UNTOUCHED} Send it so under a new key.")
    quantity = _worth_in_base(context, market, price)
    # Steps are whole already; those of the second rule are the venue's to keep, as it chooses the quantity.
    of_market = Lot(ZERO, market.market_lot.least, market.market_lot.greatest)
    lots = (Lot(ZERO, market.quantity_min, market.quantity_max), "LOT_SIZE"), (of_market, "MARKET_LOT_SIZE")
    misfit = next((found for lot, rule in lots if (found := _misfit(quantity, lot, rule, market.base)) is not None), None)
    if misfit is None and quantity > 0:
        return None
    code, text = misfit or (ReasonCode.AMOUNT_BELOW_MINIMUM, f"it pays for less than {format_decimal(market.quantity_step)} {market.base}")
    return Refusal(code, f"at {format_decimal(price)} {market.quote}, {text}. {UNTOUCHED} Send another amount under a new key.")


@check(Step.CONNECTION, ReasonCode.AMOUNT_BELOW_MINIMUM, ReasonCode.AMOUNT_ABOVE_MAXIMUM)
def notional_is_within_bounds(context: TradeContext) -> Refusal | None:
    """The order is worth what the exchange takes at least, and no more than it takes at most. Unit: quote, at the order's own price or the
    market's. Source: the venue's market list (Binance: MIN_NOTIONAL, NOTIONAL, `applyMinToMarket`, `applyMaxToMarket`)."""
    amount, market = context.quote_amount, context.market
    if market is None or amount is None:
        return unpriced(context)
    at_market = _is_at_market(context)
    if amount < market.notional_min and (market.notional_min_on_market or not at_market):
        code, bound, what = ReasonCode.AMOUNT_BELOW_MINIMUM, market.notional_min, "less"
    elif market.notional_max is not None and amount > market.notional_max and (market.notional_max_on_market or not at_market):
        code, bound, what = ReasonCode.AMOUNT_ABOVE_MAXIMUM, market.notional_max, "more"
    else:
        return None
    text = f"the exchange takes no order worth {what} than {format_decimal(bound)} {market.quote} (NOTIONAL)"
    return Refusal(code, f"{text}. {UNTOUCHED} Send another amount under a new key.")


@check(Step.CONNECTION, ReasonCode.OPEN_ORDERS_EXCEEDED)
def market_has_room_for_the_order(context: TradeContext) -> Refusal | None:
    """With this order the user has no more orders open in the symbol than the exchange takes. Unit: orders that may rest and are not over,
    those on their way included. Source: the venue's market list (Binance: MAX_NUM_ORDERS)."""
    request, market = context.request, context.market
    if not ORDER_KINDS[request.order_type].may_rest(request.time_in_force):
        return None
    if market is None:
        return unpriced(context)
    maximum = market.resting_orders_max
    if maximum is None:
        return None
    opened = sum([
        order.price is not None and order.symbol == request.symbol and order.exchange == request.exchange
        for order in context.account.open_orders
    ])
    if opened < maximum:
        return None
    text = f"the user has {opened} open orders in {market.symbol}; the exchange takes {maximum} (MAX_NUM_ORDERS)"
    return Refusal(ReasonCode.OPEN_ORDERS_EXCEEDED, f"{text}. {UNTOUCHED} Cancel one, then send this under a new key.")


@check(Step.CONNECTION, ReasonCode.POSITION_LIMIT_EXCEEDED)
def market_has_room_for_the_position(context: TradeContext) -> Refusal | None:
    """With this purchase the user has no more of the asset than the exchange takes. Unit: base; what a quote quantity buys, at the market
    price. Source: the venue's market list (Binance: MAX_POSITION)."""
    request, market, price = context.request, context.market, context.market_price
    if market is None or price is None:
        return unpriced(context)
    maximum = market.position_max
    if maximum is None or request.side is Side.SELL:
        return None
    balance = context.balances.get(AccountKey(request.user_id, request.exchange, book_of(request.mode), market.base))
    position = ZERO if balance is None else balance.posted
    for order in context.account.open_orders:
        if order.side is Side.BUY and order.symbol == request.symbol and order.exchange == request.exchange:
            position += order.leaves_quantity or ZERO
    adds = request.quantity if request.quantity is not None else _worth_in_base(context, market, price)
    if position + adds <= maximum:
        return None
    text = f"with this order the user would have more than {format_decimal(maximum)} {market.base} at the exchange (MAX_POSITION)"
    return Refusal(ReasonCode.POSITION_LIMIT_EXCEEDED, f"{text}. {UNTOUCHED} Send a smaller order under a new key.")


CONNECTION: Final[tuple[Check[TradeContext], ...]] = (
    market_is_trading,
    market_price_is_fresh,
    market_takes_the_kind,
    price_is_on_tick,
    price_is_within_bounds,
    quantity_fits_the_lot,
    quote_quantity_fits,
    notional_is_within_bounds,
    market_has_room_for_the_order,
    market_has_room_for_the_position,
)
