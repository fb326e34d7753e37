"""What an order is worth and what it reserves."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.gate.valuation import hold_of
from tests.unit.builders import BTC_USDT, NOW, RULES, limit, market_data, trade
from tests.unit.gate_builders import context_of

ETH = trade(symbol="ETH/BTC", quantity="1")


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
    assert hold_of(context_of(document)) == (asset, Decimal(amount))


@pytest.mark.parametrize("prices", [{}, {"BTC/USDT": Decimal(0)}])
@pytest.mark.parametrize("document", [trade(side="sell", quantity=None, quote_quantity="50"), trade()])
def test_hold_needs_a_price(document: dict[str, Any], prices: dict[str, Decimal]) -> None:
    """Without a price nothing says how much to hold, and nothing is guessed."""
    assert hold_of(context_of(document, market_data=market_data(prices=prices))) is None


def test_hold_of_a_sale_by_value_on_a_market_without_lots_is_rounded_up() -> None:
    """A venue whose step is zero takes any quantity: the hold is rounded to what the ledger keeps."""
    data = market_data(markets=[replace(BTC_USDT, quantity_step=Decimal(0))])
    context = context_of(trade(side="sell", quantity=None, quote_quantity="1"), market_data=data)
    assert hold_of(context) == ("BTC", Decimal("0.000021052631578948"))


def test_value_in_dollars_is_exact_for_the_largest_amounts() -> None:
    """38 digits times 38 digits lose nothing: rounding could move an amount over a limit."""
    document = limit(quantity="12345678901234567890.123456789012345678", price="1.000000000000000001")
    assert context_of(document).usd_value == Decimal("12345678901234567890.123456789012345678") * Decimal("1.000000000000000001")


@pytest.mark.parametrize(
    ("document", "value"),
    [
        (trade(), "50"),
        (trade(quantity=None, quote_quantity="50"), "50"),
        (limit(), "40"),
        # a limit sale: the higher of its own price and the market's
        (limit(side="sell"), "50"),
        (limit(side="sell", price="60000"), "60"),
        (ETH, "2500"),
        (trade(symbol="ETH/BTC", quantity=None, quote_quantity="0.1"), "5000"),
    ],
)
def test_value_in_dollars_follows_the_market(document: dict[str, Any], value: str) -> None:
    """An order is worth its own price or the market's, turned into dollars by the quote asset's price."""
    assert context_of(document).usd_value == Decimal(value)


def test_rate_of_dollars_is_one() -> None:
    """What the rules call dollars needs no price; other quote assets are valued by the first pair that has a fresh one."""
    assert context_of(trade(), market_data=None).usd_rate == 1
    assert context_of(ETH).usd_rate == 50_000
    both = market_data(prices={"BTC/USD": Decimal(49_000), "BTC/USDT": Decimal(50_000)})
    assert context_of(ETH, market_data=both).usd_rate == 49_000
    assert context_of(ETH, rules=replace(RULES, usd_assets=frozenset({"EUR"}))).usd_rate is None


def test_rate_of_unknown_age_values_nothing() -> None:
    """A price that is too old, or from the future, is no price."""
    old = market_data(observed_at=NOW - RULES.price_age_max - timedelta(microseconds=1))
    assert context_of(ETH, market_data=old).usd_rate is None
    assert context_of(ETH, market_data=old).usd_value is None


@pytest.mark.parametrize(
    ("document", "reduces"),
    [(trade(side="sell"), True), (trade(), False), ({**ETH, "side": "sell"}, False), ({**ETH, "side": "buy"}, False)],
)
def test_order_reduces_when_it_sells_for_dollars(document: dict[str, Any], reduces: bool) -> None:
    """A sale for what is no dollar makes another position larger."""
    assert context_of(document).reduces is reduces
