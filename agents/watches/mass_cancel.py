"""Cancels what rests at an exchange while a halt that asks for it is in force.

It changes nothing itself: a cancel is a record on `trade.orders.<exchange>`, and the execution agent sends it if the order still rests.
Each worker looks after the orders that were sent from the partitions it owns.

Invariants:
1. While such a halt is in force every order that it covers has its turn again and again until it is over: one whose cancel was not
   answered, and one that was on its way when the halt came, too.
2. Every order that it covers is one that the halt would not let pass: `reduce` leaves sales into dollars alone.
3. At most `_PAGE` cancels a second are queued per exchange and worker, so that the queue does not fill with copies.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Final

import structlog

from agents.watches.looks import by_itself
from agents.watches.watch import Watch, WatchContext
from agents.watches.work_queue import queue_work
from infra.postgres.gate import RestingOrder, canceling_commands, orders_to_cancel
from pipeline.commands.halts import cancel_of_halt

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 0.25
# Binance takes 100 requests a second from one address.
_PAGE: Final = 100
_PAGE_SECONDS: Final = 1.0
# A pass over all orders begins at the earliest so long after the one before, unless another halt has come.
_PASS_SECONDS: Final = 5.0


class MassCancel:
    """The exchanges whose orders this worker cancels; `clock` counts seconds."""

    def __init__(self, context: WatchContext, exchanges: Iterable[str], clock: Callable[[], float] = monotonic) -> None:
        self._context = context
        self._clock = clock
        self._exchanges = tuple(exchanges)
        self._commands: frozenset[str] = frozenset()
        # Per exchange: where the pass stands, and when its next page is due.
        self._cursors: dict[str, str] = {}
        self._due: dict[str, float] = {}

    @property
    def watch(self) -> Watch:
        return Watch("halt cancels", _LOOK_SECONDS, self.look)

    async def look(self) -> None:
        """One look: queues the next page of each exchange that is due. Raises Retryable and KafkaError."""
        commands = await canceling_commands(self._context.database)
        if commands - self._commands:
            self._cursors.clear()
            self._due.clear()
        self._commands = commands
        if commands:
            for exchange in self._exchanges:
                await by_itself("halt cancels", exchange, partial(self._page, exchange))

    async def _page(self, exchange: str) -> None:
        partitions = self._context.owned(exchange)
        now = self._clock()
        if not partitions or now < self._due.get(exchange, now):
            return
        after = self._cursors.get(exchange, "")
        found = await orders_to_cancel(
            self._context.database, exchange, partitions, after, self._context.rules.usd_assets, _PAGE
        )
        await self._queue(exchange, found)
        at_the_end = len(found) < _PAGE
        self._cursors[exchange] = "" if at_the_end else found[-1].order_id
        self._due[exchange] = now + (_PASS_SECONDS if at_the_end else _PAGE_SECONDS)

    async def _queue(self, exchange: str, found: Sequence[RestingOrder]) -> None:
        cancels = ((cancel_of_halt(order.order_id, order.user_id, order.attempt), order.work_partition) for order in found)
        await queue_work(self._context.producer, self._context.topics.orders(exchange), cancels)
        if found:
            log.warning("halt_cancels", exchange=exchange, orders=len(found))
