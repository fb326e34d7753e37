"""Promise: for one key at most one execution, whenever its records come, end and are read."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.books.changes import Changes, Claim
from pipeline.intake import decide
from schemas.results import ResultStatus
from tests.unit.builders import EXCHANGE, NOW, RULES, USER, arrival, changes_of, finals_of, limit, market_data, results_of
from tests.unit.withdrawal_builders import ALLOWED, NETWORK, asking, withdrawing_state

KEY = (USER, "key-1")
DAY = RULES.key_lifetime
# What the purge adds for clocks that differ (agents/watches/orders).
PURGE_MARGIN = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)

_edges = st.sampled_from([timedelta(0), MICROSECOND, DAY - MICROSECOND, DAY, DAY + MICROSECOND, 2 * DAY, timedelta(hours=30)])
_spans = st.one_of(_edges, st.timedeltas(timedelta(0), timedelta(days=5)))
_shifts = st.one_of(
    st.sampled_from([timedelta(0), MICROSECOND, -MICROSECOND, DAY, DAY - MICROSECOND, DAY + MICROSECOND, -timedelta(seconds=1)]),
    st.timedeltas(-timedelta(days=5), timedelta(days=5)),
)


def _decided(document: dict[str, Any], offset: int, appended_at: datetime, now: datetime, claims: dict[tuple[str, str], Claim]) -> Changes:
    changes = changes_of(now=now)
    changes.claims = dict(claims)
    state = withdrawing_state(
        networks=[replace(NETWORK, observed_at=now)],
        addresses=(replace(ALLOWED, added_at=NOW - 2 * DAY),),
        market_data={EXCHANGE: market_data(observed_at=now)},
    )
    decide([arrival(document, offset, appended_at=appended_at)], state, changes)
    return changes


@pytest.mark.parametrize("document", [limit(), asking()], ids=["trade", "withdrawal"])
@example(timedelta(0), timedelta(hours=30), -timedelta(seconds=1), timedelta(seconds=2), True)
@given(st.timedeltas(timedelta(0), timedelta(seconds=29)), _spans, _shifts, _spans, st.booleans())
def test_no_copy_is_executed_whenever_it_comes(
    document: dict[str, Any], waits: timedelta, runs: timedelta, copy_after_end: timedelta, copy_waits: timedelta, records_end: bool
) -> None:
    """A copy appended before a key's lifetime after its request's end is never executed, whenever it is read, and whatever was purged;
    one appended later is, if it is read in time. `records_end` is False for a worker that keeps no time of the end beside the result."""
    first = _decided(document, 0, NOW, NOW + waits, {})
    assert first.orders.made or first.withdrawals.made
    end = NOW + waits + runs
    appended = max(NOW, end + copy_after_end)
    read = appended + copy_waits
    claim = first.claims[KEY]
    if read >= end:
        result = replace(results_of(first)[0], status=ResultStatus.EXECUTED, final=True, executed_at=end)
        claim = replace(claim, result=result, ended_at=end if records_end else None)
    lives_from = claim.key_lives_from
    purged = lives_from is not None and lives_from <= read - 2 * DAY - PURGE_MARGIN
    later = _decided(document, 1, appended, read, {} if purged else {KEY: claim})
    executed = bool(later.orders.made or later.withdrawals.made)
    if read < end or appended < end + DAY:
        assert not executed
        assert finals_of(later)[0].final
    else:
        # Free again: what may still stop it is its own age.
        assert executed is (copy_waits <= timedelta(seconds=30))
