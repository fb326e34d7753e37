"""Step 6 of the gate, the exchange connection: each code, on both sides of each boundary."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.gate.check import Step
from pipeline.gate.ladder import TRADE_GATE
from pipeline.model.venue import Lot, MarketData, PriceBand
from schemas.orders import OrderType
from schemas.reasons import ReasonCode
from tests.unit.builders import EXCHANGE, NOW, PRICE, market_data, trade
from tests.unit.gate_builders import MICROSECOND, code_of, context_of, limit_at_market, one_btc_market, open_order, owned

R = ReasonCode
AGE = timedelta(seconds=5)
BAND = PriceBand(Decimal("0.99"), Decimal("1.02"), Decimal("0.97"), Decimal("1.04"))
POSITION = {"balances": owned(BTC="0.1"), "open_orders": [open_order()]}


@pytest.mark.parametrize(
    ("document", "changes", "code"),
    [
        # the market
        (limit_at_market(symbol="DOGE/USDT"), {}, R.SYMBOL_UNKNOWN),
        (trade(), one_btc_market(active=False), R.EXCHANGE_UNAVAILABLE),
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
        # the venue's least value of market orders, which may be none of theirs
        (trade(quantity="0.00009"), one_btc_market(notional_min_on_market=False), None),
        (limit_at_market(quantity="0.00009"), one_btc_market(notional_min_on_market=False), R.AMOUNT_BELOW_MINIMUM),
        # the venue's greatest value
        (limit_at_market(quantity="0.002"), one_btc_market(notional_max=Decimal(100)), None),
        (limit_at_market(quantity="0.00201"), one_btc_market(notional_max=Decimal(100)), R.AMOUNT_ABOVE_MAXIMUM),
        (trade(quantity="0.00201"), one_btc_market(notional_max=Decimal(100)), None),
        (trade(quantity="0.00201"), one_btc_market(notional_max=Decimal(100), notional_max_on_market=True), R.AMOUNT_ABOVE_MAXIMUM),
        # the price's least and greatest, and the venue's band by side
        (limit_at_market(), one_btc_market(price_min=PRICE), None),
        (limit_at_market(price="49999.99"), one_btc_market(price_min=PRICE), R.PRICE_OUT_OF_BAND),
        (limit_at_market(), one_btc_market(price_max=PRICE), None),
        (limit_at_market(price="50000.01"), one_btc_market(price_max=PRICE), R.PRICE_OUT_OF_BAND),
        (limit_at_market(price="49500"), one_btc_market(percent_band=BAND), None),
        (limit_at_market(price="49499.99"), one_btc_market(percent_band=BAND), R.PRICE_OUT_OF_BAND),
        (limit_at_market(price="51000"), one_btc_market(percent_band=BAND), None),
        (limit_at_market(price="51000.01"), one_btc_market(percent_band=BAND), R.PRICE_OUT_OF_BAND),
        (limit_at_market(side="sell", price="48500"), one_btc_market(percent_band=BAND), None),
        (limit_at_market(side="sell", price="48499.99"), one_btc_market(percent_band=BAND), R.PRICE_OUT_OF_BAND),
        (limit_at_market(side="sell", price="52000"), one_btc_market(percent_band=BAND), None),
        (limit_at_market(side="sell", price="52000.01"), one_btc_market(percent_band=BAND), R.PRICE_OUT_OF_BAND),
        # the second rule about the quantities of market orders
        (trade(quantity="0.002"), one_btc_market(market_lot=Lot(Decimal("0.001"), Decimal("0.002"), Decimal("0.003"))), None),
        (trade(quantity="0.003"), one_btc_market(market_lot=Lot(Decimal("0.001"), Decimal("0.002"), Decimal("0.003"))), None),
        (trade(quantity="0.0025"), one_btc_market(market_lot=Lot(Decimal("0.001"))), R.PRECISION_INVALID),
        (trade(quantity="0.00199"), one_btc_market(market_lot=Lot(least=Decimal("0.002"))), R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity="0.00301"), one_btc_market(market_lot=Lot(greatest=Decimal("0.003"))), R.AMOUNT_ABOVE_MAXIMUM),
        (limit_at_market(quantity="0.00301"), one_btc_market(market_lot=Lot(greatest=Decimal("0.003"))), None),
        # a quote quantity: its places, and what it is worth in base at 50,000
        (trade(quantity=None, quote_quantity="29.98600029"), one_btc_market(quote_places=8), None),
        (trade(quantity=None, quote_quantity="29.986000291"), one_btc_market(quote_places=8), R.PRECISION_INVALID),
        (trade(quantity=None, quote_quantity="29.980"), one_btc_market(quote_places=2), None),
        (trade(quantity=None, quote_quantity="100"), one_btc_market(market_lot=Lot(least=Decimal("0.002"))), None),
        (trade(quantity=None, quote_quantity="99.99"), one_btc_market(market_lot=Lot(least=Decimal("0.002"))), R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity=None, quote_quantity="100.49"), one_btc_market(market_lot=Lot(greatest=Decimal("0.002"))), None),
        (trade(quantity=None, quote_quantity="100.50"), one_btc_market(market_lot=Lot(greatest=Decimal("0.002"))), R.AMOUNT_ABOVE_MAXIMUM),
        (trade(quantity=None, quote_quantity="100"), one_btc_market(quantity_min=Decimal("0.003")), R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity=None, quote_quantity="0.49"), one_btc_market(notional_min=Decimal(0)), R.AMOUNT_BELOW_MINIMUM),
        (trade(quantity=None, quote_quantity="100"), one_btc_market(quote_quantity_taken=False), R.REQUEST_UNSUPPORTED),
        # the kinds that the market takes
        (trade(), one_btc_market(order_types=frozenset({OrderType.MARKET})), None),
        (limit_at_market(), one_btc_market(order_types=frozenset({OrderType.MARKET})), R.REQUEST_UNSUPPORTED),
        # open orders in the symbol: those of others symbols, and orders that do not rest, need no room
        (limit_at_market(), {**one_btc_market(resting_orders_max=2), "open_orders": [open_order()]}, None),
        (limit_at_market(), {**one_btc_market(resting_orders_max=1), "open_orders": [open_order()]}, R.OPEN_ORDERS_EXCEEDED),
        (limit_at_market(time_in_force="IOC"), {**one_btc_market(resting_orders_max=1), "open_orders": [open_order()]}, None),
        (trade(), {**one_btc_market(resting_orders_max=1), "open_orders": [open_order()]}, None),
        (limit_at_market(), {**one_btc_market(resting_orders_max=1), "open_orders": [open_order(symbol="ETH/BTC")]}, None),
        # the position: what is owned, what open purchases get, and this one
        (trade(), {**one_btc_market(position_max=Decimal("0.102")), **POSITION}, None),
        (trade(quantity="0.00101"), {**one_btc_market(position_max=Decimal("0.102")), **POSITION}, R.POSITION_LIMIT_EXCEEDED),
        (trade(quantity=None, quote_quantity="50"), {**one_btc_market(position_max=Decimal("0.102")), **POSITION}, None),
        (
            trade(quantity=None, quote_quantity="50.5"),
            {**one_btc_market(position_max=Decimal("0.102")), **POSITION},
            R.POSITION_LIMIT_EXCEEDED,
        ),
        (trade(side="sell", quantity="0.05"), {**one_btc_market(position_max=Decimal(0)), "balances": owned(BTC="0.1")}, None),
    ],
)
def test_connection_answers_each_side_of_a_boundary(document: dict[str, Any], changes: dict[str, Any], code: ReasonCode | None) -> None:
    """What the venue just takes passes the whole gate, what it just does not is refused with its own code."""
    assert code_of(document, **changes) is code


@pytest.mark.parametrize("name", [check.name for check in TRADE_GATE.checks if check.step in {Step.RISK, Step.SUSPICION, Step.CONNECTION}])
def test_check_that_needs_a_market_never_passes_without_one(name: str) -> None:
    """A limit order at an exchange whose market list is not at hand passes no check that looks at the market, in any order."""
    check = next(check for check in TRADE_GATE.checks if check.name == name)
    refusal = check.function(context_of(limit_at_market(), market_data=None))
    needs_the_market = {
        "price_keeps_the_band", "position_is_within_limit", "market_is_trading", "market_price_is_fresh", "price_is_on_tick",
        "price_is_within_bounds", "quantity_fits_the_lot", "notional_is_within_bounds", "market_takes_the_kind",
        "market_has_room_for_the_order", "market_has_room_for_the_position",
    }
    assert (None if refusal is None else refusal.code) is (R.EXCHANGE_UNAVAILABLE if name in needs_the_market else None)


@pytest.mark.parametrize("name", [check.name for check in TRADE_GATE.checks if check.step in {Step.RISK, Step.SUSPICION}])
def test_check_that_needs_a_value_never_passes_without_one(name: str) -> None:
    """A market order that nothing values passes no check that counts dollars, in any order."""
    check = next(check for check in TRADE_GATE.checks if check.name == name)
    refusal = check.function(context_of(trade(), market_data=market_data(prices={})))
    counts_dollars = {
        "daily_volume_is_within_limit", "open_orders_are_within_value", "exposure_is_within_limit", "position_is_within_limit",
        "activity_is_not_suspicious",
    }
    assert (None if refusal is None else refusal.code) is (R.PRICE_UNAVAILABLE if name in counts_dollars else None)
