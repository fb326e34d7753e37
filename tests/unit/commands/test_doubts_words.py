"""An operator's last word on what no look-up can prove."""

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.books.audit import ChainHead
from pipeline.books.changes import Changes
from pipeline.books.ledger import Balance
from pipeline.commands.halts import arrive_command, decide_commands
from pipeline.gate.context import AccountState
from pipeline.model.order import Order
from pipeline.model.tracked import Tracked
from pipeline.model.withdrawal import Withdrawal
from schemas.commands import COMMANDS_ACCOUNT
from schemas.orders import Mode, OrderStatus, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.wire import SourceOffset
from tests.unit.builders import NOW, ORDER_ID, RULES, TOPICS, USER, account, changes_of, finals_of, order_of
from tests.unit.withdrawal_builders import withdrawal_of

SMALL = order_of(status=OrderStatus.IN_DOUBT, usd_value=Decimal(1_000))
LARGE = replace(SMALL, usd_value=Decimal("1000.01"))
EXECUTED = {"command": "resolve_executed", "quantity": "2", "cost": "190", "fees": [{"asset": "BTC", "amount": "0.002"}]}


def _word(operator: str = "olga", **fields: Any) -> dict[str, Any]:
    given = {"command": "resolve_not_executed", "command_id": f"c-{operator}", "operator": operator, "target_id": ORDER_ID, **fields}
    return {"schema_version": 1, "reason": "asked the exchange", "evidence": "ticket 77", **given}


def _decided(subject: Order | Withdrawal, *words: dict[str, Any]) -> Changes:
    heads = {name: ChainHead() for name in (USER, "olga", "otto", COMMANDS_ACCOUNT)}
    changes = changes_of(*([subject] if isinstance(subject, Order) else []), heads=heads)
    if isinstance(subject, Withdrawal):
        changes.withdrawals = Tracked({subject.withdrawal_id: subject})
        held = account(subject.asset, subject.user_id)
        changes.ledger.balances[held] = Balance(subject.hold_amount, subject.hold_amount)
    arrivals = [
        arrive_command(SourceOffset(TOPICS.commands, 0, number), NOW, json.dumps(word).encode(), [], None)
        for number, word in enumerate(words)
    ]
    decide_commands(arrivals, {name: AccountState(name, None) for name in (USER, "olga", "otto")}, changes, RULES)
    return changes


def _events(changes: Changes, account_name: str) -> list[dict[str, Any]]:
    return [json.loads(row.body) for row in changes.trail.rows if row.account == account_name]


def test_word_that_it_was_not_executed_ends_the_order_and_watches_it() -> None:
    """Its funds are free, its producer decides, and what the exchange shows within a day corrects it."""
    changes = _decided(SMALL, _word())
    (result,) = finals_of(changes)
    assert (result.status, result.reason_code) == (ResultStatus.REJECTED, ReasonCode.ORDER_NOT_EXECUTED)
    assert "olga found that it was not executed: ticket 77" in (result.reason or "")
    order = changes.orders[ORDER_ID]
    assert (order.hold_amount, order.watched_until) == (0, NOW + timedelta(hours=24))
    (event,) = _events(changes, "olga")
    assert (event["event_type"], event["request_id"]) == ("OPERATOR_DECIDED", "c-olga")
    assert event["evidence"][0] == "ticket 77"
    assert "agreed by olga" in event["evidence"]


@pytest.mark.parametrize(("quantity", "status"), [("2", OrderStatus.FILLED), ("0.5", OrderStatus.CANCELED)])
def test_word_that_it_was_executed_books_the_figures(quantity: str, status: OrderStatus) -> None:
    """As if the exchange had told them; what is left of the hold is free, and the order is watched."""
    changes = _decided(SMALL, _word(**{**EXECUTED, "quantity": quantity, "exchange_id": "x9"}))
    order = changes.orders[ORDER_ID]
    assert (order.status, order.cum_quantity, order.cum_quote, order.exchange_order_id) == (status, Decimal(quantity), Decimal(190), "x9")
    assert order.watched_until == NOW + timedelta(hours=24)
    assert changes.ledger.balances[account("BTC")].posted == Decimal(100) + Decimal(quantity) - Decimal("0.002")
    assert changes.ledger.balances[account("USDT")].pending == 0
    (result,) = finals_of(changes)
    assert result.filled_quantity == Decimal(quantity)


