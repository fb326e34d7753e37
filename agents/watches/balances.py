"""Compares the ledger with the exchanges' balances, account by account, and reports on `trade.reports` where they differ.

It changes nothing itself: what a look shows goes through the settlement agent's step, and so does the halt of an account that is above the
threshold. So a report that is lost is made again at the next look, and two workers that look at the same account at once do no harm.

The users of an exchange are divided among the partitions of its queue: the owner of a partition looks after its share.

Invariants:
1. A round asks an exchange a bounded number of questions, one account after another, so that orders do not queue behind them. Binance
   counts 20 for an account and 4 for an order, of 6,000 a minute.
2. Only looks that count are reported, and of those only such as say something new: a drift, or that a known one is gone.
3. Simulated money is never compared: it lies at no exchange.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from agents.steps.step import Clock
from agents.watches.balance_look import BalanceLooks, report_of
from agents.watches.looks import by_itself
from infra.exchange.gateway import AccountGateway
from infra.metrics import record_balance_round
from infra.postgres.account_ledgers import compared_accounts
from infra.postgres.database import Database
from infra.postgres.drifts import drift_counts
from pipeline.model.invariants import Retryable
from pipeline.model.rules import Rules
from pipeline.model.venue import MarketData
from pipeline.reconciliation.balances import ExchangeAccount, NotJudged, halt_reason
from schemas.commands import HaltLevel, HaltScope, HaltTrip
from schemas.topics import Topics

log = structlog.get_logger(__name__)

_PAGE: Final = 100
# So many accounts in a row without an answer: the exchange is away, and each question may take a time-out.
_UNANSWERED_MAX: Final = 5


class BalanceWatch:
    """`owned` gives, per exchange, the partitions of its queue that this worker owns now; `market_data` what is known of each exchange."""

    def __init__(
        self,
        *,
        database: Database,
        gateways: Mapping[str, AccountGateway],
        producer: AIOKafkaProducer,
        owned: Callable[[str], list[int]],
        market_data: Callable[[], Mapping[str, MarketData]],
        topics: Topics,
        rules: Rules,
        interval_seconds: float,
        calls_max: int,
        clock: Clock,
    ) -> None:
        self._database = database
        self._gateways = gateways
        self._producer = producer
        self._owned = owned
        self._market_data = market_data
        self._topics = topics
        self._rules = rules
        self._interval = interval_seconds
        self._calls_max = calls_max
        self._clock = clock
        # Where the last round of each exchange ended, and how many of its accounts could not be judged since it began anew.
        self._cursors: dict[str, str] = {}
        self._not_judged: dict[str, int] = {}

    async def run(self) -> None:
        """Compares until it is cancelled; the first time after one interval, so that a worker that starts again and again asks nothing."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await asyncio.gather(*(by_itself("balances", name, partial(self.look_around, name)) for name in self._gateways))
            except* (Retryable, KafkaError) as group:
                log.debug("balance_watch_waits", error=str(group.exceptions[0]))

    async def look_around(self, exchange: str) -> None:
        """One round: looks at accounts from where the last one ended on, until its questions are used up, the exchange does not answer, or
        all had their turn. Raises Retryable and KafkaError while a service is out of reach."""
        owned = self._owned(exchange)
        if not owned:
            return
        # As many shares as the queue has partitions: each has exactly one owner.
        shares = owned, len(await self._producer.partitions_for(self._topics.orders(exchange)))
        looks, unanswered = BalanceLooks(self._database, {exchange: self._gateways[exchange]}), 0
        while looks.asked < self._calls_max and unanswered < _UNANSWERED_MAX:
            after, now = self._cursors.get(exchange, ""), self._clock()
            page = await compared_accounts(self._database, exchange, now, after_user_id=after, shares=shares, limit=_PAGE)
            for account in page:
                if looks.asked >= self._calls_max or unanswered >= _UNANSWERED_MAX:
                    break
                asked = looks.asked
                answered = await by_itself("balances", f"{account.exchange}:{account.user_id}", partial(self._look, account, looks))
                unanswered = 0 if answered or looks.asked == asked else unanswered + 1
                self._cursors[exchange] = account.user_id
            else:
                if len(page) < _PAGE:
                    await self._note_complete(exchange)
                    return

    async def _look(self, account: ExchangeAccount, looks: BalanceLooks) -> bool:
        """Looks at one account and reports; False when the exchange did not answer."""
        looked_up_at = self._clock()
        look = await looks.look(account)
        if isinstance(look, NotJudged):
            self._not_judged[account.exchange] = self._not_judged.get(account.exchange, 0) + 1
            log.debug("balances_not_judged", exchange=account.exchange, user_id=account.user_id, why=look.why)
            return not look.unanswered
        if not look.drifts and not look.stored:
            return True
        report = report_of(account, look, self._market_data().get(account.exchange), looked_up_at, self._rules)
        await self._publish(report.model_dump_json(), f"{account.user_id}:{account.exchange}")
        reason = halt_reason(report, look.stored, self._rules)
        if reason is not None:
            await self._halt_user(account, reason, looked_up_at)
        return True

    async def _halt_user(self, account: ExchangeAccount, reason: str, now: datetime) -> None:
        """Stops the user: nobody knows what is true of the account. Again at every look; where it is stopped already nothing happens."""
        log.error("balances_differ", exchange=account.exchange, user_id=account.user_id, what=reason, money="the user is halted")
        trip = HaltTrip(
            schema_version=1,
            trip_id=f"trip:balances:{account.exchange}:{account.user_id}:{int(now.timestamp())}",
            scope=HaltScope.USER,
            target=account.user_id,
            level=HaltLevel.HALT,
            reason=reason,
            tripped_at=self._clock(),
        )
        await self._publish(trip.model_dump_json(), trip.trip_id)

    async def _publish(self, value: str, key: str) -> None:
        await self._producer.send_and_wait(self._topics.reports, value.encode(), key=key.encode())

    async def _note_complete(self, exchange: str) -> None:
        """All accounts of this worker had their turn: it begins anew with the first."""
        self._cursors[exchange] = ""
        now = self._clock()
        count = (await drift_counts(self._database)).get(exchange)
        age_seconds = (now - count.oldest_at).total_seconds() if count is not None else 0
        record_balance_round(exchange, count.drifts if count is not None else 0, age_seconds, self._not_judged.pop(exchange, 0), now)
