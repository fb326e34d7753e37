"""What a producer may send: nothing raises, nothing slips through, and no answer repeats a value."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from schemas.reasons import ReasonCode
from schemas.requests import CancelRequest, TradeRequest, Unreadable, decode_request
from schemas.topics import DEAD_LETTER_BYTES_MAX, REQUEST_BYTES_MAX
from tests.unit.builders import cancel, limit, trade

SCHEMA, DECIMAL, VERSION = ReasonCode.SCHEMA_INVALID, ReasonCode.INVALID_DECIMAL, ReasonCode.SCHEMA_VERSION_UNSUPPORTED


def _encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def _unreadable(value: bytes | None) -> Unreadable:
    decoded = decode_request(value)
    assert isinstance(decoded, Unreadable)
    return decoded


@pytest.mark.parametrize(
    "document",
    [
        trade(),
        trade(quantity=None, quote_quantity="50"),
        limit(),
        limit(time_in_force="IOC"),
        limit(order_type="stop_loss_limit", stop_price="39000"),
        trade(order_type="stop_loss", stop_price="39000"),
        trade(order_type="trailing_stop", trailing_delta="1"),
        trade(idempotency_key="k" * 255),
        trade(idempotency_key="ключ 🔑"),
        trade(request_id="r-1", expires_at="2026-11-24T08:00:00+01:00"),
        trade(quantity="99999999999999999999.999999999999999999"),
        cancel(),
        {**cancel(), "type": "withdrawal", "exchange": "binance", "api_key_id": "k", "asset": "BTC", "amount": "1", "address": "a"}
        | {"target_idempotency_key": None},
    ],
)
def test_request_that_follows_the_contract_is_read(document: dict[str, Any]) -> None:
    """Every form that the contract names is accepted."""
    decoded = decode_request(_encoded({name: value for name, value in document.items() if value is not None}))
    assert not isinstance(decoded, Unreadable), decoded
    assert decoded.idempotency_key == document["idempotency_key"]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="tombstone"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00", id="nul"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"text"', id="text"),
        pytest.param(b"1e400", id="number"),
        pytest.param(b"\xff\xfe{}", id="wrong UTF-8"),
        pytest.param(_encoded(trade()).decode().encode("utf-16"), id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf" + _encoded(trade()), id="byte order mark"),
        pytest.param(b"[" * 60_000, id="open lists"),
        pytest.param(b"[" * 30_000 + b"]" * 30_000, id="nested lists"),
        pytest.param(b'{"a":' * 12_000 + b"1" + b"}" * 12_000, id="nested objects"),
        pytest.param(b'{"quantity":' + b"9" * 60_000 + b"}", id="huge integer"),
        pytest.param(b"\x00" * 1_048_576, id="1 MB of nothing"),
        pytest.param(b"[" * 1_048_576, id="1 MB of open lists"),
        pytest.param(b"{}", id="empty object"),
        pytest.param(_encoded(trade(user_id=None)), id="no user"),
        pytest.param(_encoded(trade(idempotency_key=None)), id="no key"),
        pytest.param(_encoded(trade(user_id=5)), id="user as number"),
        pytest.param(_encoded(trade(user_id="a b")), id="user with a blank"),
        pytest.param(_encoded(trade(user_id="o" + "a" * 32)), id="user like an order id"),
        pytest.param(_encoded(trade(user_id="u" * 129)), id="user too long"),
        pytest.param(_encoded(trade(idempotency_key="")), id="empty key"),
        pytest.param(_encoded(trade(idempotency_key="k" * 256)), id="key too long"),
        pytest.param(_encoded(trade(idempotency_key="a\x00b")), id="NUL in the key"),
        pytest.param(_encoded(trade(idempotency_key="\ud800")), id="half a surrogate pair in the key"),
        pytest.param(_encoded(trade(user_id="\udfff")), id="half a surrogate pair in the user"),
    ],
)
def test_record_that_names_nobody_is_a_dead_letter(value: bytes | None) -> None:
    """What cannot be read, or names nobody to answer, goes to the dead-letter topic as SCHEMA_INVALID and raises nothing."""
    unreadable = _unreadable(value)
    assert unreadable.dead_letter
    assert unreadable.reason_code is SCHEMA
    assert (unreadable.user_id, unreadable.idempotency_key) == (None, None)


_HUGE = 10**30
_MONEY = ("quantity", "price")


@pytest.mark.parametrize("name", _MONEY)
@pytest.mark.parametrize(
    "amount",
    [
        pytest.param(0.1, id="float"),
        pytest.param(1, id="integer"),
        pytest.param(-1, id="negative number"),
        pytest.param(_HUGE, id="10^30"),
        pytest.param(True, id="boolean"),
        pytest.param([], id="list"),
        pytest.param({"amount": "1"}, id="object"),
        pytest.param("-1", id="negative"),
        pytest.param("-0", id="negative zero"),
        pytest.param("+1", id="sign"),
        pytest.param("1e3", id="exponent"),
        pytest.param(str(_HUGE), id="10^30 as text"),
        pytest.param("0.0000000000000000001", id="19 places"),
        pytest.param("NaN", id="NaN"),
        pytest.param("Infinity", id="Infinity"),
        pytest.param("", id="empty"),
        pytest.param(" 1", id="blank"),
        pytest.param("1\n", id="line end"),
        pytest.param("1_000", id="underscore"),
        pytest.param("1,5", id="comma"),
        pytest.param("1.", id="no places"),
        pytest.param(".5", id="no whole"),
        pytest.param(".", id="point"),
        pytest.param("1.2.3", id="two points"),
        pytest.param("٣", id="Arabic digit"),
        pytest.param("１", id="wide digit"),
        pytest.param("0x10", id="hexadecimal"),
    ],
)
def test_money_that_is_no_plain_decimal_string_is_refused(name: str, amount: object) -> None:
    """A number or any other form in a money field is INVALID_DECIMAL, answered to its sender and named by field."""
    unreadable = _unreadable(_encoded({**limit(), name: amount}))
    assert unreadable.reason_code is DECIMAL
    assert not unreadable.dead_letter
    assert unreadable.user_id == "alice"
    assert unreadable.reason.startswith(f"{name}: ")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_number_that_is_not_json_is_refused(constant: str) -> None:
    """RFC 8259 knows no NaN and no infinity, wherever a lenient reader would take them."""
    value = _encoded(trade()).replace(b'"0.001"', constant.encode())
    assert _unreadable(value).reason == "the value is not JSON"


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"schema_version": 2}, VERSION, "schema_version"),
        ({"schema_version": 0}, VERSION, "schema_version"),
        ({"schema_version": 10**30}, VERSION, "schema_version"),
        ({"schema_version": "1"}, SCHEMA, "schema_version"),
        ({"schema_version": 1.0}, SCHEMA, "schema_version"),
        ({"schema_version": True}, SCHEMA, "schema_version"),
        ({"schema_version": None}, SCHEMA, "schema_version"),
        ({"type": "swap"}, SCHEMA, "request"),
        ({"type": None}, SCHEMA, "request"),
        ({"type": 1}, SCHEMA, "request"),
        ({"mode": None}, SCHEMA, "mode"),
        ({"mode": "real"}, SCHEMA, "mode"),
        ({"side": "BUY"}, SCHEMA, "side"),
        ({"side": 1}, SCHEMA, "side"),
        ({"order_type": "stop"}, SCHEMA, "order_type"),
        ({"symbol": ""}, SCHEMA, "symbol"),
        ({"symbol": "A" * 65}, SCHEMA, "symbol"),
        ({"exchange": 7}, SCHEMA, "exchange"),
        ({"api_key_id": "a b"}, SCHEMA, "api_key_id"),
        ({"request_id": ""}, SCHEMA, "request_id"),
        ({"stop_prise": "1"}, SCHEMA, "stop_prise"),
        ({"amount": "1"}, SCHEMA, "amount"),
        ({"quantity": None}, SCHEMA, "request"),
        ({"quote_quantity": "1"}, SCHEMA, "request"),
        ({"price": "1"}, SCHEMA, "request"),
        ({"time_in_force": "GTC"}, SCHEMA, "request"),
        ({"time_in_force": "DAY"}, SCHEMA, "time_in_force"),
        ({"order_type": "limit"}, SCHEMA, "request"),
        ({"order_type": "limit", "price": "1", "stop_price": "1"}, SCHEMA, "request"),
        ({"order_type": "limit", "price": "1", "quantity": None, "quote_quantity": "1"}, SCHEMA, "request"),
        ({"order_type": "stop_loss"}, SCHEMA, "request"),
        ({"order_type": "trailing_stop", "price": "1"}, SCHEMA, "request"),
        ({"expires_at": 1_700_000_000}, SCHEMA, "expires_at"),
        ({"expires_at": 1.5}, SCHEMA, "expires_at"),
        ({"expires_at": "1700000000"}, SCHEMA, "expires_at"),
        ({"expires_at": "tomorrow"}, SCHEMA, "expires_at"),
        ({"expires_at": "2026-11-24"}, SCHEMA, "expires_at"),
        ({"expires_at": "2026-11-24T08:00:00"}, SCHEMA, "expires_at"),
        ({"expires_at": "2026-13-24T08:00:00Z"}, SCHEMA, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-01:00"}, SCHEMA, "expires_at"),
        ({"expires_at": "0001-01-01T00:00:00+01:00"}, SCHEMA, "expires_at"),
        ({"expires_at": ["2026-11-24T08:00:00Z"]}, SCHEMA, "expires_at"),
    ],
)
def test_request_that_breaks_the_contract_is_refused_by_field(fields: dict[str, Any], code: ReasonCode, named: str) -> None:
    """A request with a name and one thing wrong is answered with the code and the field, not buried."""
    unreadable = _unreadable(_encoded(trade(**fields)))
    assert unreadable.reason_code is code
    assert not unreadable.dead_letter
    assert unreadable.reason.startswith(named), unreadable.reason


@pytest.mark.parametrize("name", ["quantity", "user_id", "side", "idempotency_key", "schema_version"])
@pytest.mark.parametrize("blank", [b"", b" ", b"\n\t"])
def test_field_given_twice_is_refused(name: str, blank: bytes) -> None:
    """`{"quantity":"0.001","quantity":"1000"}` means one thing to one reader and another to the next: it is refused, whatever the order."""
    first = _encoded(trade())
    again = b'"' + name.encode() + b'"' + blank + b":" + blank + json.dumps(trade()[name]).encode()
    second = b"{" + again + b"," + first[1:]
    assert not isinstance(decode_request(first), Unreadable)
    unreadable = _unreadable(second)
    assert unreadable.reason == f"{name}: is given twice"
    assert unreadable.user_id is None


def test_field_given_twice_is_found_beside_colons_in_values() -> None:
    """Text that looks like the end of a name neither hides a field that is there twice nor makes one of what is there once."""
    good = trade(idempotency_key='a":"b":', expires_at="2026-11-24T08:00:00Z")
    assert not isinstance(decode_request(_encoded(good)), Unreadable)
    twice = _encoded(good).replace(b'"side"', b'"\\u0073ide": "sell", "side"')
    assert _unreadable(twice).reason == "side: is given twice"


def test_field_given_twice_in_a_broken_request_is_refused_as_such() -> None:
    """A wrong request does not get its first or last user's answer either."""
    value = b'{"user_id":"mallory","user_id":"alice","idempotency_key":"k"}'
    assert _unreadable(value).user_id is None


