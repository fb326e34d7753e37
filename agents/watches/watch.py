"""Watches: what looks again and again, each in its own time, and what they all look with.

Invariants:
1. Rounds of one watch never overlap, and no watch waits for another: one exchange is asked by watches of its own, so that one which is slow
   or away slows nothing but its own.
2. While a service is out of reach a watch waits and looks again; it says so once, and once that it goes on.
3. An error of this system's own in a round costs that round (agents/watches/looks); what calls for a reaction of the process ends it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from pydantic import BaseModel

from agents.steps.step import Clock
from agents.watches.looks import by_itself
from infra.postgres.database import Database
from pipeline.model.invariants import Retryable
from pipeline.model.rules import Rules
from schemas.topics import Topics

log = structlog.get_logger(__name__)

PauseSeconds = float  # The seconds until the next round, where a round names them.


@dataclass(frozen=True, slots=True)
class WatchContext:
    """What watches look with. `owned` gives the partitions of an exchange's queue that this worker owns now."""

    database: Database
    producer: AIOKafkaProducer
    owned: Callable[[str], Sequence[int]]
    topics: Topics
    rules: Rules
    clock: Clock

    async def report(self, report: BaseModel, key: str) -> None:
        """Publishes what was found on `trade.reports`: the settlement agent applies it. Raises KafkaError."""
        await self.producer.send_and_wait(self.topics.reports, report.model_dump_json().encode(), key=key.encode())

    async def shares(self, exchange: str) -> int:
        """Into how many shares an exchange's users are divided among the owners of its queue: each share has exactly one. Raises
        KafkaError."""
        return len(await self.producer.partitions_for(self.topics.orders(exchange)))


@dataclass(frozen=True, slots=True)
class Watch:
    """`what` is looked at, of `subject` (an exchange), if it is one of several.

    A round begins `pace_seconds` after the one before began, or as soon as that is over; where it returns a number, so many seconds after
    it ended. `begins_late`: the first round waits for the pace, too, so that a worker that starts again and again asks nothing.
    """

    what: str
    pace_seconds: float
    round: Callable[[], Awaitable[PauseSeconds | None]]
    subject: str = ""
    begins_late: bool = False

    @property
    def name(self) -> str:
        return f"{self.what} {self.subject}".rstrip()


async def keep(watch: Watch) -> None:
    """Makes a watch's rounds until it is cancelled."""
    waits = False
    if watch.begins_late:
        await asyncio.sleep(watch.pace_seconds)

    async def whole_round() -> tuple[PauseSeconds | None]:
        # In a tuple: a round that names no pause is told from one that failed.
        pause_seconds = await watch.round()
        return (pause_seconds,)

    while True:
        started = monotonic()
        pause_named: tuple[PauseSeconds | None] | None = None
        try:
            pause_named = await by_itself(watch.what, watch.subject, whole_round)
        except (Retryable, KafkaError) as error:
            if not waits:
                log.warning("watch_waits", watch=watch.name, error=str(error), money="what it looks after stays as it is, its funds held")
            waits = True
        if pause_named is not None and waits:
            log.info("watch_goes_on", watch=watch.name)
            waits = False
        pause_seconds = pause_named[0] if pause_named is not None else None
        if pause_seconds is None:
            pause_seconds = max(0.0, watch.pace_seconds - (monotonic() - started))
        await asyncio.sleep(pause_seconds)
