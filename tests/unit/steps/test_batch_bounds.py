"""The bounds of a batch: foreign records of any size are taken in parts that the database and Kafka can take, none left out."""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any, cast

import faust
import pytest
from aiokafka import ConsumerRecord, TopicPartition

from agents.steps.batch import PartitionTask, Passed
from agents.steps.isolation import Isolation
from agents.steps.step import Batch, StepRunner
from infra.kafka.transactions import PartitionProducer
from infra.kafka.transport import Chunk
from infra.postgres.database import InputPartition
from pipeline.books.changes import Changes, OutputRecord
from pipeline.model.crash_points import pass_by
from pipeline.model.quarantine import Named

_KAFKA_PARTITION = TopicPartition("trade.requests", 0)
_PARTITION = InputPartition("group", "trade.requests", 0, 1)
_MEGABYTE = 1_000_000


@dataclass
class _Event:
    acked: bool = False

    def ack(self) -> None:
        self.acked = True


@dataclass
class _Worker:
    """What a partition's task works with, all of it for show. The step waits for `go`."""

    batches: list[Batch] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    batch_size_max: int = 500
    stands: bool = False
    # What the looks at missing records say, one after another.
    looks: list[Passed | None] = field(default_factory=list)

    async def run(self, batch: Batch) -> tuple[OutputRecord, ...]:
        await self.go.wait()
        self.batches.append(batch)
        return ()

    def named(self, record: ConsumerRecord) -> Named:
        return Named()

    async def set_aside(self, *_: Any, **__: Any) -> Changes:
        raise AssertionError("nothing fails here")

    async def publish(self, outputs: tuple[OutputRecord, ...], next_offset: int) -> None:
        self.published.append(next_offset)

    async def note_published(self, _: InputPartition, __: int) -> bool:
        return True

    async def seek(self, _: TopicPartition, offset: int) -> None:
        self.calls.append(f"seek {offset}")

    async def look(self, _: InputPartition, __: TopicPartition, position: int) -> Passed | None:
        self.calls.append(f"look {position}")
        return self.looks.pop(0)

    async def stop(self) -> None:
        self.calls.append("stop")

    def task(self) -> PartitionTask:
        async def idle_position(*_: Any) -> None:
            return None

        return PartitionTask(
            kafka_partition=_KAFKA_PARTITION,
            partition=_PARTITION,
            next_offset=0,
            producer=cast("PartitionProducer", self),
            step=self,
            runner=cast("StepRunner", self),
            isolation=cast("Isolation", None),
            hold=lambda _: self.calls.append("hold"),
            resume=lambda _: self.calls.append("resume"),
            idle_position=idle_position,
            seek=self.seek,
            missing_records=self,
            stands=self.stands,
            reached=pass_by,
            fail=self.failures.append,
        )


def _record(offset: int, size: int, header_size: int) -> ConsumerRecord:
    headers = (("h", b"x" * header_size),) if header_size else ()
    return ConsumerRecord(*_KAFKA_PARTITION, offset, 0, 1, None, b"x" * size, None, -1, size, headers)


def _chunks(count: int, per_chunk: int, size: int, header_size: int = 0) -> list[Chunk]:
    return [
        Chunk(
            _KAFKA_PARTITION,
            tuple(_record(offset, size, header_size) for offset in range(start, start + per_chunk)),
            start,
            start + per_chunk,
        )
        for start in range(0, count, per_chunk)
    ]


async def _worked_off(worker: _Worker, chunks: list[Chunk]) -> None:
    """Hands all chunks over at once, then lets the task work until it has published all."""
    task = worker.task()
    events = [_Event() for _ in chunks]
    for event, chunk in zip(events, chunks, strict=True):
        task.put(cast("faust.EventT", event), chunk)
    task.start()
    worker.go.set()
    async with asyncio.timeout(60):
        while not worker.failures and (not worker.published or worker.published[-1] < chunks[-1].next_offset):
            await asyncio.sleep(0)
        await task.stop(5)
    assert not worker.failures
    assert all(event.acked for event in events)
    offsets = [record.offset for batch in worker.batches for record in batch.records]
    assert offsets == [record.offset for chunk in chunks for record in chunk.records]
    assert [0, *worker.published] == [*(batch.base_offset for batch in worker.batches), chunks[-1].next_offset]


