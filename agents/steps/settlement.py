"""The settlement agent: when a report of a look-up is applied. What each type is about and does: agents/steps/report_types."""

from collections.abc import Sequence
from typing import Final

from aiokafka import ConsumerRecord

from agents.steps.batch import StepContext
from agents.steps.conclusion import load_orders, require_value
from agents.steps.isolation import at
from agents.steps.report_types import REPORT_TYPES, Load, Loading, named, user_of
from agents.steps.step import Batch
from infra.postgres.gate import halts
from infra.postgres.step import StepTransaction
from pipeline.books.changes import Changes, OutputRecord
from pipeline.model.crash_points import CrashPoint
from pipeline.model.invariants import LocksMissing
from pipeline.model.quarantine import InputRecord, Named, Stage
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT, HaltTrip
from schemas.routing import ON_REPORTS, OnReports

ACTOR: Final = "settlement"


class SettlementStep:
    """The step of `trade.reports`.

    A report about an order, withdrawal or deposit whose older word another partition has stored and not published yet is passed over: a
    newer word must not overtake it, and nothing waits for it. Whoever looks (reconciliation, the watches of withdrawals and deposits) makes
    the report again as long as the database does not say what it says.
    """

    def __init__(self, context: StepContext, batch_size_max: int) -> None:
        self.batch_size_max = batch_size_max
        self._context = context

    async def run(self, batch: Batch) -> tuple[OutputRecord, ...]:
        at(Stage.DECODE)
        told = [_report_in(record) for record in batch.records]
        trips = [trip for trip in told if isinstance(trip, HaltTrip)]
        moves_halts = bool(trips)

        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            nonlocal moves_halts
            try:
                changes = await self._decide(step, batch, told, moves_halts=moves_halts)
            except LocksMissing:
                # A deposit that does not fit halts its user, and so does an order or a withdrawal that shows up after all. That is
                # seldom, and all partitions would wait for this lock.
                moves_halts = True
                raise
            at(Stage.STORE)
            await step.store(changes, changes.now - self._context.rules.key_lifetime)
            outputs = await step.finish(batch.next_offset, changes.outputs, changes.now)
            self._context.reached(CrashPoint.BEFORE_SETTLEMENT_COMMIT, batch.partition.topic)
            return outputs

        outputs = await self._context.runner.run(batch, attempt)
        self._context.reached(CrashPoint.AFTER_SETTLEMENT_COMMIT, batch.partition.topic)
        return outputs

    def named(self, record: ConsumerRecord) -> Named:
        return named(_report_in(record))

    async def set_aside(self, transaction: StepTransaction, batch: Batch, record: InputRecord, *, sparing: bool) -> Changes:
        """Nothing moves: what was reported stays as it is, in doubt or resting, with its funds held, and the next look reports it again."""
        return await self._context.isolation.bare_changes(transaction, ACTOR)

    async def _decide(self, step: StepTransaction, batch: Batch, reports: Sequence[OnReports], *, moves_halts: bool) -> Changes:
        at(Stage.LOAD)
        users = sorted({user for report in reports if (user := user_of(report)) is not None})
        # The chain of commands is the halts' lock.
        more = [COMMANDS_ACCOUNT, TRIPS_ACCOUNT] if moves_halts else []
        changes = await load_orders(step, [], users, self._context, ACTOR, more)
        if moves_halts:
            changes.halts = await halts(step.connection)
        loading = Loading(step, batch, changes, self._context.topics.orders_prefix)
        loads: dict[Load, list[OnReports]] = {}
        for report in reports:
            loads.setdefault(REPORT_TYPES[report.type].load, []).append(report)
        # By what they are: a report that comes twice in a batch is equal to itself.
        ready = {id(report) for load, together in loads.items() for report in await load(loading, together)}
        at(Stage.DECIDE)
        for report in reports:
            if id(report) in ready:
                REPORT_TYPES[report.type].apply(report, changes, self._context.rules)
        return changes


def _report_in(record: ConsumerRecord) -> OnReports:
    """Raises ValidationError and InvariantViolation for what is no report of ours."""
    return ON_REPORTS.validate_json(require_value(record.value, record.topic))
