"""The reconciler: asks the exchange about orders whose end is not known, and reports what it proves on `trade.reports`.

It changes nothing itself: every change goes through the settlement agent's step. So a report that is lost is made again at the next look,
and one that comes twice changes nothing. Each worker looks after the orders that were sent from the partitions it owns.

Invariants:
1. Of an order in doubt the first look that finds nothing is reported, and the one after which that is a proof. What is between says
   nothing new, and a simulated order needs one alone.
2. A look-up that failed is no answer: the order is asked about again. A cancel that waits for such an order is sent all the same.
3. The longer an order is in doubt, the more seldom it is asked about, but for the look that may prove it absent: orders stay in doubt for
   minutes, and an exchange bans who asks too much. Orders that ended without the exchange's own word are asked about once a minute or more
   seldom, a few at a time (`Order.watched_until`).
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Final

import structlog

from agents.steps.step import Clock
from agents.watches.looks import by_itself
from agents.watches.watch import Watch, WatchContext
from agents.watches.work_queue import queue_work
from infra.exchange.gateway import Gateway
from infra.metrics import LOOKS_UNPROVEN
from infra.postgres.doubts import note_looks
from infra.postgres.unfinished import UnfinishedOrder, unfinished_orders, watched_orders
from pipeline.model.absence import absence_is_proven, shown_by
from pipeline.model.detail import storable
from pipeline.model.order import Order
from pipeline.model.rules import Rules
from pipeline.model.venue import Absent, Found, LookUpFailed, LookUpOutcome
from pipeline.orders.execution import reference_of
from schemas.orders import Mode, OrderStatus
from schemas.routing import Action, Report, ReportedFee, RoutedOrder

log = structlog.get_logger(__name__)

# Look-ups of one round and exchange; with more orders than this, each has its turn in a later round.
_ORDERS_PER_ROUND_MAX: Final = 500
_IN_DOUBT: Final = (OrderStatus.IN_DOUBT,)
_RESTING: Final = (OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED)
# Orders in doubt hold funds that may be free; resting ones are asked about less often.
_RESTING_EVERY_ROUNDS: Final = 4
_PAUSE_SECONDS_MAX: Final = 30.0
_PACED_MAX: Final = 100_000
# Orders that are over and watched: so many are asked about together, this often at most.
_WATCHED_PER_ROUND_MAX: Final = 20
_WATCH_SECONDS: Final = 60.0


def report_of(unfinished: UnfinishedOrder, outcome: LookUpOutcome, looked_up_at: datetime, rules: Rules) -> Report | None:
    """The report that a look-up is worth; None when it proves nothing new."""
    order = unfinished.order
    if isinstance(outcome, Found):
        found = outcome.order
        # A pending cancel is sent again, and so is that of what should not be there.
        repeats = unfinished.cancel_pending or order.corrected_at is not None
        if found.order_status is order.status and found.cum_quantity == order.cum_quantity and not repeats:
            return None
        return Report(
            schema_version=1,
            order_id=order.order_id,
            user_id=order.user_id,
            attempt=order.attempt,
            found=True,
            looked_up_at=looked_up_at,
            exchange_order_id=found.exchange_order_id,
            order_status=found.order_status,
            cum_quantity=found.cum_quantity,
            cum_quote=found.cum_quote,
            fees=tuple(ReportedFee(asset=fee.asset, amount=fee.amount) for fee in found.fees),
        )
    if isinstance(outcome, Absent) and order.status is OrderStatus.IN_DOUBT and _is_news(order, outcome.looked_up_at, rules):
        return Report(
            schema_version=1,
            order_id=order.order_id,
            user_id=order.user_id,
            attempt=order.attempt,
            found=False,
            looked_up_at=outcome.looked_up_at,
        )
    return None


def _is_news(order: Order, looked_up_at: datetime, rules: Rules) -> bool:
    return order.absent_since is None or absence_is_proven(order, looked_up_at, rules)


class Pace:
    """When an order in doubt is asked about again: after a quarter of the time that it has been asked about already, within bounds, and as
    soon as a look may prove it absent. `interval` is the shortest pause, in seconds; `monotonic_clock` counts seconds."""

    def __init__(self, interval: float, clock: Clock, monotonic_clock: Callable[[], float] = monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._monotonic = monotonic_clock
        # By order: when it was first and last asked about.
        self._asked: dict[str, tuple[float, float]] = {}
        self._decided: dict[str, datetime] = {}

    def is_due(self, order: Order, rules: Rules) -> bool:
        """Whether an order is to be asked about now; if so it counts as asked about."""
        now = self._monotonic()
        first, last = self._asked.get(order.order_id, (now, float("-inf")))
        # By this machine's clock, which may differ from the exchange's: then the look is one of many, and the pause brings the next.
        shown = shown_by(order, rules)
        decides = shown is not None and self._clock() >= shown
        may_decide = decides and self._decided.get(order.order_id) != order.absent_since
        if not may_decide and now - last < min(max((last - first) / 4, self._interval), _PAUSE_SECONDS_MAX):
            return False
        if len(self._asked) >= _PACED_MAX:
            self._asked.clear()
            self._decided.clear()
        self._asked[order.order_id] = first, now
        if decides and order.absent_since is not None:
            self._decided[order.order_id] = order.absent_since
        return True


class Reconciler:
    """Asks one exchange. `gateways`: where orders of each mode are asked about."""

    def __init__(self, context: WatchContext, exchange: str, gateways: Mapping[Mode, Gateway], interval_seconds: float) -> None:
        self._context = context
        self._exchange = exchange
        self._gateways = gateways
        self._interval = interval_seconds
        self._rounds = 0
        # Where the last page of each kind ended.
        self._cursors: dict[tuple[OrderStatus, ...], str] = {}
        self._pace = Pace(interval_seconds, context.clock)
        # Why look-ups of this round proved nothing, by order in doubt.
        self._unproven: dict[str, str] = {}
        # Where the last page of orders that are over and watched ended, and when some of them are asked about again.
        self._watched: tuple[datetime, str] | None = None
        self._watch_due = 0.0

    @property
    def watch(self) -> Watch:
        return Watch("reconciliation", self._interval, self.round, self._exchange)

    async def round(self) -> None:
        """Looks at a page of orders of each kind. Raises Retryable and KafkaError while a service is out of reach."""
        self._rounds += 1
        partitions = list(self._context.owned(self._exchange))
        if not partitions:
            return
        kinds = (_IN_DOUBT, _RESTING) if self._rounds % _RESTING_EVERY_ROUNDS == 0 else (_IN_DOUBT,)
        async with asyncio.TaskGroup() as group:
            for statuses in kinds:
                for unfinished in await self._next_page(partitions, statuses):
                    if statuses is not _IN_DOUBT or self._pace.is_due(unfinished.order, self._context.rules):
                        group.create_task(by_itself("reconciliation", unfinished.order.order_id, partial(self._look_up, unfinished)))
            for watched in await self._next_watched(partitions):
                look = partial(self._look_up, UnfinishedOrder(watched, cancel_pending=False))
                group.create_task(by_itself("reconciliation", watched.order_id, look))
        unproven, self._unproven = self._unproven, {}
        await by_itself("reconciliation", "looks", partial(note_looks, self._context.database, unproven, self._context.clock()))

    async def _next_page(self, partitions: list[int], statuses: tuple[OrderStatus, ...]) -> list[UnfinishedOrder]:
        cursor = self._cursors.get(statuses, "")
        orders = await unfinished_orders(
            self._context.database, self._exchange, partitions, statuses, cursor, _ORDERS_PER_ROUND_MAX
        )
        at_the_end = len(orders) < _ORDERS_PER_ROUND_MAX
        self._cursors[statuses] = "" if at_the_end else orders[-1].order.order_id
        return orders

    async def _next_watched(self, partitions: list[int]) -> list[Order]:
        if monotonic() < self._watch_due:
            return []
        pause = min(self._context.rules.read_lag(self._exchange).total_seconds() / 2, _WATCH_SECONDS)
        self._watch_due = monotonic() + max(pause, self._interval)
        now, after = self._context.clock(), self._watched
        orders = await watched_orders(self._context.database, self._exchange, partitions, now, after, _WATCHED_PER_ROUND_MAX)
        at_the_end = len(orders) < _WATCHED_PER_ROUND_MAX
        last = None if at_the_end else orders[-1]
        self._watched = None if last is None or last.watched_until is None else (last.watched_until, last.order_id)
        return orders

    async def _look_up(self, unfinished: UnfinishedOrder) -> None:
        looked_up_at = self._context.clock()
        outcome = await self._gateways[unfinished.order.mode].look_up(reference_of(unfinished.order))
        report = report_of(unfinished, outcome, looked_up_at, self._context.rules)
        is_proof = isinstance(outcome, Found) or (report is not None and unfinished.order.absent_since is not None)
        if unfinished.order.status is OrderStatus.IN_DOUBT and not is_proof:
            absent = "the exchange does not show it, which proves nothing yet"
            LOOKS_UNPROVEN.labels("order").inc()
            self._unproven[unfinished.order.order_id] = storable(outcome.detail if isinstance(outcome, LookUpFailed) else absent)
        if report is not None:
            await self._context.report(report, report.order_id)
        elif unfinished.cancel_pending and unfinished.order.status in _RESTING:
            await self._queue_cancel(unfinished.order)

    async def _queue_cancel(self, order: Order) -> None:
        """Has the cancel of an order sent that no look-up can show: it needs none, and it must be answered in bounded time."""
        routed = RoutedOrder(
            schema_version=1, action=Action.CANCEL, order_id=order.order_id, user_id=order.user_id, attempt=order.attempt
        )
        await queue_work(self._context.producer, self._context.topics.orders(order.exchange), [(routed, order.work_partition)])
