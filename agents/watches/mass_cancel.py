"""Cancels what rests at an exchange while a halt that asks for it is in force.

It changes nothing itself: a cancel is a record on `trade.orders.<exchange>`, and the execution agent sends it if the order still rests.
Each worker looks after the orders that were sent from the partitions it owns.

Invariants:
1. While such a halt is in force every order that it covers has its turn again and again until it is over: one whose cancel was not
   answered, and one that was on its way when the halt came, too.
2. Every order that it covers is one that the halt would not let pass: `reduce` leaves sales into dollars alone.
3. At most `_PAGE` cancels a second are queued per exchange and worker, so that the queue does not fill with copies.
"""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

import structlog

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
    """Cancels at one exchange; `clock` counts seconds."""

    def __init__(self, context: WatchContext, exchange: str, clock: Callable[[], float] = monotonic) -> None:
        self._context = context
        self._exchange = exchange
        self._clock = clock
        self._commands: frozenset[str] = frozenset()
        # Where the pass stands, and when its next page is due.
        self._cursor = ""
        self._due = clock()

    @property
    def watch(self) -> Watch:
        return Watch("halt cancels", _LOOK_SECONDS, self.round, self._exchange)

    async def round(self) -> None:
        """Queues the next page, if it is due. Raises Retryable and KafkaError."""
        commands = await canceling_commands(self._context.database)
        if commands - self._commands:
            self._cursor, self._due = "", self._clock()
        self._commands = commands
        partitions, now = self._context.owned(self._exchange), self._clock()
        if not commands or not partitions or now < self._due:
            return
        found = await orders_to_cancel(
            self._context.database, self._exchange, partitions, self._cursor, self._context.rules.usd_assets, _PAGE
        )
        await self._queue(found)
        at_the_end = len(found) < _PAGE
        self._cursor = "" if at_the_end else found[-1].order_id
        self._due = now + (_PASS_SECONDS if at_the_end else _PAGE_SECONDS)

    async def _queue(self, found: Sequence[RestingOrder]) -> None:
        cancels = ((cancel_of_halt(order.order_id, order.user_id, order.attempt), order.work_partition) for order in found)
        await queue_work(self._context.producer, self._context.topics.orders(self._exchange), cancels)
        if found:
            log.warning("halt_cancels", exchange=self._exchange, orders=len(found))
