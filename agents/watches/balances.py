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

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Final

import structlog

from agents.watches.balance_look import BalanceLooks, report_of
from agents.watches.looks import by_itself
from agents.watches.watch import Watch, WatchContext
from infra.exchange.gateway import AccountGateway
from infra.metrics import record_balance_round
from infra.postgres.account_ledgers import compared_accounts
from infra.postgres.drifts import drift_counts
from pipeline.model.venue import MarketData
from pipeline.reconciliation.balances import ExchangeAccount, NotJudged, halt_reason
from schemas.commands import HaltLevel, HaltScope, HaltTrip

log = structlog.get_logger(__name__)

_PAGE: Final = 100
# So many accounts in a row without an answer: the exchange is away, and each question may take a time-out.
_UNANSWERED_MAX: Final = 5


class BalanceWatch:
    """Compares at one exchange. `market_data`: what is known of each exchange; a round asks `calls_max` questions at most."""

    def __init__(
        self,
        context: WatchContext,
        exchange: str,
        gateway: AccountGateway,
        *,
        market_data: Callable[[], Mapping[str, MarketData]],
        interval_seconds: float,
        calls_max: int,
    ) -> None:
        self._context = context
        self._exchange = exchange
        self._gateway = gateway
        self._market_data = market_data
        self._interval = interval_seconds
        self._calls_max = calls_max
        # Where the last round ended, and how many accounts could not be judged since it began anew.
        self._cursor = ""
        self._not_judged = 0

    @property
    def watch(self) -> Watch:
        return Watch("balances", self._interval, self.round, self._exchange, begins_late=True)

    async def round(self) -> None:
        """Looks at accounts from where the last round ended on, until its questions are used up, the exchange does not answer, or all had
        their turn. Raises Retryable and KafkaError while a service is out of reach."""
        owned = list(self._context.owned(self._exchange))
        if not owned:
            return
        shares = owned, await self._context.shares(self._exchange)
        looks, unanswered = BalanceLooks(self._context.database, {self._exchange: self._gateway}), 0
        while looks.asked < self._calls_max and unanswered < _UNANSWERED_MAX:
            page = await compared_accounts(
                self._context.database, self._exchange, self._context.clock(), after_user_id=self._cursor, shares=shares, limit=_PAGE
            )
            for account in page:
                if looks.asked >= self._calls_max or unanswered >= _UNANSWERED_MAX:
                    break
                asked = looks.asked
                answered = await by_itself("balances", f"{account.exchange}:{account.user_id}", partial(self._look, account, looks))
                unanswered = 0 if answered or looks.asked == asked else unanswered + 1
                self._cursor = account.user_id
            else:
                if len(page) < _PAGE:
                    await self._note_complete()
                    return

    async def _look(self, account: ExchangeAccount, looks: BalanceLooks) -> bool:
        """Looks at one account and reports; False when the exchange did not answer."""
        looked_up_at = self._context.clock()
        look = await looks.look(account)
        if isinstance(look, NotJudged):
            self._not_judged += 1
            log.debug("balances_not_judged", exchange=account.exchange, user_id=account.user_id, why=look.why)
            return not look.unanswered
        if not look.drifts and not look.stored:
            return True
        report = report_of(account, look, self._market_data().get(account.exchange), looked_up_at, self._context.rules)
        await self._context.report(report, f"{account.user_id}:{account.exchange}")
        reason = halt_reason(report, look.stored, self._context.rules)
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
            tripped_at=self._context.clock(),
        )
        await self._context.report(trip, trip.trip_id)

    async def _note_complete(self) -> None:
        """All accounts of this worker had their turn: it begins anew with the first."""
        self._cursor = ""
        not_judged, self._not_judged = self._not_judged, 0
        now = self._context.clock()
        count = (await drift_counts(self._context.database)).get(self._exchange)
        age_seconds = (now - count.oldest_at).total_seconds() if count is not None else 0
        record_balance_round(self._exchange, count.drifts if count is not None else 0, age_seconds, not_judged, now)
