"""Identifiers, derived from what they name, so that the same record always gets the same ones.

Invariant: two records never share an order id: the source offset and the broker's append time are part of it, so that neither a key used
again after 24 hours nor a topic that was created anew repeats one.
"""

from datetime import datetime
from hashlib import sha256
from typing import Final

import orjson

from schemas.requests import Request
from schemas.wire import SourceOffset

# The strictest venues take 32 characters of [A-Za-z0-9]; Binance takes 36 of [.A-Z:/a-z0-9_-] (spot API, New order).
_CLIENT_ORDER_ID_HEX: Final = 28


def _digest(*parts: str) -> str:
    # NUL cannot occur in a part, so that no two lists of parts run together.
    return sha256("\x00".join(parts).encode()).hexdigest()


def order_id_of(source: SourceOffset, appended_at: datetime, user_id: str, idempotency_key: str) -> str:
    """`o` and 32 hexadecimal digits."""
    return "o" + _digest("order", str(source), appended_at.isoformat(), user_id, idempotency_key)[:32]


def client_order_id_of(order_id: str) -> str:
    """`co` and 28 hexadecimal digits: what the exchange is told and what a look-up asks for."""
    return "co" + _digest("client", order_id)[:_CLIENT_ORDER_ID_HEX]


def withdrawal_id_of(source: SourceOffset, appended_at: datetime, user_id: str, idempotency_key: str) -> str:
    """`w` and 32 hexadecimal digits."""
    return "w" + _digest("withdrawal", str(source), appended_at.isoformat(), user_id, idempotency_key)[:32]


def client_withdrawal_id_of(withdrawal_id: str) -> str:
    """`cw` and 28 hexadecimal digits: what the exchange is told and what its history is searched for."""
    return "cw" + _digest("client withdrawal", withdrawal_id)[:_CLIENT_ORDER_ID_HEX]


def deposit_id_of(exchange: str, transaction_id: str, asset: str, address: str, output_index: str) -> str:
    """`d` and 32 hexadecimal digits: what the exchange shows of a deposit that makes it another than all others."""
    return "d" + _digest("deposit", exchange, transaction_id, asset, address, output_index)[:32]


def announcement_id_of(source: SourceOffset, appended_at: datetime, user_id: str, idempotency_key: str) -> str:
    """`n` and 32 hexadecimal digits."""
    return "n" + _digest("announcement", str(source), appended_at.isoformat(), user_id, idempotency_key)[:32]


def request_id_of(user_id: str, idempotency_key: str) -> str:
    """The id of a request whose producer gave none; the same for every copy of it."""
    return "r" + _digest("request", user_id, idempotency_key)[:32]


def request_id_of_source(source: SourceOffset) -> str:
    """The id under which a record is answered that names no user and key."""
    return "r" + _digest("source", str(source))[:32]


def fingerprint_of(request: Request) -> str:
    """SHA-256 of the canonical payload: every field but `request_id`, decimals in their shortest form, keys sorted.

    `request_id` is left out because a client library may draw a new one for a retry of the same order.
    """
    payload = request.model_dump(mode="json", exclude={"request_id"}, exclude_none=True)
    return sha256(orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)).hexdigest()


def fingerprint_of_bytes(value: bytes) -> str:
    """The fingerprint of a payload that is no request: its bytes as they came."""
    return sha256(b"raw\x00" + value).hexdigest()
