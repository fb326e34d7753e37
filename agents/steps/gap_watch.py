"""What a worker does where records of an input partition are missing: that partition stops, says so, and goes on when a person accepts it.

The other partitions go on. Nothing is skipped by itself: a record that was never read is a request that nobody has answered, an order that
nobody has sent, or a report that is made again, and only a person can tell what it is worth.

Invariants:
1. A gap counts when it is seen twice, some seconds apart: a broker that has just become leader may not know its log's end yet.
2. A gap that counted stays one until an operator accepts exactly that range (`orchestrator offsets accept-loss`).
3. Passing it is a batch without records, so that a worker that dies in the middle leaves nothing half done. At an exchange's queue the
   orders and withdrawals that still wait to be sent are queued again with it: their records may be among what was lost. One that is queued
   twice is sent once (pipeline/orders/execution).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from agents.steps.batch import Passed
from agents.steps.step import Batch, StepRunner
from infra.postgres.database import Database, InputPartition
from infra.postgres.gaps import note_gap, note_passed, open_gap
from infra.postgres.step import StepTransaction
from infra.postgres.unfinished import waiting_to_be_sent
from pipeline.books.changes import OutputRecord
from pipeline.model.gaps import Gap, gap_of
from pipeline.model.invariants import InvariantViolation, Retryable
from schemas.topics import Topics

log = structlog.get_logger(__name__)

_SECOND_LOOK_SECONDS: Final = 2.0
_LOG_RANGE_SECONDS_MAX: Final = 10.0
_SAY_AGAIN_SECONDS: Final = 60.0
# More than can wait at one exchange while its limits are kept; what is left is found by `orchestrator verify`.
_QUEUED_AGAIN_MAX: Final = 50_000

LogRange = Callable[[TopicPartition], Awaitable[tuple[int, int]]]


@dataclass(slots=True)
class _Suspicion:
    gap: Gap
    seen_since: float
    said_at: float | None = None


class GapWatch:
    """`log_range` asks the broker where a partition's log begins and ends; it raises what the client raises."""

    def __init__(
        self, *, database: Database, runner: StepRunner, topics: Topics, log_range: LogRange, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._runner = runner
        self._topics = topics
        self._log_range = log_range
        self._clock = clock
        self._suspected: dict[TopicPartition, _Suspicion] = {}

    async def stands(self, partition: InputPartition) -> bool:
        """Whether a partition that is being taken over stands at missing records. Raises Retryable when the database is out of reach."""
        return await open_gap(self._database, partition) is not None

    async def look(self, partition: InputPartition, kafka_partition: TopicPartition, position: int) -> Passed | None:
        """One look at a partition that cannot be read at its position; None while it has to stand.

        Broker and database may be away meanwhile. Call it again after some seconds.
        """
        try:
            passed = await self._look(partition, kafka_partition, position)
        except (Retryable, KafkaError, OSError, TimeoutError) as error:
            log.debug("gap_look_waits", partition=str(partition), error=str(error) or type(error).__name__)
            return None
        if passed is not None:
            self._suspected.pop(kafka_partition, None)
        return passed

    async def _look(self, partition: InputPartition, kafka_partition: TopicPartition, position: int) -> Passed | None:
        known = await open_gap(self._database, partition)
        if known is not None and known.gap.position == position and known.accepted_at is not None:
            return await self._pass(partition, known.gap, known.accepted_by or "")
        async with asyncio.timeout(_LOG_RANGE_SECONDS_MAX):
            seen = gap_of(position, *await self._log_range(kafka_partition))
        if known is None and seen is None:
            return Passed(position, None)
        if seen is not None and self._counts(kafka_partition, seen):
            await note_gap(self._database, partition, seen, self._clock())
            known = await open_gap(self._database, partition)
        if known is not None:
            self._say(partition, kafka_partition, known.gap)
        return None

    def _counts(self, kafka_partition: TopicPartition, gap: Gap) -> bool:
        before = self._suspected.setdefault(kafka_partition, _Suspicion(gap, monotonic()))
        before.gap = gap
        return monotonic() - before.seen_since >= _SECOND_LOOK_SECONDS

    def _say(self, partition: InputPartition, kafka_partition: TopicPartition, gap: Gap) -> None:
        suspicion = self._suspected.setdefault(kafka_partition, _Suspicion(gap, monotonic()))
        if suspicion.said_at is not None and monotonic() - suspicion.said_at < _SAY_AGAIN_SECONDS:
            return
        suspicion.said_at = monotonic()
        log.error(
            "partition_stopped",
            partition=str(partition),
            what=str(gap),
            money="nothing of this partition is read or sent; the others go on. What was lost is not answered",
            do=f"find the records elsewhere, or accept the loss: orchestrator offsets accept-loss {partition.topic} {partition.partition} "
            f"--from {gap.position} --to {gap.resume_at} --reason TEXT",
        )

    async def _pass(self, partition: InputPartition, gap: Gap, accepted_by: str) -> Passed:
        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            now = self._clock()
            if not await note_passed(step.connection, partition, gap.position, now):
                raise InvariantViolation(f"the missing records of {partition} are passed already, but its offset has not moved.")
            return await step.finish(gap.resume_at, await self._queued_again(step, partition), now)

        outputs = await self._runner.run(Batch(partition, (), gap.position, gap.resume_at), attempt)
        log.warning("loss_passed", partition=str(partition), what=str(gap), accepted_by=accepted_by, outputs=len(outputs))
        return Passed(gap.resume_at, outputs)

    async def _queued_again(self, step: StepTransaction, partition: InputPartition) -> tuple[OutputRecord, ...]:
        """Work for an exchange's queue again, for what waits to be sent there; nothing for the other topics."""
        if not partition.topic.startswith(self._topics.orders_prefix):
            return ()
        exchange = partition.topic.removeprefix(self._topics.orders_prefix)
        return tuple(
            OutputRecord(partition.topic, routed.user_id.encode(), routed.model_dump_json().encode())
            for routed in await waiting_to_be_sent(step.connection, exchange, _QUEUED_AGAIN_MAX)
        )
