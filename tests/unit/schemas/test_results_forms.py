"""Results and state as they are published: readable by the contract's own adapters, the same when written again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pipeline.books.order_words import order_fields, result_of_order, state_of
from pipeline.model.invariants import InvariantViolation
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode, fix_ord_rej_reason
from schemas.results import RESULT, ResultStatus
from schemas.state import ORDER_STATE
from schemas.wire import format_time
from tests.unit.builders import NOW, TOPICS, changes_of, order_of, outputs_on

S = OrderStatus


@pytest.mark.parametrize(
    ("status", "filled", "answer", "final"),
    [
        (S.ACCEPTED, "0", ResultStatus.ACCEPTED, False),
        (S.SUBMITTING, "0", ResultStatus.ACCEPTED, False),
        (S.IN_DOUBT, "0", ResultStatus.IN_DOUBT, False),
        (S.NEW, "0", ResultStatus.OPEN, False),
        (S.PARTIALLY_FILLED, "1", ResultStatus.OPEN, False),
        (S.FILLED, "2", ResultStatus.EXECUTED, True),
        (S.CANCELED, "0", ResultStatus.CANCELED, True),
        (S.CANCELED, "1", ResultStatus.CANCELED, True),
        (S.EXPIRED, "0", ResultStatus.CANCELED, True),
        (S.EXPIRED, "1", ResultStatus.EXECUTED, True),
        (S.REJECTED, "0", ResultStatus.REJECTED, True),
    ],
)
def test_result_says_what_the_order_s_status_stands_for(status: OrderStatus, filled: str, answer: ResultStatus, final: bool) -> None:
    """One row per status; final exactly when the order is over."""
    order = order_of(status=status, cum_quantity=order_of().cum_quantity + int(filled), cum_quote=order_of().cum_quote + 100 * int(filled))
    result = result_of_order(order)
    assert (result.status, result.final, result.order_status) == (answer, final, status)
    assert RESULT.validate_json(RESULT.dump_json(result), strict=True) == result
    assert ORDER_STATE.validate_json(ORDER_STATE.dump_json(state_of(order)), strict=True) == state_of(order)


def test_result_in_bytes_has_every_field_of_the_contract() -> None:
    """Absent is null, never left out, so that a reader without a schema finds what it looks for."""
    names = [
        "schema_version", "request_id", "idempotency_key", "user_id", "type", "status", "reason_code", "reason", "order_id",
        "client_order_id", "exchange_order_id", "order_status", "filled_quantity", "average_price", "fee", "fee_asset",
        "remaining_quantity", "final", "replayed", "duplicate_of", "requested_at", "decided_at", "executed_at", "source", "mode",
    ]  # fmt: skip
    assert list(RESULT.dump_python(result_of_order(order_of()), mode="json")) == names


def test_source_is_answered_finally_once_per_batch() -> None:
    """A second final answer of one record stops the batch."""
    changes = changes_of()
    result = result_of_order(order_of(status=S.FILLED))
    changes.answer(result, None)
    with pytest.raises(InvariantViolation, match="answered twice"):
        changes.answer(replace(result, reason="another"), None)


def test_request_ends_once_per_batch() -> None:
    """A second end of one key stops the batch, also under another source."""
    changes = changes_of()
    result = result_of_order(order_of(status=S.FILLED))
    changes.tell(result, None)
    with pytest.raises(InvariantViolation, match="end twice"):
        changes.tell(replace(result, source=replace(result.source, offset=9)), None)


def test_every_answer_is_an_event_with_an_id_of_its_own() -> None:
    """CloudEvents: two progress answers of one request have two ids, the final one is `…:final`, and a repeated one repeats its id."""
    changes = changes_of()
    half = order_of(status=S.PARTIALLY_FILLED, cum_quantity=order_of().cum_quantity + 1)
    more = replace(half, cum_quantity=half.cum_quantity + half.cum_quantity / 2)
    for order in (order_of(status=S.NEW), half, half, more, order_of(status=S.FILLED)):
        changes.answer(result_of_order(order), None)
    ids = [dict(output.headers)["ce_id"] for output in outputs_on(changes, TOPICS.results)]
    assert ids[1] == ids[2]
    assert len(set(ids)) == 4
    assert ids[-1] == b"t.trade.requests/0/7:final"


def test_order_s_audit_fields_show_the_amount_that_was_asked_for() -> None:
    """By quantity or by value, whichever the request gave."""
    by_value = order_of(quantity=None, quote_quantity=order_of().hold_amount)
    assert order_fields(by_value)["quantity"] == by_value.quote_quantity
    assert order_fields(order_of())["quantity"] == order_of().quantity
    assert state_of(by_value).quantity is None


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (NOW, "2026-11-24T07:00:00.000000Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2026-01-02T03:04:05.000006Z"),
        (datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=1))), "2025-12-31T23:30:00.000000Z"),
    ],
)
def test_times_are_utc_and_sort_as_text(moment: datetime, text: str) -> None:
    """One form, 27 characters."""
    assert format_time(moment) == text


def test_time_without_a_zone_cannot_be_written() -> None:
    """A guess about the zone would be wrong somewhere."""
    with pytest.raises(ValueError, match="zone"):
        format_time(datetime(2026, 1, 1))  # noqa: DTZ001 — the point of the test


@pytest.mark.parametrize("code", ReasonCode)
def test_reason_code_has_a_category_and_a_fix_reason(code: ReasonCode) -> None:
    """`CATEGORY_CONDITION`, and FIX tag 103 or 99."""
    assert "_" in code.value
    assert code.name == code.value
    assert fix_ord_rej_reason(code) in {*range(19), 99}