def test_word_above_the_amount_needs_a_second_operator_who_says_the_same() -> None:
    """The first changes nothing; neither does the same operator again, nor another figure; the second names both."""
    words = [_word(**EXECUTED), _word(**EXECUTED, ), _word("otto", **{**EXECUTED, "cost": "191"})]
    changes = _decided(LARGE, *words)
    assert changes.orders[ORDER_ID] == LARGE
    assert not finals_of(changes)
    assert changes.proposals[ORDER_ID].operator == "otto"
    assert [event["event_type"] for event in _events(changes, "olga")] == ["OPERATOR_DECIDED"] * 2
    changes = _decided(LARGE, _word(**EXECUTED), _word("otto", **EXECUTED))
    assert changes.orders[ORDER_ID].status is OrderStatus.FILLED
    (event,) = _events(changes, "otto")
    assert {"agreed by olga", "agreed by otto"} <= set(event["evidence"])


@pytest.mark.parametrize(
    ("subject", "word", "code"),
    [
        (SMALL, {"target_id": "o-unknown"}, "ORDER_NOT_FOUND"),
        (SMALL, {"operator": USER}, "APPROVAL_NOT_ALLOWED"),
        (SMALL, {**EXECUTED, "quantity": "2.1"}, "SCHEMA_INVALID"),
        (replace(SMALL, mode=Mode.PAPER), {}, "APPROVAL_NOT_PENDING"),
        (order_of(status=OrderStatus.NEW), {}, "APPROVAL_NOT_PENDING"),
        (SMALL, {"quantity": "1"}, "SCHEMA_INVALID"),
        (SMALL, {**EXECUTED, "quantity": "0"}, "SCHEMA_INVALID"),
        (SMALL, {"command": "resolve_executed"}, "SCHEMA_INVALID"),
        (SMALL, {"evidence": ""}, "SCHEMA_INVALID"),
    ],
)
def test_word_that_cannot_be_is_refused_and_changes_nothing(subject: Order, word: dict[str, Any], code: str) -> None:
    """It is audited with its reason, and the order is as it was."""
    changes = _decided(subject, _word(**word))
    assert changes.orders[ORDER_ID] == subject
    assert [json.loads(row.body)["reason_code"] for row in changes.trail.rows] == [code]


def test_word_on_a_withdrawal_in_doubt() -> None:
    """Not paid out: its funds are free. Paid out: what left is posted, under the exchange's id, which is needed."""
    doubtful = withdrawal_of(status=WithdrawalStatus.IN_DOUBT, usd_value=Decimal(10))
    target = {"target_id": doubtful.withdrawal_id}
    ended = _decided(doubtful, _word(**target)).withdrawals[doubtful.withdrawal_id]
    assert (ended.status, ended.hold_amount, ended.reason_code) == (WithdrawalStatus.REJECTED, 0, ReasonCode.ORDER_NOT_EXECUTED)
    figures = {"command": "resolve_executed", "quantity": f"{doubtful.amount:f}", "cost": f"{doubtful.fee:f}"}
    assert _decided(doubtful, _word(**target, **figures)).withdrawals[doubtful.withdrawal_id] == doubtful
    paid = _decided(doubtful, _word(**target, **figures, exchange_id="e1")).withdrawals[doubtful.withdrawal_id]
    assert (paid.status, paid.exchange_withdrawal_id, paid.hold_amount) == (WithdrawalStatus.COMPLETED, "e1", 0)
