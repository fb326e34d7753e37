"""The gate: every check a trade request passes, one pure function each, in the order of `CHECKS`.

A check returns None when it holds, else one `Refusal`. It reads the context and changes nothing; the ladder in `refusal_of` stops at the
first refusal. Invariant: what a check cannot know (no price, no market) refuses, it never passes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_UP, Decimal
from typing import Final

from pipeline.money import is_multiple, round_up
from pipeline.rules import Rules
from pipeline.venue import Market, MarketData, Quote
from schemas.decimals import format_decimal
from schemas.orders import Mode, OrderType, Side
from schemas.reasons import ReasonCode
from schemas.requests import TradeRequest

_SYMBOL: Final = re.compile(r"[A-Z0-9]{1,20}/[A-Z0-9]{1,20}")
_OFFERED: Final = frozenset({OrderType.MARKET, OrderType.LIMIT})


@dataclass(frozen=True, slots=True)
class Refusal:
    code: ReasonCode
    reason: str


@dataclass(frozen=True, slots=True)
class ApiKeyState:
    """A stored exchange key: which exchange it is for and whether it may be used (`active`, `revoked`, `expired`)."""

    exchange: str
    status: str


@dataclass(frozen=True, slots=True)
class TradeContext:
    """All that the checks of one request may look at. `appended_at` is the broker's time of the record, `now` the decision's, both UTC."""

    request: TradeRequest
    appended_at: datetime
    now: datetime
    rules: Rules
    user_status: str | None
    api_key: ApiKeyState | None
    market_data: MarketData | None

    @property
    def market(self) -> Market | None:
        return self.market_data.markets.get(self.request.symbol) if self.market_data else None

    def fresh_quote(self, symbol: str) -> Quote | None:
        """The market price of a symbol, None when there is none or it is older than the rules allow."""
        quote = self.market_data.quotes.get(symbol) if self.market_data else None
        # A price from the future is of no known age either.
        if quote is None or abs(self.now - quote.observed_at) > self.rules.price_age_max:
            return None
        return quote


def stale_refusal(appended_at: datetime, now: datetime, rules: Rules) -> Refusal | None:
    """Refuses a record for which the claims that could show it to be a copy may be gone already."""
    if now - appended_at <= rules.key_lifetime:
        return None
    return Refusal(
        ReasonCode.REQUEST_STALE,
        "the record is older than 24 hours, for which idempotency keys are kept; nothing was executed. Send it again under a new key "
        "if you still mean it.",
    )


def _request_is_fresh(context: TradeContext) -> Refusal | None:
    refusal = stale_refusal(context.appended_at, context.now, context.rules)
    if refusal is not None:
        return refusal
    if context.now > expires_at(context.request, context.appended_at, context.rules):
        return Refusal(ReasonCode.REQUEST_EXPIRED, "the deadline passed before the order was sent; nothing reached the exchange")
    return None


def _kind_is_offered(context: TradeContext) -> Refusal | None:
    if context.request.mode is Mode.PAPER:
        return Refusal(ReasonCode.REQUEST_UNSUPPORTED, "mode paper is not offered by this version; nothing was executed")
    if context.request.order_type not in _OFFERED:
        return Refusal(ReasonCode.REQUEST_UNSUPPORTED, f"order_type {context.request.order_type} is not offered: use market or limit")
    return None


def _user_may_trade(context: TradeContext) -> Refusal | None:
    if context.user_status is None:
        return Refusal(ReasonCode.USER_UNKNOWN, "no such user")
    if context.user_status != "active":
        return Refusal(ReasonCode.USER_INACTIVE, f"the user is {context.user_status}: an operator can activate it")
    return None


def _exchange_is_connected(context: TradeContext) -> Refusal | None:
    if context.request.exchange not in context.rules.exchanges:
        offered = ", ".join(sorted(context.rules.exchanges))
        return Refusal(ReasonCode.EXCHANGE_UNKNOWN, f"exchange is not one of: {offered}")
    return None


def _api_key_is_usable(context: TradeContext) -> Refusal | None:
    key = context.api_key
    if key is None:
        return Refusal(ReasonCode.API_KEY_UNKNOWN, "the user has no such API key")
    if key.exchange != context.request.exchange:
        return Refusal(ReasonCode.API_KEY_PERMISSION, "this API key belongs to another exchange")
    if key.status == "revoked":
        return Refusal(ReasonCode.API_KEY_REVOKED, "this API key is revoked")
    if key.status != "active":
        return Refusal(ReasonCode.API_KEY_EXPIRED, f"this API key is {key.status}")
    return None


def _symbol_is_traded(context: TradeContext) -> Refusal | None:
    if not _SYMBOL.fullmatch(context.request.symbol):
        return Refusal(ReasonCode.SYMBOL_INVALID, "symbol must be BASE/QUOTE in capitals, such as BTC/USDT")
    if context.market_data is None or not context.market_data.markets:
        return Refusal(
            ReasonCode.EXCHANGE_UNAVAILABLE, "the exchange's list of markets could not be read yet; nothing was sent. Try again."
        )
    market = context.market
    if market is None:
        return Refusal(ReasonCode.SYMBOL_UNKNOWN, "the exchange does not list this symbol")
    if not market.active:
        return Refusal(ReasonCode.SYMBOL_UNKNOWN, "the exchange has suspended trading of this symbol")
    return None


def _price_is_right(context: TradeContext) -> Refusal | None:
    price = context.request.price
    market = context.market
    if price is not None:
        if price <= 0:
            return Refusal(ReasonCode.PRICE_INVALID, "price must be above zero")
        if market is not None and not is_multiple(price, market.price_tick):
            return Refusal(ReasonCode.PRECISION_INVALID, f"price must be a multiple of {format_decimal(market.price_tick)}")
    return None


def _market_price_is_fresh(context: TradeContext) -> Refusal | None:
    if context.fresh_quote(context.request.symbol) is None:
        return Refusal(
            ReasonCode.PRICE_UNAVAILABLE, "no market price of known age is at hand, so the order cannot be valued; nothing was sent"
        )
    return None


def _amount_is_within_limits(context: TradeContext) -> Refusal | None:
    value = usd_value(context)
    if value is None:
        return Refusal(ReasonCode.PRICE_UNAVAILABLE, "no fresh price turns the quote asset into US dollars; nothing was sent")
    rules = context.rules
    if value < rules.trade_usd_min or value <= 0:
        return Refusal(ReasonCode.AMOUNT_BELOW_MINIMUM, f"the order is worth less than {format_decimal(rules.trade_usd_min)} USD")
    if value > rules.trade_usd_max:
        return Refusal(ReasonCode.AMOUNT_ABOVE_MAXIMUM, f"the order is worth more than {format_decimal(rules.trade_usd_max)} USD")
    return None


def _lot_fits_the_venue(context: TradeContext) -> Refusal | None:
    market, quantity = context.market, context.request.quantity
    if market is None:
        return Refusal(ReasonCode.SYMBOL_UNKNOWN, "the exchange does not list this symbol")
    if quantity is not None:
        if not is_multiple(quantity, market.quantity_step):
            return Refusal(ReasonCode.PRECISION_INVALID, f"quantity must be a multiple of {format_decimal(market.quantity_step)}")
        if quantity < market.quantity_min:
            return Refusal(ReasonCode.AMOUNT_BELOW_MINIMUM, f"the exchange takes no less than {format_decimal(market.quantity_min)}")
        if market.quantity_max is not None and quantity > market.quantity_max:
            return Refusal(ReasonCode.AMOUNT_ABOVE_MAXIMUM, f"the exchange takes no more than {format_decimal(market.quantity_max)}")
    notional = quote_amount(context)
    if notional is None or notional < market.notional_min:
        minimum = format_decimal(market.notional_min)
        return Refusal(ReasonCode.AMOUNT_BELOW_MINIMUM, f"the exchange takes no order worth less than {minimum} {market.quote}")
    return None


CHECKS: Final[tuple[tuple[str, Callable[[TradeContext], Refusal | None]], ...]] = (
    ("request_is_fresh", _request_is_fresh),
    ("kind_is_offered", _kind_is_offered),
    ("user_may_trade", _user_may_trade),
    ("exchange_is_connected", _exchange_is_connected),
    ("api_key_is_usable", _api_key_is_usable),
    ("symbol_is_traded", _symbol_is_traded),
    ("price_is_right", _price_is_right),
    ("market_price_is_fresh", _market_price_is_fresh),
    ("amount_is_within_limits", _amount_is_within_limits),
    ("lot_fits_the_venue", _lot_fits_the_venue),
)
# The balance is checked by the hold itself, in the ledger.
PASSED: Final = [*(name for name, _ in CHECKS), "balance_covers_the_hold"]


def refusal_of(context: TradeContext) -> Refusal | None:
    """The first check that does not hold, or None when all hold."""
    for _, check in CHECKS:
        refusal = check(context)
        if refusal is not None:
            return refusal
    return None


def expires_at(request: TradeRequest, appended_at: datetime, rules: Rules) -> datetime:
    """The moment after which an order must not be sent any more: the producer's own, else the default after the broker's time."""
    return request.expires_at or appended_at + rules.submission_deadline


def quote_amount(context: TradeContext) -> Decimal | None:
    """What an order is worth in its quote asset, at its own price or the market's; None without a fresh price."""
    request = context.request
    if request.quote_quantity is not None:
        return request.quote_quantity
    price = request.price
    if price is None:
        quote = context.fresh_quote(request.symbol)
        price = quote.price if quote else None
    if price is None or request.quantity is None:
        return None
    return request.quantity * price


