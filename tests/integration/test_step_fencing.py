"""The step's row: who may write, how far the database is, and what a batch publishes."""

import asyncio
import os
from datetime import timedelta

import asyncpg
import pytest

from infra.postgres.database import InputPartition, connect
from infra.postgres.step import open_step, pack, take_partition, unpack
from pipeline.books.changes import OutputRecord
from pipeline.model.invariants import Fenced, InvariantViolation, Retryable
from tests.integration.step_database import GROUP, changes_in, counts, decide_in, open_database, plain_connection, take_in, taken
from tests.unit.builders import NOW, TOPICS, arrival, trade

OUTPUTS = (
    OutputRecord("t.a", b"key", b'{"n":1}', (("h", b"\x00\xff"), ("h", b""))),
    OutputRecord("t.b", None, b"", ()),
    OutputRecord("t.c", b"", None, (("ключ", "значение".encode()),)),
    OutputRecord("t.d", b"\xff\x00", os.urandom(70_000)),
)


# What the release before this sequence takes a partition with.
_TAKE_AS_THE_RELEASE_BEFORE = """
    INSERT INTO input_partitions (consumer_group, topic, partition, fencing_epoch, base_offset, next_offset, updated_at)
    VALUES ($1, $2, $3, 1, -1, -1, now()) ON CONFLICT (consumer_group, topic, partition)
    DO UPDATE SET fencing_epoch = input_partitions.fencing_epoch + 1 RETURNING fencing_epoch
"""


async def test_fencing_epoch_never_means_two_owners(database_url: str) -> None:
    """Owners of any partition, topic and group, one after another and at once, of this release or the one before: no epoch comes twice,
    and each owner of a partition has a higher one than the owner before."""
    async with open_database(database_url) as database, plain_connection(database_url) as old_worker:

        async def take(group: str, topic: str, partition: int) -> int:
            return (await take_partition(database, group, topic, partition, NOW))[0].fencing_epoch

        places = [(group, topic, number) for group in (GROUP, "other") for topic in (TOPICS.requests, TOPICS.reports) for number in (0, 1)]
        rounds = []
        for _ in range(3):
            rounds.append(await asyncio.gather(*(take(*place) for place in places)))
            rounds.append([await old_worker.fetchval(_TAKE_AS_THE_RELEASE_BEFORE, *place) for place in places])
    epochs = [epoch for taken_at_once in rounds for epoch in taken_at_once]
    assert len(set(epochs)) == len(epochs) == 48
    assert all(list(owners) == sorted(owners) for owners in zip(*rounds, strict=True))


async def test_partition_that_nobody_had_begins_without_progress(database_url: str) -> None:
    """Its first owner finds that nothing was ever done."""
    async with open_database(database_url) as database:
        owned, progress = await take_partition(database, GROUP, TOPICS.requests, 9, NOW)
        assert owned == InputPartition(GROUP, TOPICS.requests, 9, owned.fencing_epoch)
        assert (progress.base_offset, progress.next_offset, progress.outputs, progress.carried) == (-1, -1, (), ())


async def test_stale_epoch_writes_nothing(database_url: str) -> None:
    """A worker that lost its partition is fenced by its first statement; its batch leaves no trace."""
    async with open_database(database_url) as database:
        old = await taken(database)
        await taken(database)
        before = await counts(database_url, "claims", "orders", "transfers", "audit_events")
        with pytest.raises(Fenced, match="another worker has taken over"):
            await take_in(database, old, [arrival(trade())], 1)
        assert await counts(database_url, "claims", "orders", "transfers", "audit_events") == before


async def test_partition_that_was_never_taken_is_fenced(database_url: str) -> None:
    """No row, no owner."""
    async with open_database(database_url) as database:
        with pytest.raises(Fenced):
            async with open_step(database, InputPartition(GROUP, TOPICS.requests, 77, 1)):
                pass


