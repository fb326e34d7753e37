"""What a simulated order trades at: each rule of pipeline/orders/paper, on both sides of its boundary."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.model.order import Order
from pipeline.model.venue import Fee, Market, Quote, VenueOrder
from pipeline.orders.execution import reference_of, submission_of
from pipeline.orders.paper import at_rest, at_submission, canceled, is_paper_id, meets, resting
from schemas.orders import Mode, OrderStatus, OrderType, Side, TimeInForce
from tests.unit.builders import BTC_USDT, NOW, order_of

_MARKET = replace(BTC_USDT, quantity_step=Decimal("0.00001"), taker_fee_rate=Decimal("0.001"))
_RATELESS = replace(_MARKET, taker_fee_rate=Decimal(0))
_TICK = Decimal("0.01")


def _order(**fields: Any) -> Order:
    return order_of(**{"mode": Mode.PAPER, "status": OrderStatus.SUBMITTING, **fields})


def _sent(market_price: str, market: Market = _MARKET, **fields: Any) -> VenueOrder:
    """What becomes of an order of 2 BTC at 100 when the market is at `market_price`."""
    return at_submission(submission_of(_order(**fields)), market, Quote(Decimal(market_price), NOW))


def _figures(order: VenueOrder) -> tuple[OrderStatus, Decimal, Decimal]:
    return order.order_status, order.cum_quantity, order.cum_quote


@pytest.mark.parametrize(
    ("side", "price", "does"),
    [
        (Side.BUY, Decimal(100) - _TICK, True),
        (Side.BUY, Decimal(100), True),
        (Side.BUY, Decimal(100) + _TICK, False),
        (Side.SELL, Decimal(100) + _TICK, True),
        (Side.SELL, Decimal(100), True),
        (Side.SELL, Decimal(100) - _TICK, False),
    ],
)
def test_limit_is_met_at_the_price_itself(side: Side, price: Decimal, does: bool) -> None:
    """A purchase trades at its limit and below, a sale at its limit and above."""
    assert meets(side, Decimal(100), price) is does


@pytest.mark.parametrize("side", Side)
def test_market_order_trades_whole_at_the_market_price(side: Side) -> None:
    """Whatever the price: nothing is added to it."""
    told = _sent("123.45", side=side, order_type=OrderType.MARKET, price=None)
    assert _figures(told) == (OrderStatus.FILLED, Decimal(2), Decimal("246.90"))


@pytest.mark.parametrize("time_in_force", [None, *TimeInForce])
@pytest.mark.parametrize(("side", "price"), [(Side.BUY, "99.99"), (Side.BUY, "100"), (Side.SELL, "100"), (Side.SELL, "100.01")])
def test_limit_order_that_the_market_meets_trades_at_the_market_price(side: Side, price: str, time_in_force: TimeInForce | None) -> None:
    """Never worse than its limit, and as well as the market gives; whatever its time in force."""
    told = _sent(price, side=side, time_in_force=time_in_force)
    assert _figures(told) == (OrderStatus.FILLED, Decimal(2), 2 * Decimal(price))


@pytest.mark.parametrize(
    ("time_in_force", "status"),
    [
        (None, OrderStatus.NEW),
        (TimeInForce.GTC, OrderStatus.NEW),
        (TimeInForce.IOC, OrderStatus.EXPIRED),
        (TimeInForce.FOK, OrderStatus.EXPIRED),
    ],
)
@pytest.mark.parametrize(("side", "price"), [(Side.BUY, "100.01"), (Side.SELL, "99.99")])
def test_limit_order_that_the_market_does_not_meet_rests_or_ends(
    side: Side, price: str, time_in_force: TimeInForce | None, status: OrderStatus
) -> None:
    """GTC rests; IOC and FOK end with nothing filled."""
    assert _figures(_sent(price, side=side, time_in_force=time_in_force)) == (status, 0, 0)


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(
    ("amount", "quantity"),
    [("1", "0.01000"), ("0.9999", "0.00999"), ("0.001", "0.00001"), ("0.00099999", None)],
)
def test_quote_amount_buys_whole_steps(side: Side, amount: str, quantity: str | None) -> None:
    """Downwards, so that no more than the amount is spent; less than one step ends the order."""
    told = _sent("100", side=side, order_type=OrderType.MARKET, price=None, quantity=None, quote_quantity=Decimal(amount))
    if quantity is None:
        assert _figures(told) == (OrderStatus.EXPIRED, 0, 0)
        return
    assert _figures(told) == (OrderStatus.FILLED, Decimal(quantity), Decimal(quantity) * 100)
    assert told.cum_quote <= Decimal(amount)


@pytest.mark.parametrize(("side", "fee"), [(Side.BUY, Fee("BTC", Decimal("0.002"))), (Side.SELL, Fee("USDT", Decimal("0.2")))])
def test_fee_is_the_taker_rate_of_what_is_received(side: Side, fee: Fee) -> None:
    """Base for a purchase, quote for a sale; none where the market takes none."""
    assert _sent("100", side=side).fees == (fee,)
    assert _sent("100", market=_RATELESS, side=side).fees == ()


def test_amounts_that_do_not_fit_are_rounded_against_the_user() -> None:
    """What is paid and the fee go up in the 18th place, what is received goes down."""
    last = Decimal(1).scaleb(-18)
    long = {"order_type": OrderType.MARKET, "price": None, "quantity": Decimal("0.000000001")}
    price = "0.1000000005"
    exact = Decimal("0.0000000001000000005")
    bought, sold = _sent(price, side=Side.BUY, **long), _sent(price, side=Side.SELL, **long)
    assert (bought.cum_quote, sold.cum_quote) == (Decimal("0.000000000100000001"), Decimal("0.000000000100000000"))
    assert sold.cum_quote < exact < bought.cum_quote
    assert sold.fees == (Fee("USDT", Decimal("0.000000000000100000")),)
    (fee,) = _sent(price, side=Side.BUY, market=replace(_MARKET, taker_fee_rate=Decimal("0.0000000001")), **long).fees
    assert fee == Fee("BTC", last)


@pytest.mark.parametrize(("side", "price"), [(Side.BUY, "99.99"), (Side.BUY, "100"), (Side.SELL, "100"), (Side.SELL, "100.01")])
def test_resting_order_trades_at_its_own_price_once_the_market_reaches_it(side: Side, price: str) -> None:
    """As in an exchange's book: the price that it stood at, also where the market has jumped past it."""
    order = _order(status=OrderStatus.NEW, side=side, exchange_order_id="paper-x")
    reference = reference_of(order)
    assert reference.paper is not None
    told = at_rest(reference, reference.paper, _MARKET, Quote(Decimal(price), NOW))
    assert told is not None
    assert _figures(told) == (OrderStatus.FILLED, Decimal(2), Decimal(200))


