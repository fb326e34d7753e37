"""The gate's checks in the order in which they are made: the one table that code, documents and audit trail go by.

Invariants:
1. The first refusal is given; a request that passes a step has passed each of its checks.
2. Every code that a check can give stands in its row, and every other code of the gate in `GIVEN_ELSEWHERE`.

Between the steps stand those that are no check of a `TradeContext`: the second factor before `api_key`, the hold in the ledger at the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pipeline.gate import api_key, connection, risk, safety
from pipeline.gate import surveillance as suspicion
from pipeline.gate.context import TradeContext
from pipeline.model.refusal import Refusal
from schemas.orders import Mode
from schemas.reasons import ReasonCode as R

Function = Callable[[TradeContext], Refusal | None]


class Step(StrEnum):
    """The gate's part of the ten steps of a trade: 1 safety validation, 4 API key, 5 risk (`risk` and then `suspicion`, for which a refusal
    is not enough: its user must be frozen), 6 exchange connection."""

    SAFETY = "safety"
    API_KEY = "api_key"
    RISK = "risk"
    SUSPICION = "suspicion"
    CONNECTION = "connection"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its step, its name (the function's), the codes it can give beside those of `UNPRICED`, the fields of `Limits` that it goes
    by, and a sentence that says what holds when it passes."""

    step: Step
    name: str
    function: Function
    codes: tuple[R, ...]
    limits: tuple[str, ...]
    sentence: str


# What a check that needs a price gives without one.
UNPRICED: Final = (R.EXCHANGE_UNAVAILABLE, R.SYMBOL_UNKNOWN, R.PRICE_UNAVAILABLE)


def _check(step: Step, function: Function, codes: tuple[R, ...], sentence: str, *limits: str) -> Check:
    return Check(step, function.__name__, function, codes, limits, sentence)


