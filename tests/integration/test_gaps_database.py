"""Missing records as the database remembers them: found twice before they count, accepted as they are, passed once."""

import asyncpg
import pytest
from aiokafka import TopicPartition

from agents.steps import gap_watch
from agents.steps.batch import Passed
from agents.steps.gap_watch import GapWatch
from agents.steps.step import StepRunner
from infra.postgres.admin.administration import ADMINISTRATION, NotDone
from infra.postgres.admin.gaps import accept_loss
from infra.postgres.admin.operators import By
from infra.postgres.database import Database, InputPartition
from infra.postgres.gaps import open_gap, open_gaps
from infra.postgres.step import open_step, take_partition
from pipeline.commands.operators import ClaimedOperator
from pipeline.model.gaps import Gap
from pipeline.model.invariants import InvariantViolation
from schemas.routing import Action, RoutedOrder
from tests.integration.step_database import EXCHANGE, GROUP, open_database, plain_connection, take_in, taken
from tests.unit.builders import NOW, TOPICS, arrival, limit

_BY = By(ClaimedOperator("olga", "root", "postgres"), NOW, "the producers send them again")


class _Log:
    """A log that begins and ends where the test says."""

    def __init__(self, start: int, end: int) -> None:
        self.range = (start, end)

    async def ask(self, _: TopicPartition) -> tuple[int, int]:
        return self.range


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_watch, "_SECOND_LOOK_SECONDS", 0.0)


def _watch(database: Database, log: _Log) -> GapWatch:
    return GapWatch(
        database=database, runner=StepRunner(database, lambda: NOW, 5), topics=TOPICS, log_range=log.ask, clock=lambda: NOW
    )


async def _standing_at(database: Database, partition: InputPartition, position: int) -> None:
    async with open_step(database, partition) as step:
        await step.finish(position, (), NOW)


def _kafka(partition: InputPartition) -> TopicPartition:
    return TopicPartition(partition.topic, partition.partition)


async def test_gap_stands_until_it_is_accepted_as_it_is_and_is_passed_once(database_url: str) -> None:
    """Restarts included; what retention deletes further meanwhile must be accepted too, and the acceptance stands in the audit trail."""
    async with open_database(database_url) as database:
        partition = await taken(database)
        await _standing_at(database, partition, 100)
        log = _Log(400, 500)
        watch = _watch(database, log)
        assert await watch.look(partition, _kafka(partition), 100) is None
        found = await open_gap(database, partition)
        assert found is not None
        assert (found.gap, found.accepted_by) == (Gap(100, 400, 500), None)
        log.range = (450, 500)
        partition = await taken(database)
        again = _watch(database, log)
        assert await again.stands(partition)
        assert await again.look(partition, _kafka(partition), 100) is None
        for wrong in ((100, 400), (99, 450), (100, 500)):
            with pytest.raises(NotDone, match="can go on at 450"):
                await accept_loss(database, GROUP, partition.topic, 0, *wrong, _BY)
        with pytest.raises(NotDone, match="No worker"):
            await accept_loss(database, GROUP, partition.topic, 1, 100, 450, _BY)
        assert (await accept_loss(database, GROUP, partition.topic, 0, 100, 450, _BY)).changed
        assert not (await accept_loss(database, GROUP, partition.topic, 0, 100, 450, _BY)).changed
        assert await again.look(partition, _kafka(partition), 100) == Passed(450, ())
        assert await open_gaps(database, GROUP) == []
        _, progress = await take_partition(database, GROUP, partition.topic, 0, NOW)
        assert (progress.base_offset, progress.next_offset) == (100, 450)
        async with plain_connection(database_url) as connection:
            events = await connection.fetch("SELECT body FROM audit_events WHERE account = $1", ADMINISTRATION)
            (event,) = events
            assert all(told in event["body"] for told in ("olga", "goes on at 450 instead of 100", "the producers send them again"))
            for change in ("UPDATE offset_gaps SET accepted_by = 'nobody'", "DELETE FROM offset_gaps"):
                with pytest.raises(asyncpg.RestrictViolationError):
                    await connection.execute(change)


async def test_gap_that_is_seen_once_only_is_none(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that has just become leader may not know its log's end yet."""
    monkeypatch.setattr(gap_watch, "_SECOND_LOOK_SECONDS", 60.0)
    async with open_database(database_url) as database:
        partition = await taken(database)
        log = _Log(0, 50)
        watch = _watch(database, log)
        assert await watch.look(partition, _kafka(partition), 100) is None
        log.range = (0, 100)
        assert await watch.look(partition, _kafka(partition), 100) == Passed(100, None)
        assert await open_gaps(database, GROUP) == []


async def test_log_that_was_cut_and_has_grown_again_still_stands(database_url: str) -> None:
    """Records at the offsets of those that vanished are others: nobody has read the first of them, and nobody takes them for read."""
    async with open_database(database_url) as database:
        partition = await taken(database)
        await _standing_at(database, partition, 100)
        log = _Log(0, 90)
        await _watch(database, log).look(partition, _kafka(partition), 100)
        log.range = (0, 200)
        watch = _watch(database, log)
        assert await watch.stands(partition)
        assert await watch.look(partition, _kafka(partition), 100) is None
        await accept_loss(database, GROUP, partition.topic, 0, 100, 90, _BY)
        with pytest.raises(InvariantViolation, match="goes back without an accepted loss"):
            async with open_step(database, partition) as step:
                await step.finish(80, (), NOW)
        assert await watch.look(partition, _kafka(partition), 100) == Passed(90, ())


async def test_loss_in_an_exchanges_queue_sends_what_waits_for_it(database_url: str) -> None:
    """An accepted order whose record was lost is queued again as the loss is passed: its funds are not held for ever."""
    async with open_database(database_url) as database:
        changes, _ = await take_in(database, await taken(database), [arrival(limit())], 1)
        (order,) = changes.orders.values()
        queue = await taken(database, topic=TOPICS.orders(EXCHANGE))
        await _standing_at(database, queue, 5)
        watch = _watch(database, _Log(7, 7))
        assert await watch.look(queue, _kafka(queue), 5) is None
        await accept_loss(database, GROUP, queue.topic, 0, 5, 7, _BY)
        passed = await watch.look(queue, _kafka(queue), 5)
        assert passed is not None
        assert passed.outputs is not None
        (record,) = passed.outputs
        assert (record.topic, record.key) == (queue.topic, order.user_id.encode())
        assert RoutedOrder.model_validate_json(record.value or b"") == RoutedOrder(
            schema_version=1, action=Action.SUBMIT, order_id=order.order_id, user_id=order.user_id, attempt=1
        )