@pytest.mark.parametrize(("side", "price"), [(Side.BUY, "100.01"), (Side.SELL, "99.99")])
def test_resting_order_stays_while_the_market_has_not_reached_it(side: Side, price: str) -> None:
    """One tick away is away."""
    reference = reference_of(_order(status=OrderStatus.NEW, side=side))
    assert reference.paper is not None
    assert at_rest(reference, reference.paper, _MARKET, Quote(Decimal(price), NOW)) is None


@pytest.mark.parametrize(("microseconds", "fills"), [(-1, False), (0, False), (1, True)])
def test_resting_order_does_not_trade_at_a_price_from_before_it(microseconds: int, fills: bool) -> None:
    """Only what the market says later counts."""
    reference = reference_of(_order(status=OrderStatus.NEW, submitting_at=NOW))
    assert reference.paper is not None
    quote = Quote(Decimal(1), NOW + timedelta(microseconds=microseconds))
    assert (at_rest(reference, reference.paper, _MARKET, quote) is not None) is fills


def test_every_outcome_is_marked_and_repeats_itself() -> None:
    """The id at the exchange is no exchange's, and the same for the same order."""
    reference = reference_of(_order(status=OrderStatus.NEW))
    outcomes = [_sent("1"), _sent("1000"), resting(reference, NOW), canceled(reference, NOW)]
    assert all(is_paper_id(order.exchange_order_id) for order in outcomes)
    assert len({order.exchange_order_id for order in outcomes}) == 1
    assert _sent("99") == _sent("99")