CHECKS: Final = (
    _check(
        Step.SAFETY,
        safety.request_is_fresh,
        (R.REQUEST_STALE, R.REQUEST_EXPIRED),
        "The record is no older than keys are kept (24 h), and its deadline (`expires_at`, else 30 s) has not passed.",
    ),
    _check(Step.SAFETY, safety.kind_is_offered, (R.REQUEST_UNSUPPORTED,), "This version offers the order type."),
    _check(Step.SAFETY, safety.exchange_is_offered, (R.EXCHANGE_UNKNOWN,), "This installation is connected to the exchange."),
    _check(
        Step.SAFETY,
        safety.trading_is_not_halted,
        (R.TRADING_HALTED, R.REDUCE_ONLY),
        "No halt covers the order; under `reduce` it is a sale into US dollars.",
    ),
    _check(
        Step.SAFETY,
        safety.user_may_trade,
        (R.USER_UNKNOWN, R.USER_UNVERIFIED, R.USER_INACTIVE),
        "The user exists, is verified (for real money), and neither frozen nor closed.",
    ),
    _check(
        Step.SAFETY,
        safety.symbol_is_well_formed,
        (R.SYMBOL_INVALID,),
        "The symbol is `BASE/QUOTE` in capitals, in Unicode's normal form C, without invisible characters.",
    ),
    _check(Step.SAFETY, safety.price_is_positive, (R.PRICE_INVALID,), "A price that is given is above zero."),
    _check(
        Step.SAFETY,
        safety.amount_reaches_minimum,
        (R.AMOUNT_BELOW_MINIMUM,),
        "The order is worth the minimum or more, and more than nothing.",
        "trade_usd_min",
    ),
    _check(Step.SAFETY, safety.amount_keeps_maximum, (R.AMOUNT_ABOVE_MAXIMUM,), "The order is worth the maximum or less.", "trade_usd_max"),
    _check(
        Step.API_KEY,
        api_key.api_key_is_known,
        (R.API_KEY_UNKNOWN, R.API_KEY_PERMISSION),
        "The user has stored this key, and it is for the order's exchange.",
    ),
    _check(
        Step.API_KEY,
        api_key.api_key_is_usable,
        (R.API_KEY_REVOKED, R.API_KEY_EXPIRED, R.API_KEY_PERMISSION),
        "The key is active: neither revoked, nor expired, nor refused by its exchange.",
    ),
    _check(Step.API_KEY, api_key.api_key_may_trade, (R.API_KEY_PERMISSION,), "The key has the permission `trade`."),
    _check(
        Step.RISK,
        risk.message_rate_is_kept,
        (R.MESSAGE_RATE_EXCEEDED,),
        "The user's trade requests keep the rate, with bursts up to a number.",
        "messages_per_second_max",
        "messages_burst_max",
    ),
    _check(
        Step.RISK,
        risk.cooldown_is_over,
        (R.COOLDOWN_ACTIVE,),
        "No cooldown runs, or the order is a sale into US dollars; a cooldown follows this many failures in a row.",
        "cooldown_failures",
        "cooldown",
    ),
    _check(
        Step.RISK,
        risk.price_keeps_the_band,
        (R.PRICE_OUT_OF_BAND,),
        "A price that is given lies within this fraction of the market price, to either side.",
        "price_band",
    ),
    _check(
        Step.RISK,
        risk.order_is_no_duplicate,
        (R.DUPLICATE_ORDER,),
        "No equal order was sent under another key within the window.",
        "duplicate_window",
    ),
    _check(Step.RISK, risk.order_trades_with_no_own, (R.SELF_TRADE,), "No open order of the user on the other side would match."),
    _check(
        Step.RISK,
        risk.hourly_trades_are_within_limit,
        (R.HOURLY_TRADES_EXCEEDED,),
        "With this order the user has made no more trades than this in the last 60 minutes.",
        "hourly_trades_max",
    ),
    _check(
        Step.RISK,
        risk.daily_volume_is_within_limit,
        (R.DAILY_VOLUME_EXCEEDED,),
        "With this order the orders accepted in the last 24 hours are worth no more than this.",
        "daily_volume_usd_max",
    ),
    _check(
        Step.RISK,
        risk.daily_loss_is_below_limit,
        (R.LOSS_LIMIT_EXCEEDED,),
        "The losses realised in the last 24 hours, less the gains, are below the limit, or the order is a sale into US dollars.",
        "daily_loss_usd_max",
    ),
    _check(
        Step.RISK,
        risk.open_orders_are_within_count,
        (R.OPEN_ORDERS_EXCEEDED,),
        "With this order the user has no more open orders than this.",
        "open_orders_max",
    ),
    _check(
        Step.RISK,
        risk.open_orders_are_within_value,
        (R.OPEN_ORDERS_EXCEEDED,),
        "With this order the user's open orders are worth no more than this.",
        "open_orders_usd_max",
    ),
    _check(
        Step.RISK,
        risk.exposure_is_within_limit,
        (R.EXPOSURE_EXCEEDED,),
        "With this order the user's open orders at its exchange are worth no more than this.",
        "exchange_open_usd_max",
    ),
    _check(
        Step.RISK,
        risk.position_is_within_limit,
        (R.POSITION_LIMIT_EXCEEDED,),
        "What the user has of the asset that the order gets is worth no more than this, with open orders and this one.",
        "position_usd_max",
    ),
    _check(
        Step.SUSPICION,
        suspicion.activity_is_not_suspicious,
        (R.SUSPICIOUS_ACTIVITY,),
        "The scores of the rules below sum to less than this; otherwise the user is frozen, too.",
        "suspicion_block",
    ),
    _check(
        Step.CONNECTION,
        connection.market_is_trading,
        (R.EXCHANGE_UNAVAILABLE, R.SYMBOL_UNKNOWN),
        "The exchange's list of markets is at hand, has the symbol, and says that it trades.",
    ),
    _check(
        Step.CONNECTION,
        connection.market_price_is_fresh,
        (R.PRICE_UNAVAILABLE,),
        "The symbol's market price is no older than `ORCHESTRATOR_PRICE_AGE_MS_MAX`.",
    ),
    _check(
        Step.CONNECTION,
        connection.market_takes_the_kind,
        (R.REQUEST_UNSUPPORTED,),
        "The exchange takes the order type for the symbol, and `quote_quantity` where it is given.",
    ),
    _check(
        Step.CONNECTION,
        connection.price_is_on_tick,
        (R.PRECISION_INVALID,),
        "A price that is given is a multiple of the exchange's tick.",
    ),
    _check(
        Step.CONNECTION,
        connection.price_is_within_bounds,
        (R.PRICE_OUT_OF_BAND,),
        "A price that is given is within the exchange's least and greatest, and within its band around the market price for the side.",
    ),
    _check(
        Step.CONNECTION,
        connection.quantity_fits_the_lot,
        (R.PRECISION_INVALID, R.AMOUNT_BELOW_MINIMUM, R.AMOUNT_ABOVE_MAXIMUM),
        "A quantity that is given is a multiple of the exchange's step, and within its least and greatest; of market orders by both rules.",
    ),
    _check(
        Step.CONNECTION,
        connection.quote_quantity_fits,
        (R.PRECISION_INVALID, R.AMOUNT_BELOW_MINIMUM, R.AMOUNT_ABOVE_MAXIMUM),
        "A quote quantity has no more places than the exchange takes, and is worth a quantity that it takes.",
    ),
    _check(
        Step.CONNECTION,
        connection.notional_is_within_bounds,
        (R.AMOUNT_BELOW_MINIMUM, R.AMOUNT_ABOVE_MAXIMUM),
        "The order is worth what the exchange takes at least, and no more than it takes at most.",
    ),
    _check(
        Step.CONNECTION,
        connection.market_has_room_for_the_order,
        (R.OPEN_ORDERS_EXCEEDED,),
        "With this order the user has no more orders open in the symbol than the exchange takes.",
    ),
    _check(
        Step.CONNECTION,
        connection.market_has_room_for_the_position,
        (R.POSITION_LIMIT_EXCEEDED,),
        "With this purchase the user has no more of the asset than the exchange takes.",
    ),
)

