"""The gateway of simulated orders: fresh prices only, halts, and what it says of orders that rest or never did."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from infra.exchange.paper_gateway import PaperGateway
from pipeline.model.order import Order
from pipeline.model.venue import Absent, Confirmed, Found, LookUpFailed, MarketData, Refused
from pipeline.orders.execution import reference_of, submission_of
from schemas.orders import Mode, OrderStatus
from schemas.reasons import ReasonCode
from tests.unit.builders import BTC_USDT, EXCHANGE, NOW, market_data, order_of

_AGE = timedelta(seconds=5)
_TICK = timedelta(microseconds=1)


def _gateway(data: MarketData) -> PaperGateway:
    return PaperGateway(EXCHANGE, lambda: data, price_age_max=_AGE, clock=lambda: NOW)


def _order(**fields: Any) -> Order:
    return order_of(**{"mode": Mode.PAPER, "status": OrderStatus.SUBMITTING, "price": Decimal(60_000), **fields})


@pytest.mark.parametrize(
    ("observed_at", "trades"),
    [(NOW - _AGE, True), (NOW - _AGE - _TICK, False), (NOW + _AGE, True), (NOW + _AGE + _TICK, False)],
)
async def test_only_a_fresh_price_is_traded_at(observed_at: Any, trades: bool) -> None:
    """Older, or from as far in the future, is no price: the order is to be queued again."""
    outcome = await _gateway(market_data(observed_at=observed_at)).submit(submission_of(_order()))
    if trades:
        assert isinstance(outcome, Confirmed)
        assert outcome.order.order_status is OrderStatus.FILLED
    else:
        assert isinstance(outcome, Refused)
        assert outcome.reason_code is ReasonCode.EXCHANGE_UNAVAILABLE


@pytest.mark.parametrize(
    "data", [market_data(prices={}), market_data(markets=[]), market_data(markets=[replace(BTC_USDT, active=False)]), MarketData(EXCHANGE)]
)
async def test_without_a_market_or_a_price_nothing_trades(data: MarketData) -> None:
    """Nothing is guessed, and a suspended market does not trade."""
    outcome = await _gateway(data).submit(submission_of(_order()))
    assert isinstance(outcome, Refused)
    assert outcome.reason_code is ReasonCode.EXCHANGE_UNAVAILABLE


async def test_halt_stops_an_order_at_the_last_look() -> None:
    """The same look as before a real order."""
    halted = Refused(ReasonCode.TRADING_HALTED, "halted")

    async def pre_send_check() -> Refused | None:
        return halted

    assert await _gateway(market_data()).submit(submission_of(_order()), pre_send_check) is halted


async def test_real_order_is_not_simulated() -> None:
    """One that came here by mistake is not called executed."""
    outcome = await _gateway(market_data()).submit(submission_of(_order(mode=Mode.LIVE)))
    assert isinstance(outcome, Refused)
    assert outcome.reason_code is ReasonCode.REQUEST_UNSUPPORTED


async def test_order_that_never_rested_is_absent_at_once() -> None:
    """There is nobody who could still have it."""
    assert await _gateway(market_data()).look_up(reference_of(_order(status=OrderStatus.IN_DOUBT))) == Absent(NOW)


@pytest.mark.parametrize(
    ("price", "observed_at", "status"),
    [
        (Decimal(50_000), NOW, OrderStatus.FILLED),
        (Decimal("49999.99"), NOW, OrderStatus.NEW),
        # Known to rest in any case: without a price nothing more is known.
        (Decimal(60_000), NOW - _AGE - _TICK, OrderStatus.NEW),
    ],
)
async def test_resting_order_is_found_as_the_market_makes_it(price: Decimal, observed_at: Any, status: OrderStatus) -> None:
    """Filled when the market price of now reaches it, else as it stands."""
    order = _order(status=OrderStatus.NEW, exchange_order_id="paper-x", price=price, submitting_at=NOW - timedelta(minutes=1))
    found = await _gateway(market_data(observed_at=observed_at)).look_up(reference_of(order))
    assert isinstance(found, Found)
    assert found.order.order_status is status


async def test_resting_order_without_its_terms_is_not_judged() -> None:
    """What cannot be said is not said."""
    reference = replace(reference_of(_order(status=OrderStatus.NEW, exchange_order_id="paper-x")), paper=None)
    assert isinstance(await _gateway(market_data()).look_up(reference), LookUpFailed)


async def test_cancel_ends_at_once() -> None:
    """With nothing filled: what was filled is over already."""
    outcome = await _gateway(market_data()).cancel(reference_of(_order(status=OrderStatus.NEW, exchange_order_id="paper-x")))
    assert isinstance(outcome, Confirmed)
    assert (outcome.order.order_status, outcome.order.cum_quantity) == (OrderStatus.CANCELED, 0)
