"""Suspicious activity: each rule on both sides of its boundary, and what their sum leads to."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.gate.context import RecentOrder, Usage
from pipeline.gate.limits import DEFAULT_LIMITS
from pipeline.gate.surveillance import RECENT_MAX, RULES, Assessment, Evidence, assess, blocking_refusal
from schemas.orders import OrderType, Side
from schemas.reasons import ReasonCode
from tests.unit.builders import NOW, trade
from tests.unit.gate_builders import MICROSECOND, at, code_of, context_of, limit_at_market, recent_order

DAY = timedelta(hours=24)
NIGHT = NOW.replace(hour=4, minute=59, second=59, microsecond=999_999)
# An order that no other rule minds: neither equal to `trade()` nor on its symbol's other side.
OTHER = recent_order(quantity=Decimal(9))


def _turns(count: int, **fields: Any) -> list[RecentOrder]:
    """Orders before a purchase that turn between purchase and sale, the newest a sale."""
    sides = [Side.SELL if place % 2 == 0 else Side.BUY for place in range(count)]
    return [recent_order(timedelta(seconds=10 * (place + 1)), side=side, **fields) for place, side in enumerate(sides)][::-1]


def _near(count: int, value: str = "950000") -> list[RecentOrder]:
    return [recent_order(quantity=Decimal(place + 20), usd_value=Decimal(value)) for place in range(count)]


def _rules(document: dict[str, Any], **changes: Any) -> list[str]:
    return [evidence.rule for evidence in assess(context_of(document, **changes)).evidence]


def _at_price(price: str) -> dict[str, Any]:
    return {"price": Decimal(price), "order_type": OrderType.LIMIT}


VOLUME, NEAR, PING_PONG = "volume_far_above_own_mean", "orders_just_below_the_maximum", "ping_pong"
REPEATED, CREDENTIALS = "same_order_repeated", "trade_after_credential_change"
NIGHTLY, FIRST = "burst_at_night", "first_use_of_symbol_at_size"
HUNDRED_THOUSAND = trade(quantity="2")


@pytest.mark.parametrize(
    ("document", "changes", "rules"),
    [
        (trade(), {}, []),
        # volume of 24 hours against ten times one's own mean of a day
        (HUNDRED_THOUSAND, {"usage": Usage(mean_daily_usd=Decimal(10_000))}, []),
        (HUNDRED_THOUSAND, {"usage": Usage(mean_daily_usd=Decimal("9999.99"))}, [VOLUME]),
        (trade(), {"usage": Usage(volume_24h_usd=Decimal(99_950), mean_daily_usd=Decimal("9999.99"))}, [VOLUME]),
        # little is nothing to look at, and who has no history has no mean
        (trade(), {"usage": Usage(volume_24h_usd=Decimal("99949.99"), mean_daily_usd=Decimal(1))}, []),
        (HUNDRED_THOUSAND, {"usage": Usage()}, []),
        # five orders of 950,000 to 1,000,000 USD
        (trade(quantity="19"), {"recent": _near(4)}, [NEAR]),
        (trade(quantity="19"), {"recent": _near(3)}, []),
        (trade(quantity="18.99999"), {"recent": _near(4)}, []),
        (trade(quantity="20"), {"recent": _near(4, "1000000")}, [NEAR]),
        (trade(quantity="19"), {"recent": _near(4, "949999.99")}, []),
        (trade(quantity="19"), {"recent": _near(4, "1000000.01")}, []),
        # six turns between purchase and sale
        (trade(), {"recent": _turns(6)}, [PING_PONG]),
        (trade(), {"recent": _turns(5)}, []),
        (trade(), {"recent": [*_turns(6), recent_order(symbol="ETH/BTC"), recent_order(exchange="kraken")]}, [PING_PONG]),
        (trade(), {"recent": [*_turns(6), OTHER]}, []),
        (trade(side="sell"), {"recent": _turns(6)}, []),
        (trade(quantity="0.0011"), {"recent": _turns(6)}, []),
        (trade(quantity=None, quote_quantity="50"), {"recent": _turns(6, quantity=None, quote_quantity=Decimal(50))}, [PING_PONG]),
        (limit_at_market(), {"recent": _turns(6)}, []),
        (trade(), {"recent": _turns(6, **_at_price("50000"))}, []),
        # at one price: within 0.1 % of this order's
        (limit_at_market(), {"recent": _turns(6, **_at_price("50050"))}, [PING_PONG]),
        (limit_at_market(), {"recent": _turns(6, **_at_price("50050.01"))}, []),
        (limit_at_market(), {"recent": _turns(6, **_at_price("49950"))}, [PING_PONG]),
        (limit_at_market(), {"recent": _turns(6, **_at_price("49949.99"))}, []),
        # ten equal orders
        (trade(), {"recent": [recent_order()] * 9}, [REPEATED]),
        (trade(), {"recent": [recent_order()] * 8 + [OTHER]}, []),
        (limit_at_market(), {"recent": [recent_order()] * 9}, []),
        (trade(side="sell"), {"recent": [OTHER, *[recent_order()] * 9]}, []),
        # 10,000 USD within a day after credentials changed
        (trade(quantity="0.2"), {"credentials_changed_at": NOW - DAY + MICROSECOND}, [CREDENTIALS]),
        (trade(quantity="0.2"), {"credentials_changed_at": NOW - DAY}, []),
        (trade(quantity="0.19999"), {"credentials_changed_at": NOW}, []),
        # twenty orders between 0:00 and 5:00 UTC
        (trade(), {"recent": [OTHER] * 19, **at(NIGHT)}, [NIGHTLY]),
        (trade(), {"recent": [OTHER] * 18, **at(NIGHT)}, []),
        (trade(), {"recent": [OTHER] * 19, **at(NIGHT + MICROSECOND)}, []),
        (trade(), {"recent": [OTHER] * 19, **at(NOW.replace(hour=0))}, [NIGHTLY]),
        (trade(), {"recent": [OTHER] * 19, **at(NOW.replace(hour=0) - MICROSECOND)}, []),
        # a first order in a symbol of 100,000 USD
        (HUNDRED_THOUSAND, {"known_symbols": {"ETH/BTC"}}, [FIRST]),
        (HUNDRED_THOUSAND, {"known_symbols": {"BTC/USDT"}}, []),
        (trade(quantity="1.99999"), {"known_symbols": set()}, []),
    ],
)
def test_rule_answers_each_side_of_its_boundary(document: dict[str, Any], changes: dict[str, Any], rules: Sequence[str]) -> None:
    """Each rule finds what just fits it, and only that."""
    assert _rules(document, **changes) == rules


def test_rules_look_at_a_bounded_number_of_orders() -> None:
    """Equal orders behind the newest hundred count no more, and a long list costs no more."""
    assert _rules(trade(), recent=[recent_order()] * 9 + [OTHER] * (RECENT_MAX - 9)) == [REPEATED]
    assert _rules(trade(), recent=[recent_order()] * 9 + [OTHER] * (RECENT_MAX - 8)) == []


STOLEN = {"known_symbols": set[str](), "credentials_changed_at": NOW - timedelta(minutes=30)}
MEAN = Usage(mean_daily_usd=Decimal(1_000))


def test_score_is_the_sum_with_its_evidence() -> None:
    """What a thief of credentials does first fits three rules, each with the numbers it saw."""
    assert assess(context_of(HUNDRED_THOUSAND, usage=MEAN, **STOLEN)) == Assessment(
        110,
        (
            Evidence(VOLUME, 40, "100000 USD in 24 hours against a mean of 1000 USD a day"),
            Evidence(CREDENTIALS, 40, "an order of 100000 USD 30 minutes after a key or second factor was changed"),
            Evidence(FIRST, 30, "the first order in BTC/USDT is worth 100000 USD"),
        ),
    )


def test_order_at_the_block_score_is_refused() -> None:
    """A score of exactly the limit is refused, one below passes; the rules are told to operators, not to the one who asks."""
    stolen: dict[str, Any] = {"usage": MEAN, **STOLEN}
    assert code_of(HUNDRED_THOUSAND, limits={"suspicion_block": 110}, **stolen) is ReasonCode.SUSPICIOUS_ACTIVITY
    assert code_of(HUNDRED_THOUSAND, limits={"suspicion_block": 111}, **stolen) is None
    refusal = blocking_refusal(assess(context_of(HUNDRED_THOUSAND, **stolen)), DEFAULT_LIMITS)
    assert refusal is not None
    assert not any(rule.name in refusal.reason for rule in RULES)


def test_no_rule_flags_alone() -> None:
    """One odd thing is common: by default no single rule reaches the flag, and no two reach the block."""
    scores = sorted((rule.score for rule in RULES), reverse=True)
    assert scores[0] < DEFAULT_LIMITS.suspicion_flag
    assert scores[0] + scores[1] < DEFAULT_LIMITS.suspicion_block
    assert sum(scores[:3]) >= DEFAULT_LIMITS.suspicion_block


def test_score_of_nothing_odd_is_nothing() -> None:
    """An ordinary order has no evidence against it."""
    assert assess(context_of(trade())) == Assessment(0, ())