# Every reason code that no check of `CHECKS` gives, and what gives it.
GIVEN_ELSEWHERE: Final[Mapping[R, str]] = {
    R.AUTH_TOKEN_MISSING: "token check, before anything else",
    R.AUTH_TOKEN_INVALID: "token check, before anything else",
    R.AUTH_TOKEN_EXPIRED: "token check, before anything else",
    R.AUTH_USER_MISMATCH: "token check, before anything else",
    R.TOTP_MISSING: "second factor, between the steps `safety` and `api_key`",
    R.TOTP_INVALID: "second factor, between the steps `safety` and `api_key`",
    R.TOTP_REPLAYED: "second factor, between the steps `safety` and `api_key`",
    R.TOTP_LOCKED: "second factor, between the steps `safety` and `api_key`",
    **dict.fromkeys(
        (R.SESSION_UNKNOWN, R.SESSION_EXPIRED, R.SESSION_REVOKED, R.SESSION_LIMIT_EXCEEDED, R.SESSION_SYMBOL_NOT_ALLOWED),
        "second factor, where a session is to confirm, between the steps `safety` and `api_key`",
    ),
    R.SESSION_TOO_WIDE: "requests that begin a session",
    R.SESSIONS_EXCEEDED: "requests that begin a session",
    R.INVALID_DECIMAL: "reading of the record",
    R.SCHEMA_INVALID: "reading of the record",
    R.SCHEMA_VERSION_UNSUPPORTED: "reading of the record",
    R.IDEMPOTENCY_KEY_REUSED: "look-up of the idempotency key",
    R.IDEMPOTENCY_IN_PROGRESS: "look-up of the idempotency key",
    R.BALANCE_INSUFFICIENT: "the hold in the ledger, behind all checks",
    R.DAILY_WITHDRAWAL_EXCEEDED: "withdrawals",
    R.ADDRESS_NOT_ALLOWED: "withdrawals",
    R.OPEN_DEPOSITS_EXCEEDED: "announced deposits",
    R.APPROVAL_NOT_ALLOWED: "an operator's decision about a withdrawal",
    R.APPROVAL_NOT_PENDING: "an operator's decision about a withdrawal",
    R.APPROVAL_REFUSED: "an operator's decision about a withdrawal",
    R.EXCHANGE_REFUSED: "the exchange's own answer to the order",
    R.ORDER_NOT_EXECUTED: "the proof that an order in doubt is not at its exchange",
    R.INTERNAL_ERROR: "setting a record aside that could not be decided",
    R.ORDER_NOT_FOUND: "cancels",
    R.ORDER_NOT_CANCELABLE: "cancels",
}

# The hold is its own check: what is not there cannot be held (pipeline/books/ledger).
HOLD: Final = "balance_covers_the_hold"
# A simulated order uses no key, and says nothing about its user's conduct with money.
_NOT_FOR_PAPER: Final = frozenset({Step.API_KEY, Step.SUSPICION})
# What an acceptance lists as passed.
PASSED: Final = [*(check.name for check in CHECKS), HOLD]
PASSED_IN: Final[Mapping[Mode, list[str]]] = {
    Mode.LIVE: PASSED,
    Mode.PAPER: [*(check.name for check in CHECKS if check.step not in _NOT_FOR_PAPER), HOLD],
}

_FUNCTIONS: Final[Mapping[Step, tuple[Function, ...]]] = {
    step: tuple(check.function for check in CHECKS if check.step is step) for step in Step
}


def refusal_of(context: TradeContext, step: Step) -> Refusal | None:
    """The first check of a step that does not hold, or None when all hold or the step is none for the request's mode."""
    if context.request.mode is Mode.PAPER and step in _NOT_FOR_PAPER:
        return None
    for function in _FUNCTIONS[step]:
        refusal = function(context)
        if refusal is not None:
            return refusal
    return None
