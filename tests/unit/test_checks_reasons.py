"""The gate: every reason code it can give, on both sides of every boundary."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.checks import CHECKS, PASSED, ApiKeyState, TradeContext, hold_of, refusal_of, usd_value
from pipeline.venue import MarketData
from schemas.reasons import ReasonCode
from schemas.requests import TradeRequest
from tests.unit.builders import BTC_USDT, ETH_BTC, EXCHANGE, NOW, RULES, arrival, limit, market_data, trade

R = ReasonCode
MICROSECOND = timedelta(microseconds=1)
DAY = timedelta(hours=24)


def _context(document: Mapping[str, Any], **changes: Any) -> TradeContext:
    request = arrival(document).decoded
    assert isinstance(request, TradeRequest), request
    context = TradeContext(
        request=request,
        appended_at=NOW,
        now=NOW,
        rules=RULES,
        user_status="active",
        api_key=ApiKeyState(EXCHANGE, "active"),
        market_data=market_data(),
    )
    return replace(context, **changes)


def _code(document: Mapping[str, Any], **changes: Any) -> ReasonCode | None:
    refusal = refusal_of(_context(document, **changes))
    return None if refusal is None else refusal.code


def _at(now: datetime, **changes: Any) -> dict[str, Any]:
    """A decision at another time, with prices of that time."""
    return {"now": now, "market_data": market_data(observed_at=now), **changes}


def _one_btc_market(**changes: Any) -> dict[str, Any]:
    return {"market_data": market_data(markets=[replace(BTC_USDT, **changes)])}


LONG = "2027-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("document", "changes", "code"),
    [
        # the record's age: keys are kept for 24 hours
        (trade(expires_at=LONG), _at(NOW + DAY), None),
        (trade(expires_at=LONG), _at(NOW + DAY + MICROSECOND), R.REQUEST_STALE),
        # the deadline: 30 s after the broker's time, or the producer's own
        (trade(), _at(NOW + timedelta(seconds=30)), None),
        (trade(), _at(NOW + timedelta(seconds=30) + MICROSECOND), R.REQUEST_EXPIRED),
        (trade(expires_at="2026-11-24T07:00:00Z"), {}, None),
        (trade(expires_at="2026-11-24T07:00:00Z"), _at(NOW + MICROSECOND), R.REQUEST_EXPIRED),
        (trade(expires_at="2026-11-24T06:59:59.999999Z"), {}, R.REQUEST_EXPIRED),
        # what this version offers
        (trade(mode="paper"), {}, R.REQUEST_UNSUPPORTED),
        (trade(order_type="stop_loss", stop_price="1"), {}, R.REQUEST_UNSUPPORTED),
        (limit(order_type="limit_maker"), {}, R.REQUEST_UNSUPPORTED),
        (trade(order_type="trailing_stop", trailing_delta="1"), {}, R.REQUEST_UNSUPPORTED),
        # the user
        (trade(), {"user_status": None}, R.USER_UNKNOWN),
        (trade(), {"user_status": "pending"}, R.USER_INACTIVE),
        (trade(), {"user_status": "frozen"}, R.USER_INACTIVE),
        (trade(), {"user_status": "closed"}, R.USER_INACTIVE),
        # the exchange and the key
        (trade(exchange="kraken"), {}, R.EXCHANGE_UNKNOWN),
        (trade(), {"api_key": None}, R.API_KEY_UNKNOWN),
        (trade(), {"api_key": ApiKeyState("kraken", "active")}, R.API_KEY_PERMISSION),
        (trade(), {"api_key": ApiKeyState(EXCHANGE, "revoked")}, R.API_KEY_REVOKED),
        (trade(), {"api_key": ApiKeyState(EXCHANGE, "expired")}, R.API_KEY_EXPIRED),
        (trade(), {"api_key": ApiKeyState(EXCHANGE, "anything else")}, R.API_KEY_EXPIRED),
        # the symbol
        (trade(symbol="BTCUSDT"), {}, R.SYMBOL_INVALID),
        (trade(symbol="btc/usdt"), {}, R.SYMBOL_INVALID),
        (trade(symbol="BTC/USDT\n"), {}, R.SYMBOL_INVALID),
        (trade(symbol="BTC/USDT\x00"), {}, R.SYMBOL_INVALID),
        (trade(symbol="BTC/USDT/X"), {}, R.SYMBOL_INVALID),
        (trade(symbol="DOGE/USDT"), {}, R.SYMBOL_UNKNOWN),
        (trade(), _one_btc_market(active=False), R.SYMBOL_UNKNOWN),
        (trade(), {"market_data": None}, R.EXCHANGE_UNAVAILABLE),
        (trade(), {"market_data": MarketData(EXCHANGE)}, R.EXCHANGE_UNAVAILABLE),
        # the price's value and grid
        (limit(price="0"), {}, R.PRICE_INVALID),
        (limit(price="0.01", quantity="1000"), {}, None),
        (limit(price="40000.01"), {}, None),
        (limit(price="40000.001"), {}, R.PRECISION_INVALID),
        (limit(price="40000.001"), _one_btc_market(price_tick=Decimal(0)), None),
        # the market price's age
        (trade(), {"market_data": market_data(observed_at=NOW - timedelta(seconds=5))}, None),
        (trade(), {"market_data": market_data(observed_at=NOW - timedelta(seconds=5) - MICROSECOND)}, R.PRICE_UNAVAILABLE),
        (trade(), {"market_data": market_data(observed_at=NOW + timedelta(seconds=5))}, None),
        (trade(), {"market_data": market_data(observed_at=NOW + timedelta(seconds=5) + MICROSECOND)}, R.PRICE_UNAVAILABLE),
        (limit(), {"market_data": market_data(prices={})}, R.PRICE_UNAVAILABLE),
        # 0.01 USD and 1,000,000 USD, for each way to state an amount
        (trade(quantity=None, quote_quantity="0.01"), _one_btc_market(notional_min=Decimal(0)), None),
        (trade(quantity=None, quote_quantity="0.009999999999999999"), _one_btc_market(notional_min=Decimal(0)), R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity=None, quote_quantity="0"), _one_btc_market(notional_min=Decimal(0)), R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity="0"), {}, R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity=None, quote_quantity="1000000"), {}, None),
        (trade(quantity=None, quote_quantity="1000000.000000000000000001"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        (trade(quantity="20"), {}, None),
        (trade(quantity="20.00001"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        (limit(price="1000000", quantity="1"), {}, None),
        (limit(price="1000000.01", quantity="1"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        (trade(quantity="99999999999999999999.99999"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        # a limit sale far under the market is worth what the market pays
        (limit(side="sell", price="1", quantity="20"), {}, None),
        (limit(side="sell", price="1", quantity="20.00001"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        (limit(side="sell", price="100000", quantity="10"), {}, None),
        (limit(side="sell", price="100000", quantity="10.00001"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        # a quote asset that is no dollar is valued by its own fresh price: 1 ETH = 0.05 BTC = 2,500 USD
        (trade(symbol="ETH/BTC", quantity="400"), {}, None),
        (trade(symbol="ETH/BTC", quantity="400.00001"), {}, R.AMOUNT_ABOVE_MAXIMUM),
        (trade(symbol="ETH/BTC", quantity="1"), {"market_data": market_data(prices={"ETH/BTC": Decimal("0.05")})}, R.PRICE_UNAVAILABLE),
        # the venue's lot, least and greatest quantity, least value
        (trade(quantity="0.00101"), {}, None),
        (trade(quantity="0.001001"), {}, R.PRECISION_INVALID),
        (trade(quantity="0.001001"), _one_btc_market(quantity_step=Decimal(0)), None),
        (trade(quantity="0.002"), _one_btc_market(quantity_min=Decimal("0.002")), None),
        (trade(quantity="0.00199"), _one_btc_market(quantity_min=Decimal("0.002")), R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity="2"), _one_btc_market(quantity_max=Decimal(2)), None),
        (trade(quantity="2.00001"), _one_btc_market(quantity_max=Decimal(2)), R.AMOUNT_ABOVE_MAXIMUM),
        (trade(quantity="2.00001"), _one_btc_market(quantity_max=None), None),
        (trade(quantity="0.0001"), {}, None),
        (trade(quantity="0.00009"), {}, R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity=None, quote_quantity="5"), {}, None),
        (trade(quantity=None, quote_quantity="4.99"), {}, R.AMOUNT_BELOW_MINIMUM),
        (limit(price="4000", quantity="0.00125"), {}, None),
        (limit(price="3999.99", quantity="0.00125"), {}, R.AMOUNT_BELOW_MINIMUM),
    ],
)
def test_gate_answers_each_side_of_a_boundary(document: dict[str, Any], changes: dict[str, Any], code: ReasonCode | None) -> None:
    """One row per reason code and side: what just holds passes, what just does not is refused with its own code."""
    assert _code(document, **changes) is code


def test_gate_names_what_it_checked() -> None:
    """The audit trail's list of passed checks is the ladder itself and the balance."""
    ladder = [name for name, _ in CHECKS]
    assert [*ladder, "balance_covers_the_hold"] == PASSED
    assert len(set(PASSED)) == len(PASSED)


