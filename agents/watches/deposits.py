"""Watches the deposits of every account with an active key, and reports on `trade.reports` what is news to the database.

It changes nothing itself: every change goes through the settlement agent's step. So a report that is lost is made again at the next look,
and one that comes twice, or from two workers, changes nothing. The users of an exchange are divided among the partitions of its queue: the
owner of a partition watches its share, so that each account is watched by one worker.

Invariants:
1. A look reads the history from the setting's window on, whole and in bounded pages. So what is listed late is seen, and what is taken back
   within the window, too.
2. What a history does not show proves nothing.
3. An account's history is asked for no more often than the setting, and the database only where it shows something else than at the last
   look that brought nothing new.
"""

import asyncio
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from agents.watches.looks import by_itself
from agents.watches.watch import PauseSeconds, Watch, WatchContext
from infra.exchange.gateway import DepositGateway
from infra.postgres.deposits import Entry, known_deposits, late_announcements, watched_accounts
from pipeline.deposits.settlement import verdict_on
from pipeline.model.deposit import VenueDeposit
from pipeline.model.venue import LookUpFailed
from schemas.deposits import AnnouncementReport, DepositReport

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 1.0
# Accounts listed at once, and announcements ended at once.
_PAGE: Final = 100
# Accounts asked about at once, per exchange: orders and steps use the same connections.
_AT_ONCE: Final = 4
# Room for clocks that differ.
_MARGIN: Final = timedelta(seconds=60)
_TOLD_MAX: Final = 1_000

Account = tuple[str, str]


class DepositWatch:
    """Watches one exchange. `poll_seconds`: how often each account's history is read; `window`: how far back."""

    def __init__(
        self, context: WatchContext, exchange: str, gateway: DepositGateway, poll_seconds: float, window: timedelta
    ) -> None:
        self._context = context
        self._exchange = exchange
        self._gateway = gateway
        self._poll_seconds = poll_seconds
        self._window = window
        self._told: set[str] = set()
        # What each account's history showed when all of it was known.
        self._known: dict[Account, int] = {}

    @property
    def watch(self) -> Watch:
        return Watch("deposits", self._poll_seconds, self.round, self._exchange)

    async def round(self) -> PauseSeconds | None:
        """Looks at every account of this worker's share. Raises Retryable and KafkaError while a service is out of reach."""
        partitions, database, clock = list(self._context.owned(self._exchange)), self._context.database, self._context.clock
        if not partitions:
            # A worker that has just got its partitions looks soon; one that has looked keeps the pace.
            return min(_LOOK_SECONDS, self._poll_seconds)
        if 0 in partitions:
            for announcement_id, user_id in await late_announcements(database, self._exchange, clock(), _PAGE):
                late = AnnouncementReport(schema_version=1, announcement_id=announcement_id, user_id=user_id, looked_up_at=clock())
                await self._context.report(late, user_id)
        shares = await self._context.shares(self._exchange)
        after: Account = ("", "")
        slots = asyncio.Semaphore(_AT_ONCE)
        looked: set[Account] = set()

        async def look(account: Account) -> None:
            async with slots:
                await by_itself("deposits", ":".join((self._exchange, *account)), partial(self._look, account))

        while True:
            page = await watched_accounts(database, self._exchange, (shares, partitions), after, clock(), _PAGE)
            async with asyncio.TaskGroup() as group:
                for account in page:
                    group.create_task(look(account))
            looked.update(page)
            if len(page) < _PAGE:
                break
            after = page[-1]
        self._known = {account: shown for account, shown in self._known.items() if account in looked}
        return None

    async def _look(self, account: Account) -> None:
        user_id, api_key_id = account
        looked_up_at = self._context.clock()
        shown = await self._gateway.deposit_history(user_id, api_key_id, looked_up_at - self._window, looked_up_at + _MARGIN)
        if isinstance(shown, LookUpFailed):
            log.debug("deposit_history_unknown", exchange=self._exchange, detail=shown.detail)
            return
        for problem in shown.unreadable:
            self._tell(user_id, problem)
        reports = [
            DepositReport(
                schema_version=1,
                exchange_deposit_id=row.exchange_deposit_id,
                transaction_id=row.transaction_id,
                user_id=user_id,
                exchange=self._exchange,
                api_key_id=api_key_id,
                asset=row.asset,
                network=row.network,
                address=row.address,
                address_tag=row.address_tag,
                amount=row.amount,
                deposit_status=row.status,
                arrived_at=row.arrived_at,
                completed_at=row.completed_at,
                looked_up_at=looked_up_at,
            )
            for row in sorted(shown.rows, key=_by_arrival)
        ]
        digest = hash(frozenset(shown.rows))
        if not reports or self._known.get(account) == digest:
            return
        entries = [Entry(self._exchange, report.transaction_id, report.exchange_deposit_id) for report in reports]
        book = await known_deposits(self._context.database, entries, user_id, self._exchange)
        news = [report for report in reports if verdict_on(report, book) is not None]
        for report in news:
            # All words about one user's deposits stand on one partition, in the order in which they were found.
            await self._context.report(report, user_id)
        if not news:
            self._known[account] = digest

    def _tell(self, user_id: str, problem: str) -> None:
        if problem not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add(problem)
            money = "it is not credited; compare the exchange's own list"
            log.error("deposit_unreadable", exchange=self._exchange, user_id=user_id, what=problem, money=money)


def _by_arrival(row: VenueDeposit) -> tuple[object, ...]:
    return row.arrived_at, row.exchange_deposit_id
