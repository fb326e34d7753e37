"""Queues again what its exchange did not take, when its next attempt is due (pipeline/model/retries).

It changes nothing itself: it adds a record to `trade.orders.<exchange>`, as intake does, and the execution agent sends the work if it still
stands as the record says. So a record that is lost is made again at a later look, and one that comes twice sends nothing. Each worker looks
after the work that was sent from the partitions it owns, and after what is overdue.

Invariants:
1. While an exchange answers nothing at all nothing is queued for it but what is over, so that an outage makes no attempts, no audit events
   and no doubts, however long it lasts and whoever is killed in it.
2. When it answers again, everything that failed before that is due.
3. At most `_PAGE` pieces of work a look are queued per exchange and worker.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from time import monotonic
from typing import Final, Protocol

import structlog

from agents.watches.watch import Watch, WatchContext
from agents.watches.work_queue import queue_work
from infra.postgres.unfinished import DueWork, due_work
from schemas.times import EARLIEST

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 0.5
_PAGE: Final = 200
# What was queued is queued again only after this long: its turn comes behind whatever else waits there.
_AGAIN_SECONDS: Final = 30.0
_QUEUED_MAX: Final = 100_000


class Answering(Protocol):
    """Whether an exchange answers at all (infra/exchange/market_data)."""

    @property
    def answering(self) -> bool: ...

    @property
    def answers_again_since(self) -> datetime | None: ...


class RetryQueue:
    """Queues work of one exchange; `feed` tells whether it answers, `monotonic_clock` counts seconds."""

    def __init__(
        self, context: WatchContext, exchange: str, feed: Answering, monotonic_clock: Callable[[], float] = monotonic
    ) -> None:
        self._context = context
        self._exchange = exchange
        self._feed = feed
        self._monotonic = monotonic_clock
        # By id and attempt: when it may be queued again.
        self._queued_until: dict[tuple[str, int], float] = {}

    @property
    def watch(self) -> Watch:
        return Watch("retry queue", _LOOK_SECONDS, self.round, self._exchange)

    async def round(self) -> None:
        """Queues what is due. Raises Retryable and KafkaError."""
        passed = self._monotonic()
        self._queued_until = {key: until for key, until in self._queued_until.items() if until > passed}
        partitions = list(self._context.owned(self._exchange))
        if not partitions:
            return
        now = self._context.clock()
        # Where it was never silent in this worker's time, nothing failed before it answered again.
        since = (self._feed.answers_again_since or EARLIEST) if self._feed.answering else None
        due = await due_work(self._context.database, self._exchange, partitions, now, since, _PAGE)
        new = [work for work in due if (work.routed.order_id, work.routed.attempt) not in self._queued_until]
        if new and len(self._queued_until) < _QUEUED_MAX:
            await self._queue(new)

    async def _queue(self, due: Sequence[DueWork]) -> None:
        until = self._monotonic() + _AGAIN_SECONDS
        self._queued_until |= {(work.routed.order_id, work.routed.attempt): until for work in due}
        topic = self._context.topics.orders(self._exchange)
        await queue_work(self._context.producer, topic, ((work.routed, work.work_partition) for work in due))
        log.info("retries_queued", exchange=self._exchange, pieces=len(due))
