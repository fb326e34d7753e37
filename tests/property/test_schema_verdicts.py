"""The exported JSON Schema says of a request what intake says of it: whatever is in it, both take it or both refuse it.

JSON Schema cannot say three things that intake asks for: that a field is not given twice, that a whole number is not written `1.0`, and
that a day exists in its month. The values below keep away from them.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from cli.check.schema_export import documents
from schemas.orders import OrderType
from schemas.requests import Unreadable, decode_request

_SCHEMA: Final = json.loads(documents()["request.schema.json"])

Fields = dict[str, Any]


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    # ECMA 262: without its flag m, $ is the end of the text alone. Python's $ also stands before a line feed at the end.
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield ValidationError(f"does not match {pattern}")


_VALIDATOR: Final = extend(Draft202012Validator, {"pattern": _pattern})(_SCHEMA)

_COMMON: Final[Fields] = {"schema_version": 1, "idempotency_key": "k", "user_id": "alice", "mode": "live"}
_BASES: Final[dict[str, Fields]] = {
    "trade": {
        **_COMMON, "type": "trade", "exchange": "binance", "api_key_id": "main", "symbol": "BTC/USDT", "side": "buy",
        "order_type": "market", "quantity": "1",
    },
    "cancel": {**_COMMON, "type": "cancel", "target_idempotency_key": "k0"},
    "withdrawal": {
        **_COMMON, "type": "withdrawal", "exchange": "binance", "api_key_id": "main", "asset": "USDT", "amount": "1", "address": "0x1",
    },
    "session": {name: value for name, value in _COMMON.items() if name != "mode"} | {"type": "session"},
    "deposit": {**_COMMON, "type": "deposit", "exchange": "binance", "api_key_id": "main", "asset": "USDT", "amount": "1"},
}  # fmt: skip
_ORDER_TYPES: Final = [order_type.value for order_type in OrderType]
_AMOUNTS: Final = ["0", "1", "0.5", "1" * 20, "1" * 21, "0." + "1" * 18, "0." + "1" * 19, "", ".5", "5.", "-1", "1e3", " 1", "1\n", "١"]
_TEXTS: Final = ["a", "", "a b", "ä", "x" * 64, "x" * 65, "x" * 128, "x" * 129, "x" * 256, "x" * 257, "a\n", "\x00", "\x7f", "o" + "1" * 32]
_TIMES: Final = [
    "2030-01-31T00:00:00Z", "2030-01-31t00:00:00z", "2030-01-31 00:00:00+02:00", "2030-01-31T00:00:00.123456Z", "2030-01-31T00:00:00",
    "2030-01-31", "1800000000", "2030-01-31T00:00Z", "2030-01-31T00:00:00Z\n", "٢٠٣٠-01-31T00:00:00Z",
]  # fmt: skip
_OTHER: Final = [None, True, 1, 2, 1.5, [], {}, "nonsense"]
_FIELDS: Final = sorted({name for schema in _SCHEMA["$defs"].values() for name in schema.get("properties", {})})
_VALUES: Final = st.sampled_from([
    *_ORDER_TYPES, *_AMOUNTS, *_TEXTS, *_TIMES, *_OTHER, "live", "paper", "buy", "sell", "GTC", "IOC", "FOK", "trade", "cancel",
    ["BTC/USDT"], [""], ["x"] * 99, False, 10**9,
])  # fmt: skip
# Most of what is tried is nearly right: prices and quantities, there, null or absent, under every order type.
_NEARLY: Final = st.fixed_dictionaries(
    {"order_type": st.sampled_from(_ORDER_TYPES)},
    optional={
        **{name: st.sampled_from(["1", None]) for name in ("quantity", "quote_quantity", "price", "stop_price", "trailing_delta")},
        "time_in_force": st.sampled_from(["GTC", "IOC", None]),
    },
)
_ANY_CHANGE: Final = st.dictionaries(st.sampled_from([*_FIELDS, "qantity", "price "]), _VALUES, max_size=3)
_LEFT_OUT: Final = st.sets(st.sampled_from(_FIELDS), max_size=1)


def _agree(document: Fields) -> bool:
    """Whether both take it. Fails where they do not agree."""
    taken = not isinstance(decode_request(json.dumps(document).encode()), Unreadable)
    assert _VALIDATOR.is_valid(document) == taken, document
    return taken


@given(change=_NEARLY)
@example(change={"order_type": "market", "quantity": None})
@example(change={"order_type": "limit", "price": "1", "quote_quantity": "1"})
def test_schema_and_intake_agree_on_amounts_and_prices_of_every_order_type(change: Fields) -> None:
    """Exactly one quantity, the prices that the type needs and no other; null is the same as absent."""
    _agree({name: value for name, value in {**_BASES["trade"], **change}.items() if name != "quantity" or name in change})


@given(kind=st.sampled_from(sorted(_BASES)), change=_ANY_CHANGE, left_out=_LEFT_OUT)
def test_schema_and_intake_agree_on_any_change_of_a_request(kind: str, change: Fields, left_out: set[str]) -> None:
    """Of any field to any value of any type, unknown fields and missing ones among them."""
    document = {name: value for name, value in {**_BASES[kind], **change}.items() if name not in left_out}
    _agree(document)


def test_requests_that_are_right_are_taken_by_both() -> None:
    """The comparison is not one of refusals alone."""
    assert all(map(_agree, _BASES.values()))
    needed = {"limit": ["price"], "limit_maker": ["price"], "stop_loss": ["stop_price"], "take_profit": ["stop_price"]}
    needed |= {name: ["price", "stop_price"] for name in ("stop_loss_limit", "take_profit_limit")}
    needed["trailing_stop"] = ["trailing_delta"]
    for order_type in _ORDER_TYPES:
        prices = dict.fromkeys(needed.get(order_type, []), "1")
        assert _agree({**_BASES["trade"], "order_type": order_type, **prices})
        assert not _agree({**_BASES["trade"], "order_type": order_type, **prices, "quote_quantity": "1"})
    assert _agree({**_BASES["trade"], "quantity": None, "quote_quantity": "1"})
