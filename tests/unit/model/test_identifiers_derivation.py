"""Identifiers are derived from what they name."""

import re
from datetime import timedelta
from typing import Any

import pytest

from pipeline.model.identifiers import (
    client_order_id_of,
    fingerprint_of,
    fingerprint_of_bytes,
    order_id_of,
    request_id_of,
    request_id_of_source,
)
from schemas.requests import Unreadable
from schemas.wire import SourceOffset
from tests.unit.builders import NOW, arrival, limit, trade

SOURCE = SourceOffset("t", 0, 7)


def test_order_id_differs_in_each_of_its_parts() -> None:
    """A key used again, a topic made anew, another partition, offset, user: none repeats an order id."""
    ids = {
        order_id_of(SOURCE, NOW, "u", "k"),
        order_id_of(SourceOffset("t", 0, 8), NOW, "u", "k"),
        order_id_of(SourceOffset("t", 1, 7), NOW, "u", "k"),
        order_id_of(SourceOffset("t2", 0, 7), NOW, "u", "k"),
        order_id_of(SOURCE, NOW + timedelta(milliseconds=1), "u", "k"),
        order_id_of(SOURCE, NOW, "u2", "k"),
        order_id_of(SOURCE, NOW, "u", "k2"),
        order_id_of(SOURCE, NOW, "uk", ""),
    }
    assert len(ids) == 8
    assert order_id_of(SOURCE, NOW, "u", "k") in ids


def test_ids_have_the_forms_that_venues_and_keys_need() -> None:
    """The strictest venues take 32 letters and digits as a client order id."""
    order_id = order_id_of(SOURCE, NOW, "u", "k")
    assert re.fullmatch(r"o[0-9a-f]{32}", order_id)
    assert re.fullmatch(r"co[0-9a-f]{28}", client_order_id_of(order_id))
    assert client_order_id_of(order_id) != client_order_id_of("o" + "0" * 32)
    assert request_id_of("a", "bc") != request_id_of("ab", "c")
    assert request_id_of_source(SOURCE) == request_id_of_source(SourceOffset("t", 0, 7))


def _fingerprint(document: dict[str, Any]) -> str:
    decoded = arrival(document).decoded
    assert not isinstance(decoded, Unreadable), decoded
    return fingerprint_of(decoded)


@pytest.mark.parametrize(
    "same",
    [
        trade(request_id="another"),
        trade(quantity="0.0010"),
        trade(quantity="00.001"),
        dict(reversed(trade().items())),
    ],
)
def test_fingerprint_is_the_same_for_the_same_order(same: dict[str, Any]) -> None:
    """A new request id, trailing zeros and the order of fields do not make another payload."""
    assert _fingerprint(same) == _fingerprint(trade())


@pytest.mark.parametrize(
    "other",
    [
        trade(quantity="0.0011"),
        trade(quantity=None, quote_quantity="0.001"),
        trade(side="sell"),
        trade(symbol="ETH/BTC"),
        trade(mode="paper"),
        trade(api_key_id="k2"),
        trade(expires_at="2026-11-24T08:00:00Z"),
        limit(price="0.001"),
        limit(price="0.001", time_in_force="IOC"),
    ],
)
def test_fingerprint_differs_in_every_other_field(other: dict[str, Any]) -> None:
    """Whatever else is changed makes another payload, so that its key counts as reused."""
    assert _fingerprint(other) != _fingerprint(trade())


def test_fingerprint_of_bytes_is_no_request_s() -> None:
    """An unreadable payload never has the fingerprint of a request."""
    assert fingerprint_of_bytes(b"") != fingerprint_of_bytes(b"\x00")
    assert len(fingerprint_of_bytes(b"x")) == 64
