"""Step 5, risk: does this order keep the user's limits, with everything that the user has done and has open?

Invariants:
1. Each limit holds after the order: what was used and what the order adds is at most the limit. The order of the checks changes the code
   that is given, never whether there is one.
2. Sums take open orders at their full value at acceptance, filled parts included: they overstate, never understate.
3. Only an order that cannot make any position larger (`TradeContext.reduces`) passes the loss limit.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from pipeline.books.ledger import AccountKey, book_of
from pipeline.gate.check import Check, Step, check
from pipeline.gate.context import UNTOUCHED, ZERO, OpenOrder, RequestContext, TradeContext, Usage
from pipeline.gate.limits import Limits
from pipeline.gate.throttle import cooldown_end, message_conforms
from pipeline.gate.valuation import unpriced
from pipeline.model.refusal import Refusal
from schemas.decimals import format_decimal
from schemas.orders import Side
from schemas.reasons import ReasonCode

_LATER: Final = "Wait, then send it under a new key; an operator can change the limit."


@check(Step.RISK, ReasonCode.MESSAGE_RATE_EXCEEDED, limits=("messages_per_second_max", "messages_burst_max"))
def message_rate_is_kept(context: RequestContext) -> Refusal | None:
    """The user's requests keep the rate, with bursts up to a number; revoking a session always does. Unit: messages per second, and
    messages, of every type. Source: generic cell rate algorithm (ITU-T I.371, annex A)."""
    limits = context.account.limits
    if context.revokes or message_conforms(context.account.conduct, limits, context.now):
        return None
    text = f"more than {limits.messages_per_second_max} requests per second, with a burst of {limits.messages_burst_max}"
    advice = f"{context.untouched} Send more slowly, this one under a new key."
    return Refusal(ReasonCode.MESSAGE_RATE_EXCEEDED, f"the user sends {text}. {advice}")


@check(Step.RISK, ReasonCode.COOLDOWN_ACTIVE, limits=("cooldown_failures", "cooldown"))
def cooldown_is_over(context: RequestContext) -> Refusal | None:
    """No cooldown runs, or the order is a sale into US dollars; a cooldown follows this many failures in a row. A sale can only make a
    position smaller; what leaves for good cannot be called back. At the moment when a cooldown ends it is over. Unit: time. Source: the
    contract, Limits (5 min after 3 failures in a row); which failures count, `throttle.COUNTS`."""
    if context.reduces:
        return None
    until = cooldown_end(context.account.conduct, context.account.limits, context.now)
    if until is None:
        return None
    count = context.account.limits.cooldown_failures
    text = f"after {count} failures in a row only sales into US dollars and cancels are taken until "
    return Refusal(
        ReasonCode.COOLDOWN_ACTIVE,
        f"{text}{until.isoformat(timespec='seconds')}. {context.untouched} See what the failures were, wait, and use a new key. "
        "An operator can end the cooldown.",
    )


@check(Step.RISK, ReasonCode.PRICE_OUT_OF_BAND, limits=("price_band",))
def price_keeps_the_band(context: TradeContext) -> Refusal | None:
    """A price that is given lies within this fraction of the market price, to either side. Unit: a fraction of the market price. Source:
    FIX tag 103 value 16 ("price exceeds current price band"); a price that far off is a slip more often than an intention."""
    price = context.request.price
    if price is None:
        return None
    market = context.market_price
    if market is None:
        return unpriced(context)
    band = context.account.limits.price_band
    if abs(price - market) <= market * band:
        return None
    percent = format_decimal(band * 100)
    text = f"the price is more than {percent} % away from the market price of {format_decimal(market)} {context.quote}"
    return Refusal(ReasonCode.PRICE_OUT_OF_BAND, f"{text}. {UNTOUCHED} Send a price nearer to it under a new key.")


@check(Step.RISK, ReasonCode.DUPLICATE_ORDER, limits=("duplicate_window",))
def order_is_no_duplicate(context: TradeContext) -> Refusal | None:
    """No equal order was sent under another key within the window. Unit: time between the broker's times of the two records, the window's
    end not included. Source: a client that repeats with new keys."""
    window = context.account.limits.duplicate_window
    if not window:
        return None
    request = context.request
    appended_at = context.appended_at
    for order in context.account.recent:
        if (
            order.side is request.side
            and order.quantity == request.quantity
            and order.symbol == request.symbol
            and order.order_type is request.order_type
            and order.quote_quantity == request.quote_quantity
            and order.price == request.price
            and order.exchange == request.exchange
            and abs(appended_at - order.requested_at) < window
        ):
            text = f"the same order was sent less than {format_decimal(Decimal(str(window.total_seconds())))} s apart under another key"
            return Refusal(
                ReasonCode.DUPLICATE_ORDER,
                f"{text}. That one stands; nothing was sent or held for this one. Wait that long if you mean it twice, and use a new key.",
            )
    return None


@check(Step.RISK, ReasonCode.SELF_TRADE)
def order_trades_with_no_own(context: TradeContext) -> Refusal | None:
    """No open order of the user on the other side would match. Unit: quote per base, at the same exchange. Source: exchanges' rules against
    wash trades. Own market orders do not count: they do not rest, and were sent before."""
    request = context.request
    side, symbol, price = request.side, request.symbol, request.price
    if price is None and context.market_price is not None:
        # As far as the funds are held for: what rests beyond is not reached by an order of an ordinary size.
        allowance = context.rules.slippage_allowance
        price = context.market_price * (1 + allowance if side is Side.BUY else 1 - allowance)
    for order in context.account.open_orders:
        if (
            order.side is not side
            and order.price is not None
            and order.symbol == symbol
            and (price is None or (price >= order.price if side is Side.BUY else price <= order.price))
            and order.exchange == request.exchange
        ):
            return Refusal(
                ReasonCode.SELF_TRADE,
                f"the order would trade with the user's own order {order.order_id}. {UNTOUCHED} Cancel that one, or send a price that does "
                "not meet it, under a new key.",
            )
    return None


@check(Step.RISK, ReasonCode.HOURLY_TRADES_EXCEEDED, limits=("hourly_trades_max",))
def hourly_trades_are_within_limit(context: TradeContext) -> Refusal | None:
    """With this order the user has made no more trades than this in the last 60 minutes. Unit: accepted orders, by the time of acceptance.
    Source: the contract, Limits."""
    maximum = context.account.limits.hourly_trades_max
    if context.account.usage.trades_1h < maximum:
        return None
    text = f"the user has made {context.account.usage.trades_1h} trades in the last hour; {maximum} are allowed"
    return Refusal(ReasonCode.HOURLY_TRADES_EXCEEDED, f"{text}. {UNTOUCHED} {_LATER}")


@check(Step.RISK, ReasonCode.DAILY_VOLUME_EXCEEDED, limits=("daily_volume_usd_max",))
def daily_volume_is_within_limit(context: TradeContext) -> Refusal | None:
    """With this order the orders accepted in the last 24 hours are worth no more than this. Unit: USD at acceptance, whatever became of the
    orders. Source: the contract, Limits."""
    value = context.usd_value
    if value is None:
        return unpriced(context)
    used, maximum = context.account.usage.volume_24h_usd, context.account.limits.daily_volume_usd_max
    if used + value <= maximum:
        return None
    text = f"orders of the last 24 hours are worth {format_decimal(used)} USD; more than {format_decimal(maximum)} USD with this one"
    return Refusal(ReasonCode.DAILY_VOLUME_EXCEEDED, f"{text} are not allowed. {UNTOUCHED} {_LATER}")


@check(Step.RISK, ReasonCode.LOSS_LIMIT_EXCEEDED, limits=("daily_loss_usd_max",))
def daily_loss_is_below_limit(context: TradeContext) -> Refusal | None:
    """The losses realised in the last 24 hours, less the gains, are below the limit, or the order is a sale into US dollars. Unit: USD
    against average cost. Source: the average-cost positions of the ledger."""
    loss, maximum = context.account.usage.realised_loss_24h_usd, context.account.limits.daily_loss_usd_max
    if loss < maximum or context.reduces:
        return None
    text = f"losses of the last 24 hours have come to {format_decimal(loss)} USD; the limit is {format_decimal(maximum)} USD"
    return Refusal(ReasonCode.LOSS_LIMIT_EXCEEDED, f"{text}. {UNTOUCHED} Only sales into US dollars and cancels are taken. {_LATER}")


@check(Step.RISK, ReasonCode.OPEN_ORDERS_EXCEEDED, limits=("open_orders_max",))
def open_orders_are_within_count(context: TradeContext) -> Refusal | None:
    """With this order the user has no more open orders than this. Unit: orders that are not over, those on their way included. Source: what
    exchanges allow per account."""
    maximum = context.account.limits.open_orders_max
    if len(context.account.open_orders) < maximum:
        return None
    text = f"the user has {len(context.account.open_orders)} open orders; {maximum} are allowed"
    return Refusal(ReasonCode.OPEN_ORDERS_EXCEEDED, f"{text}. {UNTOUCHED} Cancel one, then send this under a new key.")


@check(Step.RISK, ReasonCode.OPEN_ORDERS_EXCEEDED, limits=("open_orders_usd_max",))
def open_orders_are_within_value(context: TradeContext) -> Refusal | None:
    """With this order the user's open orders are worth no more than this. Unit: USD at acceptance. Source: Limits."""
    value = context.usd_value
    if value is None:
        return unpriced(context)
    opened, maximum = context.open_usd, context.account.limits.open_orders_usd_max
    if opened + value <= maximum:
        return None
    text = f"open orders are worth {format_decimal(opened)} USD; more than {format_decimal(maximum)} USD with this one"
    return Refusal(ReasonCode.OPEN_ORDERS_EXCEEDED, f"{text} are not allowed. {UNTOUCHED} Cancel some, then send this under a new key.")