def test_gate_refuses_a_zero_amount_without_a_minimum() -> None:
    """A rule of no minimum does not let an order for nothing through: its hold could not be written."""
    rules = replace(RULES, trade_usd_min=Decimal(0))
    market = _one_btc_market(notional_min=Decimal(0), quantity_min=Decimal(0))
    assert _code(trade(quantity="0"), rules=rules, **market) is R.AMOUNT_BELOW_MINIMUM


def test_gate_stops_at_the_first_refusal() -> None:
    """Several things wrong give the answer of the check that stands first."""
    assert _code(trade(mode="paper", exchange="kraken", symbol="x"), user_status=None) is R.REQUEST_UNSUPPORTED


@pytest.mark.parametrize(
    ("document", "asset", "amount"),
    [
        (limit(), "USDT", "40"),
        (limit(quantity="0.00003", price="0.01"), "USDT", "0.0000003"),
        (limit(quantity="0.000000000000000001", price="0.000000000000000001"), "USDT", "0.000000000000000001"),
        (limit(side="sell"), "BTC", "0.001"),
        (trade(), "USDT", "52.5"),
        (trade(side="sell"), "BTC", "0.001"),
        (trade(quantity=None, quote_quantity="50"), "USDT", "50"),
        # 47.5 USDT at 50,000 less 5 % is 0.001 BTC; a little more is rounded up to the next lot
        (trade(side="sell", quantity=None, quote_quantity="47.5"), "BTC", "0.001"),
        (trade(side="sell", quantity=None, quote_quantity="47.50000001"), "BTC", "0.00101"),
    ],
)
def test_hold_covers_the_most_that_an_order_can_cost(document: dict[str, Any], asset: str, amount: str) -> None:
    """A purchase holds its price, with the allowance where the market sets it; a sale holds what it sells; always rounded up."""
    assert hold_of(_context(document)) == (asset, Decimal(amount))


@pytest.mark.parametrize("prices", [{}, {"BTC/USDT": Decimal(0)}])
def test_hold_of_a_sale_by_value_needs_a_price(prices: dict[str, Decimal]) -> None:
    """Without a price nothing says how much to hold, and nothing is guessed."""
    context = _context(trade(side="sell", quantity=None, quote_quantity="50"), market_data=market_data(prices=prices))
    assert hold_of(context) is None


def test_value_in_dollars_is_exact_for_the_largest_amounts() -> None:
    """38 digits times 38 digits lose nothing: rounding could move an amount over a limit."""
    document = limit(quantity="12345678901234567890.123456789012345678", price="1.000000000000000001")
    assert usd_value(_context(document)) == Decimal("12345678901234567890.123456789012345678") * Decimal("1.000000000000000001")
    assert _context(document).market == BTC_USDT
    assert market_data().markets["ETH/BTC"] == ETH_BTC


def test_exchange_without_a_market_list_is_told_apart_from_an_unknown_symbol() -> None:
    """While the markets are not known, "no such symbol" would be a guess."""
    assert _code(trade(symbol="NEW/USDT"), market_data=None) is R.EXCHANGE_UNAVAILABLE
