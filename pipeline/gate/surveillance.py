"""Suspicious activity: rules that each add a score, with the evidence for it.

At `suspicion_flag` the assessment goes to the audit event and a metric; at `suspicion_block` the order is refused, and the user frozen
until an operator lifts it.

Invariants:
1. A rule is a pure function of the context: the same request, account and time give the same evidence.
2. No rule's score reaches the default flag alone: what is odd in one way is common, what is odd in several ways is not.
3. Rules look at `RECENT_MAX` of the newest orders at most.

Call `assess` before the order is counted with `AccountState.accepted`: afterwards it would be its own past.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Final

from pipeline.gate.check import Check, Step, check
from pipeline.gate.context import UNTOUCHED, RecentOrder, TradeContext
from pipeline.gate.limits import Limits
from pipeline.gate.valuation import unpriced
from pipeline.model.refusal import Refusal
from schemas.decimals import format_decimal
from schemas.reasons import ReasonCode

RECENT_MAX: Final = 100

VOLUME_TIMES_MEAN: Final = 10
VOLUME_USD_LEAST: Final = Decimal(100_000)
NEAR_LIMIT: Final = Decimal("0.95")
NEAR_LIMIT_ORDERS: Final = 5
PING_PONG_TURNS: Final = 6
PING_PONG_PRICE: Final = Decimal("0.001")
REPEATED_ORDERS: Final = 10
CREDENTIALS_SETTLE: Final = timedelta(hours=24)
CREDENTIALS_USD_LEAST: Final = Decimal(10_000)
NIGHT_ENDS: Final = 5
NIGHT_ORDERS: Final = 20
FIRST_USE_USD: Final = Decimal(100_000)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a rule found: its name, what it adds to the score, and the numbers it saw."""

    rule: str
    score: int
    text: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """The sum of the scores, and what it is made of."""

    score: int
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """`evidence` answers with the numbers when the rule fits, else None. `sentence` says in the documents when it fits."""

    name: str
    score: int
    evidence: Callable[[TradeContext], str | None]
    sentence: str


def _newest(context: TradeContext) -> Sequence[RecentOrder]:
    recent = context.account.recent
    return recent if len(recent) <= RECENT_MAX else recent[-RECENT_MAX:]


def _volume_far_above_own_mean(context: TradeContext) -> str | None:
    usage, value = context.account.usage, context.usd_value
    if value is None or usage.mean_daily_usd <= 0:
        return None
    volume = usage.volume_24h_usd + value
    if volume < VOLUME_USD_LEAST or volume <= usage.mean_daily_usd * VOLUME_TIMES_MEAN:
        return None
    mean = format_decimal(round(usage.mean_daily_usd, 2))
    return f"{format_decimal(round(volume, 2))} USD in 24 hours against a mean of {mean} USD a day"


def _orders_just_below_the_maximum(context: TradeContext) -> str | None:
    maximum, value = context.account.limits.trade_usd_max, context.usd_value
    near = maximum * NEAR_LIMIT
    if value is None or not near <= value <= maximum:
        return None
    orders = 1 + sum([near <= order.usd_value <= maximum for order in _newest(context)])
    if orders < NEAR_LIMIT_ORDERS:
        return None
    return f"{orders} orders within 10 minutes are worth {format_decimal(near)} to {format_decimal(maximum)} USD"


def _ping_pong(context: TradeContext) -> str | None:
    request = context.request
    side, price, turns = request.side, request.price, 0
    for order in reversed(_newest(context)):
        if order.symbol != request.symbol or order.exchange != request.exchange:
            continue
        if order.side is side or order.quantity != request.quantity or order.quote_quantity != request.quote_quantity:
            break
        # Orders at the market's price are at one price with one another.
        if (price is None) != (order.price is None):
            break
        if price is not None and order.price is not None and abs(order.price - price) > price * PING_PONG_PRICE:
            break
        side, turns = order.side, turns + 1
    if turns < PING_PONG_TURNS:
        return None
    return f"{turns} turns between purchase and sale of the same amount at one price within 10 minutes"


def _same_order_repeated(context: TradeContext) -> str | None:
    request, recent = context.request, _newest(context)
    if len(recent) < REPEATED_ORDERS - 1:
        return None
    orders = 1
    for order in recent:
        if (
            order.side is request.side
            and order.quantity == request.quantity
            and order.symbol == request.symbol
            and order.price == request.price
            and order.quote_quantity == request.quote_quantity
            and order.exchange == request.exchange
        ):
            orders += 1
    return f"{orders} equal orders under as many keys within 10 minutes" if orders >= REPEATED_ORDERS else None


