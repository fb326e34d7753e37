"""The halts as this worker knows them: read ten times a second, and asked right before each order is sent.

Invariants:
1. What is answered is never older than `AGE_SECONDS_MAX`: where the database could not be read for so long, nothing is sent.
2. An order that waits for its turn within a batch is asked about when its turn comes, not when the batch began.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

import structlog

from pipeline.model.halts import HaltBook
from pipeline.model.invariants import Retryable
from schemas.commands import HaltLevel

log = structlog.get_logger(__name__)

# A machine that is busy adds its own delays: these two keep the whole below a second there, too.
POLL_SECONDS: Final = 0.1
AGE_SECONDS_MAX: Final = 0.3


class HaltWatch:
    """`read` gives the halts in force, and raises Retryable when the database is out of reach."""

    def __init__(self, read: Callable[[], Awaitable[HaltBook]], clock: Callable[[], float] = monotonic) -> None:
        self._read = read
        self._clock = clock
        self._book: HaltBook | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def run(self) -> None:
        """Reads until it is cancelled."""
        while True:
            try:
                await self.refresh()
            except Retryable:
                # Whoever is about to send asks again, and is told.
                log.debug("halts_unknown")
            await asyncio.sleep(POLL_SECONDS)

    async def level_for(self, exchange: str, symbol: str, user_id: str) -> HaltLevel | None:
        """What holds for an order now. Raises Retryable when nobody can say."""
        if self._book is None or self._clock() - self._read_at > AGE_SECONDS_MAX:
            async with self._reading:
                # Another order may have asked meanwhile.
                if self._book is None or self._clock() - self._read_at > AGE_SECONDS_MAX:
                    await self.refresh()
        if self._book is None:
            raise Retryable("the halts in force are not known")
        return self._book.level_for(exchange, symbol, user_id)

    async def refresh(self) -> None:
        """Reads the halts once. Raises Retryable when the database is out of reach."""
        # Before the question: what is read never counts as younger than it is.
        asked_at = self._clock()
        book = await self._read()
        # Of two that were asked for at once the slower one may be the older one.
        if asked_at > self._read_at:
            self._book, self._read_at = book, asked_at
