"""The settlement agent: when a report of a look-up is applied. What it does to an order stands in pipeline/settlement."""

from typing import Final

from agents.batch import Batch, StepContext
from agents.execution import load_orders, require_published, require_value
from infra.postgres.step import StepTransaction
from pipeline.changes import OutputRecord
from pipeline.crash_points import CrashPoint
from pipeline.settlement import apply_report
from schemas.routing import Report

ACTOR: Final = "settlement"


class SettlementStep:
    """The step of `trade.reports`."""

    def __init__(self, context: StepContext, batch_size_max: int) -> None:
        self.batch_size_max = batch_size_max
        self._context = context

    async def run(self, batch: Batch) -> tuple[OutputRecord, ...]:
        reports = [Report.model_validate_json(require_value(record.value, record.topic)) for record in batch.records]
        order_ids = sorted({report.order_id for report in reports})
        user_ids = sorted({report.user_id for report in reports})

        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            changes = await load_orders(step, order_ids, user_ids, self._context, ACTOR)
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
