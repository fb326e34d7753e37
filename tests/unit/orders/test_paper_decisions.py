"""What the pipeline decides about simulated orders, and that none of it touches what is real."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.books.changes import Changes
from pipeline.books.ledger import AccountKey, Balance
from pipeline.gate.context import OpenOrder
from pipeline.gate.ladder import PASSED_IN
from pipeline.intake import decide
from pipeline.model.absence import absence_is_proven
from pipeline.model.conduct import Conduct
from pipeline.model.halts import NO_HALTS
from pipeline.model.order import Order
from pipeline.model.venue import Refused
from pipeline.orders.execution import INTERRUPTED, conclude, plan, reference_of
from pipeline.orders.settlement import apply_report, apply_venue_order
from pipeline.requests.intake_state import IntakeState
from schemas.audit import AuditEvent, EventType
from schemas.orders import Mode, OrderStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, Report, RoutedOrder
from tests.unit.builders import (
    EXCHANGE,
    NOW,
    ORDER_ID,
    RULES,
    TOPICS,
    USER,
    account_state,
    arrival,
    cancel,
    changes_of,
    finals_of,
    intake_state,
    limit,
    order_of,
    outputs_on,
    results_of,
    sale_of,
    told,
    trade,
)
from tests.unit.gate_builders import open_order

_PAPER_USDT = AccountKey(USER, EXCHANGE, "paper", "USDT")
_FAILED = Conduct(failures_in_row=2, failed_at=NOW - timedelta(seconds=1))


def _changes(live: str = "0", paper: str = "1000") -> Changes:
    """A batch of a user with so many US dollars in either book."""
    changes = changes_of(funds={"USDT": live})
    changes.ledger.balances[_PAPER_USDT] = Balance(Decimal(paper))
    return changes


def _decided(changes: Changes, *documents: dict[str, Any], state: IntakeState | None = None, **of_arrival: Any) -> Changes:
    arrivals = [replace(arrival(document, offset), **of_arrival) for offset, document in enumerate(documents)]
    decide(arrivals, state or intake_state(), changes)
    return changes


def _paper(**fields: Any) -> Order:
    return order_of(**{"mode": Mode.PAPER, **fields})


def _with(order: Order) -> Changes:
    changes = changes_of(order)
    held = changes.ledger.balances
    if order.hold_amount:
        held[_PAPER_USDT] = Balance(order.hold_amount, order.hold_amount)
    return changes


def _events(changes: Changes) -> list[AuditEvent]:
    return [AuditEvent.model_validate_json(output.value or b"") for output in outputs_on(changes, TOPICS.audit)]


def test_paper_order_is_accepted_without_second_factor_or_key_and_marked() -> None:
    """No code, no key stored, a user who waits for verification: held in the book `paper`, and marked in all that is said of it."""
    state = intake_state(accounts={USER: account_state(status="pending")}, api_keys={})
    changes = _decided(_changes(), trade(mode="paper"), state=state, needs_second_factor=True)
    (order,) = changes.orders.values()
    assert (order.status, order.mode) == (OrderStatus.ACCEPTED, Mode.PAPER)
    assert changes.ledger.balances[_PAPER_USDT].pending == order.hold_amount > 0
    assert {transfer.debit.book for transfer in changes.ledger.transfers} == {"paper"}
    (accepted,) = (event for event in _events(changes) if event.event_type is EventType.ORDER_ACCEPTED)
    assert (accepted.real_money, accepted.warning) == (False, None)
    assert accepted.checks == tuple(PASSED_IN[Mode.PAPER])
    assert set(PASSED_IN[Mode.LIVE]) - set(accepted.checks) == {
        "api_key_is_known", "api_key_is_usable", "api_key_may_trade", "activity_is_not_suspicious"
    }  # fmt: skip
    assert [result.mode for result in results_of(changes)] == [Mode.PAPER]


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"needs_second_factor": True}, {}),
        ({}, {"api_keys": {}}),
        ({}, {"accounts": {USER: account_state(status="pending")}}),
    ],
)
def test_real_order_still_needs_all_of_that(changes: dict[str, Any], state: dict[str, Any]) -> None:
    """What is left out for simulated money is left out for nothing else."""
    decided = _decided(_changes(live="1000"), trade(), state=intake_state(**state), **changes)
    (answer,) = finals_of(decided)
    assert (answer.status, answer.mode) == (ResultStatus.REJECTED, Mode.LIVE)


@pytest.mark.parametrize("status", ["frozen", "closed", None])
def test_paper_order_needs_an_active_user(status: str | None) -> None:
    """Waiting for verification is the one state that simulated money makes up for."""
    state = intake_state(accounts={USER: account_state(status=status)})
    (answer,) = finals_of(_decided(_changes(), trade(mode="paper"), state=state))
    assert (answer.status, answer.mode) == (ResultStatus.REJECTED, Mode.PAPER)


@pytest.mark.parametrize(("mode", "live", "paper"), [("paper", "1000", "10"), ("live", "10", "1000")])
def test_order_is_paid_from_the_book_of_its_mode_alone(mode: str, live: str, paper: str) -> None:
    """Funds of the other book do not help."""
    (answer,) = finals_of(_decided(_changes(live, paper), trade(mode=mode)))
    assert answer.reason_code is ReasonCode.BALANCE_INSUFFICIENT
    assert not _decided(_changes(paper, live), trade(mode=mode)).claims[USER, "key-1"].result


def test_paper_order_counts_in_no_limit_of_real_orders() -> None:
    """Volume, trades, open orders, recent orders and known symbols are as before; the user's real order passes every limit of one."""
    limits: dict[str, Any] = {"hourly_trades_max": 1, "open_orders_max": 1, "duplicate_window": timedelta(minutes=1)}
    limits["daily_volume_usd_max"] = Decimal(60)
    account = account_state(limits=replace(account_state().limits, **limits))
    changes = _changes(live="1000")
    _decided(changes, trade(mode="paper"), trade(idempotency_key="key-2"), state=intake_state(accounts={USER: account}))
    assert {order.mode for order in changes.orders.values()} == set(Mode)
    assert (account.usage.trades_1h, account.usage.volume_24h_usd) == (1, Decimal(50))
    assert ([order.order_id for order in account.open_orders], len(account.open_paper_orders)) == (
        [order.order_id for order in changes.orders.values() if order.mode is Mode.LIVE], 1
    )  # fmt: skip
    assert changes.symbols_new == {(USER, "BTC/USDT")}
    assert not _decided(_changes(), trade(mode="paper")).symbols_new