async def test_take_over_waits_for_the_step_under_way_and_finds_what_it_stored(database_url: str) -> None:
    """Either the old owner's batch is stored whole before the take-over, or it is fenced: there is nothing between."""
    async with open_database(database_url) as database:
        old = await taken(database)
        async with open_step(database, old) as step:
            changes = await decide_in(step, [arrival(trade())])
            take_over = asyncio.create_task(take_partition(database, GROUP, TOPICS.requests, 0, NOW))
            await _is_waiting(database_url)
            assert not take_over.done()
            outputs = await step.finish(1, changes.outputs, NOW)
        new, progress = await take_over
        assert (new.fencing_epoch > old.fencing_epoch, progress.next_offset, progress.outputs) == (True, 1, outputs)
        with pytest.raises(Fenced):
            await take_in(database, old, [], 2)


async def _is_waiting(url: str) -> None:
    """Returns when some session of the test's database waits for a lock."""
    async with plain_connection(url) as connection, asyncio.timeout(60):
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        while not await connection.fetchval(query):
            await asyncio.sleep(0.01)


async def test_offsets_move_from_where_they_were_and_never_back(database_url: str) -> None:
    """`next_offset` becomes the base of the next batch; a batch that would go back is refused by the database."""
    async with open_database(database_url) as database:
        owned = await taken(database)
        seen = []
        for next_offset in (5, 5, 9):
            async with open_step(database, owned) as step:
                seen.append((step.progress.base_offset, step.progress.next_offset))
                await step.finish(next_offset, (), NOW)
        assert seen == [(-1, -1), (-1, 5), (5, 5)]
        with pytest.raises(InvariantViolation, match="goes back without an accepted loss"):
            async with open_step(database, owned) as step:
                await step.finish(8, (), NOW)
        async with open_step(database, owned) as step:
            assert (step.progress.base_offset, step.progress.next_offset) == (5, 9)


async def test_outputs_are_kept_byte_for_byte(database_url: str) -> None:
    """Keys, values, None and empty, repeated headers, bytes that are no text: what comes back is what was stored."""
    async with open_database(database_url) as database:
        owned = await taken(database)
        async with open_step(database, owned) as step:
            assert await step.finish(1, OUTPUTS, NOW) == OUTPUTS
        async with open_step(database, owned) as step:
            assert await step.stored_outputs() == OUTPUTS
        _, progress = await take_partition(database, GROUP, TOPICS.requests, 0, NOW)
        assert progress.outputs == OUTPUTS
        assert progress.carried == ()


async def test_outputs_of_a_batch_replace_those_before(database_url: str) -> None:
    """The row keeps one batch: it does not grow."""
    async with open_database(database_url) as database:
        owned = await taken(database)
        for next_offset, outputs in ((1, OUTPUTS), (2, OUTPUTS[:1]), (3, ())):
            async with open_step(database, owned) as step:
                await step.finish(next_offset, outputs, NOW)
        async with open_step(database, owned) as step:
            assert await step.stored_outputs() == ()


async def test_carried_outputs_are_published_first_with_the_batch_that_ends_the_step(database_url: str) -> None:
    """What an unfinished step stored outlives its worker and comes before what ends the step; then it is gone."""
    async with open_database(database_url) as database:
        first = await taken(database)
        for output in OUTPUTS[:2]:
            async with open_step(database, first) as step:
                await step.carry([output], NOW)
        second, progress = await take_partition(database, GROUP, TOPICS.requests, 0, NOW)
        assert (progress.carried, progress.outputs, progress.next_offset) == (OUTPUTS[:2], (), -1)
        async with open_step(database, second) as step:
            assert await step.finish(1, OUTPUTS[2:], NOW) == OUTPUTS
        async with open_step(database, second) as step:
            assert await step.stored_outputs() == OUTPUTS
            assert step.progress.carried == ()


def test_nothing_is_packed_as_nothing() -> None:
    """No outputs take no space, and packing is undone by unpacking."""
    assert pack(()) is None
    assert unpack(None) == ()
    assert unpack(pack(OUTPUTS)) == OUTPUTS


