"""The types of records on `trade.reports`, in one table: what each is about, what is loaded for it, and what applies it.

What a report does to an order stands in pipeline/orders/settlement, to a withdrawal in pipeline/withdrawals/settlement, to a deposit in
pipeline/deposits, to balances in pipeline/reconciliation/balances, to the halts in pipeline/books/trip.

Start with `REPORT_TYPES`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from agents.steps.step import Batch
from infra.postgres.deposits import Entry, announcements, expected_announcements, lock_entries, read_book, unpublished_deposits
from infra.postgres.drifts import drifts_of_users
from infra.postgres.rows import ORDERS
from infra.postgres.step import StepTransaction
from infra.postgres.withdrawals import WITHDRAWALS, withdrawals
from pipeline.books.changes import Changes
from pipeline.books.trip import apply_trip
from pipeline.deposits.announcements import apply_announcement_report
from pipeline.deposits.settlement import apply_deposit_report
from pipeline.model.deposit import Announcement, Deposit
from pipeline.model.quarantine import Named
from pipeline.model.rules import Rules
from pipeline.model.tracked import Tracked
from pipeline.orders.settlement import apply_report
from pipeline.reconciliation.balances import apply_balance_report
from pipeline.withdrawals.settlement import apply_withdrawal_report
from schemas.balances import BalanceReport
from schemas.commands import HaltTrip
from schemas.deposits import AnnouncementReport, DepositReport
from schemas.routing import Report
from schemas.withdrawals import WithdrawalReport

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Loading:
    """A batch whose users are locked; what its reports need is loaded into `changes`. `prefix` is that of the exchanges' queues."""

    step: StepTransaction
    batch: Batch
    changes: Changes
    prefix: str


# Loads what reports are judged by; gives those that may be applied now. The others are about something of which another partition has
# stored an older word and not published it yet: they are passed over, and made again by whoever looks.
Load = Callable[[Loading, Sequence[Any]], Awaitable[Sequence[Any]]]


@dataclass(frozen=True, slots=True)
class ReportType(Generic[R]):
    """`subject`: what a report is about, for people. Types that are judged by the same rows have one `load`, which gets them together."""

    subject: Callable[[R], str]
    load: Load
    apply: Callable[[R, Changes, Rules], None]


def named(report: Any) -> Named:
    """What a report is about. Whoever looks makes it again until it is applied."""
    return Named(user_of(report) or "", REPORT_TYPES[report.type].subject(report), is_made_again=True)


def user_of(report: Any) -> str | None:
    """Whose rows a report is about; None for one about nobody's."""
    return getattr(report, "user_id", None)


async def _orders(loading: Loading, reports: Sequence[Report]) -> Sequence[Report]:
    order_ids = sorted({report.order_id for report in reports})
    loading.changes.orders = Tracked(await loading.step.orders(order_ids))
    loading.changes.cancels = await loading.step.pending_cancels(order_ids)
    waiting = await loading.step.unpublished(ORDERS, order_ids, loading.prefix)
    return [report for report in reports if report.order_id not in waiting]


async def _withdrawals(loading: Loading, reports: Sequence[WithdrawalReport]) -> Sequence[WithdrawalReport]:
    withdrawal_ids = sorted({report.withdrawal_id for report in reports})
    loading.changes.withdrawals = Tracked(await withdrawals(loading.step.connection, withdrawal_ids))
    waiting = await loading.step.unpublished(WITHDRAWALS, withdrawal_ids, loading.prefix)
    return [report for report in reports if report.withdrawal_id not in waiting]


async def _deposits(
    loading: Loading, reports: Sequence[DepositReport | AnnouncementReport]
) -> Sequence[DepositReport | AnnouncementReport]:
    connection = loading.step.connection
    arrived = [report for report in reports if isinstance(report, DepositReport)]
    entries = [Entry(report.exchange, report.transaction_id, report.exchange_deposit_id) for report in arrived]
    await lock_entries(connection, entries)
    users = [(report.user_id, report.exchange) for report in arrived]
    book = loading.changes.deposits = await read_book(connection, entries, users)
    ids = [report.announcement_id for report in reports if isinstance(report, AnnouncementReport)]
    expected = await expected_announcements(connection, sorted({user_id for user_id, _ in users}))
    book.announcements = Tracked({**await announcements(connection, ids), **expected})
    waiting = await unpublished_deposits(connection, loading.batch.partition, book)
    return [report for report in reports if not _waits(report, waiting)]


def _waits(report: DepositReport | AnnouncementReport, waiting: Sequence[Deposit | Announcement]) -> bool:
    """Whether something of the report's user, or its very entry, is among these."""
    names = {report.transaction_id, report.exchange_deposit_id} if isinstance(report, DepositReport) else set()
    return any(
        one.user_id == report.user_id or (isinstance(one, Deposit) and names & {one.transaction_id, one.exchange_deposit_id})
        for one in waiting
    )


async def _drifts(loading: Loading, reports: Sequence[BalanceReport]) -> Sequence[BalanceReport]:
    loading.changes.drifts = await drifts_of_users(loading.step.connection, sorted({report.user_id for report in reports}))
    return reports


async def _nothing(_: Loading, reports: Sequence[HaltTrip]) -> Sequence[HaltTrip]:
    # The halts are loaded with their lock (agents/steps/settlement).
    return reports


def _without_rules(apply: Callable[[R, Changes], None]) -> Callable[[R, Changes, Rules], None]:
    return lambda report, changes, _: apply(report, changes)


REPORT_TYPES: Final[Mapping[str, ReportType[Any]]] = {
    "order": ReportType(lambda report: f"order {report.order_id}", _orders, apply_report),
    "withdrawal": ReportType(
        lambda report: f"withdrawal {report.withdrawal_id}", _withdrawals, apply_withdrawal_report
    ),
    "deposit": ReportType(
        lambda report: f"deposit {report.exchange} {report.exchange_deposit_id}", _deposits, _without_rules(apply_deposit_report)
    ),
    "announcement": ReportType(
        lambda report: f"announcement {report.announcement_id}", _deposits, _without_rules(apply_announcement_report)
    ),
    "balance": ReportType(
        lambda report: f"balances {report.exchange} {report.user_id}", _drifts, apply_balance_report
    ),
    "trip": ReportType(lambda trip: f"halt {trip.scope.value} {trip.target}", _nothing, _without_rules(apply_trip)),
}