@pytest.mark.parametrize(("mode", "accepted"), [("live", False), ("paper", True)])
def test_order_trades_with_own_orders_of_its_mode_alone(mode: str, accepted: bool) -> None:
    """A simulated order cannot meet a real one."""
    resting: list[OpenOrder] = [open_order()]
    account = account_state(open_orders=resting)
    changes = _changes(live="1000")
    changes.ledger.balances |= {AccountKey(USER, EXCHANGE, book, "BTC"): Balance(Decimal(1)) for book in ("live", "paper")}
    _decided(changes, trade(mode=mode, side="sell"), state=intake_state(accounts={USER: account}))
    assert bool(changes.orders) is accepted


def test_open_paper_orders_are_bounded() -> None:
    """By the same limit, among themselves."""
    limits = replace(account_state().limits, open_orders_max=1)
    account = account_state(limits=limits)
    changes = _decided(
        _changes(), limit(mode="paper"), limit(mode="paper", idempotency_key="key-2"), state=intake_state(accounts={USER: account})
    )
    assert [result.reason_code for result in finals_of(changes)] == [ReasonCode.OPEN_ORDERS_EXCEEDED]


def test_paper_failures_do_not_lead_to_a_cooldown() -> None:
    """A refusal in mode `paper` is no failure of real trading, and an execution does not make up for one."""
    account = account_state(conduct=_FAILED)
    _decided(_changes(paper="0"), trade(mode="paper"), state=intake_state(accounts={USER: account}))
    assert (account.conduct.failures_in_row, account.conduct.failed_at) == (2, _FAILED.failed_at)
    changes = _with(_paper(status=OrderStatus.SUBMITTING))
    changes.conduct[USER] = _FAILED
    apply_venue_order(changes.orders[ORDER_ID], told(OrderStatus.NEW), changes)
    assert changes.conduct[USER] == _FAILED
    real = changes_of(order_of(status=OrderStatus.SUBMITTING))
    real.conduct[USER] = _FAILED
    apply_venue_order(real.orders[ORDER_ID], told(OrderStatus.NEW), real)
    assert real.conduct[USER] != _FAILED


