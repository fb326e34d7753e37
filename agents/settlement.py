"""The settlement agent: when a report of a look-up is applied. What it does to an order stands in pipeline/settlement."""

from typing import Final

from agents.batch import Batch, StepContext
from agents.execution import load_orders, require_published, require_value
from infra.postgres.drifts import drifts_of_users
from infra.postgres.gate import halts
from infra.postgres.step import StepTransaction
from infra.postgres.withdrawals import unpublished_withdrawals
from pipeline.balance_reconciliation import apply_balance_report
from pipeline.changes import OutputRecord
from pipeline.crash_points import CrashPoint
from pipeline.halts import apply_trip
from pipeline.invariants import Unpublished
from pipeline.payouts import apply_withdrawal_report
from pipeline.settlement import apply_report
from schemas.balances import BalanceReport
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT, HaltTrip
from schemas.routing import ON_REPORTS, Report
from schemas.withdrawals import WithdrawalReport

ACTOR: Final = "settlement"


async def require_withdrawals_published(step: StepTransaction, batch: Batch, withdrawal_ids: list[str], context: StepContext) -> None:
    """Raises Unpublished while an older word about one of these withdrawals is on its way to Kafka: a newer one must not overtake it."""
    waiting = await unpublished_withdrawals(step.connection, batch.partition, withdrawal_ids, context.topics.orders_prefix)
    if waiting:
        raise Unpublished(f"{len(waiting)} withdrawals have an older word that is not published yet")


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
        payouts = [report for report in told if isinstance(report, WithdrawalReport)]
        looks = [report for report in told if isinstance(report, BalanceReport)]
        order_ids = sorted({report.order_id for report in reports})
        withdrawal_ids = sorted({report.withdrawal_id for report in payouts})
        user_ids = sorted({
            *(report.user_id for report in reports), *(payout.user_id for payout in payouts), *(look.user_id for look in looks),
        })

        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            changes = await load_orders(step, order_ids, user_ids, self._context, ACTOR, more, withdrawal_ids)
            if trips:
                changes.halts = await halts(step.connection)
                for trip in trips:
                    apply_trip(trip, changes)
            await require_published(step, order_ids, self._context)
            await require_withdrawals_published(step, batch, withdrawal_ids, self._context)
            for report in reports:
                apply_report(report, changes, self._context.rules)
            for payout in payouts:
                apply_withdrawal_report(payout, changes, self._context.rules)
            if looks:
                changes.drifts = await drifts_of_users(step.connection, sorted({look.user_id for look in looks}))
                for look in looks:
                    apply_balance_report(look, changes, self._context.rules)
            await step.store(changes, changes.now - self._context.rules.key_lifetime)
            outputs = await step.finish(batch.next_offset, changes.outputs, changes.now)
            self._context.reached(CrashPoint.BEFORE_SETTLEMENT_COMMIT, batch.partition.topic)
            return outputs

        outputs = await self._context.runner.run(batch, attempt)
        self._context.reached(CrashPoint.AFTER_SETTLEMENT_COMMIT, batch.partition.topic)
        return outputs
