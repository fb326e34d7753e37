"""What intake makes of a record: orders, rejections, dead letters."""

from dataclasses import replace
from decimal import Decimal

import pytest

from pipeline.books.changes import Changes
from pipeline.books.ledger import Balance, TransferKind
from pipeline.books.order_words import REAL_MONEY_WARNING
from pipeline.gate.ladder import PASSED_IN
from pipeline.intake import decide
from pipeline.requests.record import Arrival
from schemas.audit import AuditEvent, EventType
from schemas.orders import Mode, OrderStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, RoutedOrder
from schemas.state import ORDER_STATE
from schemas.topics import DEAD_LETTER_BYTES_MAX, DLQ_MESSAGE_BYTES_MAX
from tests.unit.builders import (
    NOW,
    TOPICS,
    USER,
    account,
    arrival,
    changes_of,
    finals_of,
    intake_state,
    limit,
    outputs_on,
    results_of,
    trade,
)

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def _decided(*arrivals: Arrival, **funds: str) -> Changes:
    changes = changes_of(funds=funds or None)
    decide(arrivals, intake_state(), changes)
    return changes


def _events(changes: Changes) -> list[AuditEvent]:
    return [AuditEvent.model_validate_json(output.value or b"") for output in outputs_on(changes, TOPICS.audit)]


def test_acceptance_carries_everything_that_was_done() -> None:
    """One event: the checks, the hold, the warning; one snapshot; one answer; one piece of work."""
    changes = _decided(arrival(limit(request_id="r"), 3))
    (order_id,) = changes.orders.made
    (event,) = _events(changes)
    assert (event.event_type, event.order_id, event.event_id) == (EventType.ORDER_ACCEPTED, order_id, f"{order_id}:1")
    assert event.checks == tuple(PASSED_IN[Mode.LIVE])
    assert [(entry.kind, entry.amount, entry.asset) for entry in event.transfers] == [("hold", 40, "USDT")]
    assert event.warning == REAL_MONEY_WARNING
    assert event.real_money
    (state,) = [ORDER_STATE.validate_json(output.value or b"") for output in outputs_on(changes, TOPICS.state)]
    assert (state.order_id, state.order_status) == (order_id, OrderStatus.ACCEPTED)
    (result,) = results_of(changes)
    assert (result.status, result.final, result.remaining_quantity) == (ResultStatus.ACCEPTED, False, changes.orders[order_id].quantity)
    (work,) = outputs_on(changes, TOPICS.orders("binance"))
    routed = RoutedOrder.model_validate_json(work.value or b"")
    assert (routed.action, routed.attempt, work.key) == (Action.SUBMIT, 1, b"alice")


@pytest.mark.parametrize(("funds", "accepted"), [("52.5", True), ("52.499999999999999999", False), ("0", False)])
def test_balance_covers_the_hold_or_nothing_is_sent(funds: str, accepted: bool) -> None:
    """The hold of 50 USDT at market with 5 % allowance is 52.5, to the last place."""
    changes = _decided(arrival(trade()), USDT=funds)
    assert (len(changes.orders.made) == 1) is accepted
    if not accepted:
        (result,) = finals_of(changes)
        assert result.reason_code is ReasonCode.BALANCE_INSUFFICIENT
        assert not changes.ledger.transfers
        assert not outputs_on(changes, TOPICS.orders("binance"))


def test_orders_of_one_batch_share_the_balance() -> None:
    """Three orders of 52.5 out of 120: two fit."""
    changes = _decided(*(arrival(trade(idempotency_key=f"k{number}"), number) for number in range(3)), USDT="120")
    assert len(changes.orders.made) == 2
    assert changes.ledger.balance(account("USDT")) == Balance(Decimal(120), Decimal(105))
    assert [transfer.kind for transfer in changes.ledger.transfers] == [TransferKind.HOLD] * 2


def test_unknown_user_is_refused_in_a_chain_of_its_own() -> None:
    """Whoever is no user gets an answer and an audit event, and no order."""
    changes = changes_of(users=("nobody",))
    decide([arrival(trade(user_id="nobody"))], intake_state(), changes)
    assert finals_of(changes)[0].reason_code is ReasonCode.USER_UNKNOWN
    assert [row.account for row in changes.trail.rows] == ["nobody"]


@pytest.mark.parametrize("value", [None, b"", b"{", b"\xff", b"[]", b"{}"])
def test_record_that_names_nobody_is_buried_and_answered_by_its_source(value: bytes | None) -> None:
    """The original key and bytes go to the dead-letter topic, and the source still gets its one final answer."""
    changes = _decided(arrival(value, 11, headers=[("x", b"1")]))
    (letter,) = outputs_on(changes, TOPICS.requests_dlq)
    assert (letter.key, letter.value) == (b"key", value)
    assert dict(letter.headers)["dlq-source"] == b"t.trade.requests/0/11"
    assert dict(letter.headers)["dlq-reason-code"] == b"SCHEMA_INVALID"
    assert dict(letter.headers)["x"] == b"1"
    (result,) = finals_of(changes)
    assert (result.user_id, result.idempotency_key, result.source.offset, result.replayed) == (None, None, 11, False)
    assert not changes.trail.rows
    assert not changes.claimed


def test_dead_letter_carries_no_secret() -> None:
    """Token and one-time password are taken out of its headers, however their names are written."""
    headers = [("Authorization", b"Bearer secret"), ("X-TOTP", b"123456"), ("authorization", b"secret"), ("other", b"kept")]
    changes = _decided(arrival(b"{", headers=headers))
    (letter,) = outputs_on(changes, TOPICS.requests_dlq)
    assert b"secret" not in repr(letter.headers).encode()
    assert b"123456" not in repr(letter.headers).encode()
    assert ("other", b"kept") in letter.headers


