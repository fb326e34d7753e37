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
from dataclasses import replace
from hashlib import sha256
from typing import Final

from pipeline.books.changes import Changes
from pipeline.model.dead_letter import dead_letter_of, without_secrets
from pipeline.model.detail import storable
from pipeline.model.quarantine import QUARANTINE_ACCOUNT, Failure, InputRecord, Named, QuarantinedRecord
from pipeline.orders.settlement import end_order_unsent, mark_in_doubt
from pipeline.withdrawals.acceptance import end_unsent
from pipeline.withdrawals.settlement import put_in_doubt
from schemas.audit import EventType
from schemas.orders import OrderStatus, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.routing import Action, RoutedOrder

# More of a record is in its dead letter; a record of this system's own, which can be published again, has some hundred bytes.
KEPT_BYTES_MAX: Final = 64 * 1024
_TEXT_MAX: Final = 300


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
        # Its intent is stored before the first byte leaves: what is `accepted` under its lock was not sent.
        reason = told(quarantine_id, "nothing was sent and the funds are released")
        ended = replace(order, status=OrderStatus.REJECTED, reason_code=ReasonCode.INTERNAL_ERROR, reason=reason)
        end_order_unsent(ended, order, EventType.ORDER_REFUSED, changes)
    elif order.status is OrderStatus.SUBMITTING and routed.attempt == order.attempt:
        mark_in_doubt(order, told(quarantine_id, "it is looked up at the exchange, and its funds stay held"), changes)


def set_aside_withdrawal(routed: RoutedOrder, quarantine_id: str, changes: Changes) -> None:
    """The same of a withdrawal."""
    withdrawal = changes.withdrawals.get(routed.order_id)
    if withdrawal is None:
        return
    if withdrawal.status is WithdrawalStatus.ACCEPTED and routed.attempt == withdrawal.attempt + 1:
        reason = told(quarantine_id, "nothing was sent and the funds are released")
        ended = replace(withdrawal, reason_code=ReasonCode.INTERNAL_ERROR, reason=reason)
        end_unsent(ended, withdrawal, EventType.WITHDRAWAL_REFUSED, changes)
    elif withdrawal.status is WithdrawalStatus.SUBMITTING and routed.attempt == withdrawal.attempt:
        put_in_doubt(withdrawal, told(quarantine_id, "it is looked up in the exchange's history, and its funds stay held"), changes)


def text_of(message: str) -> str:
    """The first line of one of our own messages; a database's further lines hold whole rows."""
    return storable(message.partition("\n")[0])[:_TEXT_MAX]