def test_name_given_twice_with_half_a_surrogate_pair_can_be_answered() -> None:
    """The reason is text that UTF-8 can carry."""
    value = b'{"\\ud800":1,"\\ud800":2}'
    assert _unreadable(value).reason.encode()


def test_record_over_64_kib_is_answered_by_name_and_buried() -> None:
    """The contract's limit: one byte more than 64 KiB is a dead letter, and its sender is told."""
    padded = _encoded(trade())
    exact = padded + b" " * (REQUEST_BYTES_MAX - len(padded))
    assert not isinstance(decode_request(exact), Unreadable)
    unreadable = _unreadable(exact + b" ")
    assert (unreadable.user_id, unreadable.dead_letter, unreadable.reason_code) == ("alice", True, SCHEMA)


def test_record_far_over_the_limit_is_not_read_at_all() -> None:
    """A record that was compressed to pass the broker's limit costs no time: it is not even searched for a name."""
    padded = _encoded(trade())
    unreadable = _unreadable(padded + b" " * (DEAD_LETTER_BYTES_MAX + 1 - len(padded)))
    assert (unreadable.user_id, unreadable.dead_letter) == (None, True)


_SECRET = "hunter2-secret"


@pytest.mark.parametrize("name", [*trade(), "price", "request_id", "expires_at", "time_in_force", "surplus"])
@pytest.mark.parametrize("form", ["{}", "{} with blanks\x00", "{}" * 30])
def test_reason_never_repeats_a_value(name: str, form: str) -> None:
    """A password in any field of a request comes back in no error text."""
    document = limit(**{name: form.format(*[_SECRET] * 30)})
    decoded = decode_request(_encoded(document))
    if isinstance(decoded, Unreadable):
        assert _SECRET not in decoded.reason
        assert decoded.reason_code is not None