def test_dead_letter_of_a_huge_record_is_cut_and_says_so() -> None:
    """What a broker would not take back is shortened, with its true length beside it."""
    changes = _decided(arrival(b"x" * (DEAD_LETTER_BYTES_MAX + 5)))
    (letter,) = outputs_on(changes, TOPICS.requests_dlq)
    assert len(letter.value or b"") == DEAD_LETTER_BYTES_MAX
    assert dict(letter.headers)["dlq-bytes-in-all"] == str(DEAD_LETTER_BYTES_MAX + 5).encode()


def test_dead_letter_fits_into_its_topic_whatever_is_in_the_record() -> None:
    """Key, value and headers of any size together stay below what the broker takes for a dead letter, and say what was cut."""
    huge = b"x" * (2 * DLQ_MESSAGE_BYTES_MAX)
    record = replace(arrival(huge, headers=[("big", huge), ("authorization", b"secret")]), key=huge)
    (letter,) = outputs_on(_decided(record), TOPICS.requests_dlq)
    headers = dict(letter.headers)
    size = len(letter.key or b"") + len(letter.value or b"") + sum(len(name) + len(text) for name, text in letter.headers)
    assert size < DLQ_MESSAGE_BYTES_MAX - 64 * 1024
    assert (headers["dlq-key-bytes-in-all"], headers["dlq-bytes-in-all"], headers["dlq-headers-in-all"]) == (
        str(len(huge)).encode(), str(len(huge)).encode(), b"1",
    )  # fmt: skip


def test_oversized_record_with_a_name_is_buried_and_answered_by_key() -> None:
    """Both: the dead letter, and the final answer under user and key."""
    changes = _decided(arrival({**trade(), "padding": "x" * 70_000}))
    assert len(outputs_on(changes, TOPICS.requests_dlq)) == 1
    (result,) = finals_of(changes)
    assert (result.user_id, result.idempotency_key, result.reason_code) == ("alice", "key-1", ReasonCode.SCHEMA_INVALID)


def test_trace_context_is_passed_on_to_everything() -> None:
    """Every record that a request causes carries its traceparent."""
    changes = _decided(arrival(trade(), headers=[("traceparent", TRACE)]))
    assert all(("traceparent", TRACE) in output.headers for output in changes.outputs)
    assert _events(changes)[0].traceparent == TRACE.decode()


@pytest.mark.parametrize("value", [None, b"", b"x" * 55, TRACE.upper(), TRACE + b"0", b"\xff" * 55])
def test_trace_context_that_is_none_is_dropped(value: bytes | None) -> None:
    """A header without a value, or with another, neither stops the worker nor is passed on."""
    for document in (trade(), b"{"):
        changes = _decided(arrival(document, headers=[("traceparent", value), ("empty", None)]))
        assert changes.outputs
        assert not any(name == "traceparent" and text for output in changes.outputs for name, text in output.headers if text == TRACE)
        assert all(text is not None for output in changes.outputs for _, text in output.headers)


@pytest.mark.parametrize(
    ("amounts", "shown"),
    [({"quantity": "0.25"}, "0.25"), ({"quantity": None, "quote_quantity": "7", "price": None, "order_type": "market"}, "7")],
)
def test_rejection_is_audited_with_what_was_asked(amounts: dict[str, str | None], shown: str) -> None:
    """An auditor sees the order that was refused, by quantity or by value, and why."""
    changes = _decided(arrival(limit(symbol="DOGE/USDT", **amounts), 0))
    (event,) = _events(changes)
    assert event.quantity == Decimal(shown)
    assert (event.event_type, event.reason_code, event.symbol, event.side) == (
        EventType.REQUEST_REJECTED, ReasonCode.SYMBOL_UNKNOWN, "DOGE/USDT", "buy",
    )  # fmt: skip
    assert (event.order_id, event.event_id) == (None, "alice:1")


def test_symbol_with_a_nul_can_be_stored() -> None:
    """Whatever text a field may hold, its answer and its event are JSON without a raw NUL, which PostgreSQL could not keep."""
    changes = _decided(arrival(trade(symbol="BTC\x00USDT")))
    assert finals_of(changes)[0].reason_code is ReasonCode.SYMBOL_INVALID
    assert all(b"\x00" not in row.body for row in changes.trail.rows)


def test_producer_s_request_id_names_the_answer() -> None:
    """The result's key is the request id, given or derived, and the same for every copy of a key."""
    given = _decided(arrival(trade(request_id="mine")))
    derived = _decided(arrival(trade(), 0), arrival(trade(), 1))
    assert outputs_on(given, TOPICS.results)[0].key == b"mine"
    assert len({output.key for output in outputs_on(derived, TOPICS.results)}) == 1


def test_decision_times_are_the_batch_s() -> None:
    """`requested_at` is the broker's time, `decided_at` the decision's."""
    early = replace(arrival(trade()), appended_at=NOW)
    (result,) = results_of(_decided(early))
    assert (result.requested_at, result.decided_at, result.executed_at) == (NOW, NOW, None)


@pytest.mark.parametrize(("asks_for_codes", "failures"), [(True, 0), (False, 1)])
def test_refusal_before_the_second_factor_begins_no_cooldown(asks_for_codes: bool, failures: int) -> None:
    """Who has a stolen token and no code must not shut its owner out; where nobody is asked for a code, every refusal counts."""
    changes = changes_of()
    record = replace(arrival(trade(quantity="1000000")), needs_second_factor=asks_for_codes)
    decide([record], intake_state(), changes)
    (result,) = finals_of(changes)
    assert result.reason_code is ReasonCode.AMOUNT_ABOVE_MAXIMUM
    assert changes.conduct_of(USER).failures_in_row == failures
