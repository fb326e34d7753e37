"""Whatever bytes come: reading never raises, never takes a number for money, and never repeats what it read."""

import json
from decimal import Decimal
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from schemas.requests import REQUEST, Request, Unreadable, decode_request
from tests.unit.builders import cancel, limit, trade

MONEY = ("quantity", "quote_quantity", "price", "stop_price", "trailing_delta", "amount")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800") | st.decimals().map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
field_names = st.sampled_from([*limit(), *cancel(), *MONEY, "expires_at", "request_id", "time_in_force", "address", "asset"]) | st.text()
amounts = st.decimals(min_value=0, max_value=10**20 - 1, places=18).map(lambda value: format(value, "f"))
ideographs = st.text(min_size=6, alphabet=st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF))


@given(st.binary(max_size=300))
@example(b'{"a":1,"a":2}')
@example(b"\xed\xa0\x80")
@example(b'{"schema_version":1e999}')
def test_reading_never_raises_on_any_bytes(value: bytes) -> None:
    """Bytes are a request or unreadable, and an unreadable one has a code and a text that UTF-8 can carry."""
    decoded = decode_request(value)
    if isinstance(decoded, Unreadable):
        assert decoded.reason
        assert decoded.reason.encode()
        assert (decoded.user_id is None) == (decoded.idempotency_key is None)


@given(st.dictionaries(field_names, json_values, max_size=12), st.sampled_from([trade(), limit(), cancel(), {}]))
def test_reading_never_raises_on_any_json(changes: dict[str, Any], document: dict[str, Any]) -> None:
    """A request with anything anywhere is read or refused; an accepted one had strings where money is."""
    value = json.dumps({**document, **changes}).encode()
    decoded = decode_request(value)
    if not isinstance(decoded, Unreadable):
        _assert_money_was_text(decoded, {**document, **changes})


def _assert_money_was_text(request: Request, document: dict[str, Any]) -> None:
    for name in MONEY:
        amount = getattr(request, name, None)
        if amount is not None:
            assert isinstance(document[name], str)
            assert amount == Decimal(document[name])


@given(st.sampled_from(MONEY[:3]), st.floats() | st.integers() | st.booleans() | st.none() | st.lists(st.integers()))
def test_money_is_never_taken_from_a_number(name: str, amount: object) -> None:
    """Promise: no float, no integer, nothing but a string becomes money."""
    document = {**limit(), name: amount}
    decoded = decode_request(json.dumps(document).encode())
    if not isinstance(decoded, Unreadable):
        _assert_money_was_text(decoded, document)


@given(amounts, amounts)
def test_amounts_arrive_as_they_were_sent(quantity: str, price: str) -> None:
    """Every amount of the contract's range comes out equal, and is written and read again without a change."""
    request = decode_request(json.dumps(limit(quantity=quantity, price=price)).encode())
    assert not isinstance(request, Unreadable), request
    _assert_money_was_text(request, limit(quantity=quantity, price=price))
    assert REQUEST.validate_json(REQUEST.dump_json(request, exclude_none=True)) == request


@given(st.sampled_from([*limit(), "surplus", "stop_price"]), ideographs)
def test_reason_never_repeats_text_of_a_field(name: str, text: str) -> None:
    """A value in the wrong place is not echoed, whatever it is."""
    decoded = decode_request(json.dumps({**limit(), name: text}).encode())
    assert not isinstance(decoded, Unreadable) or text not in decoded.reason


@given(st.sampled_from([*limit()]), st.integers(0, 12), st.sampled_from([b"", b" ", b"\t"]))
def test_field_given_twice_is_never_accepted(name: str, position: int, blank: bytes) -> None:
    """Wherever the second one stands."""
    fields = [json.dumps(key).encode() + blank + b":" + json.dumps(item).encode() for key, item in limit().items()]
    fields.insert(position, json.dumps(name).encode() + b":" + json.dumps(limit()[name]).encode())
    decoded = decode_request(b"{" + b",".join(fields) + b"}")
    assert isinstance(decoded, Unreadable)
    assert decoded.reason == f"{name}: is given twice"
