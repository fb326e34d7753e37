"""Step 6 of the gate, the exchange connection: each code, on both sides of each boundary."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.gate.ladder import CHECKS, Step
from pipeline.venue import MarketData
from schemas.reasons import ReasonCode
from tests.unit.builders import EXCHANGE, NOW, market_data, trade
from tests.unit.gate_builders import MICROSECOND, code_of, context_of, limit_at_market, one_btc_market

R = ReasonCode
AGE = timedelta(seconds=5)


@pytest.mark.parametrize(
    ("document", "changes", "code"),
    [
        # the market
        (limit_at_market(symbol="DOGE/USDT"), {}, R.SYMBOL_UNKNOWN),
        (trade(), one_btc_market(active=False), R.SYMBOL_UNKNOWN),
        (limit_at_market(), {"market_data": None}, R.EXCHANGE_UNAVAILABLE),
        (limit_at_market(), {"market_data": MarketData(EXCHANGE)}, R.EXCHANGE_UNAVAILABLE),
        # the market price's age, into the past and the future
        (trade(), {"market_data": market_data(observed_at=NOW - AGE)}, None),
        (trade(), {"market_data": market_data(observed_at=NOW - AGE - MICROSECOND)}, R.PRICE_UNAVAILABLE),
        (trade(), {"market_data": market_data(observed_at=NOW + AGE)}, None),
        (trade(), {"market_data": market_data(observed_at=NOW + AGE + MICROSECOND)}, R.PRICE_UNAVAILABLE),
        (limit_at_market(), {"market_data": market_data(prices={})}, R.PRICE_UNAVAILABLE),
        (trade(quantity=None, quote_quantity="50"), {"market_data": market_data(prices={})}, R.PRICE_UNAVAILABLE),
        # the price's grid
        (limit_at_market(price="50000.01"), {}, None),
        (limit_at_market(price="50000.001"), {}, R.PRECISION_INVALID),
        (limit_at_market(price="50000.001"), one_btc_market(price_tick=Decimal(0)), None),
        # the lot, least and greatest quantity
        (trade(quantity="0.00101"), {}, None),
        (trade(quantity="0.001001"), {}, R.PRECISION_INVALID),
        (trade(quantity="0.001001"), one_btc_market(quantity_step=Decimal(0)), None),
        (trade(quantity="0.002"), one_btc_market(quantity_min=Decimal("0.002")), None),
        (trade(quantity="0.00199"), one_btc_market(quantity_min=Decimal("0.002")), R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity="2"), one_btc_market(quantity_max=Decimal(2)), None),
        (trade(quantity="2.00001"), one_btc_market(quantity_max=Decimal(2)), R.AMOUNT_ABOVE_MAXIMUM),
        (trade(quantity="2.00001"), one_btc_market(quantity_max=None), None),
        # the venue's least value
        (trade(quantity="0.0001"), {}, None),
        (trade(quantity="0.00009"), {}, R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity=None, quote_quantity="5"), {}, None),
        (trade(quantity=None, quote_quantity="4.99"), {}, R.AMOUNT_BELOW_MINIMUM),
        (limit_at_market(price="45000", quantity="0.00012"), {}, None),
        (limit_at_market(price="45000", quantity="0.00011"), {}, R.AMOUNT_BELOW_MINIMUM),
    ],
)
def test_connection_answers_each_side_of_a_boundary(document: dict[str, Any], changes: dict[str, Any], code: ReasonCode | None) -> None:
    """What the venue just takes passes the whole gate, what it just does not is refused with its own code."""
    assert code_of(document, **changes) is code


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.step in {Step.RISK, Step.SUSPICION, Step.CONNECTION}])
def test_check_that_needs_a_market_never_passes_without_one(name: str) -> None:
    """A limit order at an exchange whose market list is not at hand passes no check that looks at the market, in any order."""
    check = next(check for check in CHECKS if check.name == name)
    refusal = check.function(context_of(limit_at_market(), market_data=None))
    needs_the_market = {
        "price_keeps_the_band", "position_is_within_limit", "market_is_trading", "market_price_is_fresh", "price_is_on_tick",
        "quantity_fits_the_lot", "notional_reaches_minimum",
    }
    assert (None if refusal is None else refusal.code) is (R.EXCHANGE_UNAVAILABLE if name in needs_the_market else None)


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.step in {Step.RISK, Step.SUSPICION}])
def test_check_that_needs_a_value_never_passes_without_one(name: str) -> None:
    """A market order that nothing values passes no check that counts dollars, in any order."""
    check = next(check for check in CHECKS if check.name == name)
    refusal = check.function(context_of(trade(), market_data=market_data(prices={})))
    counts_dollars = {
        "daily_volume_is_within_limit", "open_orders_are_within_value", "exposure_is_within_limit", "position_is_within_limit",
        "activity_is_not_suspicious",
    }
    assert (None if refusal is None else refusal.code) is (R.PRICE_UNAVAILABLE if name in counts_dollars else None)
