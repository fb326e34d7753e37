"""Circuit breakers: when the system stops trading by itself. Only an operator resumes, and while the cause is still seen it trips again.

| what is seen | what is stopped |
|---|---|
| so many orders and withdrawals at an exchange in doubt for longer than their proof takes | that exchange: `halt` |
| an exchange that loses answers: half of a worker's newest calls, over several batches (`CallRecord`) | that exchange: `halt` |
| an exchange's newest price is older than the setting | that exchange: `halt` |
| a user's losses of 24 hours reach the limit | that user: `reduce` |
| balances that differ from the ledger, above the threshold (agents/watches/balances) | that user: `halt` |
| a withdrawal that the exchange has twice, or otherwise than asked (agents/watches/withdrawals) | that user: `halt` |
| an account's newest audit events do not add up | everybody: `halt` |

It changes nothing itself: a trip is a record on `trade.reports`, applied by the settlement agent once, however many workers see the same.

Each look reads a bounded part: what is open, the sales since the last look, and the newest events of a few accounts, so that all accounts
have their turn. `orchestrator verify --halt` looks at everything.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from itertools import groupby
from typing import Final

import structlog

from agents.watches.looks import by_itself
from agents.watches.watch import Watch, WatchContext
from infra.postgres.gate import read_halts
from infra.postgres.trips import StoredEvent, exchanges_in_doubt, newest_events, users_over_loss_limit
from pipeline.gate.limits import Limits
from pipeline.model.call_record import CallRecord
from pipeline.model.halts import HaltBook
from pipeline.model.venue import MarketData
from schemas.commands import HaltLevel, HaltScope, HaltTrip

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 0.5
# A sale carries the time of its decision and is seen when it is committed. Twice the time that the database gives a step lies between.
_COMMITTED_WITHIN: Final = timedelta(seconds=30)
_DAY: Final = timedelta(hours=24)
_ACCOUNTS_AT_ONCE: Final = 20
_EVENTS_OF_EACH: Final = 5


@dataclass(frozen=True, slots=True)
class TripRules:
    """When to stop: so many orders in doubt at one exchange, for so long after their intent, and the age of its newest price."""

    in_doubt_orders: int
    in_doubt_age: timedelta
    price_age: timedelta


class CircuitBreakers:
    """`market_data` gives what is known of each exchange at the moment of the call; `calls` has how each answered this worker."""

    def __init__(
        self,
        context: WatchContext,
        *,
        market_data: Callable[[], Mapping[str, MarketData]],
        calls: Mapping[str, CallRecord],
        limits: Limits,
        trip_rules: TripRules,
    ) -> None:
        self._context = context
        self._database = context.database
        self._market_data = market_data
        self._calls = calls
        self._limits = limits
        self._rules = trip_rules
        self._began_at = self._looked_at = context.clock()
        self._next_account = ""
        # Whether the newest look has gone through the sales since the one before: what it could not read is read by the next.
        self._losses_seen = False

    @property
    def watch(self) -> Watch:
        return Watch("trips", _LOOK_SECONDS, self.round)

    async def round(self) -> None:
        """Looks, and reports what stops trading. Raises Retryable and KafkaError; while a service is out of reach nothing is sent anyway.
        """
        now = self._context.clock()
        for trip in await self.look(now):
            await self._context.report(trip, trip.trip_id)
            log.warning("trading_trips", scope=trip.scope.value, target=trip.target, level=trip.level.value, reason=trip.reason)
        if self._losses_seen:
            self._looked_at = now

    async def look(self, now: datetime) -> list[HaltTrip]:
        """What stops trading now and is not stopped yet. Raises Retryable when the database is out of reach.

        Each cause is looked for by itself: an error of this system's own at one must not keep the others from stopping anything.
        """
        self._losses_seen = False
        book = await read_halts(self._database)
        found: list[HaltTrip] = []
        looks = {"prices": self._prices, "answers": self._answers, "doubts": self._doubts, "losses": self._losses, "trails": self._trails}
        for cause, look in looks.items():
            found += await by_itself("trips", cause, partial(look, now)) or []
        for trip in found:
            if trip.scope is HaltScope.EXCHANGE and trip.target in self._calls and _is_set(book, trip):
                # Nothing is sent there any more, so that what was would count for ever.
                self._calls[trip.target].forget()
        return [trip for trip in found if not _is_set(book, trip)]

    async def _prices(self, now: datetime) -> list[HaltTrip]:
        return [self._trip(HaltScope.EXCHANGE, exchange, reason, now) for exchange, reason in self.stale_prices(now).items()]

    async def _answers(self, now: datetime) -> list[HaltTrip]:
        return [self._trip(HaltScope.EXCHANGE, exchange, reason, now) for exchange, reason in self.lost_answers(now).items()]

    async def _doubts(self, now: datetime) -> list[HaltTrip]:
        async with self._database.connection() as connection:
            doubts = await exchanges_in_doubt(connection, self._rules.in_doubt_orders, now - self._rules.in_doubt_age)
        seconds = self._rules.in_doubt_age.total_seconds()
        why = f"orders or withdrawals are in doubt there, for more than {seconds:.0f} s: look-ups prove nothing"
        return [self._trip(HaltScope.EXCHANGE, exchange, f"{orders} {why}", now) for exchange, orders in doubts.items()]

    async def _losses(self, now: datetime) -> list[HaltTrip]:
        sold_since = self._looked_at - _COMMITTED_WITHIN
        async with self._database.connection() as connection:
            losses = await users_over_loss_limit(connection, sold_since, now - _DAY, self._limits.daily_loss_usd_max)
        found = [
            self._trip(HaltScope.USER, user_id, f"the user's losses of 24 hours have reached {lost:.2f} USD", now, HaltLevel.REDUCE)
            for user_id, lost in losses.items()
        ]
        self._losses_seen = True
        return found

    async def _trails(self, now: datetime) -> list[HaltTrip]:
        async with self._database.connection() as connection:
            events = await newest_events(connection, self._next_account, _ACCOUNTS_AT_ONCE, _EVENTS_OF_EACH)
        self._next_account = events[-1].account if events else ""
        wrong = broken_trail(events)
        if wrong is None:
            return []
        return [self._trip(HaltScope.ALL, "", f"the audit trail of account {wrong} does not add up: run `orchestrator verify`", now)]

    def lost_answers(self, now: datetime) -> dict[str, str]:
        """Exchanges that lose answers, with the reason."""
        lost: dict[str, str] = {}
        for exchange, record in self._calls.items():
            counts = record.lost_answers(now, self._rules.in_doubt_orders)
            if counts is not None:
                doubts, calls = counts
                lost[exchange] = f"{doubts} of the newest {calls} orders or withdrawals sent there are in doubt: it loses answers"
        return lost

    def stale_prices(self, now: datetime) -> dict[str, str]:
        """Exchanges whose newest price is too old, with the reason."""
        stale: dict[str, str] = {}
        for exchange, known in self._market_data().items():
            newest = max((quote.observed_at for quote in known.quotes.values()), default=self._began_at)
            if now - newest > self._rules.price_age:
                stale[exchange] = f"its newest price is older than {self._rules.price_age.total_seconds():.0f} s"
        return stale

    @staticmethod
    def _trip(scope: HaltScope, target: str, reason: str, now: datetime, level: HaltLevel = HaltLevel.HALT) -> HaltTrip:
        # All workers that see the same within a second name it alike.
        trip_id = f"trip:{scope.value}:{target}:{int(now.timestamp())}"
        return HaltTrip(schema_version=1, trip_id=trip_id, scope=scope, target=target, level=level, reason=reason, tripped_at=now)


def _is_set(book: HaltBook, trip: HaltTrip) -> bool:
    return any(
        (row.scope, row.target) == (trip.scope, trip.target) and (row.level is HaltLevel.HALT or trip.level is HaltLevel.REDUCE)
        for row in book.rows
    )


def _account_of(event: StoredEvent) -> str:
    return event.account


def broken_trail(events: Iterable[StoredEvent]) -> str | None:
    """The first account whose newest events are not what its head says: a hash that is not that of its event, a gap, another end."""
    for account, rows in groupby(events, key=_account_of):
        before: StoredEvent | None = None
        for event in rows:
            if event.seq is None or event.body is None or sha256(event.body.encode()).hexdigest() != event.hash:
                return account
            if before is not None and (event.seq != (before.seq or 0) + 1 or f'"prev_hash":"{before.hash}"' not in event.body):
                return account
            before = event
        if before is None or (before.seq, before.hash) != (before.head_seq, before.head_hash):
            return account
    return None
