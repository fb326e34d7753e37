"""When what its exchange did not take is tried again, and how often."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.retries import ATTEMPTS_MAX, retry_at

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_FAR = _NOW + timedelta(days=30)


def test_pauses_grow_from_none_to_half_a_minute() -> None:
    """The first failure is repeated at once; an exchange that is away is asked more and more seldom."""
    pauses = [due and (due - _NOW).total_seconds() for due in (retry_at(attempt, _NOW, _FAR) for attempt in range(1, 10))]
    assert pauses == [None, 1, 2, 4, 8, 16, 30, 30, 30]


@given(st.integers(2, 10 * ATTEMPTS_MAX), st.integers(0, 60_000))
def test_wait_ends_with_the_deadline_and_never_shortens(attempt: int, milliseconds: int) -> None:
    """Whatever its attempts: it is looked at again when its deadline is over, so that it is answered then."""
    deadline = _NOW + timedelta(milliseconds=milliseconds)
    due = [retry_at(number, _NOW, deadline) for number in (attempt, attempt + 1)]
    for earlier, later in pairwise(due):
        assert earlier is not None
        assert later is not None
        assert _NOW <= earlier <= later <= deadline
