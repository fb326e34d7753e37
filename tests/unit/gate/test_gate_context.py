"""Limits with overrides, and an account that sees what was accepted before in its batch."""

from dataclasses import fields
from datetime import timedelta
from decimal import Decimal

import pytest

from pipeline.gate.limits import COUNT_MAX, DEFAULT_LIMITS, DURATION_MAX, Limits
from pipeline.model.halts import Halt, HaltBook
from schemas.commands import HaltLevel, HaltScope
from schemas.orders import OrderStatus, OrderType, Side
from schemas.reasons import ReasonCode
from tests.unit.builders import EXCHANGE, NOW, USER, trade
from tests.unit.gate_builders import account_of, code_of, limit_at_market, request_of

LATER = NOW + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("trade_usd_max", "0", Decimal(0)),
        ("price_band", "0.25", Decimal("0.25")),
        ("hourly_trades_max", "7", 7),
        ("hourly_trades_max", "7.00", 7),
        ("open_orders_max", str(COUNT_MAX), COUNT_MAX),
        ("cooldown", "1.5", timedelta(seconds=1.5)),
        ("duplicate_window", "0", timedelta(0)),
        ("cooldown", str(DURATION_MAX.days * 86_400), DURATION_MAX),
    ],
)
def test_override_replaces_one_limit(name: str, given: str, expected: object) -> None:
    """A user's own limit has the type of its field; the others stay as they are."""
    limits = DEFAULT_LIMITS.with_overrides({name: Decimal(given)})
    assert getattr(limits, name) == expected
    assert type(getattr(limits, name)) is type(getattr(DEFAULT_LIMITS, name))
    others = [field.name for field in fields(Limits) if field.name != name]
    assert [getattr(limits, other) for other in others] == [getattr(DEFAULT_LIMITS, other) for other in others]


def test_override_of_nothing_is_the_same_limits() -> None:
    """Users without limits of their own cost nothing."""
    assert DEFAULT_LIMITS.with_overrides({}) is DEFAULT_LIMITS


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("trade_max", "1", "trade_max is no limit; the limits are: trade_usd_min, trade_usd_max"),
        ("trade_usd_max", "-0.01", "must be 0 or more"),
        ("trade_usd_max", "NaN", "must be 0 or more"),
        ("cooldown", "Infinity", "must be 0 or more"),
        ("hourly_trades_max", "1.5", "must be a whole number"),
        ("hourly_trades_max", str(COUNT_MAX + 1), "1000000000 at most"),
        ("cooldown", "315360001", "315360000 at most"),
    ],
)
def test_override_that_is_no_limit_is_refused(name: str, given: str, text: str) -> None:
    """A name that does not exist, a negative amount or a fraction of a count is an error, never a limit that is not applied."""
    with pytest.raises(ValueError, match=text):
        DEFAULT_LIMITS.with_overrides({name: Decimal(given)})


def test_defaults_are_those_of_the_contract() -> None:
    """The amounts that the contract promises."""
    assert DEFAULT_LIMITS.trade_usd_min == Decimal("0.01")
    assert DEFAULT_LIMITS.trade_usd_max == 1_000_000
    assert DEFAULT_LIMITS.daily_volume_usd_max == 10_000_000
    assert DEFAULT_LIMITS.hourly_trades_max == 100
    assert (DEFAULT_LIMITS.cooldown_failures, DEFAULT_LIMITS.cooldown) == (3, timedelta(minutes=5))
    assert DEFAULT_LIMITS.daily_withdrawal_usd_max == 500_000


def test_account_sees_what_was_accepted_before_it() -> None:
    """An accepted order is in the sums, open, recent and known to the next request of the same batch."""
    account = account_of(known_symbols=set())
    document = limit_at_market(quantity="2")
    account.accepted("o1", request_of(document), Decimal(100_000), NOW, LATER)
    assert (account.usage.volume_24h_usd, account.usage.trades_1h) == (Decimal(100_000), 1)
    assert account.known_symbols == {"BTC/USDT"}
    [opened] = account.open_orders
    assert (opened.order_id, opened.exchange, opened.symbol, opened.side) == ("o1", EXCHANGE, "BTC/USDT", Side.BUY)
    assert (opened.order_type, opened.price, opened.leaves_quantity) == (OrderType.LIMIT, Decimal(50_000), Decimal(2))
    assert (opened.usd_value, opened.status) == (Decimal(100_000), OrderStatus.ACCEPTED)
    [recent] = account.recent
    assert (recent.exchange, recent.symbol, recent.side, recent.order_type) == (EXCHANGE, "BTC/USDT", Side.BUY, OrderType.LIMIT)
    assert (recent.quantity, recent.quote_quantity, recent.price) == (Decimal(2), None, Decimal(50_000))
    assert (recent.usd_value, recent.requested_at, recent.decided_at) == (Decimal(100_000), NOW, LATER)
    assert code_of(document, **{name: getattr(account, name) for name in ("usage", "open_orders", "recent")}) is ReasonCode.DUPLICATE_ORDER


def test_account_forgets_an_order_that_ended_before_it_was_sent() -> None:
    """A canceled order is not open any more, but it counts as a trade: it was accepted."""
    account = account_of()
    for order_id in ("o1", "o2"):
        account.accepted(order_id, request_of(trade(quantity=None, quote_quantity="50")), Decimal(50), NOW, NOW)
    account.ended("o1")
    assert [order.order_id for order in account.open_orders] == ["o2"]
    assert account.open_orders[0].leaves_quantity is None
    assert account.usage.trades_1h == 2


def test_accounts_share_no_usage() -> None:
    """What one user does is not counted for another."""
    first, second = account_of(), account_of()
    first.accepted("o1", request_of(trade()), Decimal(50), NOW, NOW)
    assert (second.usage.trades_1h, second.open_orders, second.recent) == (0, [], [])


@pytest.mark.parametrize("level", HaltLevel)
@pytest.mark.parametrize(
    ("scope", "target"),
    [(HaltScope.ALL, ""), (HaltScope.EXCHANGE, EXCHANGE), (HaltScope.SYMBOL, "BTC/USDT"), (HaltScope.USER, USER)],
)
def test_halt_covers_its_scope(scope: HaltScope, target: str, level: HaltLevel) -> None:
    """A halt of each scope covers the orders of its target, and none but those."""
    book = HaltBook(frozenset({Halt(scope, target, level)}))
    assert book.level_for(EXCHANGE, "BTC/USDT", USER) is level
    assert book.level_for("kraken", "ETH/BTC", "bob") is (level if scope is HaltScope.ALL else None)


def test_names_of_another_kind_are_not_mistaken() -> None:
    """A user who is called like an exchange is not halted with it."""
    book = HaltBook(frozenset({Halt(HaltScope.EXCHANGE, "binance", HaltLevel.HALT)}))
    assert book.level_for("kraken", "binance", "binance") is None
