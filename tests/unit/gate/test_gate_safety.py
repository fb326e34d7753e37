"""Step 1 of the gate, safety validation: each code, on both sides of each boundary."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.gate.safety import stale_refusal
from pipeline.model.venue import MarketData
from schemas.commands import HaltLevel, HaltScope
from schemas.reasons import ReasonCode
from tests.unit.builders import EXCHANGE, NOW, RULES, USER, market_data, trade
from tests.unit.gate_builders import (
    MICROSECOND,
    NO_LIMITS,
    at,
    code_of,
    context_of,
    first_refusal,
    halted,
    limit_at_market,
    one_btc_market,
)

R = ReasonCode
DAY = timedelta(hours=24)
LONG = "2027-01-01T00:00:00Z"
NO_NOTIONAL = one_btc_market(notional_min=Decimal(0), quantity_min=Decimal(0), quantity_step=Decimal("1e-18"))
SALE = {"side": "sell"}


@pytest.mark.parametrize(
    ("document", "changes", "code"),
    [
        # the record's age: keys are kept for 24 hours
        (trade(expires_at=LONG), at(NOW + DAY), None),
        (trade(expires_at=LONG), at(NOW + DAY + MICROSECOND), R.REQUEST_STALE),
        # the deadline: 30 s after the broker's time, or the producer's own
        (trade(), at(NOW + timedelta(seconds=30)), None),
        (trade(), at(NOW + timedelta(seconds=30) + MICROSECOND), R.REQUEST_EXPIRED),
        (trade(expires_at="2026-11-24T07:00:00Z"), {}, None),
        (trade(expires_at="2026-11-24T07:00:00Z"), at(NOW + MICROSECOND), R.REQUEST_EXPIRED),
        (trade(expires_at="2026-11-24T06:59:59.999999Z"), {}, R.REQUEST_EXPIRED),
        # what this version offers
        (trade(mode="paper"), {}, None),
        (trade(order_type="stop_loss", stop_price="1"), {}, R.REQUEST_UNSUPPORTED),
        (limit_at_market(order_type="limit_maker"), {}, R.REQUEST_UNSUPPORTED),
        (trade(order_type="trailing_stop", trailing_delta="1"), {}, R.REQUEST_UNSUPPORTED),
        # the exchanges of the installation
        (trade(exchange="kraken"), {}, R.EXCHANGE_UNKNOWN),
        # halts of each scope, and of another target
        (trade(), halted(HaltScope.ALL, ""), R.TRADING_HALTED),
        (trade(), halted(HaltScope.EXCHANGE, EXCHANGE), R.TRADING_HALTED),
        (trade(), halted(HaltScope.EXCHANGE, "kraken"), None),
        (trade(), halted(HaltScope.SYMBOL, "BTC/USDT"), R.TRADING_HALTED),
        (trade(), halted(HaltScope.SYMBOL, "ETH/BTC"), None),
        (trade(), halted(HaltScope.USER, USER), R.TRADING_HALTED),
        (trade(), halted(HaltScope.USER, "bob"), None),
        (trade(**SALE), halted(HaltScope.ALL, ""), R.TRADING_HALTED),
        # reduce: only a sale into dollars passes
        (trade(), halted(HaltScope.ALL, "", HaltLevel.REDUCE), R.REDUCE_ONLY),
        (trade(**SALE), halted(HaltScope.ALL, "", HaltLevel.REDUCE), None),
        (trade(symbol="ETH/BTC", quantity="1", **SALE), halted(HaltScope.ALL, "", HaltLevel.REDUCE), R.REDUCE_ONLY),
        # the user
        (trade(), {"status": None}, R.USER_UNKNOWN),
        (trade(), {"status": "pending"}, R.USER_UNVERIFIED),
        (trade(), {"status": "frozen"}, R.USER_INACTIVE),
        (trade(), {"status": "closed"}, R.USER_INACTIVE),
        (trade(), {"status": "anything else"}, R.USER_INACTIVE),
        # the symbol's form
        (trade(symbol="BTCUSDT"), {}, R.SYMBOL_INVALID),
        (trade(symbol="btc/usdt"), {}, R.SYMBOL_INVALID),
        (trade(symbol="BTC/USDT\n"), {}, R.SYMBOL_INVALID),
        (trade(symbol="BTC/USDT\x00"), {}, R.SYMBOL_INVALID),
        (trade(symbol="BTC/USDT/X"), {}, R.SYMBOL_INVALID),
        (trade(symbol="A" * 21 + "/USDT"), {}, R.SYMBOL_INVALID),
        # the price's value
        (limit_at_market(price="0"), {}, R.PRICE_INVALID),
        (limit_at_market(price="0.10", quantity="50"), {"limits": {"price_band": Decimal(1)}}, None),
        # 0.01 USD and 1,000,000 USD, for each way to state an amount
        (trade(quantity=None, quote_quantity="0.01"), NO_NOTIONAL, None),
        (trade(quantity=None, quote_quantity="0.009999999999999999"), NO_NOTIONAL, R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity=None, quote_quantity="0"), NO_NOTIONAL, R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity="0"), {}, R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity=None, quote_quantity="1000000"), {}, None),
        (trade(quantity=None, quote_quantity="1000000.000000000000000001"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        (trade(quantity="20"), {}, None),
        (trade(quantity="20.00001"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        (limit_at_market(price="55000", quantity="18.18181"), {}, None),
        (limit_at_market(price="55000", quantity="18.18182"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        (trade(quantity="99999999999999999999.99999"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        # a user's own limits
        (trade(), {"limits": {"trade_usd_min": Decimal(50)}}, None),
        (trade(), {"limits": {"trade_usd_min": Decimal("50.01")}}, R.AMOUNT_BELOW_MINIMUM),
        (trade(), {"limits": {"trade_usd_max": Decimal(50)}}, None),
        (trade(), {"limits": {"trade_usd_max": Decimal("49.99")}}, R.AMOUNT_ABOVE_MAXIMUM),
        (trade(), {"limits": {"trade_usd_max": Decimal(0)}}, R.AMOUNT_ABOVE_MAXIMUM),
        # a limit sale below the market is worth what the market pays, one above it what it asks for
        (limit_at_market(price="45000", quantity="20", **SALE), {}, None),
        (limit_at_market(price="45000", quantity="20.00001", **SALE), {}, R.AMOUNT_ABOVE_MAXIMUM),
        (limit_at_market(price="55000", quantity="18.18181", **SALE), {}, None),
        (limit_at_market(price="55000", quantity="18.18182", **SALE), {}, R.AMOUNT_ABOVE_MAXIMUM),
        # a quote asset that is no dollar is valued by its own fresh price: 1 ETH = 0.05 BTC = 2,500 USD
        (trade(symbol="ETH/BTC", quantity="400"), {}, None),
        (trade(symbol="ETH/BTC", quantity="400.00001"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        # without a price the nearest cause is named
        (trade(symbol="ETH/BTC", quantity="1"), {"market_data": market_data(prices={"ETH/BTC": Decimal("0.05")})}, R.PRICE_UNAVAILABLE),
        (trade(symbol="DOGE/USDT"), {}, R.SYMBOL_UNKNOWN),
        (trade(), one_btc_market(active=False) | {"market_data": market_data(markets=[], prices={})}, R.EXCHANGE_UNAVAILABLE),
        (trade(), {"market_data": None}, R.EXCHANGE_UNAVAILABLE),
        (trade(), {"market_data": MarketData(EXCHANGE)}, R.EXCHANGE_UNAVAILABLE),
        (trade(), {"market_data": market_data(prices={})}, R.PRICE_UNAVAILABLE),
        (trade(), {"market_data": market_data(prices={"BTC/USDT": Decimal(0)})}, R.PRICE_UNAVAILABLE),
    ],
)
def test_safety_answers_each_side_of_a_boundary(document: dict[str, Any], changes: dict[str, Any], code: ReasonCode | None) -> None:
    """What just holds passes the whole gate, what just does not is refused with its own code."""
    assert code_of(document, **changes) is code


def test_amount_of_nothing_is_refused_without_a_minimum() -> None:
    """No minimum does not let an order for nothing through: its hold could not be written."""
    market = one_btc_market(notional_min=Decimal(0), quantity_min=Decimal(0))
    assert code_of(trade(quantity="0"), limits={"trade_usd_min": Decimal(0)}, **market) is R.AMOUNT_BELOW_MINIMUM


def test_halt_beats_reduce() -> None:
    """Of two halts that cover an order the stricter one holds, whatever their scopes."""
    rows = halted(HaltScope.ALL, "", HaltLevel.REDUCE)["halts"].rows | halted(HaltScope.USER, USER)["halts"].rows
    book = type(halted(HaltScope.ALL, "")["halts"])(rows)
    assert code_of(trade(side="sell"), halts=book) is R.TRADING_HALTED
    assert book.level_for(EXCHANGE, "BTC/USDT", "bob") is HaltLevel.REDUCE


def test_refusal_says_what_of_the_money_and_what_next() -> None:
    """A refused amount is told with its value and its limit, that nothing was held, and what to send instead."""
    refusal = first_refusal(context_of(trade(quantity="20.00001"), limits={**NO_LIMITS, "trade_usd_max": Decimal(1_000_000)}))
    assert refusal is not None
    assert refusal.reason == (
        "the order is worth 1000000.5 USD, more than the maximum of 1000000 USD. Nothing was sent or held. Send a smaller order under a "
        "new key."
    )


def test_stale_record_is_told_without_a_context() -> None:
    """Cancels are judged by the same age."""
    assert stale_refusal(NOW, NOW + DAY, RULES) is None
    refusal = stale_refusal(NOW, NOW + DAY + MICROSECOND, RULES)
    assert refusal is not None
    assert refusal.code is R.REQUEST_STALE


def test_deadline_is_the_producers_own_or_the_default() -> None:
    """An order without `expires_at` may be sent for 30 s after the broker appended its record."""
    assert context_of(trade()).expires_at == NOW + timedelta(seconds=30)
    assert context_of(trade(expires_at="2026-11-24T07:00:01Z")).expires_at == NOW + timedelta(seconds=1)
