"""One table says what each order type is; nothing executes a type that it does not offer, and every part can execute those it does."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from infra.exchange.paper_gateway import PaperGateway
from infra.exchange.venues.registry import VENUES
from pipeline.model.invariants import InvariantViolation
from pipeline.model.venue import Confirmed, Quote, Refused, Submission
from pipeline.orders.paper import at_submission, is_simulated
from schemas.order_kinds import OFFERED, ORDER_KINDS, PRICE_FIELDS, OrderKind, Pricing
from schemas.orders import Mode, OrderStatus, OrderType, Side
from schemas.reasons import ReasonCode
from tests.unit.builders import BTC_USDT, EXCHANGE, NOW, ORDER_ID, PRICE, RULES, USER, market_data, trade
from tests.unit.gate_builders import code_of

FAR = PRICE / 2


def submission_of(order_type: OrderType, price: Decimal | None) -> Submission:
    return Submission(
        mode=Mode.PAPER, order_id=ORDER_ID, client_order_id="c", exchange=EXCHANGE, user_id=USER, api_key_id="k1", symbol="BTC/USDT",
        side=Side.BUY, order_type=order_type, quantity=Decimal("0.3"), quote_quantity=None, price=price, time_in_force=None,
        submitting_at=NOW, expires_at=NOW + RULES.submission_deadline,
    )  # fmt: skip


def document_of(order_type: OrderType) -> dict[str, Any]:
    prices = {"price": "50000", "stop_price": "50000", "trailing_delta": "100"}
    return trade(order_type=order_type.value, **{name: prices[name] for name in ORDER_KINDS[order_type].prices})


def test_table_has_every_type() -> None:
    """Each order type of the contract is described, and needs no price that the contract has not."""
    assert set(ORDER_KINDS) == set(OrderType)
    assert all(kind.prices <= set(PRICE_FIELDS) for kind in ORDER_KINDS.values())
    assert all(("price" in ORDER_KINDS[name].prices) is (ORDER_KINDS[name].pricing is Pricing.LIMIT) for name in OFFERED)


@pytest.mark.parametrize("order_type", OrderType)
def test_type_passes_the_gate_where_it_is_offered_alone(order_type: OrderType) -> None:
    """A well-formed order of a type that this version does not execute is refused by name."""
    expected = None if ORDER_KINDS[order_type].offered else ReasonCode.REQUEST_UNSUPPORTED
    assert code_of(document_of(order_type)) is expected


@pytest.mark.parametrize("order_type", sorted(OFFERED))
def test_offered_type_is_executed_by_every_part(order_type: OrderType) -> None:
    """What is offered can be sent to an exchange and simulated."""
    assert all(order_type in venue.order_types for venue in VENUES.values())
    assert is_simulated(order_type)


@pytest.mark.parametrize("order_type", OrderType)
async def test_simulation_fills_at_once_what_trades_at_the_market_alone(order_type: OrderType) -> None:
    """With a price of its own that the market has not reached, an order of no type is filled at submission; of a type that is not
    simulated it is refused, even if the gate had let it pass."""
    gateway = PaperGateway(EXCHANGE, lambda: market_data(observed_at=NOW), price_age_max=RULES.price_age_max, clock=lambda: NOW)
    outcome = await gateway.submit(submission_of(order_type, None if order_type is OrderType.MARKET else FAR))
    match ORDER_KINDS[order_type].pricing:
        case Pricing.MARKET:
            assert isinstance(outcome, Confirmed) and outcome.order.order_status is OrderStatus.FILLED
        case Pricing.LIMIT:
            assert isinstance(outcome, Confirmed) and outcome.order.order_status is OrderStatus.NEW
        case _:
            assert isinstance(outcome, Refused) and outcome.reason_code is ReasonCode.REQUEST_UNSUPPORTED


@pytest.mark.parametrize("order_type", [kind for kind in OrderType if kind is not OrderType.MARKET])
def test_type_that_is_offered_in_the_table_alone_is_not_filled(order_type: OrderType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offering a type by the table, and forgetting the simulation, fills nothing: the order rests, or the step stops with a defect."""
    kinds = {name: replace(kind, offered=True) for name, kind in ORDER_KINDS.items()}
    monkeypatch.setattr("pipeline.orders.paper.ORDER_KINDS", kinds)
    try:
        order = at_submission(submission_of(order_type, FAR), BTC_USDT, Quote(PRICE, datetime.now(UTC)))
    except InvariantViolation:
        assert not is_simulated(order_type)
    else:
        assert order.order_status is OrderStatus.NEW
        assert order.cum_quantity == 0


def test_limit_order_without_a_price_is_not_filled() -> None:
    """A limit that got lost on the way does not make an order of the market's price."""
    with pytest.raises(InvariantViolation):
        at_submission(submission_of(OrderType.LIMIT, None), BTC_USDT, Quote(PRICE, NOW))


def test_kind_says_what_may_rest() -> None:
    """A market order never rests."""
    assert not OrderKind(Pricing.MARKET).may_rest(None)
    assert OrderKind(Pricing.LIMIT).may_rest(None)
