"""What a step is: what an agent does with one batch of records, and how its database transactions are run.

`StepRunner` is the one place that tries a step's transaction again. Whatever it raises in the end is a reaction of the process or concerns
a record (agents/steps/isolation).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final, Protocol, TypeVar

import structlog
from aiokafka import ConsumerRecord

from infra.postgres.database import Database, InputPartition
from infra.postgres.step import StepTransaction, open_step
from pipeline.books.changes import Changes, OutputRecord
from pipeline.model.invariants import LocksMissing, MustStop, Retryable, Unpublished
from pipeline.model.quarantine import InputRecord, Named

log = structlog.get_logger(__name__)

T = TypeVar("T")
Clock = Callable[[], datetime]

_UNPUBLISHED_SECONDS: Final = 0.05
_RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one partition, in order. The database stands at `base_offset` before the batch and at `next_offset` after it."""

    partition: InputPartition
    records: tuple[ConsumerRecord, ...]
    base_offset: int
    next_offset: int


class Step(Protocol):
    """What an agent does with a batch: everything up to and including the database transaction that ends it."""

    @property
    def batch_size_max(self) -> int:
        """The most records that it takes at once."""

    async def run(self, batch: Batch) -> tuple[OutputRecord, ...]:
        """Stores the batch and returns what it publishes."""

    def named(self, record: ConsumerRecord) -> Named:
        """What a record is about. May raise whatever reading it raises."""

    async def set_aside(self, transaction: StepTransaction, batch: Batch, record: InputRecord, *, sparing: bool) -> Changes:
        """What must be said and stored of the one record of a batch that cannot be decided, its source's answer included.

        Locks `QUARANTINE_ACCOUNT` with all else. `sparing`: loads nothing of the user whom the record names.
        """


class StepRunner:
    """Runs database transactions of a step, again while the database is out of reach, within a bound."""

    def __init__(self, database: Database, clock: Clock, patience_seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._patience = patience_seconds

    async def run(self, batch: Batch, attempt: Callable[[StepTransaction], Awaitable[T]]) -> T | tuple[OutputRecord, ...]:
        """Runs `attempt` in a transaction that holds the partition. Raises Retryable when the database stays away too long.

        Returns the stored outputs instead when an earlier attempt turns out to have been committed after all.
        """
        give_up_at = monotonic() + self._patience
        tries = 0
        while True:
            try:
                async with open_step(self._database, batch.partition) as step:
                    if step.progress.next_offset == batch.next_offset:
                        return await step.stored_outputs()
                    if step.progress.next_offset != batch.base_offset:
                        raise MustStop(
                            f"the database has {batch.partition} at {step.progress.next_offset}, this worker at {batch.base_offset}. "
                            "Nothing was written. Two installations may share this database and consumer group: see `orchestrator doctor`."
                        )
                    return await attempt(step)
            except LocksMissing:
                if monotonic() > give_up_at:
                    raise
            except Unpublished:
                if monotonic() > give_up_at:
                    raise
                # Others may wait for this partition's batch before, which Kafka has; nobody must wait in a circle.
                await self.note_published(batch.partition, batch.base_offset)
                await asyncio.sleep(_UNPUBLISHED_SECONDS)
            except Retryable as error:
                pause = _RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)]
                if monotonic() + pause > give_up_at:
                    raise
                if tries == 0:
                    log.warning("waiting_for_database", partition=str(batch.partition), error=str(error), money="nothing is sent meanwhile")
                tries += 1
                await asyncio.sleep(pause)

    async def skip(self, batch: Batch) -> None:
        """Moves an idle partition past transaction markers: a batch without records."""

        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            return await step.finish(batch.next_offset, (), self._clock())

        await self.run(batch, attempt)

    async def note_published(self, partition: InputPartition, next_offset: int) -> bool:
        """Notes that Kafka has the newest batch, which ends at `next_offset`; False when the database is out of reach. Tries once.

        Without the note a committed offset that somebody sets back to where that batch began looks like a death between the two commits.
        """
        try:
            async with open_step(self._database, partition) as step:
                if step.progress.next_offset == next_offset and not step.progress.carried:
                    await step.finish(next_offset, (), self._clock())
        except Retryable:
            return False
        return True
