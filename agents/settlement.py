"""The settlement agent: when a report of a look-up is applied. What it does to an order stands in pipeline/settlement, to a withdrawal in
pipeline/payouts, to a deposit in pipeline/deposits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agents.batch import Batch, StepContext
from agents.execution import load_orders, require_published, require_value
from infra.postgres.deposits import (
    Entry,
    announcements,
    expected_announcements,
    lock_entries,
    read_book,
    unpublished_deposits,
)
from infra.postgres.drifts import drifts_of_users
from infra.postgres.gate import halts
from infra.postgres.step import StepTransaction
from infra.postgres.withdrawals import unpublished_withdrawals
from pipeline.announcements import apply_announcement_report
from pipeline.balance_reconciliation import apply_balance_report
from pipeline.changes import Changes, OutputRecord
from pipeline.crash_points import CrashPoint
from pipeline.deposits import apply_deposit_report
from pipeline.invariants import LocksMissing, Unpublished
from pipeline.payouts import apply_withdrawal_report
from pipeline.settlement import apply_report
from pipeline.trip import apply_trip
from schemas.balances import BalanceReport
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT, HaltTrip
from schemas.deposits import AnnouncementReport, DepositReport
from schemas.routing import ON_REPORTS, Report
from schemas.withdrawals import WithdrawalReport

ACTOR: Final = "settlement"


async def require_withdrawals_published(step: StepTransaction, batch: Batch, withdrawal_ids: list[str], context: StepContext) -> None:
    """Raises Unpublished while an older word about one of these withdrawals is on its way to Kafka: a newer one must not overtake it."""
    waiting = await unpublished_withdrawals(step.connection, batch.partition, withdrawal_ids, context.topics.orders_prefix)
    if waiting:
        raise Unpublished(f"{len(waiting)} withdrawals have an older word that is not published yet")


@dataclass(frozen=True, slots=True)
class _AboutDeposits:
    """What a batch says of deposits and of announcements."""

    deposits: Sequence[DepositReport]
    announcements: Sequence[AnnouncementReport]

    @property
    def user_ids(self) -> set[str]:
        return {report.user_id for report in self.deposits} | {report.user_id for report in self.announcements}

    async def load(self, step: StepTransaction, batch: Batch, changes: Changes) -> None:
        """Loads what they are judged by. Raises Unpublished while an older word about any of it is on its way to Kafka."""
        if not self.deposits and not self.announcements:
            return
        entries = [Entry(report.exchange, report.transaction_id, report.exchange_deposit_id) for report in self.deposits]
        await lock_entries(step.connection, entries)
        users = [(report.user_id, report.exchange) for report in self.deposits]
        book = changes.deposits = await read_book(step.connection, entries, users)
        named = await announcements(step.connection, [report.announcement_id for report in self.announcements])
        expected = await expected_announcements(step.connection, sorted({user_id for user_id, _ in users}))
        book.announcements = {**named, **expected}
        waiting = await unpublished_deposits(step.connection, batch.partition, book)
        if waiting:
            raise Unpublished(f"{waiting} partitions have an older word about deposits that is not published yet")

    def apply(self, changes: Changes) -> None:
        for deposit in self.deposits:
            apply_deposit_report(deposit, changes)
        for announcement in self.announcements:
            apply_announcement_report(announcement, changes)


class SettlementStep:
    """The step of `trade.reports`."""

    def __init__(self, context: StepContext, batch_size_max: int) -> None:
        self.batch_size_max = batch_size_max
        self._context = context

    async def run(self, batch: Batch) -> tuple[OutputRecord, ...]:
        told = [ON_REPORTS.validate_json(require_value(record.value, record.topic)) for record in batch.records]
        reports = [report for report in told if isinstance(report, Report)]
        trips = [trip for trip in told if isinstance(trip, HaltTrip)]
        arrivals = _AboutDeposits(
            [report for report in told if isinstance(report, DepositReport)],
            [report for report in told if isinstance(report, AnnouncementReport)],
        )
        moves_halts = bool(trips)
        payouts = [report for report in told if isinstance(report, WithdrawalReport)]
        looks = [report for report in told if isinstance(report, BalanceReport)]
        order_ids = sorted({report.order_id for report in reports})
        withdrawal_ids = sorted({report.withdrawal_id for report in payouts})
        told_of = {report.user_id for report in reports} | {payout.user_id for payout in payouts} | {look.user_id for look in looks}
        user_ids = sorted(told_of | arrivals.user_ids)

        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            nonlocal moves_halts
            # The chain of commands is the halts' lock.
            more = [COMMANDS_ACCOUNT, TRIPS_ACCOUNT] if moves_halts else []
            changes = await load_orders(step, order_ids, user_ids, self._context, ACTOR, more, withdrawal_ids)
            if moves_halts:
                changes.halts = await halts(step.connection)
            for trip in trips:
                apply_trip(trip, changes)
            await require_published(step, order_ids, self._context)
            await require_withdrawals_published(step, batch, withdrawal_ids, self._context)
            await arrivals.load(step, batch, changes)
            try:
                for report in reports:
                    apply_report(report, changes, self._context.rules)
            except LocksMissing:
                # An order that shows up after all halts its user. That must not happen, and all partitions would wait for this lock.
                moves_halts = True
                raise
            for payout in payouts:
                apply_withdrawal_report(payout, changes, self._context.rules)
            if looks:
                changes.drifts = await drifts_of_users(step.connection, sorted({look.user_id for look in looks}))
                for look in looks:
                    apply_balance_report(look, changes, self._context.rules)
            try:
                arrivals.apply(changes)
            except LocksMissing:
                # A deposit that does not fit halts its user. That is seldom, and all partitions would wait for this lock.
                moves_halts = True
                raise
            await step.store(changes, changes.now - self._context.rules.key_lifetime)
            outputs = await step.finish(batch.next_offset, changes.outputs, changes.now)
            self._context.reached(CrashPoint.BEFORE_SETTLEMENT_COMMIT, batch.partition.topic)
            return outputs

        outputs = await self._context.runner.run(batch, attempt)
        self._context.reached(CrashPoint.AFTER_SETTLEMENT_COMMIT, batch.partition.topic)
        return outputs
