"""Step 1, safety validation: is this a request that may be looked at further?

Needs nothing but the request, the user's state, the halts and a price. The first refusal is given; nothing was held or sent then.
"""

from datetime import datetime
from typing import Final

from pipeline.gate.check import Check, Step, check
from pipeline.gate.context import UNTOUCHED, ExchangeContext, RequestContext, TradeContext
from pipeline.gate.valuation import look_alike_note, unpriced
from pipeline.model.refusal import Refusal
from pipeline.model.rules import Rules
from schemas.commands import HaltLevel
from schemas.decimals import format_decimal
from schemas.order_kinds import OFFERED, ORDER_KINDS
from schemas.reasons import ReasonCode
from schemas.symbols import FORM, is_symbol


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


@check(Step.SAFETY, ReasonCode.REQUEST_STALE, ReasonCode.REQUEST_EXPIRED)
def request_is_fresh(context: RequestContext) -> Refusal | None:
    """The record is no older than keys are kept (24 h), and its deadline (`expires_at`, else the default of its type) has not passed. Unit:
    time since the broker appended it. Source: the contract (30 s, 7 days for an announced deposit, none for a session)."""
    refusal = stale_refusal(context.appended_at, context.now, context.rules)
    if refusal is not None:
        return refusal
    if context.is_late:
        return Refusal(
            ReasonCode.REQUEST_EXPIRED,
            f"the deadline passed before it was decided. {context.untouched} Send it under a new key if you still mean it.",
        )
    return None


@check(Step.SAFETY, ReasonCode.EXCHANGE_UNKNOWN)
def exchange_is_offered(context: ExchangeContext) -> Refusal | None:
    """This installation is connected to the exchange. No unit. Source: the setting `exchanges`."""
    if context.request.exchange not in context.rules.exchanges:
        offered = ", ".join(sorted(context.rules.exchanges))
        text = f"exchange is not one of: {offered}. {context.untouched} Name one of them under a new key."
        return Refusal(ReasonCode.EXCHANGE_UNKNOWN, text)
    return None


@check(Step.SAFETY, ReasonCode.USER_UNKNOWN, ReasonCode.USER_UNVERIFIED, ReasonCode.USER_INACTIVE)
def user_is_active(context: RequestContext) -> Refusal | None:
    """The user exists, is verified (for real money), and neither frozen nor closed; to revoke a session it need but exist. No unit.
    Source: the user's status, which operators set."""
    status = context.account.status
    if status == "active" or (status == "pending" and context.is_simulated) or (status is not None and context.revokes):
        return None
    if status is None:
        return Refusal(ReasonCode.USER_UNKNOWN, f"no such user. {context.untouched} An operator can add it.")
    if status == "pending":
        return Refusal(
            ReasonCode.USER_UNVERIFIED,
            f"the user waits for verification, without which no real money moves. {context.untouched} An operator can verify it.",
        )
    return Refusal(ReasonCode.USER_INACTIVE, f"the user is {status}. {context.untouched} Only an operator can change that.")


@check(Step.SAFETY, ReasonCode.REQUEST_UNSUPPORTED)
def kind_is_offered(context: TradeContext) -> Refusal | None:
    """This version offers the order type. No unit. Source: the table of order types (schemas/order_kinds)."""
    if not ORDER_KINDS[context.request.order_type].offered:
        what = f"order_type {context.request.order_type} is not offered by this version"
        offered = " or ".join(sorted(OFFERED))
        return Refusal(ReasonCode.REQUEST_UNSUPPORTED, f"{what}; nothing was executed. Use {offered} under a new key.")
    return None


@check(Step.SAFETY, ReasonCode.TRADING_HALTED, ReasonCode.REDUCE_ONLY)
def trading_is_not_halted(context: TradeContext) -> Refusal | None:
    """No halt covers the order; under `reduce` it is a sale into US dollars. No unit. Source: the halts that operators and automatic trips
    have set, for all, an exchange, a symbol or a user."""
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


@check(Step.SAFETY, ReasonCode.SYMBOL_INVALID)
def symbol_is_well_formed(context: TradeContext) -> Refusal | None:
    """The symbol is `BASE/QUOTE` in capitals, in Unicode's normal form C, without invisible characters. No unit. Source: the contract;
    which symbols there are, the exchange says."""
    if is_symbol(context.request.symbol):
        return None
    return Refusal(ReasonCode.SYMBOL_INVALID, f"symbol {FORM}{look_alike_note(context)}. {UNTOUCHED} Use a new key.")


@check(Step.SAFETY, ReasonCode.PRICE_INVALID)
def price_is_positive(context: TradeContext) -> Refusal | None:
    """A price that is given is above zero. Unit: quote per base. Source: nobody pays nothing."""
    price = context.request.price
    if price is None or price > 0:
        return None
    return Refusal(ReasonCode.PRICE_INVALID, f"price must be above zero. {UNTOUCHED} Send another under a new key.")


@check(Step.SAFETY, ReasonCode.AMOUNT_BELOW_MINIMUM, limits=("trade_usd_min",))
def amount_reaches_minimum(context: TradeContext) -> Refusal | None:
    """The order is worth the minimum or more, and more than nothing. Unit: USD at the order's own price or the market's. Source: the
    contract, Limits."""
    value = context.usd_value
    if value is None:
        return unpriced(context)
    minimum = context.account.limits.trade_usd_min
    if value >= minimum and value > 0:
        return None
    text = f"the order is worth {format_decimal(value)} USD, less than the minimum of {format_decimal(minimum)} USD"
    return Refusal(ReasonCode.AMOUNT_BELOW_MINIMUM, f"{text}. {UNTOUCHED} Send a larger order under a new key.")


@check(Step.SAFETY, ReasonCode.AMOUNT_ABOVE_MAXIMUM, limits=("trade_usd_max",))
def amount_keeps_maximum(context: TradeContext) -> Refusal | None:
    """The order is worth the maximum or less. Unit: USD; a limit sale counts at the market's price where that is higher. Source: the
    contract, Limits."""
    value = context.usd_value
    if value is None:
        return unpriced(context)
    maximum = context.account.limits.trade_usd_max
    if value <= maximum:
        return None
    text = f"the order is worth {format_decimal(value)} USD, more than the maximum of {format_decimal(maximum)} USD"
    return Refusal(ReasonCode.AMOUNT_ABOVE_MAXIMUM, f"{text}. {UNTOUCHED} Send a smaller order under a new key.")


SAFETY: Final[tuple[Check[TradeContext], ...]] = (
    request_is_fresh,
    kind_is_offered,
    exchange_is_offered,
    trading_is_not_halted,
    user_is_active,
    symbol_is_well_formed,
    price_is_positive,
    amount_reaches_minimum,
    amount_keeps_maximum,
)