@pytest.mark.parametrize(("mode", "counts"), [(Mode.LIVE, 1), (Mode.PAPER, 0)])
def test_paper_sale_realises_no_result(mode: Mode, counts: int) -> None:
    """No loss of simulated money counts against the loss limit."""
    sale = sale_of(mode=mode, status=OrderStatus.SUBMITTING, usd_rate=Decimal(1))
    changes = changes_of(sale)
    account = AccountKey(USER, EXCHANGE, mode.value, "BTC")
    changes.ledger.balances[account] = Balance(Decimal(2), Decimal(2), Decimal(2), Decimal(400))
    apply_venue_order(sale, told(OrderStatus.FILLED, "2", "200"), changes)
    assert len(changes.realised) == counts


@pytest.mark.parametrize(("named", "is_canceled"), [("paper", True), ("live", False)])
def test_cancel_names_the_mode_of_its_order(named: str, is_canceled: bool) -> None:
    """Neither a test ends a real order by mistake, nor the other way round."""
    changes = _decided(_changes(), limit(mode="paper"), cancel(mode=named))
    (order,) = changes.orders.values()
    assert (order.status is OrderStatus.CANCELED) is is_canceled
    codes = [result.reason_code for result in finals_of(changes) if result.idempotency_key == "cancel-1"]
    assert codes == [None if is_canceled else ReasonCode.ORDER_NOT_FOUND]


def test_interrupted_paper_order_is_in_doubt_then_absent_at_once_and_queued_again() -> None:
    """Nothing but its stored outcome executes it; so nobody has to wait for a horizon."""
    changes = _with(_paper(status=OrderStatus.SUBMITTING, submitting_at=NOW))
    routed = RoutedOrder(schema_version=1, action=Action.SUBMIT, order_id=ORDER_ID, user_id=USER, attempt=1)
    assert not plan([routed], changes, 4, 0, NO_HALTS, RULES.usd_assets).submissions
    order = changes.orders[ORDER_ID]
    assert (order.status, order.reason) == (OrderStatus.IN_DOUBT, INTERRUPTED[Mode.PAPER])
    assert absence_is_proven(order, NOW, RULES)
    assert not absence_is_proven(replace(order, mode=Mode.LIVE), NOW, RULES)
    absent = Report(schema_version=1, order_id=ORDER_ID, user_id=USER, attempt=1, found=False, looked_up_at=NOW)
    apply_report(absent, changes, RULES)
    assert changes.orders[ORDER_ID].status is OrderStatus.ACCEPTED
    (again,) = outputs_on(changes, TOPICS.orders(EXCHANGE))
    assert RoutedOrder.model_validate_json(again.value or b"").attempt == 2


@pytest.mark.parametrize(("deadline", "status"), [(timedelta(microseconds=1), OrderStatus.ACCEPTED), (timedelta(0), OrderStatus.REJECTED)])
def test_interrupted_paper_order_is_queued_again_within_its_deadline_alone(deadline: timedelta, status: OrderStatus) -> None:
    """At its deadline it ends, and its funds are free."""
    changes = _with(_paper(status=OrderStatus.IN_DOUBT, submitting_at=NOW, expires_at=NOW + deadline))
    apply_report(Report(schema_version=1, order_id=ORDER_ID, user_id=USER, attempt=1, found=False, looked_up_at=NOW), changes, RULES)
    order = changes.orders[ORDER_ID]
    assert order.status is status
    assert (changes.ledger.balances[_PAPER_USDT].pending == 0) is (status is OrderStatus.REJECTED)


def test_refused_key_is_never_noted_for_a_paper_order_s_user_by_conduct() -> None:
    """An end that the simulation gives says nothing about the user's exchange."""
    changes = _with(_paper(status=OrderStatus.SUBMITTING))
    changes.conduct[USER] = _FAILED
    conclude({ORDER_ID: Refused(ReasonCode.EXCHANGE_REFUSED, "x")}, {}, changes, RULES)
    assert (changes.conduct[USER], changes.keys_refused) == (_FAILED, {})


def test_reference_brings_the_terms_of_paper_orders_alone() -> None:
    """An exchange has a real order in its books."""
    assert reference_of(_paper()).paper is not None
    assert reference_of(order_of()).paper is None
    assert reference_of(_paper(price=None)).paper is None
