"""The input partitions that this worker owns: taking over, recovering, handing chunks to tasks, letting go.

The order of a take-over is what makes it sound:
1. InitProducerId of the partition's transactional id: the previous owner can publish nothing more, and its open transaction is ended.
2. The committed offset, which nobody can move any more.
3. Whether the database agrees, before anything is changed in it: a worker that was pointed at the wrong brokers, or whose offsets somebody
   reset, must not take the partition away from those who do their work.
4. The fencing epoch in the database: the previous owner can store nothing more. What it stored between 3 and 4 is found now.
5. Database ahead by one batch: that batch's stored outputs are published as they are.
6. A partition that nobody ever owned gets its first offset committed: from then on a missing offset means that it was lost.
7. Whether it stands at missing records, as an owner before found: then it is not fetched (agents/steps/gap_watch).
Only then does Faust seek and read. Whether the broker still has the records where it seeks to, the broker says with the first fetch: the
consumer never resets an offset by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final, TypeVar

import faust
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from agents.steps.batch import PartitionTask
from agents.steps.gap_watch import GapWatch
from agents.steps.isolation import Isolation
from agents.steps.step import Batch, Clock, Step, StepRunner
from infra.kafka.transactions import PartitionProducer
from infra.kafka.transport import Chunk, CommittedOffset, OrchestratorApp
from infra.postgres.database import Database
from infra.postgres.probe import partition_progress
from infra.postgres.step import Progress, take_partition
from pipeline.model.crash_points import Reached
from pipeline.model.invariants import Retryable

log = structlog.get_logger(__name__)

T = TypeVar("T")

_RETRY_SECONDS: Final = 0.5
_COMMITTED_SECONDS_MAX: Final = 10.0
# Where a partition begins that nobody has ever owned. Records that retention removed before that are missing as any others.
_FIRST_OFFSET: Final = 0


class OffsetsMoved(Exception):
    """The committed offset is neither where the database is nor one batch before: somebody moved it. A person must look."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """`patience_seconds` is how long a take-over waits for broker and database, `drain_seconds` how long a revocation waits for a batch."""

    patience_seconds: float
    drain_seconds: float


def outputs_are_missing(partition: TopicPartition, committed: int | None, progress: Progress) -> bool:
    """Whether the newest batch is stored but not published. Raises OffsetsMoved when Kafka and the database tell different stories.

    `committed` is None where the group has no committed offset; the database says -1 before the first batch.
    """
    offset = -1 if committed is None else committed
    if offset == progress.next_offset:
        return False
    if offset == progress.base_offset:
        return True
    name = f"{partition.topic}/{partition.partition}"
    says = f"has no committed offset of {name}" if committed is None else f"has {committed} as committed offset of {name}"
    if progress.next_offset < 0:
        raise OffsetsMoved(
            f"the broker {says}, but the database has never seen that partition. Nothing is read, nothing was changed: orders that another "
            "database knows could be executed twice. Give the workers the database that belongs to this consumer group, or another "
            "ORCHESTRATOR_CONSUMER_GROUP."
        )
    raise OffsetsMoved(
        f"the broker {says}, but the database stands at {progress.next_offset} (its newest batch began at {progress.base_offset}). "
        "Nothing is read, nothing was changed: orders could be lost or executed twice. If the offset was reset, or expired, set it to "
        f"{progress.next_offset} with kafka-consumer-groups; if these are not the brokers that belong to the database, give the workers "
        "the right ones, or another ORCHESTRATOR_CONSUMER_GROUP and database; if either was restored from a backup, see docs/operations.md."
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
        isolation: Isolation,
        new_producer: Callable[[TopicPartition], PartitionProducer],
        limits: TimeLimits,
        gap_watch: GapWatch,
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
        self._isolation = isolation
        self._new_producer = new_producer
        self._limits = limits
        self._gap_watch = gap_watch
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

    def next_offsets(self) -> dict[TopicPartition, int]:
        return {partition: task.next_offset for partition, task in self.tasks.items()}

    def standing(self) -> set[TopicPartition]:
        return {partition for partition, task in self.tasks.items() if task.stands}

    def on_out_of_range(self, partition: TopicPartition) -> None:
        task = self.tasks.get(partition)
        if task is not None:
            task.stand()

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
        await self._patiently(partition, producer.fence)
        offset = await self._patiently(partition, lambda: _committed(partition, committed))
        before = await self._patiently(
            partition,
            lambda: partition_progress(self._database, self._consumer_group, partition.topic, partition.partition),
        )
        outputs_are_missing(partition, offset, before)
        owned, progress = await self._patiently(
            partition,
            lambda: take_partition(self._database, self._consumer_group, partition.topic, partition.partition, self._clock()),
        )
        if outputs_are_missing(partition, offset, progress):
            log.info("republishing", partition=str(owned), outputs=len(progress.outputs), next_offset=progress.next_offset)
            await producer.publish(progress.outputs, progress.next_offset)
        next_offset = progress.next_offset
        if next_offset < 0:
            next_offset = _FIRST_OFFSET
            await self._runner.skip(Batch(owned, (), progress.next_offset, next_offset))
            await producer.publish((), next_offset)
        stands = await self._patiently(partition, lambda: self._gap_watch.stands(owned))
        return PartitionTask(
            kafka_partition=partition,
            partition=owned,
            next_offset=next_offset,
            producer=producer,
            step=self._steps[partition.topic],
            runner=self._runner,
            isolation=self._isolation,
            hold=self.app.hold_partition,
            resume=self.app.resume_partition,
            idle_position=self.app.idle_position,
            seek=self.app.seek,
            missing_records=self._gap_watch,
            stands=stands,
            reached=self._reached,
            fail=self._fail,
        )

    async def _patiently(self, partition: TopicPartition, call: Callable[[], Awaitable[T]]) -> T:
        give_up_at = monotonic() + self._limits.patience_seconds
        while True:
            try:
                return await call()
            except Retryable as error:
                if monotonic() > give_up_at:
                    raise
                name = f"{partition.topic}/{partition.partition}"
                log.warning("waiting", partition=name, error=str(error), money="nothing of it is read or sent meanwhile")
                await asyncio.sleep(_RETRY_SECONDS)


async def _committed(partition: TopicPartition, committed: CommittedOffset) -> int | None:
    """The group's committed offset. Raises Retryable when the broker does not tell it in time."""
    try:
        async with asyncio.timeout(_COMMITTED_SECONDS_MAX):
            return await committed(partition)
    except (KafkaError, OSError, TimeoutError) as error:
        name = f"{partition.topic}/{partition.partition}"
        raise Retryable(f"the broker does not tell the committed offset of {name} ({type(error).__name__}: {error})") from error