def _sizes(worker: _Worker) -> list[int]:
    return [
        sum(len(record.value) + sum(len(text) for _, text in record.headers) for record in batch.records) for batch in worker.batches
    ]


async def test_batch_of_large_values_ends_before_it_is_too_large() -> None:
    """Megabytes are taken a few at a time, in order and all of them; small records up to the count, as many as have arrived."""
    large, small = _Worker(), _Worker()
    await _worked_off(large, _chunks(60, 1, _MEGABYTE))
    await _worked_off(small, _chunks(1_000, 250, 400))
    assert max(_sizes(large)) <= 10 * _MEGABYTE
    assert [len(batch.records) for batch in small.batches] == [500, 500]


async def test_batch_of_large_headers_ends_before_it_is_too_large() -> None:
    """Headers count as much as values: a foreign client can put its megabyte there, and a chunk is taken in parts for it."""
    worker = _Worker()
    await _worked_off(worker, _chunks(40, 20, 10, _MEGABYTE))
    assert max(_sizes(worker)) <= 10 * _MEGABYTE
    assert min(len(batch.records) for batch in worker.batches[:-1]) > 1


async def test_queue_of_large_records_stops_the_fetching_until_it_is_short() -> None:
    """More than a few batches' worth of bytes holds the partition, however few records they are; a short queue lets it go."""
    worker = _Worker()
    task = worker.task()
    chunks = _chunks(60, 1, _MEGABYTE)
    held_after = 0
    for number, chunk in enumerate(chunks, 1):
        task.put(cast("faust.EventT", _Event()), chunk)
        held_after = held_after or (number if task.held else 0)
    assert 30 < held_after < 40
    task.start()
    worker.go.set()
    async with asyncio.timeout(60):
        while not worker.published or worker.published[-1] < 60:
            await asyncio.sleep(0)
        await task.stop(5)
    assert worker.calls == ["hold", "resume", "stop"]
    assert list(itertools.accumulate(len(batch.records) for batch in worker.batches)) == worker.published


async def test_partition_without_its_next_record_stands_behind_what_was_fetched_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched before the hole is worked off first; then nothing until a look says where it goes on, and from there on."""
    monkeypatch.setattr("agents.steps.batch._GAP_LOOK_SECONDS", 0.01)
    worker = _Worker(looks=[None, None, Passed(400, ())])
    task = worker.task()
    for chunk in _chunks(10, 5, 100):
        task.put(cast("faust.EventT", _Event()), chunk)
    task.stand()
    task.start()
    worker.go.set()
    async with asyncio.timeout(60):
        while "seek 400" not in worker.calls:
            await asyncio.sleep(0)
    assert not task.stands
    task.put(cast("faust.EventT", _Event()), Chunk(_KAFKA_PARTITION, (_record(400, 10, 0),), 400, 401))
    async with asyncio.timeout(60):
        while worker.published[-1] != 401:
            await asyncio.sleep(0)
    await task.stop(5)
    assert (worker.published, worker.failures) == ([10, 400, 401], [])
    assert [call for call in worker.calls if call.startswith("look")] == ["look 10"] * 3


async def test_partition_whose_records_are_there_after_all_goes_on_where_it_was() -> None:
    """A broker that did not know its log's end yet: nothing is stored or published for it."""
    worker = _Worker(stands=True, looks=[Passed(0, None)])
    task = worker.task()
    task.start()
    async with asyncio.timeout(60):
        while "seek 0" not in worker.calls:
            await asyncio.sleep(0)
    await task.stop(5)
    assert (worker.published, worker.failures, task.stands) == ([], [], False)
