"""Isolation: one record that cannot be decided is set aside, and everything else goes on.

When a step raises what is no reaction of the process, `PartitionTask` runs the batch again in halves, each a batch of its own that is
stored and published by itself, down to one record. That one is set aside here, in one database transaction: fully where its user's rows can
be loaded, else sparing them.

Invariants:
1. What calls for a reaction of the process (`Fenced`, out of reach, a violation that concerns the partition) is never isolated.
2. A record is set aside exactly once, as any batch is decided: the same transaction moves the partition's row.
3. More than a settable number in a window stops the partition: a defect that hits every record must not drain the topic. What is counted
   is in the database, so that a restart does not begin anew. One user counts for a few at most, all together for ten times the number.

Start with `Isolation.set_aside`.
"""

import traceback
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import structlog
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from agents.steps.step import Batch, Clock, Step, StepRunner
from infra.kafka.transactions import CommitUnknown
from infra.metrics import RECORDS_SET_ASIDE
from infra.postgres.quarantine import is_kept, note_repeat, room_of
from infra.postgres.schema import DatabaseUnfit
from infra.postgres.step import StepTransaction
from infra.settings import Settings
from pipeline.books.audit import AuditTrail
from pipeline.books.changes import Changes, OutputRecord
from pipeline.books.ledger import Ledger
from pipeline.isolation.quarantine import note, quarantine_id_of, text_of
from pipeline.model.crash_points import CrashPoint, Reached, pass_by
from pipeline.model.invariants import Fenced, InvariantViolation, MustStop, Retryable
from pipeline.model.quarantine import QUARANTINE_ACCOUNT, Failure, InputRecord, Named, Stage
from pipeline.model.rules import Rules
from schemas.times import EARLIEST, moment_of
from schemas.topics import Topics
from schemas.wire import SourceOffset

log = structlog.get_logger(__name__)

_OURS: Final = frozenset({"agents", "infra", "pipeline", "schemas"})
# Of what a partition may set aside in a window, one user's records count for this many at most: a user whose rows are damaged meets it
# with each of his records.
USER_SHARE: Final = 3
# All together, shares or not: where there is one user, his share would let a defect drain the topic.
ALL_SHARES: Final = 10

_stage: ContextVar[Stage] = ContextVar("stage", default=Stage.DECIDE)


def at(stage: Stage) -> None:
    """Says how far this task's batch is, for what is told of a failure. Each partition has a task of its own."""
    _stage.set(stage)


def reaction_in(error: BaseException) -> Exception | None:
    """What of an error calls for a reaction of the process, whatever record was at hand; None where it concerns a record.

    A task group wraps what its tasks and its own block raise, also a single error, so a group is searched to its leaves. Of several, one
    that ends the worker at once goes before one that is waited for (Retryable, KafkaError): waiting must not hide it.
    """
    if isinstance(error, BaseExceptionGroup):
        found = [one for one in map(reaction_in, error.exceptions) if one is not None]
        return min(found, key=lambda one: isinstance(one, (Retryable, KafkaError)), default=None)
    if isinstance(error, (Fenced, Retryable, MustStop, DatabaseUnfit, KafkaError, CommitUnknown, MemoryError)):
        return error
    return None


def record_failure(error: Exception) -> Failure:
    """What may be told of an error that concerns a record. Raises, in its place, what calls for a reaction of the process: the error as it
    came, or the one that a group of tasks wraps, whose exit code it is that counts."""
    reaction = reaction_in(error)
    if reaction is error:
        raise error
    if reaction is not None:
        raise reaction from error
    return failure_of(error)


def halves_of(batch: "Batch") -> tuple["Batch", "Batch"]:
    """Two batches of one of two records or more. Each begins where the one before ends, so that the database stays at most one ahead."""
    middle = len(batch.records) // 2
    offset = batch.records[middle].offset
    return (
        replace(batch, records=batch.records[:middle], next_offset=offset),
        replace(batch, records=batch.records[middle:], base_offset=offset),
    )


def failure_of(error: BaseException) -> Failure:
    """What may be told of an error: its class, the innermost place in this code, and no value of any record."""
    place = "outside this code"
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in _OURS:
            place = f"{module}:{line} {frame.f_code.co_name}"
    text = ""
    if isinstance(error, InvariantViolation):
        text = text_of(str(error))
    elif isinstance(error, ValidationError):
        fields = sorted({".".join(str(part)[:64] for part in problem["loc"]) or "record" for problem in error.errors(include_input=False)})
        text = text_of("cannot be read: " + ", ".join(fields[:5]))
    elif state := getattr(error, "sqlstate", None):
        text = f"SQLSTATE {state}"
    return Failure(_stage.get(), type(error).__name__, place, text)


def input_record_of(record: ConsumerRecord) -> InputRecord:
    """The record as it is kept. One whose time no store can carry counts as the earliest."""
    return InputRecord(
        source=SourceOffset(record.topic, record.partition, record.offset),
        appended_at=moment_of(record.timestamp, 1_000) or EARLIEST,
        key=record.key,
        value=record.value,
        headers=tuple((name, text or b"") for name, text in record.headers or ()),
    )


@dataclass(frozen=True, slots=True)
class QuarantineLimit:
    """How many records of a partition may be set aside within the window before it stops."""

    records_max: int
    window: timedelta