def usd_value(context: TradeContext) -> Decimal | None:
    """What an order is worth in US dollars; None when no fresh price says so.

    A limit sale is worth the market's price when that is higher than its own: that is what it brings when it is executed at once, and
    a low limit must not pass a large amount under the maximum.
    """
    amount = quote_amount(context)
    if amount is None:
        return None
    request = context.request
    if request.side is Side.SELL and request.quantity is not None:
        market_quote = context.fresh_quote(request.symbol)
        if market_quote is None:
            return None
        amount = max(amount, request.quantity * market_quote.price)
    quote_asset = context.request.symbol.partition("/")[2]
    if quote_asset in context.rules.usd_assets:
        return amount
    for usd in sorted(context.rules.usd_assets):
        rate = context.fresh_quote(f"{quote_asset}/{usd}")
        if rate is not None:
            return amount * rate.price
    return None


def hold_of(context: TradeContext) -> tuple[str, Decimal] | None:
    """(asset, amount) to reserve for an order: the base quantity of a sale, the most that a purchase may cost; None without a price.

    A market purchase by quantity is priced with the slippage allowance on top. Fees are taken from what is received.
    """
    request = context.request
    base, _, quote = request.symbol.partition("/")
    if request.side is Side.SELL and request.quantity is not None:
        return base, request.quantity
    amount = quote_amount(context)
    if amount is None:
        return None
    if request.side is Side.SELL:
        market_quote = context.fresh_quote(request.symbol)
        if market_quote is None or market_quote.price <= 0 or context.market is None:
            return None
        # A sale for a quote amount sells about amount / price; the price may fall by the allowance. Up to the next lot.
        quantity = amount / (market_quote.price * (1 - context.rules.slippage_allowance))
        step = context.market.quantity_step
        return base, round_up(quantity if step == 0 else (quantity / step).to_integral_value(rounding=ROUND_UP) * step)
    if request.order_type is OrderType.MARKET and request.quote_quantity is None:
        amount *= 1 + context.rules.slippage_allowance
    return quote, round_up(amount)
