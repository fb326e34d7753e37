"""The settlement agent: when a report of a look-up is applied. What it does to an order stands in pipeline/orders/settlement, to a
withdrawal in pipeline/withdrawals/settlement, to a deposit in pipeline/deposits/settlement."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aiokafka import ConsumerRecord

from agents.steps.batch import StepContext
from agents.steps.conclusion import load_orders, require_value
from agents.steps.isolation import at
from agents.steps.step import Batch
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
from infra.postgres.rows import ORDERS
from infra.postgres.step import StepTransaction
from infra.postgres.withdrawals import WITHDRAWALS
from pipeline.books.changes import Changes, OutputRecord
from pipeline.books.trip import apply_trip
from pipeline.deposits.announcements import apply_announcement_report
from pipeline.deposits.settlement import apply_deposit_report
from pipeline.model.crash_points import CrashPoint
from pipeline.model.deposit import Announcement, Deposit
from pipeline.model.invariants import LocksMissing
from pipeline.model.quarantine import InputRecord, Named, Stage
from pipeline.model.tracked import Tracked
from pipeline.orders.settlement import apply_report
from pipeline.reconciliation.balances import apply_balance_report
from pipeline.withdrawals.settlement import apply_withdrawal_report
from schemas.balances import BalanceReport
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT, HaltTrip
from schemas.deposits import AnnouncementReport, DepositReport
from schemas.routing import ON_REPORTS, OnReports, Report
from schemas.withdrawals import WithdrawalReport

ACTOR: Final = "settlement"


@dataclass(frozen=True, slots=True)
class _AboutDeposits:
    """What a batch says of deposits and of announcements."""

    deposits: Sequence[DepositReport]
    announcements: Sequence[AnnouncementReport]

    @property
    def user_ids(self) -> set[str]:
        return {report.user_id for report in self.deposits} | {report.user_id for report in self.announcements}

    async def load(self, step: StepTransaction, batch: Batch, changes: Changes) -> "_AboutDeposits":
        """Loads what they are judged by; returns those that need not wait for an older word that is on its way to Kafka."""
        if not self.deposits and not self.announcements:
            return self
        entries = [Entry(report.exchange, report.transaction_id, report.exchange_deposit_id) for report in self.deposits]
        await lock_entries(step.connection, entries)
        users = [(report.user_id, report.exchange) for report in self.deposits]
        book = changes.deposits = await read_book(step.connection, entries, users)
        named = await announcements(step.connection, [report.announcement_id for report in self.announcements])
        expected = await expected_announcements(step.connection, sorted({user_id for user_id, _ in users}))
        book.announcements = Tracked({**named, **expected})
        unpublished = await unpublished_deposits(step.connection, batch.partition, book)
        return self._besides(unpublished) if unpublished else self

    def _besides(self, unpublished: Sequence[Deposit | Announcement]) -> "_AboutDeposits":
        """Without what is said of users and entries that these are of. The next look makes it again."""
        users = {one.user_id for one in unpublished}
        entries = {name for one in unpublished if isinstance(one, Deposit) for name in (one.transaction_id, one.exchange_deposit_id)}
        return _AboutDeposits(
            [
                report
                for report in self.deposits
                if report.user_id not in users and not entries & {report.transaction_id, report.exchange_deposit_id}
            ],
            [report for report in self.announcements if report.user_id not in users],
        )

    def apply(self, changes: Changes) -> None:
        for deposit in self.deposits:
            apply_deposit_report(deposit, changes)
        for announcement in self.announcements:
            apply_announcement_report(announcement, changes)


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
        match _report_in(record):
            case Report() as report:
                return Named(report.user_id, f"order {report.order_id}", is_made_again=True)
            case WithdrawalReport() as report:
                return Named(report.user_id, f"withdrawal {report.withdrawal_id}", is_made_again=True)
            case DepositReport() as report:
                return Named(report.user_id, f"deposit {report.exchange} {report.exchange_deposit_id}", is_made_again=True)
            case AnnouncementReport() as report:
                return Named(report.user_id, f"announcement {report.announcement_id}", is_made_again=True)
            case BalanceReport() as report:
                return Named(report.user_id, f"balances {report.exchange} {report.user_id}", is_made_again=True)
            case HaltTrip() as trip:
                return Named("", f"halt {trip.scope.value} {trip.target}", is_made_again=True)

    async def set_aside(self, transaction: StepTransaction, batch: Batch, record: InputRecord, *, sparing: bool) -> Changes:
        """Nothing moves: what was reported stays as it is, in doubt or resting, with its funds held, and the next look reports it again."""
        return await self._context.isolation.bare_changes(transaction, ACTOR)

    async def _decide(self, step: StepTransaction, batch: Batch, told: Sequence[OnReports], *, moves_halts: bool) -> Changes:
        reports = [report for report in told if isinstance(report, Report)]
        payouts = [report for report in told if isinstance(report, WithdrawalReport)]
        looks = [report for report in told if isinstance(report, BalanceReport)]
        arrivals = _AboutDeposits(
            [report for report in told if isinstance(report, DepositReport)],
            [report for report in told if isinstance(report, AnnouncementReport)],
        )
        order_ids = sorted({report.order_id for report in reports})
        withdrawal_ids = sorted({report.withdrawal_id for report in payouts})
        told_of = {report.user_id for report in reports} | {payout.user_id for payout in payouts} | {look.user_id for look in looks}
        user_ids = sorted(told_of | arrivals.user_ids)
        at(Stage.LOAD)
        # The chain of commands is the halts' lock.
        more = [COMMANDS_ACCOUNT, TRIPS_ACCOUNT] if moves_halts else []
        changes = await load_orders(step, order_ids, user_ids, self._context, ACTOR, more, withdrawal_ids)
        if moves_halts:
            changes.halts = await halts(step.connection)
        prefix = self._context.topics.orders_prefix
        waiting = await step.unpublished(ORDERS, order_ids, prefix) | await step.unpublished(WITHDRAWALS, withdrawal_ids, prefix)
        arrivals = await arrivals.load(step, batch, changes)
        if looks:
            changes.drifts = await drifts_of_users(step.connection, sorted({look.user_id for look in looks}))
        at(Stage.DECIDE)
        for report in told:
            match report:
                case HaltTrip():
                    apply_trip(report, changes)
                case Report() if report.order_id not in waiting:
                    apply_report(report, changes, self._context.rules)
                case WithdrawalReport() if report.withdrawal_id not in waiting:
                    apply_withdrawal_report(report, changes, self._context.rules)
                case BalanceReport():
                    apply_balance_report(report, changes, self._context.rules)
                case _:
                    # One that is passed over, or is about deposits.
                    continue
        arrivals.apply(changes)
        return changes


def _report_in(record: ConsumerRecord) -> OnReports:
    """Raises ValidationError and InvariantViolation for what is no report of ours."""
    return ON_REPORTS.validate_json(require_value(record.value, record.topic))