def quarantine_limit_of(settings: Settings) -> QuarantineLimit:
    """The limit that the settings say."""
    return QuarantineLimit(settings.quarantine_records_max, timedelta(seconds=settings.quarantine_window_seconds))


class Isolation:
    """See the module."""

    def __init__(
        self, runner: "StepRunner", topics: Topics, rules: Rules, limit: QuarantineLimit, clock: "Clock", reached: Reached = pass_by
    ) -> None:
        self._runner = runner
        self._topics = topics
        self._rules = rules
        self._limit = limit
        self._clock = clock
        self._reached = reached

    async def set_aside(self, step: "Step", batch: "Batch", failure: Failure) -> tuple[OutputRecord, ...]:
        """Ends a batch of one record that cannot be decided; returns what it publishes.

        Raises MustStop where too many were set aside, or where not even this can be stored.
        """
        record = batch.records[0]
        try:
            return await self._store(step, batch, failure, sparing=False)
        # Whatever it is that also keeps the record's user from being loaded.
        except Exception as error:  # noqa: BLE001 — `record_failure` raises what is no record's failure
            found = record_failure(error)
            log.warning("set_aside_sparing", source=f"{record.topic}/{record.partition}/{record.offset}", what=str(found))
        try:
            return await self._store(step, batch, failure, sparing=True)
        except Exception as error:
            found = record_failure(error)
            raise MustStop(
                f"record {record.topic}/{record.partition}/{record.offset} could neither be decided ({failure}) nor be set aside "
                f"({found}). Nothing of it was written: report this as a defect."
            ) from error

    async def _store(self, step: "Step", batch: "Batch", failure: Failure, *, sparing: bool) -> tuple[OutputRecord, ...]:
        record = input_record_of(batch.records[0])
        named = self.named_by(step, batch.records[0])
        noted = False

        async def attempt(transaction: StepTransaction) -> tuple[OutputRecord, ...]:
            nonlocal noted
            if await self.is_repeat(transaction, record, failure, named):
                return await transaction.finish(batch.next_offset, (), self._clock())
            changes = await step.set_aside(transaction, batch, record, sparing=sparing)
            await self.note(transaction, record, failure, named, changes, sparing=sparing)
            noted = True
            await transaction.store(changes, changes.now - self._rules.key_lifetime)
            finished = await transaction.finish(batch.next_offset, changes.outputs, changes.now)
            self._reached(CrashPoint.BEFORE_SET_ASIDE_COMMIT, batch.partition.topic)
            return finished

        outputs: tuple[OutputRecord, ...] = await self._runner.run(batch, attempt)
        self._reached(CrashPoint.AFTER_SET_ASIDE_COMMIT, batch.partition.topic)
        self.tell(record, failure, named, new=noted)
        return outputs

    @staticmethod
    def named_by(step: "Step", record: ConsumerRecord) -> Named:
        """What a record is about; nothing where that cannot be read."""
        try:
            return step.named(record)
        # The record is one that could not be decided: reading it may be what fails.
        except Exception:  # noqa: BLE001 — it names nothing then
            return Named()

    async def is_repeat(self, transaction: StepTransaction, record: InputRecord, failure: Failure, named: Named) -> bool:
        """Whether the record is set aside already (by a try whose commit was answered late), or an open entry stands for the same failure
        of the same subject, whose record this system makes again and again."""
        if await is_kept(transaction.connection, quarantine_id_of(record)):
            return True
        return named.is_made_again and await note_repeat(
            transaction.connection, record.source.topic, named.subject, failure.error, failure.place, self._clock()
        )

    async def note(
        self, transaction: StepTransaction, record: InputRecord, failure: Failure, named: Named, changes: Changes, *, sparing: bool
    ) -> None:
        """Adds what is kept of a record to `changes`, whose trail must hold the quarantine's chain. Raises MustStop beyond the limit."""
        since = self._clock() - self._limit.window
        room = await room_of(transaction.connection, record.source.topic, record.source.partition, since, USER_SHARE)
        if room.shared >= self._limit.records_max or room.all >= self._limit.records_max * ALL_SHARES:
            raise MustStop(
                f"{room.all} records of {record.source.topic}/{record.source.partition} were set aside within "
                f"{self._limit.window.total_seconds():.0f} s, and record {record.source} cannot be decided either ({failure}). Nothing of "
                "it was written: the partition stops, so that a defect does not drain the topic. See `orchestrator quarantine list`."
            )
        note(record, failure, named, sparing, changes)

    @staticmethod
    def tell(record: InputRecord, failure: Failure, named: Named, *, new: bool) -> None:
        """Counts and logs a record that is set aside."""
        RECORDS_SET_ASIDE.labels(record.source.topic, failure.stage.value).inc()
        log.error(
            "record_set_aside",
            source=str(record.source),
            quarantine_id=quarantine_id_of(record) if new else None,
            subject=named.subject or None,
            what=str(failure),
            money="nothing of it was executed but what the exchange had before; see `orchestrator quarantine list`",
        )

    async def bare_changes(self, transaction: StepTransaction, actor: str, *more_accounts: str) -> Changes:
        """Changes that know nothing but the quarantine's own chain, and those named."""
        locked = await transaction.lock_accounts([QUARANTINE_ACCOUNT, *more_accounts])
        now = self._clock()
        trail = AuditTrail(locked.heads, now)
        return Changes(topics=self._topics, now=now, actor=actor, trail=trail, ledger=Ledger({}), conduct=locked.conduct)
