"""The audit trail: one SHA-256 chain of events per account.

Invariants (schemas/audit.py states them for readers of the topic):
1. `seq` is the head's plus one, and is part of what is hashed.
2. `prev_hash` is the head's hash.
3. The bytes that are stored, published and hashed come from one dictionary, so that they cannot differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Final

import orjson

from pipeline.model.invariants import InvariantViolation
from schemas.audit import GENESIS_HASH, AuditEvent, EventType
from schemas.decimals import format_decimal
from schemas.wire import SCHEMA_VERSION, format_time

SOFTWARE_VERSION: Final = "0.1.0"

Scalar = str | int | bool | None | Decimal | datetime
Value = Scalar | list[str] | list[dict[str, str]]

_EMPTY: Final[dict[str, Value]] = {
    # A field with a default is left out while it says nothing: whoever reads with an older version does not know it.
    **dict.fromkeys(name for name, found in AuditEvent.model_fields.items() if found.is_required() and name != "hash"),
    "schema_version": SCHEMA_VERSION,
    "software_version": SOFTWARE_VERSION,
    "checks": [],
    "transfers": [],
    "evidence": [],
    "real_money": False,
}


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The newest event of an account: its number (0 before the first) and its hash, 64 hexadecimal digits."""

    seq: int = 0
    hash: str = GENESIS_HASH


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One event as it is stored and published. `body` is the canonical JSON that `hash` covers."""

    account: str
    seq: int
    event_id: str
    order_id: str | None
    hash: str
    body: bytes

    @property
    def value(self) -> bytes:
        """The record value: the body with its hash added."""
        return self.body[:-1] + b',"hash":"' + self.hash.encode() + b'"}'


def _plain(value: Value) -> object:
    if isinstance(value, Decimal):
        return format_decimal(value)
    if isinstance(value, datetime):
        return format_time(value)
    return value


def canonical(fields: Mapping[str, object]) -> bytes:
    """JSON with sorted keys and no blanks: the form that is hashed."""
    return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)


@dataclass(slots=True)
class AuditTrail:
    """The chains of one batch: heads as loaded under their locks, events as decided."""

    heads: dict[str, ChainHead]
    recorded_at: datetime
    rows: list[AuditRow] = field(default_factory=list)

    def append(self, account: str, order_id: str | None, event_type: EventType, fields: Mapping[str, Value]) -> AuditRow:
        """Adds one event. Raises InvariantViolation when the account's head was not loaded, as its lock is then not held."""
        head = self.heads.get(account)
        if head is None:
            raise InvariantViolation(f"the audit chain of account {account} was not locked for this batch; nothing was written.")
        seq = head.seq + 1
        event_id = f"{order_id or account}:{seq}"
        event: dict[str, Value] = {
            **_EMPTY,
            **fields,
            "event_id": event_id,
            "order_id": order_id,
            "account": account,
            "seq": seq,
            "event_type": event_type.value,
            "ts_recorded": self.recorded_at,
            "prev_hash": head.hash,
        }
        body = canonical({name: _plain(value) for name, value in event.items()})
        row = AuditRow(account, seq, event_id, order_id, sha256(body).hexdigest(), body)
        self.heads[account] = ChainHead(seq, row.hash)
        self.rows.append(row)
        return row


def hash_of_value(value: bytes) -> tuple[str, str]:
    """(hash as stated, hash as computed) of a value from `trade.audit`: equal unless it was changed.

    Raises ValueError for what is no JSON object.
    """
    event = orjson.loads(value)
    if not isinstance(event, dict):
        raise ValueError("an audit event is a JSON object")  # noqa: TRY004 — bytes that are no event, not a wrong argument
    stated = str(event.pop("hash", ""))
    return stated, sha256(canonical(event)).hexdigest()
