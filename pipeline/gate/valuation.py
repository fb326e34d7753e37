"""What an order would reserve and until when it may be sent, and what to say when nothing values it.

Invariants:
1. A hold covers the most that the order can take from its account, fees included.
2. An order without a fresh price is refused with the cause that is nearest to it: the exchange, the symbol, the price.
"""

from decimal import Decimal
from functools import lru_cache
from typing import assert_never

from pipeline.gate.context import TradeContext
from pipeline.model.money import round_up
from pipeline.model.refusal import Refusal
from schemas.order_kinds import ORDER_KINDS, Pricing
from schemas.orders import Side
from schemas.reasons import ReasonCode
from schemas.symbols import SYMBOL_LENGTH_MAX, skeleton


def hold_of(context: TradeContext) -> tuple[str, Decimal] | None:
    """(asset, amount) to reserve for an order: the base quantity of a sale, the most that a purchase may cost; None without a price.

    A market purchase by quantity is priced with the slippage allowance on top. Fees need no more: Binance, the only venue offered, takes
    them from what is received (base for a purchase, quote for a sale; Binance spot API, "commission" and "commissionAsset" of a fill).
    Offer no venue that adds them to what is paid before the taker fee is added here.
    """
    request = context.request
    if request.side is Side.SELL and request.quantity is not None:
        return context.base, request.quantity
    amount = context.quote_amount
    if amount is None:
        return None
    if request.side is Side.SELL:
        if context.market_price is None or context.market is None:
            return None
        # A sale for a quote amount sells about amount / price; the price may fall by the allowance. Up to the next lot.
        quantity = amount / (context.market_price * (1 - context.rules.slippage_allowance))
        return context.base, round_up(quantity, context.market.quantity_step)
    match ORDER_KINDS[request.order_type].pricing:
        case Pricing.MARKET:
            if request.quote_quantity is None:
                amount *= 1 + context.rules.slippage_allowance
        case Pricing.LIMIT | Pricing.MAKER:
            # No worse than its own price.
            pass
        case Pricing.TRIGGER:
            # What it may cost once it is triggered is not told by any price of now.
            return None
        case pricing:
            assert_never(pricing)
    return context.quote, round_up(amount)


@lru_cache(maxsize=16)
def _by_skeleton(symbols: tuple[str, ...]) -> dict[str, str]:
    return {skeleton(symbol): symbol for symbol in symbols}


def look_alike_note(context: TradeContext) -> str:
    """An end of a sentence that names the listed symbol which the request's is taken for, '' where there is none: somebody may have typed
    or pasted letters that only look like it."""
    if context.market_data is None:
        return ""
    listed = _by_skeleton(tuple(context.market_data.markets)).get(skeleton(context.request.symbol[:SYMBOL_LENGTH_MAX]))
    return "" if listed is None else f"; it looks like {listed} but is not"


def unlisted(context: TradeContext) -> Refusal | None:
    """Why the exchange does not trade the symbol now, None when it does."""
    if context.market_data is None or not context.market_data.markets:
        return Refusal(
            ReasonCode.EXCHANGE_UNAVAILABLE,
            "the exchange's list of markets could not be read yet; nothing was sent or held. Try again in a moment under a new key.",
        )
    market = context.market
    if market is None:
        return Refusal(
            ReasonCode.SYMBOL_UNKNOWN,
            f"the exchange does not list this symbol{look_alike_note(context)}; nothing was sent or held. Name another under a new key.",
        )
    if not market.active:
        return Refusal(
            ReasonCode.EXCHANGE_UNAVAILABLE,
            "the exchange has suspended trading of this symbol; nothing was sent or held. Try again when it trades, under a new key.",
        )
    return None


def unpriced(context: TradeContext) -> Refusal:
    """Why an order cannot be valued."""
    refusal = unlisted(context)
    if refusal is not None:
        return refusal
    if context.market_price is None:
        what = "no market price of known age is at hand, so the order cannot be valued"
    else:
        what = f"no fresh price turns {context.quote} into US dollars, so the order cannot be valued"
    return Refusal(ReasonCode.PRICE_UNAVAILABLE, f"{what}; nothing was sent or held. Try again in a moment under a new key.")
