"""What counts as missing records, and where a partition goes on."""

import pytest

from pipeline.model.gaps import Gap, gap_of


@pytest.mark.parametrize("position", [100, 101, 200])
def test_position_within_the_log_is_no_gap(position: int) -> None:
    """At its first record, within it, and at its end, where the next record is yet to come."""
    assert gap_of(position, 100, 200) is None


@pytest.mark.parametrize(("position", "resume_at", "lost"), [(0, 100, (0, 100)), (99, 100, (99, 100)), (201, 200, (200, 201))])
def test_position_outside_of_the_log_is_a_gap(position: int, resume_at: int, lost: tuple[int, int]) -> None:
    """Deleted before it was read, or vanished after it was read."""
    gap = gap_of(position, 100, 200)
    assert gap == Gap(position, 100, 200)
    assert (gap.resume_at, gap.lost) == (resume_at, lost)
    assert str(lost[0]) in str(gap)
