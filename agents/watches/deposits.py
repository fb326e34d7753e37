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
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from agents.steps.step import Clock
from agents.watches.looks import by_itself
from infra.exchange.gateway import DepositGateway
from infra.postgres.database import Database
from infra.postgres.deposits import Entry, known_deposits, late_announcements, watched_accounts
from pipeline.deposits.settlement import verdict_on
from pipeline.model.deposit import VenueDeposit
from pipeline.model.invariants import Retryable
from pipeline.model.venue import LookUpFailed
from schemas.deposits import AnnouncementReport, DepositReport
from schemas.topics import Topics

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
    """`owned` gives, per exchange, the partitions of its queue that this worker owns now. `poll_seconds`: how often each account's history
    is read; `window`: how far back."""

    def __init__(
        self,
        *,
        database: Database,
        gateways: Mapping[str, DepositGateway],
        producer: AIOKafkaProducer,
        owned: Callable[[str], list[int]],
        topics: Topics,
        poll_seconds: float,
        window: timedelta,
        clock: Clock,
    ) -> None:
        self._database = database
        self._gateways = gateways
        self._producer = producer
        self._owned = owned
        self._topics = topics
        self._poll_seconds = poll_seconds
        self._window = window
        self._clock = clock
        self._told: set[str] = set()
        # What each account's history showed when all of it was known.
        self._known: dict[tuple[str, str, str], int] = {}

    async def run(self) -> None:
        """Watches all exchanges until it is cancelled."""
        while True:
            started = monotonic()
            try:
                await asyncio.gather(
                    *(
                        by_itself("deposits", exchange, partial(self._round, exchange, gateway))
                        for exchange, gateway in self._gateways.items()
                    )
                )
            except* (Retryable, KafkaError) as group:
                log.debug("deposit_watch_waits", error=str(group.exceptions[0]))
            # A worker that has just got its partitions looks soon; one that has looked keeps the pace.
            pause = self._poll_seconds if any(map(self._owned, self._gateways)) else min(_LOOK_SECONDS, self._poll_seconds)
            await asyncio.sleep(max(0.0, pause - (monotonic() - started)))

    async def _round(self, exchange: str, gateway: DepositGateway) -> None:
        partitions = self._owned(exchange)
        if not partitions:
            return
        if 0 in partitions:
            for announcement_id, user_id in await late_announcements(self._database, exchange, self._clock(), _PAGE):
                late = AnnouncementReport(
                    schema_version=1, announcement_id=announcement_id, user_id=user_id, looked_up_at=self._clock()
                )
                await self._publish(late, user_id)
        # As many shares as the queue has partitions: each has exactly one owner.
        shares = len(await self._producer.partitions_for(self._topics.orders(exchange)))
        after: Account = ("", "")
        slots = asyncio.Semaphore(_AT_ONCE)
        looked: set[Account] = set()

        async def look(account: Account) -> None:
            async with slots:
                await by_itself("deposits", ":".join((exchange, *account)), partial(self._look, exchange, account, gateway))

        while True:
            page = await watched_accounts(self._database, exchange, (shares, partitions), after, self._clock(), _PAGE)
            async with asyncio.TaskGroup() as group:
                for account in page:
                    group.create_task(look(account))
            looked.update(page)
            if len(page) < _PAGE:
                break
            after = page[-1]
        self._known = {name: shown for name, shown in self._known.items() if name[0] != exchange or name[1:] in looked}

    async def _look(self, exchange: str, account: Account, gateway: DepositGateway) -> None:
        user_id, api_key_id = account
        looked_up_at = self._clock()
        shown = await gateway.deposit_history(user_id, api_key_id, looked_up_at - self._window, looked_up_at + _MARGIN)
        if isinstance(shown, LookUpFailed):
            log.debug("deposit_history_unknown", exchange=exchange, detail=shown.detail)
            return
        for problem in shown.unreadable:
            self._tell(exchange, user_id, problem)
        reports = [
            DepositReport(
                schema_version=1,
                exchange_deposit_id=row.exchange_deposit_id,
                transaction_id=row.transaction_id,
                user_id=user_id,
                exchange=exchange,
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
        if not reports or self._known.get((exchange, *account)) == digest:
            return
        entries = [Entry(exchange, report.transaction_id, report.exchange_deposit_id) for report in reports]
        book = await known_deposits(self._database, entries, user_id, exchange)
        news = [report for report in reports if verdict_on(report, book) is not None]
        for report in news:
            await self._publish(report, user_id)
        if not news:
            self._known[exchange, *account] = digest

    def _tell(self, exchange: str, user_id: str, problem: str) -> None:
        if problem not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add(problem)
            money = "it is not credited; compare the exchange's own list"
            log.error("deposit_unreadable", exchange=exchange, user_id=user_id, what=problem, money=money)

    async def _publish(self, report: DepositReport | AnnouncementReport, user_id: str) -> None:
        # All words about one user's deposits stand on one partition, in the order in which they were found.
        await self._producer.send_and_wait(self._topics.reports, report.model_dump_json().encode(), key=user_id.encode())


def _by_arrival(row: VenueDeposit) -> tuple[object, ...]:
    return row.arrived_at, row.exchange_deposit_id
