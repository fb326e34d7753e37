"""The settlement agent: when a report of a look-up is applied. What it does to an order stands in pipeline/settlement."""

from typing import Final

from agents.batch import Batch, StepContext
from agents.execution import load_orders, require_published, require_value
from infra.postgres.gate import halts
from infra.postgres.step import StepTransaction
from pipeline.changes import OutputRecord
from pipeline.crash_points import CrashPoint
from pipeline.halts import apply_trip
from pipeline.settlement import apply_report
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT, HaltTrip
from schemas.routing import ON_REPORTS, Report

ACTOR: Final = "settlement"


class SettlementStep:
    """The step of `trade.reports`."""

    def __init__(self, context: StepContext, batch_size_max: int) -> None:
        self.batch_size_max = batch_size_max
        self._context = context

    async def run(self, batch: Batch) -> tuple[OutputRecord, ...]:
        told = [ON_REPORTS.validate_json(require_value(record.value, record.topic)) for record in batch.records]
        reports = [report for report in told if isinstance(report, Report)]
        trips = [trip for trip in told if isinstance(trip, HaltTrip)]
        # The chain of commands is the halts' lock.
        more = [COMMANDS_ACCOUNT, TRIPS_ACCOUNT] if trips else []
        order_ids = sorted({report.order_id for report in reports})
        user_ids = sorted({report.user_id for report in reports})

        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            changes = await load_orders(step, order_ids, user_ids, self._context, ACTOR, more)
            if trips:
                changes.halts = await halts(step.connection)
                for trip in trips:
                    apply_trip(trip, changes)
            await require_published(step, order_ids, self._context)
            for report in reports:
                apply_report(report, changes, self._context.rules)
            await step.store(changes, changes.now - self._context.rules.key_lifetime)
            outputs = await step.finish(batch.next_offset, changes.outputs, changes.now)
            self._context.reached(CrashPoint.BEFORE_SETTLEMENT_COMMIT, batch.partition.topic)
            return outputs

        outputs = await self._context.runner.run(batch, attempt)
        self._context.reached(CrashPoint.AFTER_SETTLEMENT_COMMIT, batch.partition.topic)
        return outputs
