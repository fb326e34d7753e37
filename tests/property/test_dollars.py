"""What a unit is worth in dollars, through any chain of pairs."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.dollars import LINKS_MAX, usd_rate_of
from pipeline.model.money import LIMIT, round_up
from pipeline.model.venue import MarketData, Quote
from pipeline.reconciliation.balances import Drift, value_of
from schemas.reasons import ReasonCode
from tests.unit.builders import BTC_USDT, EXCHANGE, NOW, RULES, market_data, trade
from tests.unit.gate_builders import code_of, context_of

D = Decimal
AGE = timedelta(seconds=5)
DOLLARS = frozenset({"USDT"})
ASSETS = ("AAA", "BBB", "CCC", "DDD", "TRY", "USDT")


def data_of(prices: dict[str, str], old: tuple[str, ...] = ()) -> MarketData:
    at = {symbol: NOW - AGE - timedelta(microseconds=1) if symbol in old else NOW for symbol in prices}
    return MarketData(EXCHANGE, quotes={symbol: Quote(D(price), at[symbol]) for symbol, price in prices.items()})


def rate(asset: str, prices: dict[str, str], old: tuple[str, ...] = ()) -> Decimal | None:
    return usd_rate_of(asset, data_of(prices, old), NOW, AGE, DOLLARS)


@pytest.mark.parametrize(
    ("prices", "old", "expected"),
    [
        ({}, (), None),
        ({"TRY/USDT": "0.025"}, (), "0.025"),
        ({"USDT/TRY": "40"}, (), "0.025"),
        ({"USDT/TRY": "30"}, (), "0.033333333333333334"),
        ({"USDT/TRY": "40"}, ("USDT/TRY",), None),
        # the direct pair before the inverse, the inverse before what is longer
        ({"TRY/USDT": "0.03", "USDT/TRY": "40"}, (), "0.03"),
        ({"TRY/USDT": "0.03", "USDT/TRY": "40"}, ("TRY/USDT",), "0.025"),
        ({"USDT/TRY": "40", "BTC/TRY": "2000000", "BTC/USDT": "60000"}, (), "0.025"),
        ({"BTC/TRY": "2000000", "BTC/USDT": "50000"}, (), "0.025"),
        # each link has its own age
        ({"BTC/TRY": "2000000", "BTC/USDT": "50000"}, ("BTC/USDT",), None),
        ({"BTC/TRY": "2000000", "BTC/USDT": "50000"}, ("BTC/TRY",), None),
        # of equally long chains the first by name
        ({"AAA/TRY": "10", "AAA/USDT": "1", "BBB/TRY": "10", "BBB/USDT": "2"}, (), "0.1"),
        ({"AAA/TRY": "10", "AAA/USDT": "1", "BBB/TRY": "10", "BBB/USDT": "2"}, ("AAA/USDT",), "0.2"),
        # three links, and no more
        ({"TRY/AAA": "2", "AAA/BBB": "3", "BBB/USDT": "5"}, (), "30"),
        ({"TRY/AAA": "2", "AAA/BBB": "3", "BBB/CCC": "5", "CCC/USDT": "7"}, (), None),
        # a price of nothing values nothing
        ({"USDT/TRY": "0"}, (), None),
    ],
)
def test_rate_goes_by_the_shortest_chain_of_fresh_prices(prices: dict[str, str], old: tuple[str, ...], expected: str | None) -> None:
    """Pairs count in either direction, and every link must be fresh."""
    assert rate("TRY", prices, old) == (None if expected is None else D(expected))


PRICES = st.dictionaries(
    st.sampled_from([f"{base}/{quote}" for base, quote in permutations(ASSETS, 2)]),
    st.decimals("0.000001", "1000000", places=6).map(lambda price: f"{price:f}"),
    max_size=12,
)


@given(PRICES, st.permutations(ASSETS))
def test_rate_is_that_of_some_shortest_chain_and_the_same_for_any_order(prices: dict[str, str], order: list[str]) -> None:
    """Against a naive search of all chains: there is a rate exactly where there is a chain, and it is that of one of the shortest."""
    found = rate("TRY", prices)
    shuffled = dict(sorted(prices.items(), key=lambda item: order.index(item[0].partition("/")[0])))
    assert rate("TRY", shuffled) == found
    for length in range(1, LINKS_MAX + 1):
        rates = set()
        for between in permutations([asset for asset in ASSETS if asset not in {"TRY", "USDT"}], length - 1):
            rates |= _of_chain(("TRY", *between, "USDT"), prices)
        if rates:
            assert (found is None and min(rates) >= LIMIT) or found in {round_up(one) for one in rates}
            return
    assert found is None


def _of_chain(chain: tuple[str, ...], prices: dict[str, str]) -> set[Decimal]:
    rates = {D(1)}
    for base, quote in pairwise(chain):
        links = [D(prices[f"{base}/{quote}"])] if f"{base}/{quote}" in prices else []
        divisors = [D(prices[f"{quote}/{base}"])] if f"{quote}/{base}" in prices else []
        rates = {one * link for one in rates for link in links} | {one / link for one in rates for link in divisors}
    return rates


def test_order_is_valued_through_an_inverse_pair() -> None:
    """BTC/TRY passes where only USDT/TRY says what a lira is worth, and is refused when that price is old."""
    market = replace(BTC_USDT, symbol="BTC/TRY", quote="TRY")
    prices = {"BTC/TRY": D(2_000_000), "USDT/TRY": D(40)}
    data = market_data(markets=[market], prices=prices)
    document = trade(symbol="BTC/TRY", quantity="0.001")
    assert context_of(document, market_data=data).usd_value == D(50)
    assert code_of(document, market_data=data) is None
    old = Quote(D(40), NOW - AGE - timedelta(seconds=1))
    stale = MarketData(EXCHANGE, data.markets, {**data.quotes, "USDT/TRY": old})
    assert code_of(document, market_data=stale) is ReasonCode.PRICE_UNAVAILABLE


def test_drift_is_valued_through_the_same_chains() -> None:
    """What differs in an asset without a dollar pair has a value too."""
    drift = Drift("TRY", D(100), D(180))
    assert value_of(drift, data_of({"USDT/TRY": "40"}), NOW, RULES) == D(2)
