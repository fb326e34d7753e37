"""The exactly-once step of one input partition: decode → load → decide → persist → publish.

`PartitionTask` owns one partition from assignment to revocation. It takes whatever has arrived, up to a bound, as one batch: small and at
once when idle, larger under load. For each batch:
1. the agent's step stores everything in the database, together with what is to be published (one database transaction; the execution
   agent has one before and one after its calls),
2. the outputs and the next offset go to Kafka in one Kafka transaction,
3. the Faust events are acknowledged, so that a rebalance knows that nothing is under way.

Invariants:
1. Batches of a partition never overlap: the database is at most one batch ahead of Kafka. So the row of the partition tells a new owner
   all there is to know: Kafka has that batch, or its stored outputs are published as they are.
2. Chunks follow one another without a gap; a gap ends the process instead of skipping a record. Where the broker has no record at the
   partition's offset, the partition stands until a person has accepted the loss (agents/steps/gap_watch); the others go on.
3. What calls for a reaction of the process ends it: an outcome that is not known is not guessed here. Anything else concerns a record: the
   batch is run again in halves, each stored and published by itself, and the one record left is set aside (agents/steps/isolation).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final, Protocol

import faust
import structlog
from aiokafka import ConsumerRecord, TopicPartition

from agents.steps.isolation import Isolation, halves_of, record_failure
from agents.steps.step import Batch, Clock, Step, StepRunner
from infra.kafka.transactions import PartitionProducer
from infra.kafka.transport import Chunk
from infra.metrics import record_batch
from infra.postgres.database import InputPartition
from pipeline.books.changes import OutputRecord
from pipeline.model.crash_points import CrashPoint, Reached
from pipeline.model.invariants import MustStop
from pipeline.model.rules import Rules
from schemas.topics import Topics

log = structlog.get_logger(__name__)

_IDLE_SECONDS: Final = 0.25
# A batch of 500 requests has about 200 KB, but a foreign record can have a megabyte. What a batch publishes is one row of the database and
# one Kafka transaction, and both have a time limit: a batch that is too large for them would be tried again for ever.
_BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
# How often a partition that stands at missing records looks whether it may go on.
_GAP_LOOK_SECONDS: Final = 2.5


def _bytes_of(record: ConsumerRecord) -> int:
    """The size of a record's parts; one without key or value counts as -1 there."""
    size = int(record.serialized_key_size) + int(record.serialized_value_size)
    return size + sum(len(name) + len(text or b"") for name, text in record.headers) if record.headers else size


@dataclass(frozen=True, slots=True)
class Passed:
    """Where a partition goes on that stood at missing records. `outputs` is what the batch that moved it publishes; None where nothing was
    missing after all."""

    next_offset: int
    outputs: tuple[OutputRecord, ...] | None


