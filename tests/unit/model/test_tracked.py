"""The rows of one kind in one batch."""

import pytest

from pipeline.model.invariants import InvariantViolation
from pipeline.model.tracked import Tracked


def test_row_is_written_once_in_its_newest_form() -> None:
    """What the batch has made is made in the form that it has at the end, and is not changed besides."""
    rows = Tracked({"known": 1, "same": 1})
    rows.make("fresh", 1)
    rows.keep("fresh", 2)
    rows.keep("known", 2)
    assert (rows.made, rows.changed) == ({"fresh"}, {"known"})
    assert rows == {"known": 2, "same": 1, "fresh": 2} and len(rows) == 3


def test_row_that_is_there_is_not_made_again() -> None:
    """An update of what changes would else hide that it was decided twice."""
    rows = Tracked({"known": 1})
    with pytest.raises(InvariantViolation, match="known is there already"):
        rows.make("known", 2)
    assert rows["known"] == 1 and not rows.made
