"""What intake knows of a venue's markets and prices, kept fresh by polling.

Invariants:
1. `snapshot` holds only what the venue said; a price keeps the time at which it was asked for. When the venue is silent the snapshot grows
   old, and intake refuses by age.
2. A change between answering and silent is logged once, not every poll.
3. A defect ends the polling: the error is logged and `stop` raises it. The snapshot then grows old as well.

Start with `MarketDataFeed.poll`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from infra.exchange.gateway import Gateway, VenueUnavailable
from pipeline.model.venue import MarketData

_log: Final = structlog.get_logger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class MarketDataFeed:
    """Polls one gateway. `symbols` None means every active market. Markets are read again every `markets_interval`."""

    def __init__(
        self,
        gateway: Gateway,
        poll_interval: timedelta,
        clock: Callable[[], datetime] = _now,
        *,
        symbols: Sequence[str] | None = None,
        markets_interval: timedelta = timedelta(minutes=10),
    ) -> None:
        self._gateway = gateway
        self._poll_interval = poll_interval
        self._clock = clock
        self._symbols = symbols
        self._markets_interval = markets_interval
        self._markets_due = datetime.min.replace(tzinfo=UTC)
        self._answering: bool | None = None
        # When it answered for the first time after it had been silent.
        self.answers_again_since: datetime | None = None
        self._task: asyncio.Task[None] | None = None
        self._polled = asyncio.Event()
        self.snapshot = MarketData(gateway.exchange)

    async def poll(self) -> bool:
        """Asks once. True where the venue answered; the snapshot is then new, else it is what it was."""
        try:
            if self._clock() >= self._markets_due:
                self.snapshot = replace(self.snapshot, markets=await self._gateway.markets())
                self._markets_due = self._clock() + self._markets_interval
            wanted = self._symbols
            if wanted is None:
                wanted = [symbol for symbol, market in self.snapshot.markets.items() if market.active]
            quotes = await self._gateway.quotes(wanted)
        except VenueUnavailable as error:
            self._note(answering=False, detail=str(error))
            return False
        # A symbol that is left out keeps its old price with its old time.
        self.snapshot = replace(self.snapshot, quotes={**self.snapshot.quotes, **quotes})
        self._note(answering=True)
        return True

    def start(self) -> None:
        """Begins to poll. Raises RuntimeError when it already does."""
        if self._task is not None:
            raise RuntimeError("the market data feed runs already")
        self._task = asyncio.create_task(self._run(), name=f"market data {self._gateway.exchange}")
        self._task.add_done_callback(self._report)

    async def stop(self) -> None:
        """Ends the polling; raises the defect that ended it earlier, if one did."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise

    @property
    def answering(self) -> bool:
        """Whether the venue answered when it was last asked."""
        return self._answering is True

    @property
    def failure(self) -> BaseException | None:
        """The defect that has ended the polling; None while it goes on. A venue that does not answer ends nothing."""
        task = self._task
        return task.exception() if task is not None and task.done() and not task.cancelled() else None

    async def first_answer(self, timeout_seconds: float) -> bool:
        """Waits until the venue has answered once, at most this long. False where it has not."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._polled.wait()
        except TimeoutError:
            return False
        return True

    async def _run(self) -> None:
        while True:
            await self.poll()
            await asyncio.sleep(self._poll_interval.total_seconds())

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.error("market_data_stopped", exchange=self._gateway.exchange, error=type(task.exception()).__name__)

    def _note(self, *, answering: bool, detail: str = "") -> None:
        if answering:
            self._polled.set()
        if self._answering is answering:
            return
        if not answering:
            _log.warning("market_data_silent", exchange=self._gateway.exchange, detail=detail)
        elif self._answering is False:
            _log.info("market_data_answers_again", exchange=self._gateway.exchange)
            self.answers_again_since = self._clock()
        self._answering = answering