def _trade_after_credential_change(context: TradeContext) -> str | None:
    changed, value = context.account.credentials_changed_at, context.usd_value
    if changed is None or value is None or value < CREDENTIALS_USD_LEAST or context.now - changed >= CREDENTIALS_SETTLE:
        return None
    minutes = (context.now - changed) // timedelta(minutes=1)
    return f"an order of {format_decimal(round(value, 2))} USD {minutes} minutes after a key or second factor was changed"


def _burst_at_night(context: TradeContext) -> str | None:
    orders = len(context.account.recent) + 1
    if context.now.hour >= NIGHT_ENDS or orders < NIGHT_ORDERS:
        return None
    return f"{orders} orders within 10 minutes at {context.now:%H:%M} UTC"


def _first_use_of_symbol_at_size(context: TradeContext) -> str | None:
    value = context.usd_value
    if value is None or value < FIRST_USE_USD or context.request.symbol in context.account.known_symbols:
        return None
    return f"the first order in {context.request.symbol} is worth {format_decimal(round(value, 2))} USD"


RULES: Final = (
    Rule(
        "volume_far_above_own_mean",
        40,
        _volume_far_above_own_mean,
        f"With this order the volume of 24 hours is {VOLUME_USD_LEAST:,} USD or more, and more than {VOLUME_TIMES_MEAN} times the user's "
        "own mean of 30 days.",
    ),
    Rule(
        "orders_just_below_the_maximum",
        40,
        _orders_just_below_the_maximum,
        f"{NEAR_LIMIT_ORDERS} orders within 10 minutes, this one included, are worth {format_decimal(NEAR_LIMIT * 100)} to 100 % of "
        "`trade_usd_max`.",
    ),
    Rule(
        "ping_pong",
        40,
        _ping_pong,
        f"The last {PING_PONG_TURNS} orders in the symbol within 10 minutes turn between purchase and sale of this order's amount, each "
        f"within {format_decimal(PING_PONG_PRICE * 100)} % of this order's price, or all at the market's.",
    ),
    Rule(
        "same_order_repeated",
        30,
        _same_order_repeated,
        f"{REPEATED_ORDERS} equal orders within 10 minutes, this one included, came under a key each.",
    ),
    Rule(
        "trade_after_credential_change",
        40,
        _trade_after_credential_change,
        f"The order is worth {CREDENTIALS_USD_LEAST:,} USD or more, and an exchange key or the second factor was changed less than 24 "
        "hours before.",
    ),
    Rule(
        "burst_at_night",
        20,
        _burst_at_night,
        f"{NIGHT_ORDERS} orders within 10 minutes, this one included, came between 0:00 and 5:00 UTC.",
    ),
    Rule(
        "first_use_of_symbol_at_size",
        30,
        _first_use_of_symbol_at_size,
        f"The user's first order in a symbol is worth {FIRST_USE_USD:,} USD or more.",
    ),
)
_NOTHING: Final = Assessment(0, ())


def assess(context: TradeContext) -> Assessment:
    """The score of a request with the evidence for it, in the order of `RULES`."""
    found: list[Evidence] | None = None
    for rule in RULES:
        text = rule.evidence(context)
        if text is not None:
            found = [] if found is None else found
            found.append(Evidence(rule.name, rule.score, text))
    return _NOTHING if found is None else Assessment(sum(evidence.score for evidence in found), tuple(found))


@check(Step.SUSPICION, ReasonCode.SUSPICIOUS_ACTIVITY, limits=("suspicion_block",))
def activity_is_not_suspicious(context: TradeContext) -> Refusal | None:
    """The scores of the rules below sum to less than this; otherwise the user is frozen, too. Unit: points. Source: the rules of this
    module."""
    if context.usd_value is None:
        return unpriced(context)
    return blocking_refusal(assess(context), context.account.limits)


def blocking_refusal(assessment: Assessment, limits: Limits) -> Refusal | None:
    """The refusal of an order whose score has come to `suspicion_block`; its user must be frozen with it."""
    if assessment.score < limits.suspicion_block:
        return None
    # Which rules it fits is for the operator to know: it stands in the audit event.
    return Refusal(
        ReasonCode.SUSPICIOUS_ACTIVITY,
        f"the order fits a pattern of misuse, so the user is frozen. {UNTOUCHED} Orders that are open stay so and can be canceled. "
        "An operator looks at it and can unfreeze the user.",
    )


SURVEILLANCE: Final[tuple[Check[TradeContext], ...]] = (activity_is_not_suspicious,)
