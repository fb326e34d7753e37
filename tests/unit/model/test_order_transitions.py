"""The table of an order's life: every pair of states."""

from dataclasses import replace
from itertools import product

import pytest

from pipeline.books.order_words import ORDER_LIFE
from pipeline.model.invariants import InvariantViolation
from pipeline.model.order import CORRECTIONS, RESTING, TERMINAL, TRANSITIONS
from schemas.orders import Mode, OrderStatus
from tests.unit.builders import NOW, order_of

S = OrderStatus

# What the design says, written out once more by hand: rows lead to columns.
_LEGAL = {
    S.RECEIVED: {S.ACCEPTED, S.REJECTED},
    S.ACCEPTED: {S.SUBMITTING, S.CANCELED, S.REJECTED},
    S.SUBMITTING: {S.ACCEPTED, S.IN_DOUBT, S.NEW, S.PARTIALLY_FILLED, S.FILLED, S.CANCELED, S.EXPIRED, S.REJECTED},
    S.IN_DOUBT: {S.NEW, S.PARTIALLY_FILLED, S.FILLED, S.CANCELED, S.EXPIRED, S.REJECTED},
    S.NEW: {S.PARTIALLY_FILLED, S.FILLED, S.CANCELED, S.EXPIRED, S.REJECTED},
    S.PARTIALLY_FILLED: {S.PARTIALLY_FILLED, S.FILLED, S.CANCELED, S.EXPIRED},
}


@pytest.mark.parametrize(("before", "after"), list(product(S, S)))
def test_order_transition_is_legal_or_stops_the_batch(before: OrderStatus, after: OrderStatus) -> None:
    """Each of the hundred pairs: legal ones pass, every other one is a defect that stops the batch and says so."""
    was, becomes = order_of(order_id="o1", status=before), order_of(order_id="o1", status=after)
    if after in _LEGAL.get(before, set()):
        ORDER_LIFE.require_transition(was, becomes)
    else:
        with pytest.raises(InvariantViolation, match=f"o1 cannot go from {before} to {after}"):
            ORDER_LIFE.require_transition(was, becomes)


@pytest.mark.parametrize(("before", "after"), list(product(sorted(TERMINAL), S)))
def test_order_leaves_an_end_only_where_the_exchange_shows_what_counted_as_not_executed(before: OrderStatus, after: OrderStatus) -> None:
    """Both must be there: that it is watched, and that it is a correction. Then it becomes what the exchange can show."""
    was, becomes = order_of(status=before), order_of(status=after)
    corrected = replace(becomes, corrected_at=NOW)
    for one, other in ((was, becomes), (replace(was, watched_until=NOW), becomes), (was, corrected)):
        with pytest.raises(InvariantViolation):
            ORDER_LIFE.require_transition(one, other)
    shown = {S.FILLED} if before is S.FILLED else {S.NEW, S.PARTIALLY_FILLED, S.FILLED, S.CANCELED, S.EXPIRED}
    assert CORRECTIONS[before] == shown
    if after in shown:
        ORDER_LIFE.require_transition(replace(was, watched_until=NOW), corrected)
    else:
        with pytest.raises(InvariantViolation):
            ORDER_LIFE.require_transition(replace(was, watched_until=NOW), corrected)


def test_simulated_order_alone_is_queued_again_after_a_doubt() -> None:
    """Nothing of it stands anywhere else."""
    was, becomes = order_of(status=S.IN_DOUBT), order_of(status=S.ACCEPTED)
    ORDER_LIFE.require_transition(replace(was, mode=Mode.PAPER), replace(becomes, mode=Mode.PAPER))
    with pytest.raises(InvariantViolation):
        ORDER_LIFE.require_transition(was, becomes)


@pytest.mark.parametrize("status", S)
def test_order_table_has_a_row_for_every_status(status: OrderStatus) -> None:
    """A new status cannot be forgotten in the table, and what is over leads nowhere."""
    assert (TRANSITIONS[status] == frozenset()) == (status in TERMINAL)
    assert not (status in TERMINAL and status in RESTING)


@pytest.mark.parametrize("status", S)
def test_order_leaves_nothing_when_it_is_over(status: OrderStatus) -> None:
    """`leaves_quantity` is what can still be filled."""
    order = order_of(status=status)
    assert order.leaves_quantity == (0 if status in TERMINAL else 2)
    assert (order.base, order.quote) == ("BTC", "USDT")


def test_every_status_is_reached_from_received() -> None:
    """No status is dead."""
    reached, ahead = {S.RECEIVED}, [S.RECEIVED]
    while ahead:
        for after in TRANSITIONS[ahead.pop()] - reached:
            reached.add(after)
            ahead.append(after)
    assert reached == set(S)
