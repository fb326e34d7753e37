"""Every venue that is offered, on the wire: the client order id of a create, a look-up and a cancel, and its own addresses."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from infra.exchange.ccxt.transport import venue_class
from infra.exchange.venues.registry import VENUES
from pipeline.model.venue import Confirmed, Found
from schemas.orders import OrderType
from tests.integration.scripted_venue import ORDER, answers, gateway_to, order_row, reference, running_venue, submission

OFFERED = sorted(VENUES)


@pytest.mark.parametrize("exchange_id", OFFERED)
async def test_venue_carries_the_client_order_id_in_every_call(exchange_id: str) -> None:
    """What the row says is what arrives."""
    async with running_venue() as venue, gateway_to(venue, exchange_id) as gateway:
        order = submission(exchange=exchange_id)
        assert isinstance(await gateway.submit(order), Confirmed)
        assert venue.arrivals[-1].body["newClientOrderId"] == order.client_order_id
        asked = reference(exchange=exchange_id, client_order_id=order.client_order_id)
        assert isinstance(await gateway.look_up(asked), Found)
        assert venue.arrivals[-1].query["origClientOrderId"] == order.client_order_id
        venue.answers["GET", ORDER] = answers(200, order_row(order.client_order_id, status="CANCELED"))
        venue.answers["DELETE", ORDER] = answers(200, order_row("x", status="CANCELED"))
        assert isinstance(await gateway.cancel(asked), Confirmed)
        assert venue.orders_arrived("DELETE")[0].query["origClientOrderId"] == order.client_order_id


@pytest.mark.parametrize("exchange_id", OFFERED)
async def test_venue_takes_a_market_order_by_quote_quantity(exchange_id: str) -> None:
    """ccxt switches this off for some venues; the row switches it on."""
    async with running_venue() as venue, gateway_to(venue, exchange_id) as gateway:
        order = submission(exchange=exchange_id, order_type=OrderType.MARKET, price=None, quantity=None, quote_quantity=Decimal("50.5"))
        assert isinstance(await gateway.submit(order), Confirmed)
        assert venue.arrivals[-1].body["quoteOrderQty"] == "50.5"
        assert "quantity" not in venue.arrivals[-1].body


@pytest.mark.parametrize("exchange_id", OFFERED)
async def test_venue_signs_the_recorded_intent(exchange_id: str) -> None:
    """The bound on a late request holds at every venue that is offered."""
    async with running_venue() as venue, gateway_to(venue, exchange_id) as gateway:
        order = submission(exchange=exchange_id)
        await gateway.submit(order)
        signed = datetime.fromtimestamp(int(venue.arrivals[-1].body["timestamp"]) / 1_000, UTC)
        assert abs((signed - order.submitting_at).total_seconds()) < 0.2
        assert venue.arrivals[-1].body["recvWindow"] == "5000"


@pytest.mark.parametrize(("exchange_id", "address"), [
    ("binance", "https://api.binance.com/api/v3"), ("binanceus", "https://api.binance.us/api/v3"),
])
def test_venue_without_a_base_url_is_the_real_one(exchange_id: str, address: str) -> None:
    """Only a configured base address redirects."""
    assert venue_class(exchange_id)({}).urls["api"]["private"] == address