def test_deadline_is_kept_in_utc() -> None:
    """Equal moments are equal requests, whatever zone they were written in."""
    here, there = (decode_request(_encoded(trade(expires_at=text))) for text in ("2026-11-24T09:00:00+01:00", "2026-11-24T08:00:00Z"))
    assert here == there
    assert isinstance(here, TradeRequest)
    assert here.expires_at == datetime(2026, 11, 24, 8, tzinfo=UTC)


def test_amount_is_read_exactly() -> None:
    """38 digits arrive as 38 digits."""
    request = decode_request(_encoded(trade(quantity="12345678901234567890.123456789012345678")))
    assert isinstance(request, TradeRequest)
    assert request.quantity == Decimal("12345678901234567890.123456789012345678")


def test_cancel_names_its_order_by_key() -> None:
    """A cancel needs no more than the key of what it cancels."""
    request = decode_request(_encoded(cancel()))
    assert isinstance(request, CancelRequest)
    assert request.target_idempotency_key == "key-1"


def test_many_problems_are_told_within_bounds() -> None:
    """An answer's reason stays short, however much is wrong and however long the names are."""
    unreadable = _unreadable(_encoded({**trade(), **{f"field{number}" * 20: 1 for number in range(300)}}))
    assert len(unreadable.reason) < 1_200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantity": None, "qantity": "1"}, "qantity: is no field of a trade; did you mean quantity?"),
        ({"stopPrice": "1"}, "stopPrice: is no field of a trade; did you mean stop_price?"),
        ({"PRICE": "1"}, "PRICE: is no field of a trade; did you mean price?"),
        ({"zzz": "s3cret"}, "zzz: is no field of a trade"),
        ({"x" * 5_000: 1}, "is no field of a trade"),
    ],
)
def test_misspelt_field_is_answered_with_the_one_that_was_meant(change: dict[str, object], said: str) -> None:
    """By name, never by value; a name that is like none, or too long to be one, is only called unknown."""
    document = {name: value for name, value in {**_MARKET, **change}.items() if value is not None}
    found = decode_request(json.dumps(document).encode())
    assert isinstance(found, Unreadable)
    assert said in found.reason
    assert ("did you mean" in found.reason) == ("did you mean" in said)
    assert "s3cret" not in found.reason


def test_misspelt_type_is_told() -> None:
    """Without it nothing else can be judged."""
    document = {("tpye" if name == "type" else name): value for name, value in _MARKET.items()}
    found = decode_request(json.dumps(document).encode())
    assert isinstance(found, Unreadable)
    assert "type must be " in found.reason
    assert "misspelt" in found.reason


_MARKET = {
    "schema_version": 1, "type": "trade", "idempotency_key": "k", "user_id": "u", "mode": "live", "exchange": "binance", "api_key_id": "a",
    "symbol": "BTC/USDT", "side": "buy", "order_type": "market", "quantity": "1",
}  # fmt: skip
