"""The form body that is signed and checked, the names of ccxt and aiohttp that the transport stands on, and what is redirected."""

import inspect
import json
from decimal import Decimal
from urllib.parse import parse_qsl

import aiohttp
import ccxt.async_support as ccxt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.exchange.ccxt.connection import _redirected
from infra.exchange.ccxt.transport import Pause, ReportingConnector, venue_class
from infra.exchange.venues.wire import NotHandedOver, WireForm, check_request, pairs_of
from schemas.reasons import ReasonCode

params = st.dictionaries(st.text(min_size=1, max_size=8), st.one_of(st.text(max_size=12), st.integers(), st.booleans()), max_size=6)


@given(params)
def test_urlencode_equals_ccxts(fields: dict[str, object]) -> None:
    """The faster form of the signed text is ccxt's own, byte for byte."""
    assert venue_class("binance").urlencode(fields) == ccxt.binance.urlencode(fields)  # type: ignore[attr-defined]  # a class


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=12), max_size=6))
def test_fields_are_those_of_the_standard_parser(fields: dict[str, str]) -> None:
    """What is compared with the order is what a server would read."""
    body = ccxt.binance.urlencode(fields)
    assert pairs_of(body) == parse_qsl(body)


@pytest.mark.parametrize(("body", "reason"), [
    ('{"side": "buy", "size": "0.10"}', None),
    ('{"side": "sell", "size": "0.1"}', ReasonCode.EXCHANGE_REFUSED),
    ('{"side": "buy", "size": "0.2"}', ReasonCode.PRECISION_INVALID),
    ('{"side": "buy", "size": "0.1", "size": "0.2"}', ReasonCode.EXCHANGE_REFUSED),
    ('{"side": "buy", "size": "0.1", "leverage": "2"}', ReasonCode.EXCHANGE_REFUSED),
])
def test_body_that_is_no_form_is_compared_whole(body: str, reason: ReasonCode | None) -> None:
    """A venue says how its bodies are read; what is compared is the same."""
    form = WireForm(
        "POST", "/order", {"side": "buy", "size": Decimal("0.1")}, {}, key_header="Key", key="k",
        body_pairs=lambda text: json.loads(text, object_pairs_hook=list),
    )  # fmt: skip
    if reason is None:
        check_request(form, "POST", "https://venue/order", {"Key": "k"}, body)
        return
    with pytest.raises(NotHandedOver) as stopped:
        check_request(form, "POST", "https://venue/order", {"Key": "k"}, body)
    assert stopped.value.reason_code is reason


REPLACED = ["fetch", "milliseconds", "urlencode", "safe_order", "safe_trade", "number", "nonce", "parse_trade"]


@pytest.mark.parametrize("name", REPLACED)
def test_ccxt_still_has_the_names_that_are_replaced(name: str) -> None:
    """A new ccxt that renames one of them would leave its own in force: found here, not with an order."""
    assert hasattr(ccxt.binance, name)


@pytest.mark.parametrize(("name", "parameters"), [
    ("fetch", ["self", "url", "method", "headers", "body"]),
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
