"""Quarantine: what is kept of a record that a step cannot decide, so that all others go on.

A defect of this system's own, a damaged row or a value that some store cannot carry must cost the one record that meets it, not the
partition. The record is set aside in the same database transaction that moves the partition past it: a row that keeps it, a dead letter, an
audit event, and what has to be said of its request, order or withdrawal.

Invariants:
1. A record is set aside instead of being decided, never beside it: nothing of its decision is stored.
2. What is said of an order or withdrawal is what is proven: one that was not sent ends and its funds are released; one that may have been
   sent is in doubt with its funds held; one that rests or is over stays as it is.
3. No secret and no value of a request is part of what is told of the failure: its class, the place in this code, and our own words.

Start with `note`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Final

from pipeline.booking import storable
from pipeline.changes import Changes
from pipeline.dead_letter import dead_letter_of, without_secrets
from pipeline.order import Order
from pipeline.payouts import put_in_doubt
from pipeline.settlement import end_order_unsent, mark_in_doubt
from pipeline.withdrawal import Withdrawal
from pipeline.withdrawals import end_unsent
from schemas.audit import EventType
from schemas.orders import OrderStatus, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.routing import Action, RoutedOrder
from schemas.wire import SourceOffset

# The chain of what concerns no single user's state: records set aside, and what operators did with them. No user id begins so.
QUARANTINE_ACCOUNT: Final = "@quarantine"
# More of a record is in its dead letter; a record of this system's own, which can be published again, has some hundred bytes.
KEPT_BYTES_MAX: Final = 64 * 1024
_TEXT_MAX: Final = 300


class Stage(StrEnum):
    """How far a step came with a record."""

    DECODE = "decode"
    LOAD = "load"
    DECIDE = "decide"
    STORE = "store"
    CALL = "call"
    CONCLUDE = "conclude"


class QuarantineState(StrEnum):
    """`retried`: published again as a new record. `dropped`: dealt with otherwise."""

    OPEN = "open"
    RETRIED = "retried"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record could not be decided: the error's class, the place in this code, and its text where that is our own."""

    stage: Stage
    error: str
    place: str
    text: str

    def __str__(self) -> str:
        told = f": {self.text}" if self.text else ""
        return f"{self.error} at {self.stage}, {self.place}{told}"


@dataclass(frozen=True, slots=True)
class Named:
    """What a record is about, as far as it can be read: its user, and an order, withdrawal, deposit, halt or command.

    `is_made_again`: this system makes such a record by itself, again and again, until it is applied.
    """

    user_id: str = ""
    subject: str = ""
    is_made_again: bool = False


@dataclass(frozen=True, slots=True)
class InputRecord:
    """A record as it was read, headers without values counting as empty. `appended_at` is its timestamp on the topic, UTC."""

    source: SourceOffset
    appended_at: datetime
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """One row of the quarantine. `value_bytes` is the size of the whole value; `value` may be its beginning."""

    quarantine_id: str
    source: SourceOffset
    appended_at: datetime
    key: bytes | None
    value: bytes | None
    value_bytes: int
    headers: tuple[tuple[str, bytes], ...]
    failure: Failure
    named: Named
    # Nothing of the user could be loaded, so nothing was said of an order or a key.
    sparing: bool


def quarantine_id_of(record: InputRecord) -> str:
    """The id of a record set aside. A topic that is made anew counts its offsets from 0, so the time is part of it."""
    return "q" + sha256(f"quarantine\x00{record.source}\x00{record.appended_at.isoformat()}".encode()).hexdigest()[:32]


def told(quarantine_id: str, outcome: str) -> str:
    """What the one who sent a record, or waits for its order, is told."""
    return f"an error inside this system kept the record from being decided; {outcome}. Operators see it as {quarantine_id}"


