"""The bounds of a batch: foreign records of any size are taken in parts that the database and Kafka can take, none left out."""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any, cast

import faust
from aiokafka import ConsumerRecord, TopicPartition

from agents.batch import Batch, PartitionTask, StepRunner
from agents.isolation import Isolation
from infra.kafka.transactions import PartitionProducer
from infra.kafka.transport import Chunk
from infra.postgres.step import InputPartition
from pipeline.changes import Changes, OutputRecord
from pipeline.crash_points import pass_by
from pipeline.quarantine import Named

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

    async def stop(self) -> None:
        self.calls.append("stop")

    def task(self) -> PartitionTask:
        async def idle_position(*_: Any) -> None:
            return None

        return PartitionTask(
            kafka_partition=_KAFKA_PARTITION,
            partition=_PARTITION,
            next_offset=0,
            producer=cast(PartitionProducer, self),
            step=self,
            runner=cast(StepRunner, None),
            isolation=cast(Isolation, None),
            hold=lambda _: self.calls.append("hold"),
            resume=lambda _: self.calls.append("resume"),
            idle_position=idle_position,
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
        task.put(cast(faust.EventT, event), chunk)
    task.start()
    worker.go.set()
    async with asyncio.timeout(10):
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
        task.put(cast(faust.EventT, _Event()), chunk)
        held_after = held_after or (number if task.held else 0)
    assert 30 < held_after < 40
    task.start()
    worker.go.set()
    async with asyncio.timeout(10):
        while not worker.published or worker.published[-1] < 60:
            await asyncio.sleep(0)
        await task.stop(5)
    assert worker.calls == ["hold", "resume", "stop"]
    assert list(itertools.accumulate(len(batch.records) for batch in worker.batches)) == worker.published
