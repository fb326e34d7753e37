"""Step 6, the exchange connection: would the exchange take this order as it is?

What the venue itself would refuse is refused here, before funds are held and an order is sent in vain.
"""

from pipeline.gate.context import Refusal, TradeContext
from pipeline.gate.safety import UNTOUCHED
from pipeline.gate.valuation import unlisted, unpriced
from pipeline.money import is_multiple
from schemas.decimals import format_decimal
from schemas.reasons import ReasonCode


def market_is_trading(context: TradeContext) -> Refusal | None:
    """The exchange's market list is at hand, has the symbol, and says that it trades. No unit. Source: the venue's own list."""
    return unlisted(context)


def market_price_is_fresh(context: TradeContext) -> Refusal | None:
    """The symbol's market price is no older than `price_age_ms_max` (setting), and not from as far in the future. Unit: milliseconds.
    Source: when the venue told the price; without one, neither amounts nor the band can be judged."""
    return unpriced(context) if context.market_price is None else None


def price_is_on_tick(context: TradeContext) -> Refusal | None:
    """A price that is given is a multiple of the venue's tick. Unit: quote per base. Source: the venue's market list (Binance:
    PRICE_FILTER)."""
    price, market = context.request.price, context.market
    if price is None:
        return None
    if market is None:
        return unpriced(context)
    if is_multiple(price, market.price_tick):
        return None
    text = f"price must be a multiple of {format_decimal(market.price_tick)}"
    return Refusal(ReasonCode.PRECISION_INVALID, f"{text}. {UNTOUCHED} Send it so under a new key.")


def quantity_fits_the_lot(context: TradeContext) -> Refusal | None:
    """A quantity that is given is a multiple of the venue's step, and within its least and greatest. Unit: base. Source: the venue's market
    list (Binance: LOT_SIZE)."""
    quantity, market = context.request.quantity, context.market
    if quantity is None:
        return None
    if market is None:
        return unpriced(context)
    if not is_multiple(quantity, market.quantity_step):
        code, text = ReasonCode.PRECISION_INVALID, f"quantity must be a multiple of {format_decimal(market.quantity_step)}"
    elif quantity < market.quantity_min:
        code, text = ReasonCode.AMOUNT_BELOW_MINIMUM, f"the exchange takes no less than {format_decimal(market.quantity_min)} {market.base}"
    elif market.quantity_max is not None and quantity > market.quantity_max:
        code, text = ReasonCode.AMOUNT_ABOVE_MAXIMUM, f"the exchange takes no more than {format_decimal(market.quantity_max)} {market.base}"
    else:
        return None
    return Refusal(code, f"{text}. {UNTOUCHED} Send another quantity under a new key.")


def notional_reaches_minimum(context: TradeContext) -> Refusal | None:
    """The order is worth what the venue takes at least. Unit: quote, at the order's own price or the market's. Source: the venue's market
    list (Binance: NOTIONAL)."""
    amount, market = context.quote_amount, context.market
    if market is None or amount is None:
        return unpriced(context)
    if amount >= market.notional_min:
        return None
    text = f"the exchange takes no order worth less than {format_decimal(market.notional_min)} {market.quote}"
    return Refusal(ReasonCode.AMOUNT_BELOW_MINIMUM, f"{text}. {UNTOUCHED} Send a larger order under a new key.")
