"""What a committed offset and the database's progress say together about an input partition."""

import pytest
from aiokafka import TopicPartition

from agents.steps.partitions import OffsetsMoved, outputs_are_missing
from infra.postgres.step import Progress

PARTITION = TopicPartition("trade.requests", 3)


@pytest.mark.parametrize(
    ("committed", "base_offset", "next_offset", "missing"),
    [
        (None, -1, -1, False),  # nobody has ever owned it
        (None, -1, 0, True),  # died before the first offset was committed: there is nothing to publish, but the offset
        (0, -1, 0, False),
        (0, 0, 30, True),  # died between the two commits
        (30, 0, 30, False),
        (30, 30, 57, True),
    ],
)
def test_progress_that_fits_is_told_from_progress_that_lacks_its_outputs(
    committed: int | None, base_offset: int, next_offset: int, missing: bool
) -> None:
    """Kafka is where the database is, or exactly one batch before."""
    assert outputs_are_missing(PARTITION, committed, Progress(base_offset, next_offset, (), ())) is missing


@pytest.mark.parametrize(
    ("committed", "base_offset", "next_offset", "told"),
    [
        (None, 0, 30, "has no committed offset"),
        (0, 30, 57, "set it to 57"),
        (31, 30, 57, "set it to 57"),
        (58, 30, 57, "set it to 57"),
        (500, -1, -1, "the database has never seen that partition"),
        (0, -1, -1, "the database has never seen that partition"),
    ],
)
def test_progress_that_does_not_fit_is_refused_with_what_to_do(
    committed: int | None, base_offset: int, next_offset: int, told: str
) -> None:
    """Anything else was moved by somebody: the message names the partition, both offsets, and the way out."""
    with pytest.raises(OffsetsMoved, match=r"trade\.requests/3") as raised:
        outputs_are_missing(PARTITION, committed, Progress(base_offset, next_offset, (), ()))
    assert told in str(raised.value)