class MissingRecords(Protocol):
    """What decides about a partition whose next record is not there (agents/steps/gap_watch)."""

    async def look(self, partition: InputPartition, kafka_partition: TopicPartition, position: int) -> Passed | None:
        """One look at a partition that cannot be read at its position; None while it has to stand."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """What every step needs."""

    runner: StepRunner
    topics: Topics
    rules: Rules
    clock: Clock
    reached: Reached
    isolation: Isolation


class PartitionTask:
    """One input partition in this worker. `fail` is called once with what ended it."""

    def __init__(
        self,
        *,
        kafka_partition: TopicPartition,
        partition: InputPartition,
        next_offset: int,
        producer: PartitionProducer,
        step: Step,
        runner: StepRunner,
        isolation: Isolation,
        hold: Callable[[TopicPartition], None],
        resume: Callable[[TopicPartition], None],
        idle_position: Callable[[TopicPartition, int, int], Awaitable[int | None]],
        seek: Callable[[TopicPartition, int], Awaitable[None]],
        missing_records: MissingRecords,
        stands: bool,
        reached: Reached,
        fail: Callable[[BaseException], None],
    ) -> None:
        self.kafka_partition = kafka_partition
        self.partition = partition
        self.next_offset = next_offset
        self.producer = producer
        self.busy_since: float | None = None
        self.progressed_at = monotonic()
        self._step = step
        self._runner = runner
        self._isolation = isolation
        self._batch_size_max = step.batch_size_max
        self._hold = hold
        self._resume = resume
        self._idle_position = idle_position
        self._seek = seek
        self._missing_records = missing_records
        # Whether its next record is not there, as far as is known. Nothing is fetched meanwhile.
        self.stands = stands
        self._reached = reached
        self._fail = fail
        self._queue: deque[tuple[faust.EventT, Chunk]] = deque()
        self._queued_records = 0
        self._queued_bytes = 0
        # How many records of the first chunk in the queue are done.
        self._taken_of_first = 0
        self._held = False
        # Where the next chunk must begin; -1 for a partition of which nothing was ever committed.
        self._expected_start = next_offset
        self._arrived = asyncio.Event()
        self._stopping = False
        # Whether the database does not know yet that Kafka has the newest batch. It need not; see StepRunner.note_published.
        self._unnoted = True
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether its queue is full, so that no more is fetched for now."""
        return self._held

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"partition {self.partition}")

    def put(self, event: faust.EventT, chunk: Chunk) -> None:
        """Queues a chunk. Never blocks: a full queue stops the partition's fetching instead."""
        if self._stopping:
            event.ack()
            return
        start = chunk.start_offset
        if start is None or (start != self._expected_start if self._expected_start >= 0 else start < self.next_offset):
            self._fail(
                MustStop(
                    f"records of {self.partition} from {self._expected_start} to {start} did not arrive in order. Nothing was skipped or "
                    "executed: this worker ends, and the next reads them again."
                )
            )
            return
        self._expected_start = chunk.next_offset
        self._queue.append((event, chunk))
        self._queued_records += len(chunk.records)
        self._queued_bytes += sum(map(_bytes_of, chunk.records))
        if self._queue_exceeds(4) and not self._held:
            self._held = True
            self._hold(self.kafka_partition)
        self._arrived.set()

    def stand(self) -> None:
        """Notes that the broker has no record where the consumer stands. What was fetched before is worked off first."""
        self.stands = True
        self._arrived.set()

    def _queue_exceeds(self, batches: int) -> bool:
        return self._queued_records > batches * self._batch_size_max or self._queued_bytes > batches * _BATCH_BYTES_MAX

    def drop(self) -> None:
        """Gives back what has not begun; the next owner reads it again. The batch that has begun is finished."""
        self._stopping = True
        while self._queue:
            event, _ = self._queue.popleft()
            event.ack()
        self._queued_records = 0
        self._queued_bytes = 0
        self._taken_of_first = 0
        self._arrived.set()

    async def stop(self, within_seconds: float) -> None:
        """Waits for the batch under way, then closes the producer."""
        self.drop()
        if self._task is not None:
            _, unfinished = await asyncio.wait({self._task}, timeout=within_seconds)
            if unfinished:
                self._task.cancel()
        await self.producer.stop()

    async def _run(self) -> None:
        try:
            while not self._stopping:
                taken = self._take()
                if taken is not None:
                    await self._process(*taken)
                elif self.stands:
                    await self._stand()
                else:
                    await self._idle()
            await self._note_published()
        except asyncio.CancelledError:
            raise
        # The one place where a partition's end is reported: whatever it is, the process must not go on without this partition.
        except Exception as error:  # noqa: BLE001 — handed to `fail`, which ends the process
            self._fail(error)

    def _take(self) -> tuple[Batch, list[faust.EventT]] | None:
        """The next batch, and the events that are done with it; None when nothing has arrived. A large chunk is taken in parts."""
        records: list[ConsumerRecord] = []
        events: list[faust.EventT] = []
        next_offset = self.next_offset
        taken_bytes = 0
        while self._queue and len(records) < self._batch_size_max and taken_bytes < _BATCH_BYTES_MAX:
            event, chunk = self._queue[0]
            wanted = self._batch_size_max - len(records)
            for record in chunk.records[self._taken_of_first : self._taken_of_first + wanted]:
                records.append(record)
                self._taken_of_first += 1
                taken_bytes += _bytes_of(record)
                if taken_bytes >= _BATCH_BYTES_MAX:
                    break
            if self._taken_of_first < len(chunk.records):
                next_offset = chunk.records[self._taken_of_first].offset
                break
            next_offset = chunk.next_offset
            self._queue.popleft()
            self._taken_of_first = 0
            events.append(event)
        if not records:
            return None
        self._queued_records -= len(records)
        self._queued_bytes -= taken_bytes
        if self._held and not self._queue_exceeds(2):
            self._held = False
            self._resume(self.kafka_partition)
        return Batch(self.partition, tuple(records), self.next_offset, next_offset), events

    async def _process(self, batch: Batch, done: list[faust.EventT]) -> None:
        # What is left of it, the first part last. Each part begins where the one before was published.
        parts = [batch]
        while parts:
            part = parts.pop()
            began_at = self.busy_since = monotonic()
            self._reached(CrashPoint.BATCH_TAKEN, self.partition.topic)
            outputs = await self._decided(part)
            if outputs is None:
                parts += reversed(halves_of(part))
                continue
            await self._publish(outputs, part.next_offset)
            record_batch(self.partition.topic, len(part.records), monotonic() - began_at, [record.topic for record in outputs])
        for event in done:
            event.ack()

    async def _decided(self, part: Batch) -> tuple[OutputRecord, ...] | None:
        """What a stored batch publishes; None where it must be run again in halves, as a record of it cannot be decided."""
        try:
            return await self._step.run(part)
        # Whatever a record can do to a step: nothing of the batch is stored, or the step has ended all calls that it made.
        except Exception as error:  # noqa: BLE001 — `record_failure` raises what is no record's failure
            failure = record_failure(error)
        log.warning("batch_not_decided", partition=str(self.partition), records=len(part.records), what=str(failure))
        if len(part.records) > 1:
            return None
        return await self._isolation.set_aside(self._step, part, failure)

    async def _publish(self, outputs: tuple[OutputRecord, ...], next_offset: int) -> None:
        self._reached(CrashPoint.BEFORE_KAFKA_COMMIT, self.partition.topic)
        await self.producer.publish(outputs, next_offset)
        self._reached(CrashPoint.AFTER_KAFKA_COMMIT, self.partition.topic)
        self.next_offset = next_offset
        self._unnoted = bool(outputs)
        self.busy_since = None
        self.progressed_at = monotonic()

    async def _stand(self) -> None:
        """Looks once whether the partition may go on, and where; else waits for the next look."""
        passed = await self._missing_records.look(self.partition, self.kafka_partition, self.next_offset)
        if passed is None:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_GAP_LOOK_SECONDS):
                    await self._arrived.wait()
            return
        if passed.outputs is not None:
            self.busy_since = monotonic()
            await self._publish(passed.outputs, passed.next_offset)
        self._expected_start = self.next_offset
        self.stands = False
        await self._seek(self.kafka_partition, self.next_offset)

    async def _idle(self) -> None:
        self._arrived.clear()
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                await self._arrived.wait()
        except TimeoutError:
            position = await self._idle_position(self.kafka_partition, self._expected_start, self.next_offset)
            if self._queue or self._stopping:
                return
            if position is None:
                await self._note_published()
                return
            # Only markers of transactions are left: the offset moves past them, or lag tools would never see zero.
            self.busy_since = monotonic()
            await self._runner.skip(Batch(self.partition, (), self.next_offset, position))
            await self._publish((), position)

    async def _note_published(self) -> None:
        if self._unnoted:
            self._unnoted = not await self._runner.note_published(self.partition, self.next_offset)
