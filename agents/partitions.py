"""The input partitions that this worker owns: taking over, recovering, handing chunks to tasks, letting go.

The order of a take-over is what makes it sound:
1. InitProducerId of the partition's transactional id: the previous owner can publish nothing more, and its open transaction is ended.
2. The fencing epoch in the database: the previous owner can store nothing more. What it stored between 1 and 2 is found now.
3. The committed offset, which nobody else can move any more.
4. Database ahead by one batch: that batch's stored outputs are published as they are.
Only then does Faust seek and read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final, TypeVar

import faust
import structlog
from aiokafka import TopicPartition

from agents.batch import Clock, PartitionTask, Step, StepRunner
from infra.kafka.transactions import PartitionProducer
from infra.kafka.transport import Chunk, CommittedOffset, OrchestratorApp
from infra.postgres.step import Database, Progress
from pipeline.crash_points import Reached
from pipeline.invariants import Retryable

log = structlog.get_logger(__name__)

T = TypeVar("T")

_RETRY_SECONDS: Final = 0.5


class OffsetsMoved(Exception):
    """The committed offset is neither where the database is nor one batch before: somebody moved it. A person must look."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`patience_seconds` is how long a take-over waits for broker and database, `drain_seconds` how long a revocation waits for a batch."""

    patience_seconds: float
    drain_seconds: float


def outputs_are_missing(partition: TopicPartition, committed: int, progress: Progress) -> bool:
    """Whether the newest batch is stored but not published. Raises OffsetsMoved when Kafka and the database tell different stories."""
    if committed == progress.next_offset:
        return False
    if committed == progress.base_offset:
        return True
    raise OffsetsMoved(
        f"the committed offset of {partition.topic}/{partition.partition} is {committed}, the database stands at {progress.next_offset} "
        f"(its newest batch began at {progress.base_offset}). Nothing is read: orders could be lost or executed twice. If the offset was "
        f"reset, set it to {progress.next_offset}; if the database or the broker was restored from a backup, see docs/operations.md."
    )


class Partitions:
    """See the module. `app` is set once the Faust app exists; `steps` has one step per input topic."""

    app: OrchestratorApp

    def __init__(
        self,
        *,
        consumer_group: str,
        database: Database,
        steps: Mapping[str, Step],
        runner: StepRunner,
        new_producer: Callable[[TopicPartition], PartitionProducer],
        limits: Limits,
        clock: Clock,
        reached: Reached,
        fail: Callable[[BaseException], None],
    ) -> None:
        self.tasks: dict[TopicPartition, PartitionTask] = {}
        self.assigned_at: float | None = None
        self._consumer_group = consumer_group
        self._database = database
        self._steps = steps
        self._runner = runner
        self._new_producer = new_producer
        self._limits = limits
        self._clock = clock
        self._reached = reached
        self._fail = fail

    async def on_assigned(self, partitions: Iterable[TopicPartition], committed: CommittedOffset) -> None:
        try:
            tasks = await asyncio.gather(
                *(self._take_over(partition, committed) for partition in sorted(partitions) if partition.topic in self._steps)
            )
        # Faust would log what is raised here and go on without the partition.
        except Exception as error:  # noqa: BLE001 — handed to `fail`, which ends the process
            self._fail(error)
            return
        self.tasks = {task.kafka_partition: task for task in tasks}
        self.assigned_at = monotonic()
        for task in tasks:
            task.start()
        log.info("partitions_assigned", partitions=sorted(str(task.partition) for task in tasks))

    def on_revoking(self) -> None:
        for task in self.tasks.values():
            task.drop()

    async def on_revoked(self) -> None:
        tasks, self.tasks = self.tasks, {}
        self.assigned_at = None
        await asyncio.gather(*(task.stop(self._limits.drain_seconds) for task in tasks.values()))
        if tasks:
            log.info("partitions_revoked", partitions=sorted(str(task.partition) for task in tasks.values()))

    def deliver(self, event: faust.EventT) -> None:
        """Hands a chunk to its partition's task; drops one that was read before the partition moved (it is read again)."""
        chunk: Chunk = event.message.value
        task = self.tasks.get(chunk.partition)
        if task is None or event.message.generation_id != self.app.consumer_generation_id:
            event.ack()
            return
        task.put(event, chunk)

    async def _take_over(self, partition: TopicPartition, committed: CommittedOffset) -> PartitionTask:
        producer = self._new_producer(partition)
        await self._patiently(producer.fence)
        owned, progress = await self._patiently(
            lambda: self._database.take_partition(self._consumer_group, partition.topic, partition.partition, self._clock())
        )
        offset = await committed(partition)
        if outputs_are_missing(partition, -1 if offset is None else offset, progress):
            log.info("republishing", partition=str(owned), outputs=len(progress.outputs), next_offset=progress.next_offset)
            await producer.publish(progress.outputs, progress.next_offset)
        return PartitionTask(
            kafka_partition=partition,
            partition=owned,
            next_offset=progress.next_offset,
            producer=producer,
            step=self._steps[partition.topic],
            runner=self._runner,
            hold=self.app.hold_partition,
            resume=self.app.resume_partition,
            idle_position=self.app.idle_position,
            reached=self._reached,
            fail=self._fail,
        )

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        give_up_at = monotonic() + self._limits.patience_seconds
        while True:
            try:
                return await call()
            except Retryable as error:
                if monotonic() > give_up_at:
                    raise
                log.warning("waiting", error=str(error), money="nothing is read or sent meanwhile")
                await asyncio.sleep(_RETRY_SECONDS)