@check(Step.RISK, ReasonCode.EXPOSURE_EXCEEDED, limits=("exchange_open_usd_max",))
def exposure_is_within_limit(context: TradeContext) -> Refusal | None:
    """With this order the user's open orders at its exchange are worth no more than this. Unit: USD at acceptance. Source: Limits; what one
    exchange's failure can hold up."""
    value = context.usd_value
    if value is None:
        return unpriced(context)
    exchange, maximum = context.request.exchange, context.account.limits.exchange_open_usd_max
    # Where all exchanges together keep the limit, so does each.
    if context.open_usd + value <= maximum:
        return None
    opened = sum([order.usd_value for order in context.account.open_orders if order.exchange == exchange], ZERO)
    if opened + value <= maximum:
        return None
    text = f"open orders at {exchange} are worth {format_decimal(opened)} USD; more than {format_decimal(maximum)} USD with this one"
    return Refusal(ReasonCode.EXPOSURE_EXCEEDED, f"{text} are not allowed. {UNTOUCHED} Cancel some there, then send this under a new key.")


def _acquired(context: TradeContext) -> tuple[str, Decimal | None, Decimal | None]:
    """(asset, its price in USD, what the order adds in USD) of what an order gets: the base of a purchase, the quote of a sale."""
    request, rate = context.request, context.usd_rate
    if request.side is Side.SELL:
        return context.quote, rate, context.usd_value
    market = context.market_price
    price = None if market is None or rate is None else market * rate
    if request.quantity is None:
        return context.base, price, context.usd_value
    return context.base, price, None if price is None else request.quantity * price