async def test_failing_block_rolls_everything_back(database_url: str) -> None:
    """An exception in the middle of a step stores nothing, not even the new chain of an unknown user."""
    async with open_database(database_url) as database:
        owned = await taken(database)
        before = await counts(database_url, "audit_chains", "claims", "orders", "transfers")
        with pytest.raises(ZeroDivisionError):
            async with open_step(database, owned) as step:
                await decide_in(step, [arrival(trade(user_id="stranger")), arrival(trade(), 1)])
                raise ZeroDivisionError
        assert await counts(database_url, "audit_chains", "claims", "orders", "transfers") == before


async def _terminate(url: str) -> None:
    """Cuts every connection of the pool, as a restart of the server does."""
    async with plain_connection(url) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1",
            "orchestrator-worker",
        )


async def test_lost_connection_is_retryable_and_nothing_was_stored(database_url: str) -> None:
    """A cut in the middle of a step says so by name; the same step succeeds afterwards."""
    async with open_database(database_url) as database:
        owned = await taken(database)
        with pytest.raises(Retryable, match="out of reach"):
            async with open_step(database, owned) as step:
                changes = await decide_in(step, [arrival(trade())])
                await _terminate(database_url)
                await step.finish(1, changes.outputs, NOW)
        assert (await counts(database_url, "orders", "claims")) == {"orders": 0, "claims": 0}
        changes, _ = await take_in(database, owned, [arrival(trade())], 1)
        assert len(changes.orders.made) == 1


async def test_idle_connections_that_were_cut_are_retryable_or_replaced(database_url: str) -> None:
    """After a restart of the server the pool finds its way back by itself."""
    async with open_database(database_url) as database:
        owned = await taken(database)
        await _terminate(database_url)
        for _ in range(20):
            try:
                await take_in(database, owned, [arrival(trade())], 1)
                break
            except Retryable:
                await asyncio.sleep(0.05)
        assert (await counts(database_url, "orders")) == {"orders": 1}


async def test_paused_worker_does_not_keep_its_locks(database_url: str) -> None:
    """A worker that stops in the middle of a step loses its transaction after the time limit, and the next owner goes on."""
    async with open_database(database_url, timeout_seconds=1) as slow, open_database(database_url) as other:
        owned = await taken(slow)
        with pytest.raises(Retryable):
            async with open_step(slow, owned) as step:
                await changes_in(step, ["alice"])
                taken_over, _ = await take_partition(other, GROUP, TOPICS.requests, 0, NOW)
                await step.finish(1, (), NOW)
        assert taken_over.fencing_epoch > owned.fencing_epoch
        await take_in(other, taken_over, [arrival(trade())], 1)
        with pytest.raises(Fenced):
            await take_in(slow, owned, [], 2)


async def test_database_out_of_reach_is_retryable(database_url: str) -> None:
    """A server that is not there is told as such, not as a programming error."""
    with pytest.raises(Retryable):
        await connect("postgresql://postgres@127.0.0.1:1/none", 2, 1)
    async with open_database(database_url) as database:
        await database.close()
        with pytest.raises(Retryable):
            await take_partition(database, GROUP, TOPICS.requests, 0, NOW)


async def test_error_in_a_statement_is_no_lost_connection(database_url: str) -> None:
    """A defect is not retried for half a minute: it ends the worker at once."""
    async with open_database(database_url) as database:
        with pytest.raises(asyncpg.DataError):
            async with database.connection() as connection:
                await connection.fetchval("SELECT $1::timestamptz", "no time")


async def test_steps_of_two_partitions_do_not_wait_for_each_other(database_url: str) -> None:
    """Only batches of the same users queue up."""
    async with open_database(database_url) as database:
        first, second = await taken(database, 0), await taken(database, 1)
        async with open_step(database, first) as step:
            await changes_in(step, ["alice"])
            async with asyncio.timeout(3):
                await take_in(database, second, [arrival(trade(user_id="bob"), partition=1)], 1)
            await step.finish(1, (), NOW + timedelta(seconds=1))
