"""Cancels: what intake answers at once and what it queues."""

from datetime import timedelta
from typing import Any

import pytest

from pipeline.books.changes import Changes, Claim
from pipeline.intake import CANCELS_PENDING_MAX, decide
from pipeline.model.order import TERMINAL, Order
from schemas.orders import OrderStatus, RequestType
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, RoutedOrder
from tests.unit.builders import (
    NOW,
    RULES,
    TOPICS,
    USER,
    EveryUser,
    account,
    account_state,
    arrival,
    cancel,
    changes_of,
    finals_of,
    intake_state,
    limit,
    order_of,
    outputs_on,
)

S = OrderStatus


def _batch(order: Order | None) -> Changes:
    if order is None:
        return changes_of()
    changes = changes_of(order)
    key = (order.user_id, order.idempotency_key)
    changes.claims[key] = Claim(*key, order.source, "r1", RequestType.TRADE, "f", order.order_id, NOW, None)
    return changes


def _canceled(order: Order | None, *documents: dict[str, Any], now_after: timedelta = timedelta(0)) -> Changes:
    changes = _batch(order)
    for offset, document in enumerate(documents or (cancel(),)):
        decide([arrival(document, offset, appended_at=NOW - now_after)], intake_state(), changes)
    return changes


def test_cancel_of_an_order_that_was_not_sent_ends_it_at_once() -> None:
    """Both get their final answer, the hold is free, and nothing goes to the exchange."""
    changes = _canceled(order_of())
    answers = {result.type: result for result in finals_of(changes)}
    assert answers[RequestType.TRADE].status is ResultStatus.CANCELED
    assert answers[RequestType.CANCEL].status is ResultStatus.EXECUTED
    assert changes.ledger.balance(account("USDT")).pending == 0
    assert not outputs_on(changes, TOPICS.orders("binance"))
    assert not changes.cancels


def test_cancel_in_the_batch_of_its_order_prevents_it() -> None:
    """The queued record of the order finds it canceled."""
    changes = changes_of()
    decide([arrival(limit(), 0), arrival(cancel(), 1)], intake_state(), changes)
    (order,) = changes.orders.values()
    assert order.status is S.CANCELED
    assert changes.finished.keys() == {(USER, "key-1"), (USER, "cancel-1")}


@pytest.mark.parametrize("status", [S.SUBMITTING, S.IN_DOUBT, S.NEW, S.PARTIALLY_FILLED])
def test_cancel_of_an_order_at_the_exchange_is_queued(status: OrderStatus) -> None:
    """Nothing is answered before the exchange has said what became of it."""
    changes = _canceled(order_of(status=status))
    assert finals_of(changes) == []
    (work,) = outputs_on(changes, TOPICS.orders("binance"))
    assert RoutedOrder.model_validate_json(work.value or b"").action is Action.CANCEL
    assert len(changes.cancels_made) == 1
    assert changes.claims[USER, "cancel-1"].result is None


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_cancel_of_an_order_that_is_over_is_refused(status: OrderStatus) -> None:
    """ORDER_NOT_CANCELABLE, and the order stays as it ended."""
    changes = _canceled(order_of(status=status))
    assert finals_of(changes)[0].reason_code is ReasonCode.ORDER_NOT_CANCELABLE
    assert not changes.cancels_made


@pytest.mark.parametrize(
    ("order", "document"),
    [
        (None, cancel()),
        (order_of(), cancel(target_idempotency_key="other")),
        (order_of(user_id="bob"), cancel()),
        (order_of(), cancel(target_idempotency_key="cancel-1")),
    ],
)
def test_cancel_of_no_order_of_this_user_is_refused(order: Order | None, document: dict[str, Any]) -> None:
    """An unknown key, another user's order and a cancel itself are no orders to cancel."""
    changes = _canceled(order, document)
    assert finals_of(changes)[0].reason_code is ReasonCode.ORDER_NOT_FOUND
    assert all(kept.status is S.ACCEPTED for kept in changes.orders.values())


def test_cancel_of_an_unknown_user_is_refused() -> None:
    """Nobody's cancel cancels nothing."""
    changes = _batch(order_of())
    decide([arrival(cancel())], intake_state(accounts=EveryUser()), changes)
    assert finals_of(changes)[0].reason_code is ReasonCode.USER_UNKNOWN


@pytest.mark.parametrize("status", ["frozen", "pending"])
def test_cancel_of_a_user_who_may_not_trade_is_taken(status: str) -> None:
    """A frozen user can still reduce what stands at the exchange."""
    changes = _batch(order_of())
    decide([arrival(cancel())], intake_state(accounts=EveryUser({USER: account_state(status=status)})), changes)
    assert {result.status for result in finals_of(changes)} == {ResultStatus.CANCELED, ResultStatus.EXECUTED}


@pytest.mark.parametrize(
    ("age", "code"), [(RULES.key_lifetime, None), (RULES.key_lifetime + timedelta(microseconds=1), ReasonCode.REQUEST_STALE)]
)
def test_cancel_from_yesterday_is_refused(age: timedelta, code: ReasonCode | None) -> None:
    """An offset reset cannot cancel today's order under a key that was used again."""
    changes = _canceled(order_of(), now_after=age)
    assert finals_of(changes)[-1].reason_code is code


@pytest.mark.parametrize(("deadline", "code"), [("07:00:00", None), ("06:59:59.999999", ReasonCode.REQUEST_EXPIRED)])
def test_cancel_past_its_own_deadline_is_refused(deadline: str, code: ReasonCode | None) -> None:
    """A producer's deadline counts for cancels as well."""
    changes = _canceled(order_of(), cancel(expires_at=f"2026-11-24T{deadline}Z"))
    assert finals_of(changes)[-1].reason_code is code


def test_two_cancels_of_one_order_both_get_their_answer() -> None:
    """The second one waits for the same end; each of the three records has one final answer."""
    changes = _canceled(order_of(status=S.NEW), cancel(), cancel(idempotency_key="cancel-2"))
    assert [pending.idempotency_key for pending in changes.cancels[next(iter(changes.orders))]] == ["cancel-1", "cancel-2"]


def test_cancels_of_one_order_are_bounded() -> None:
    """A producer that sends a cancel per second does not make every look-up slower: what is too much is refused at once."""
    changes = _canceled(order_of(status=S.NEW), *(cancel(idempotency_key=f"c{number}") for number in range(CANCELS_PENDING_MAX + 2)))
    assert len(changes.cancels_made) == CANCELS_PENDING_MAX
    assert [result.reason_code for result in finals_of(changes)] == [ReasonCode.ORDER_NOT_CANCELABLE] * 2


def test_copy_of_a_cancel_is_a_duplicate() -> None:
    """A cancel has a key like every request."""
    changes = _canceled(order_of(status=S.NEW), cancel(), cancel())
    assert [result.status for result in finals_of(changes)] == [ResultStatus.DUPLICATE]
    assert len(outputs_on(changes, TOPICS.orders("binance"))) == 1