def _on_the_way_usd(open_orders: Iterable[OpenOrder], asset: str, price: Decimal) -> Decimal:
    """What the open orders that get an asset will bring of it, in USD: purchases of it, and sales for it."""
    quantity = value = ZERO
    as_base, as_quote = f"{asset}/", f"/{asset}"
    for order in open_orders:
        if order.side is Side.BUY:
            if order.symbol.startswith(as_base):
                if order.leaves_quantity is None:
                    value += order.usd_value
                else:
                    quantity += order.leaves_quantity
        elif order.symbol.endswith(as_quote):
            value += order.usd_value
    return quantity * price + value


@check(Step.RISK, ReasonCode.POSITION_LIMIT_EXCEEDED, limits=("position_usd_max",))
def position_is_within_limit(context: TradeContext) -> Refusal | None:
    """What the user has of the asset that the order gets is worth no more than this, with open orders and this one. Unit: USD at the market
    price. Source: Limits. Dollars are no position."""
    asset, price, adds = _acquired(context)
    if asset in context.rules.usd_assets:
        return None
    if price is None or adds is None:
        return unpriced(context)
    user_id, book = context.request.user_id, book_of(context.request.mode)
    owned = ZERO
    for exchange in context.rules.exchanges:
        balance = context.balances.get(AccountKey(user_id, exchange, book, asset))
        if balance is not None:
            owned += balance.posted
    position = owned * price + _on_the_way_usd(context.account.open_orders, asset, price)
    maximum = context.account.limits.position_usd_max
    if position + adds <= maximum:
        return None
    text = f"the user's {asset}, with open orders, is worth {format_decimal(position)} USD; more than "
    return Refusal(
        ReasonCode.POSITION_LIMIT_EXCEEDED,
        f"{text}{format_decimal(maximum)} USD with this one are not allowed. {UNTOUCHED} Sell some or cancel orders, then use a new key.",
    )


def withdrawal_is_within_limit(limits: Limits, usage: Usage, usd_value: Decimal) -> Refusal | None:
    """With this withdrawal the user has withdrawn no more than `daily_withdrawal_usd_max` in 24 hours. Unit: USD when each was decided.
    Source: the contract, Limits."""
    used, maximum = usage.withdrawn_24h_usd, limits.daily_withdrawal_usd_max
    if used + usd_value <= maximum:
        return None
    text = f"withdrawals of the last 24 hours are worth {format_decimal(used)} USD; more than {format_decimal(maximum)} USD with this one"
    return Refusal(ReasonCode.DAILY_WITHDRAWAL_EXCEEDED, f"{text} are not allowed. {UNTOUCHED} {_LATER}")


RISK: Final[tuple[Check[TradeContext], ...]] = (
    message_rate_is_kept,
    cooldown_is_over,
    price_keeps_the_band,
    order_is_no_duplicate,
    order_trades_with_no_own,
    hourly_trades_are_within_limit,
    daily_volume_is_within_limit,
    daily_loss_is_below_limit,
    open_orders_are_within_count,
    open_orders_are_within_value,
    exposure_is_within_limit,
    position_is_within_limit,
)
