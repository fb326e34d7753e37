"""Step 1, safety validation: is this a request that may be looked at further?

Needs nothing but the request, the user's state, the halts and a price. The first refusal is given; nothing was held or sent then.
"""

from datetime import datetime
from typing import Final

from pipeline.gate.context import TradeContext
from pipeline.gate.valuation import expires_at, look_alike_note, unpriced
from pipeline.model.refusal import Refusal
from pipeline.model.rules import Rules
from schemas.commands import HaltLevel
from schemas.decimals import format_decimal
from schemas.order_kinds import OFFERED, ORDER_KINDS
from schemas.orders import Mode
from schemas.reasons import ReasonCode
from schemas.symbols import FORM, is_symbol

UNTOUCHED: Final = "Nothing was sent or held."


def stale_refusal(appended_at: datetime, now: datetime, rules: Rules) -> Refusal | None:
    """Refuses a record for which the claims that could show it to be a copy may be gone already: claims are kept for twice the key's
    lifetime after their request's end. Unit: the rules' key lifetime (24 h), counted from the broker's time of the record. Source: how
    long keys are kept (architecture, Idempotency)."""
    if now - appended_at <= rules.key_lifetime:
        return None
    return Refusal(
        ReasonCode.REQUEST_STALE,
        "the record is older than 24 hours, for which idempotency keys are kept; nothing was executed. Send it again under a new key "
        "if you still mean it.",
    )


def request_is_fresh(context: TradeContext) -> Refusal | None:
    """The record is not older than keys are kept, and its deadline has not passed. Unit: time since the broker appended it. Source: the
    contract (`expires_at`, 30 s by default)."""
    refusal = stale_refusal(context.appended_at, context.now, context.rules)
    if refusal is not None:
        return refusal
    if context.now > expires_at(context.request, context.appended_at, context.rules):
        return Refusal(
            ReasonCode.REQUEST_EXPIRED,
            "the deadline passed before the order was sent; nothing reached the exchange. Send it under a new key if you still mean it.",
        )
    return None


def kind_is_offered(context: TradeContext) -> Refusal | None:
    """This version executes such an order. No unit. Source: the table of order types (schemas/order_kinds)."""
    if not ORDER_KINDS[context.request.order_type].offered:
        what = f"order_type {context.request.order_type} is not offered by this version"
        offered = " or ".join(sorted(OFFERED))
        return Refusal(ReasonCode.REQUEST_UNSUPPORTED, f"{what}; nothing was executed. Use {offered} under a new key.")
    return None


def exchange_is_offered(context: TradeContext) -> Refusal | None:
    """This installation is connected to the exchange. No unit. Source: the setting `exchanges`."""
    if context.request.exchange not in context.rules.exchanges:
        offered = ", ".join(sorted(context.rules.exchanges))
        return Refusal(ReasonCode.EXCHANGE_UNKNOWN, f"exchange is not one of: {offered}. {UNTOUCHED} Name one of them under a new key.")
    return None


def trading_is_not_halted(context: TradeContext) -> Refusal | None:
    """No halt covers the order; under `reduce` only a sale into dollars passes, which can only make a position smaller. No unit. Source:
    the halts that operators and automatic trips have set, for all, an exchange, a symbol or a user."""
    level = context.halts.level_for(context.request.exchange, context.request.symbol, context.request.user_id)
    if level is None:
        return None
    if level is HaltLevel.HALT:
        return Refusal(
            ReasonCode.TRADING_HALTED,
            f"trading is halted for this user, symbol, exchange or everybody. {UNTOUCHED} Cancels still pass; try again under a new key "
            "when an operator has lifted the halt.",
        )
    if context.reduces:
        return None
    return Refusal(
        ReasonCode.REDUCE_ONLY,
        f"only sales into US dollars and cancels are taken now. {UNTOUCHED} Try again under a new key when an operator has lifted this.",
    )


def user_may_trade(context: TradeContext) -> Refusal | None:
    """The user exists, is verified and active; simulated orders need no verification. No unit. Source: the user's status, which operators
    set."""
    status = context.account.status
    if status == "active" or (status == "pending" and context.request.mode is Mode.PAPER):
        return None
    if status is None:
        return Refusal(ReasonCode.USER_UNKNOWN, f"no such user. {UNTOUCHED} An operator can add it.")
    if status == "pending":
        return Refusal(
            ReasonCode.USER_UNVERIFIED,
            f"the user waits for verification, without which no real money moves. {UNTOUCHED} An operator can verify it.",
        )
    return Refusal(ReasonCode.USER_INACTIVE, f"the user is {status}. {UNTOUCHED} Only an operator can change that.")


def symbol_is_well_formed(context: TradeContext) -> Refusal | None:
    """The symbol is BASE/QUOTE, 20 characters at most each, in normal form C, in capitals where its script has any, and without characters
    that nobody sees. No unit. Source: the contract; which symbols there are, the exchange says."""
    if is_symbol(context.request.symbol):
        return None
    return Refusal(ReasonCode.SYMBOL_INVALID, f"symbol {FORM}{look_alike_note(context)}. {UNTOUCHED} Use a new key.")


def price_is_positive(context: TradeContext) -> Refusal | None:
    """A price that is given is above zero. Unit: quote per base. Source: nobody pays nothing."""
    price = context.request.price
    if price is None or price > 0:
        return None
    return Refusal(ReasonCode.PRICE_INVALID, f"price must be above zero. {UNTOUCHED} Send another under a new key.")


def amount_reaches_minimum(context: TradeContext) -> Refusal | None:
    """The order is worth `trade_usd_min` or more, and more than nothing. Unit: USD at the order's own price or the market's. Source: the
    contract, Limits."""
    value = context.usd_value
    if value is None:
        return unpriced(context)
    minimum = context.account.limits.trade_usd_min
    if value >= minimum and value > 0:
        return None
    text = f"the order is worth {format_decimal(value)} USD, less than the minimum of {format_decimal(minimum)} USD"
    return Refusal(ReasonCode.AMOUNT_BELOW_MINIMUM, f"{text}. {UNTOUCHED} Send a larger order under a new key.")


def amount_keeps_maximum(context: TradeContext) -> Refusal | None:
    """The order is worth `trade_usd_max` or less. Unit: USD; a limit sale counts at the market's price where that is higher. Source: the
    contract, Limits."""
    value = context.usd_value
    if value is None:
        return unpriced(context)
    maximum = context.account.limits.trade_usd_max
    if value <= maximum:
        return None
    text = f"the order is worth {format_decimal(value)} USD, more than the maximum of {format_decimal(maximum)} USD"
    return Refusal(ReasonCode.AMOUNT_ABOVE_MAXIMUM, f"{text}. {UNTOUCHED} Send a smaller order under a new key.")
