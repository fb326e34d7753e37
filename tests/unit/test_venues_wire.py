"""The form body that is signed and checked, the names of ccxt and aiohttp that the transport stands on, and what is redirected."""

import inspect
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import parse_qsl

import aiohttp
import ccxt.async_support as ccxt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.exchange.connection import _redirected
from infra.exchange.transport import NotHandedOver, Pause, ReportingConnector, _form, check_body, venue_class, wire_fields
from infra.exchange.venues import BINANCE
from pipeline.venue import Submission
from schemas.orders import Mode, OrderType, Side
from schemas.reasons import ReasonCode

EXPECTED: dict[str, str | Decimal | None] = {
    "newClientOrderId": "co-1", "quantity": Decimal("0.0020"), "quoteOrderQty": None, "price": Decimal(50_000), "timestamp": "1",
    "recvWindow": "5000",
}
BODY = "newClientOrderId=co-1&quantity=0.002&price=50000.00&timestamp=1&recvWindow=5000&signature=abc"

params = st.dictionaries(st.text(min_size=1, max_size=8), st.one_of(st.text(max_size=12), st.integers(), st.booleans()), max_size=6)


@given(params)
def test_urlencode_equals_ccxts(fields: dict[str, object]) -> None:
    """The faster form of the signed text is ccxt's own, byte for byte."""
    assert venue_class("binance").urlencode(fields) == ccxt.binance.urlencode(fields)  # type: ignore[attr-defined]  # a class


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=12), max_size=6))
def test_form_equals_the_standard_parser(fields: dict[str, str]) -> None:
    """What is compared with the order is what a server would read."""
    body = ccxt.binance.urlencode(fields)
    assert _form(body) == dict(parse_qsl(body)) or body == ""


def test_check_body_equal_by_value_passes() -> None:
    """Decimals are compared by value, not by their digits."""
    check_body(EXPECTED, BODY)


@pytest.mark.parametrize(("body", "reason"), [
    (BODY.replace("quantity=0.002", "quantity=0.001"), ReasonCode.PRECISION_INVALID),
    (BODY.replace("quantity=0.002&", ""), ReasonCode.PRECISION_INVALID),
    (BODY.replace("quantity=0.002", "quantity=nonsense"), ReasonCode.PRECISION_INVALID),
    (BODY.replace("price=50000.00", "price=50000.01"), ReasonCode.PRECISION_INVALID),
    (BODY + "&quoteOrderQty=1", ReasonCode.PRECISION_INVALID),
    (BODY.replace("co-1", "co-2"), ReasonCode.EXCHANGE_REFUSED),
    (BODY.replace("timestamp=1", "timestamp=2"), ReasonCode.EXCHANGE_REFUSED),
    (BODY.replace("recvWindow=5000", "recvWindow=6000"), ReasonCode.EXCHANGE_REFUSED),
    ("", ReasonCode.EXCHANGE_REFUSED),
    (None, ReasonCode.EXCHANGE_REFUSED),
])
def test_check_body_any_difference_stops_the_order(body: str | None, reason: ReasonCode) -> None:
    """Each field of the recorded order is compared, absence included."""
    with pytest.raises(NotHandedOver) as stopped:
        check_body(EXPECTED, body)
    assert stopped.value.reason_code is reason


def test_wire_fields_name_every_amount_of_a_submission() -> None:
    """Nothing that decides about money is missing from the comparison."""
    order = Submission(
        mode=Mode.LIVE,
        order_id="o", client_order_id="co-1", exchange="binance", user_id="u", api_key_id="k", symbol="BTC/USDT", side=Side.BUY,
        order_type=OrderType.LIMIT, quantity=Decimal("0.002"), quote_quantity=None, price=Decimal(50_000), time_in_force=None,
        submitting_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert wire_fields(BINANCE.order, order, 1, 5_000) == EXPECTED


REPLACED = ["fetch", "sign", "milliseconds", "urlencode", "safe_order", "safe_trade", "number", "nonce", "parse_trade"]


@pytest.mark.parametrize("name", REPLACED)
def test_ccxt_still_has_the_names_that_are_replaced(name: str) -> None:
    """A new ccxt that renames one of them would leave its own in force: found here, not with an order."""
    assert hasattr(ccxt.binance, name)


@pytest.mark.parametrize(("name", "parameters"), [
    ("fetch", ["self", "url", "method", "headers", "body"]),
    ("sign", ["self", "path", "api", "method", "params"]),
    ("safe_order", ["self", "order", "market"]),
    ("safe_trade", ["self", "trade", "market"]),
])
def test_ccxt_calls_what_is_replaced_in_the_same_form(name: str, parameters: list[str]) -> None:
    """The replaced methods take ccxt's arguments."""
    assert list(inspect.signature(getattr(ccxt.binance, name)).parameters)[:len(parameters)] == parameters


def test_aiohttp_connects_through_the_method_that_is_watched() -> None:
    """`connect` is what tells whether a connection stood."""
    assert list(inspect.signature(aiohttp.TCPConnector.connect).parameters) == ["self", "req", "traces", "timeout"]
    assert ReportingConnector.connect is not aiohttp.TCPConnector.connect


def test_redirected_keeps_paths_and_moves_every_host() -> None:
    """With a base address not one endpoint is left on the real venue."""
    moved = _redirected(ccxt.binance().urls["api"], "http://127.0.0.1:1")
    assert moved["private"] == "http://127.0.0.1:1/api/v3"
    assert all(url.startswith("http://127.0.0.1:1") for url in moved.values())


def test_pause_is_bounded_and_ignores_other_statuses() -> None:
    """Only 429 and 418 ask for a pause, and no header makes it longer than five minutes."""
    pause = Pause()
    pause.asked(400, "60")
    pause.asked(503, "60")
    assert pause.seconds_left() == 0
    pause.asked(429, "nonsense")
    assert 0 < pause.seconds_left() <= 1
    pause.asked(429, "99999999")
    assert 299 < pause.seconds_left() <= 300
