"""What `results` shows of an answer, and which answers it shows; and how `submit` sums them up."""

from collections import Counter
from typing import Any

import pytest

from cli.show.results import ResultsOptions, result_line
from cli.show.submit import summary
from schemas.results import ResultStatus

_RESULT: dict[str, Any] = {
    "request_id": "r1", "idempotency_key": "k1", "user_id": "alice", "status": "executed", "reason_code": None, "reason": None,
    "order_id": "o1", "client_order_id": "c1", "exchange_order_id": "77", "filled_quantity": "0.01", "average_price": "39351.09",
    "final": True, "replayed": False, "decided_at": "2026-11-30T22:50:15.871799Z",
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (ResultsOptions(), True),
        (ResultsOptions(user_id="alice", status=ResultStatus.EXECUTED, final=True), True),
        (ResultsOptions(user_id="bob"), False),
        (ResultsOptions(status=ResultStatus.REJECTED), False),
        *((ResultsOptions(name=name), True) for name in ("r1", "k1", "o1", "c1", "77")),
        (ResultsOptions(name="alice"), False),
    ],
)
def test_answer_is_shown_when_it_fits_all_that_is_asked_for(options: ResultsOptions, shown: bool) -> None:
    """By user, status, and any id or key."""
    assert options.takes(_RESULT) is shown


def test_answer_that_is_not_final_is_left_out_where_final_ones_are_asked_for() -> None:
    """It will be followed by another."""
    assert not ResultsOptions(final=True).takes({**_RESULT, "final": False})


def test_line_of_an_answer_says_what_became_of_it_and_drives_no_terminal() -> None:
    """Executed: how much at which price; rejected: why; a hostile key is escaped."""
    assert result_line(_RESULT) == "2026-11-30T22:50:15.871Z  alice  k1  executed  0.01 at 39351.09  o1"
    refused = {**_RESULT, "status": "rejected", "reason_code": "USER_UNKNOWN", "reason": "who?", "idempotency_key": "\x1b[2J"}
    line = result_line(refused)
    assert "rejected  USER_UNKNOWN: who?" in line
    assert "\x1b" not in line
    assert "open (not final)" in result_line({**_RESULT, "status": "open", "final": False})


def test_summary_counts_answers_by_status_and_names_the_reasons() -> None:
    """One reason for all of a status is only named; several are counted."""
    answered = Counter({("executed", None): 2, ("rejected", "USER_UNKNOWN"): 1, ("rejected", "PRICE_INVALID"): 3, ("duplicate", "X"): 2})
    assert summary(answered) == "2 duplicate (X), 2 executed, 4 rejected (3 PRICE_INVALID, 1 USER_UNKNOWN)"
