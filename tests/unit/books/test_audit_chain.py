"""The audit trail: gapless, chained, and checkable from the topic's bytes alone."""

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from pipeline.books.audit import AuditTrail, ChainHead, hash_of_value
from pipeline.books.changes import Changes
from pipeline.intake import decide
from pipeline.model.halts import NO_HALTS
from pipeline.model.invariants import InvariantViolation
from pipeline.orders.execution import plan
from pipeline.orders.settlement import apply_venue_order
from schemas.audit import GENESIS_HASH, AuditEvent, EventType
from schemas.orders import OrderStatus
from schemas.routing import Action, RoutedOrder
from tests.unit.builders import NOW, RULES, TOPICS, arrival, cancel, changes_of, intake_state, limit, outputs_on, told, trade


def _life() -> Changes:
    """A batch with one of nearly everything: accepted, submitted, filled in steps, rejected, copied, canceled."""
    changes = changes_of()
    documents = (
        limit(quantity="2", price="400", request_id="r1"),
        trade(),
        trade(symbol="nope", idempotency_key="k2"),
        limit(idempotency_key="ключ"),
        cancel(target_idempotency_key="ключ"),
    )
    decide([arrival(document, offset) for offset, document in enumerate(documents)], intake_state(), changes)
    (order_id,) = (order.order_id for order in changes.orders.values() if order.status is OrderStatus.ACCEPTED)
    work = [RoutedOrder(schema_version=1, action=Action.SUBMIT, order_id=order_id, user_id="alice", attempt=1)]
    plan(work, changes, 1, 0, NO_HALTS, RULES.usd_assets)
    words = (
        told(OrderStatus.NEW),
        told(OrderStatus.PARTIALLY_FILLED, "1", "399.5"),
        told(OrderStatus.FILLED, "2", "799", {"BNB": "1"}),
    )
    for word in words:
        apply_venue_order(changes.orders[order_id], word, changes)
    return changes


def _values(changes: Changes) -> list[bytes]:
    return [output.value or b"" for output in outputs_on(changes, TOPICS.audit)]


def test_chain_has_no_gap_and_each_event_names_the_one_before() -> None:
    """`seq` counts 1, 2, 3 … and `prev_hash` is the hash before, from 64 zeros on."""
    events = [AuditEvent.model_validate_json(value) for value in _values(_life())]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[0].prev_hash == GENESIS_HASH
    assert all(after.prev_hash == before.hash for before, after in pairwise(events))
    assert len(events) > 7


def test_topic_and_database_hold_the_same_bytes() -> None:
    """The record's value is the stored body and its hash; its key is the event id."""
    changes = _life()
    for row, output in zip(changes.trail.rows, outputs_on(changes, TOPICS.audit), strict=True):
        assert output.value == row.value
        assert output.key == row.event_id.encode()
        assert orjson.loads(row.value) == {**orjson.loads(row.body), "hash": row.hash}
        assert hash_of_value(row.value) == (row.hash, row.hash)


def test_every_emitted_event_is_an_audit_event() -> None:
    """What is published validates against the contract's model, strictly, and survives being read and written."""
    for value in _values(_life()):
        event = AuditEvent.model_validate_json(value, strict=True)
        assert json.loads(event.model_dump_json(exclude_unset=True)) == json.loads(value)


def _other(value: object) -> object:
    """Another value of the same kind."""
    match value:
        case None:
            return "x"
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value + "x"
        case _:
            return ["x"]


def test_change_of_any_field_is_found() -> None:
    """Whatever field of an event is rewritten, its hash no longer fits; and without rewriting the hash too, nothing can be changed."""
    for value in _values(_life()):
        event = json.loads(value)
        for name in event:
            stated, computed = hash_of_value(json.dumps({**event, name: _other(event[name])}).encode())
            assert stated != computed, name
        for name in event.keys() - {"hash"}:
            stated, computed = hash_of_value(json.dumps({key: item for key, item in event.items() if key != name}).encode())
            assert stated != computed, name


def test_change_of_any_byte_is_found() -> None:
    """Every single byte counts: changed, it makes no JSON, or another hash."""
    value = _values(_life())[0]
    for position in range(len(value)):
        for mask in (0x01, 0x20):
            changed = bytearray(value)
            changed[position] ^= mask
            try:
                stated, computed = hash_of_value(bytes(changed))
            except ValueError:
                continue
            assert stated != computed, position


@pytest.mark.parametrize("value", [b"", b"[]", b'"x"', b"1", b"null", b"{", b"\xff"])
def test_value_that_is_no_event_is_refused(value: bytes) -> None:
    """A checker that reads rubbish says ValueError, whatever the rubbish."""
    with pytest.raises(ValueError, match=r"\w"):
        hash_of_value(value)


def test_event_of_an_account_that_was_not_locked_stops_the_batch() -> None:
    """Without the lock two workers could write the same number."""
    with pytest.raises(InvariantViolation, match="not locked"):
        AuditTrail({}, NOW).append("alice", None, EventType.USER_ADDED, {})


def test_chain_goes_on_from_its_head() -> None:
    """The next batch begins where the last one ended."""
    head = ChainHead(41, "ab" * 32)
    trail = AuditTrail({"alice": head}, NOW)
    row = trail.append("alice", None, EventType.USER_ADDED, {"actor": "test", "ts_event": NOW})
    assert (row.seq, row.event_id) == (42, "alice:42")
    assert b'"prev_hash":"' + b"ab" * 32 in row.body
    assert trail.heads["alice"] == ChainHead(42, row.hash)


def test_chains_of_two_accounts_do_not_touch() -> None:
    """Each account counts by itself."""
    trail = AuditTrail({"a": ChainHead(), "b": ChainHead()}, NOW)
    rows = [trail.append(account, None, EventType.USER_ADDED, {"actor": "t", "ts_event": NOW}) for account in "abab"]
    assert [row.event_id for row in rows] == ["a:1", "b:1", "a:2", "b:2"]


def test_event_hash_covers_amounts_in_their_one_form() -> None:
    """1.50 and 1.5 are the same amount and the same hash."""

    def hash_of(quantity: Decimal, **other: Any) -> str:
        trail = AuditTrail({"a": ChainHead()}, NOW)
        return trail.append("a", None, EventType.USER_ADDED, {"quantity": quantity, **other}).hash

    assert hash_of(Decimal("1.50")) == hash_of(Decimal("1.5"))
    assert hash_of(Decimal("1.5")) != hash_of(Decimal("1.51"))
    assert hash_of(Decimal("1.5")) != hash_of(Decimal("1.5"), ts_event=NOW + timedelta(microseconds=1))


def test_event_with_a_field_of_no_contract_does_not_validate() -> None:
    """The model is closed: a misspelt field is found by the reader's first test."""
    row = replace(_life().trail.rows[0])
    with pytest.raises(ValidationError):
        AuditEvent.model_validate_json(row.value.replace(b'"actor"', b'"actr"'))
