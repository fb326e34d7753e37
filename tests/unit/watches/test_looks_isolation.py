"""One order, account or exchange that cannot be looked at is left as it is, and the looks beside it go on."""

import asyncio

import pytest
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaConnectionError

from agents.steps.isolation import failure_of, halves_of, reaction_in, record_failure
from agents.steps.step import Batch
from agents.watches.looks import by_itself
from infra.kafka.transactions import CommitUnknown
from infra.metrics import LOOKS_FAILED
from infra.postgres.database import InputPartition
from infra.postgres.schema import DatabaseUnfit
from pipeline.model.invariants import Fenced, InvariantViolation, LocksMissing, MustStop, Retryable, RowUnreadable, Unpublished
from schemas.routing import ON_REPORTS

_PARTITION = InputPartition("group", "trade.requests", 0, 1)


def _count() -> float:
    return LOOKS_FAILED.labels("test")._value.get()


async def test_look_that_fails_does_not_end_those_beside_it() -> None:
    """In one group of tasks: the others end well, the failure is counted."""
    looked: list[int] = []

    async def look(number: int) -> None:
        if number == 3:
            raise KeyError("a value of some record")
        await asyncio.sleep(0)
        looked.append(number)

    before = _count()
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(by_itself("test", str(number), lambda number=number: look(number)))  # type: ignore[misc]
    assert sorted(looked) == [0, 1, 2, 4, 5]
    assert _count() == before + 1


@pytest.mark.parametrize(
    "error",
    [
        Retryable("x"), Unpublished("x"), LocksMissing("x"), Fenced("x"), MustStop("x"), DatabaseUnfit("x"), CommitUnknown("x"),
        KafkaConnectionError("x"), MemoryError(),
    ],
)
async def test_reaction_of_the_process_passes_a_look(error: Exception) -> None:
    """What a service that is away calls for is no failure of one look."""

    async def look() -> None:
        raise error

    with pytest.raises(type(error)):
        await by_itself("test", "x", look)


@pytest.mark.parametrize("error", [Retryable("x"), Fenced("x"), MustStop("x"), KafkaConnectionError("x"), DatabaseUnfit("x")])
@pytest.mark.parametrize("in_block", [True, False], ids=["in the block", "in a task of a task"])
async def test_reaction_of_the_process_in_a_group_of_tasks_passes_a_look_by_itself(error: Exception, in_block: bool) -> None:
    """A round is a group of tasks, which wraps what it raises: an outage in it is no failure of one look, and is raised as it came."""

    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(failing())

    async def failing() -> None:
        raise error

    async def look() -> None:
        async with asyncio.TaskGroup() as group:
            if in_block:
                raise error
            group.create_task(inner())

    before = _count()
    with pytest.raises(type(error)) as raised:
        await by_itself("test", "x", look)
    assert raised.value is error
    assert _count() == before


async def test_group_of_errors_about_records_fails_one_look_only() -> None:
    """It is counted, and whoever looks goes on."""

    async def look() -> None:
        async with asyncio.TaskGroup():
            raise KeyError("a value of some record")

    before = _count()
    assert await by_itself("test", "x", look) is None
    assert _count() == before + 1


def test_error_that_ends_the_worker_goes_before_one_that_is_waited_for() -> None:
    """Wherever in a group they stand, and beside whatever concerns a record."""
    fenced = Fenced("x")
    group = ExceptionGroup("tasks", [KeyError("x"), Retryable("x"), ExceptionGroup("tasks", [KafkaConnectionError("x"), fenced])])
    assert reaction_in(group) is fenced


@pytest.mark.parametrize("error", [InvariantViolation("x"), RowUnreadable("x"), KeyError("x"), RecursionError(), TypeError()])
def test_error_about_a_record_is_not_of_the_process(error: Exception) -> None:
    """These have a batch run again in halves."""
    assert reaction_in(error) is None
    assert reaction_in(ExceptionGroup("tasks", [error])) is None
    assert record_failure(error).error == type(error).__name__


def test_record_failure_raises_what_a_group_of_tasks_wraps() -> None:
    """An outage in the calls of a batch is not taken for a record that cannot be decided: it is raised as it came."""
    for reaction in (Retryable("x"), Fenced("x"), KafkaConnectionError("x")):
        for error in (reaction, ExceptionGroup("tasks", [KeyError("x"), ExceptionGroup("tasks", [reaction])])):
            with pytest.raises(type(reaction)) as raised:
                record_failure(error)
            assert raised.value is reaction


def test_failure_tells_no_value_of_a_record() -> None:
    """Only our own messages are repeated, and of those the first line: a database's further ones hold whole rows."""
    with pytest.raises(ValueError, match="secret-4711") as foreign:
        raise ValueError("secret-4711")
    assert "secret-4711" not in str(failure_of(foreign.value))
    with pytest.raises(InvariantViolation) as own:
        raise InvariantViolation("the order is not there\nDETAIL: secret-4711")
    assert str(failure_of(own.value)).endswith("the order is not there")
    with pytest.raises(ValueError, match="validation") as unread:
        ON_REPORTS.validate_json(b'{"schema_version": "secret-4711"}')
    told = failure_of(unread.value)
    assert told.text.startswith("cannot be read: ")
    assert "secret-4711" not in str(told)


def _record(offset: int) -> ConsumerRecord:
    return ConsumerRecord("trade.requests", 0, offset, 0, 1, None, b"x", None, -1, 1, ())


@pytest.mark.parametrize("offsets", [(4, 5), (4, 9, 11), tuple(range(0, 90, 3))])
def test_halves_follow_one_another_without_a_gap(offsets: tuple[int, ...]) -> None:
    """Down to single records each part begins where the one before ends, and no record is left out: also across missing offsets."""
    parts, single = [Batch(_PARTITION, tuple(map(_record, offsets)), offsets[0], offsets[-1] + 7)], []
    while parts:
        part = parts.pop()
        if len(part.records) > 1:
            parts += reversed(halves_of(part))
        else:
            single.append(part)
    assert [record.offset for part in single for record in part.records] == list(offsets)
    assert [part.base_offset for part in single] == list(offsets)
    assert [part.next_offset for part in single] == [*offsets[1:], offsets[-1] + 7]
