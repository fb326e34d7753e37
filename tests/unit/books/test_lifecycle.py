"""How one of any kind goes from one form to its next."""

from dataclasses import replace
from itertools import product

import pytest

from pipeline.books.order_words import ORDER_LIFE
from pipeline.deposits.announcements import ANNOUNCEMENT_LIFE
from pipeline.intake import decide
from pipeline.model.invariants import InvariantViolation
from schemas.audit import AuditEvent, EventType
from schemas.orders import AnnouncementStatus, OrderStatus
from tests.unit.builders import TOPICS, arrival, cancel, changes_of, intake_state, limit, order_of, outputs_on
from tests.unit.deposit_builders import announcing


def test_each_transfer_is_carried_by_the_one_event_that_it_was_made_for() -> None:
    """Two orders of one batch, the first of which ends in it: every hold and release is told of once, by its own order's event."""
    changes = changes_of()
    words = [limit(idempotency_key="a"), limit(idempotency_key="b"), cancel(target_idempotency_key="a")]
    decide([arrival(word, offset) for offset, word in enumerate(words)], intake_state(), changes)
    events = [AuditEvent.model_validate_json(output.value or b"") for output in outputs_on(changes, TOPICS.audit)]
    carried = [(event.order_id, entry.transfer_id) for event in events for entry in event.transfers]
    assert carried == [(transfer.order_id, transfer.transfer_id) for transfer in changes.ledger.transfers]
    assert [entry.kind for event in events for entry in event.transfers] == ["hold", "hold", "release"]


def test_order_neither_is_filled_less_than_before_nor_waits_for_an_attempt_when_it_is_sent() -> None:
    """What was filled does not come back, and `retry_at` is of what is accepted alone."""
    order = order_of(status=OrderStatus.NEW, cum_quantity=1)
    changes = changes_of(order)
    with pytest.raises(InvariantViolation, match="filled quantity would fall"):
        ORDER_LIFE.advance(order, replace(order, status=OrderStatus.FILLED, cum_quantity=0), EventType.ORDER_FILLED, changes)
    assert not changes.outputs and changes.orders[order.order_id] is order
    waiting = order_of(status=OrderStatus.ACCEPTED, retry_at=changes.now)
    ORDER_LIFE.advance(waiting, replace(waiting, status=OrderStatus.SUBMITTING), EventType.ORDER_SUBMITTED, changes)
    assert changes.orders[waiting.order_id].retry_at is None


def test_announcement_ends_once_and_stays_as_it_ended() -> None:
    """It is completed or it fails; everything else is a defect, and says which step."""
    changes = changes_of()
    decide([arrival(announcing())], intake_state(), changes)
    (announced,) = changes.deposits.announcements.values()
    for before, after in product(AnnouncementStatus, repeat=2):
        was, becomes = replace(announced, status=before), replace(announced, status=after)
        if before is AnnouncementStatus.EXPECTED and after is not before:
            ANNOUNCEMENT_LIFE.require_transition(was, becomes)
        else:
            with pytest.raises(InvariantViolation, match=f"announcement {was.announcement_id} cannot go from {before} to {after}"):
                ANNOUNCEMENT_LIFE.require_transition(was, becomes)