def note(record: InputRecord, failure: Failure, named: Named, sparing: bool, changes: Changes) -> None:
    """Keeps the record, buries a copy on the dead-letter topic, and writes the audit event. Its chain must be locked."""
    quarantine_id = quarantine_id_of(record)
    text = str(failure)
    changes.set_aside.append(
        QuarantinedRecord(
            quarantine_id=quarantine_id,
            source=record.source,
            appended_at=record.appended_at,
            key=None if record.key is None else record.key[:KEPT_BYTES_MAX],
            value=None if record.value is None else record.value[:KEPT_BYTES_MAX],
            value_bytes=len(record.value or b""),
            headers=_bounded(without_secrets(record.headers)),
            failure=failure,
            named=named,
            sparing=sparing,
        )
    )
    letter = dead_letter_of(record.source, record.key, record.value, record.headers, ReasonCode.INTERNAL_ERROR, text)
    changes.bury(*letter)
    fields = {
        "request_id": quarantine_id,
        "user_id": named.user_id or None,
        "reason_code": ReasonCode.INTERNAL_ERROR.value,
        "reason": text,
        "evidence": [f"record {record.source}", *([named.subject] if named.subject else [])],
    }
    changes.audit(QUARANTINE_ACCOUNT, None, EventType.RECORD_SET_ASIDE, fields, None)


def _bounded(headers: Sequence[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    kept, size = [], 0
    for name, value in headers:
        size += len(name.encode("utf-8", "replace")) + len(value)
        if size > KEPT_BYTES_MAX:
            break
        kept.append((storable(name), value))
    return tuple(kept)


def set_aside_order(routed: RoutedOrder, quarantine_id: str, changes: Changes) -> None:
    """Says of the order that a piece of work names what is proven. An order that is not loaded is left alone."""
    order = changes.orders.get(routed.order_id)
    if order is None or routed.action is not Action.SUBMIT:
        # A cancel stays pending: the next look-up that finds its order resting repeats it.
        return
    if order.status is OrderStatus.ACCEPTED and routed.attempt == order.attempt + 1:
        _end_unsent_order(order, quarantine_id, changes)
    elif order.status is OrderStatus.SUBMITTING and routed.attempt == order.attempt:
        mark_in_doubt(order, told(quarantine_id, "it is looked up at the exchange, and its funds stay held"), changes)


def _end_unsent_order(order: Order, quarantine_id: str, changes: Changes) -> None:
    # Its intent is stored before the first byte leaves: what is `accepted` under its lock was not sent.
    after = replace(
        order,
        status=OrderStatus.REJECTED,
        reason_code=ReasonCode.INTERNAL_ERROR,
        reason=told(quarantine_id, "nothing was sent and the funds are released"),
        updated_at=changes.now,
        executed_at=changes.now,
    )
    end_order_unsent(order, after, EventType.ORDER_REFUSED, changes)


def set_aside_withdrawal(routed: RoutedOrder, quarantine_id: str, changes: Changes) -> None:
    """The same of a withdrawal."""
    withdrawal = changes.withdrawals.get(routed.order_id)
    if withdrawal is None:
        return
    if withdrawal.status is WithdrawalStatus.ACCEPTED and routed.attempt == withdrawal.attempt + 1:
        _end_unsent_withdrawal(withdrawal, quarantine_id, changes)
    elif withdrawal.status is WithdrawalStatus.SUBMITTING and routed.attempt == withdrawal.attempt:
        put_in_doubt(withdrawal, told(quarantine_id, "it is looked up in the exchange's history, and its funds stay held"), changes)


def _end_unsent_withdrawal(withdrawal: Withdrawal, quarantine_id: str, changes: Changes) -> None:
    reason = told(quarantine_id, "nothing was sent and the funds are released")
    ended = replace(withdrawal, reason_code=ReasonCode.INTERNAL_ERROR, reason=reason)
    end_unsent(ended, withdrawal, EventType.WITHDRAWAL_REFUSED, changes)


def text_of(message: str) -> str:
    """The first line of one of our own messages; a database's further lines hold whole rows."""
    return storable(message.partition("\n")[0])[:_TEXT_MAX]
