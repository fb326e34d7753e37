"""The watchdog: ends the process rather than letting it stand still.

A worker that makes no progress is worse than a dead one: a dead one is replaced. It watches for
- a batch that does not end,
- records behind a partition that is not worked on,
- a consumer that does not poll,
- a broker that does not answer,
- a Faust app or an agent that has stopped.
Progress is judged by poll age and by what lies behind, never by traffic: an idle worker is well.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from agents.partitions import Partitions
from infra.kafka.transport import OrchestratorApp

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 5.0


class Stalled(Exception):
    """This worker stands still. It ends so that its supervisor starts another."""


class BrokerLost(Exception):
    """The broker has not answered for too long."""


class Watchdog:
    """`stall_seconds_max` is how long something may stand still before the process ends."""

    def __init__(
        self,
        app: OrchestratorApp,
        partitions: Partitions,
        probe: AIOKafkaProducer,
        stall_seconds_max: float,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._app = app
        self._partitions = partitions
        self._probe = probe
        self._limit = stall_seconds_max
        self._fail = fail
        self._broker_answered_at = monotonic()
        self._probe_due = 0.0
        # For each partition that has records behind it: since when it stands where it stands.
        self._standing: dict[object, tuple[int, float]] = {}

    @property
    def poll_age_seconds(self) -> float:
        return monotonic() - self._app.polled_at

    @property
    def broker_age_seconds(self) -> float:
        return monotonic() - self._broker_answered_at

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self._ask_the_broker()
            problem = self.problem()
            if problem is not None:
                self._fail(problem)
                return

    async def _ask_the_broker(self) -> None:
        if monotonic() < self._probe_due:
            return
        self._probe_due = monotonic() + _PROBE_SECONDS
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._probe.client.fetch_all_metadata()
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("broker_silent", seconds=round(self.broker_age_seconds), error=str(error) or type(error).__name__)
            return
        self._broker_answered_at = monotonic()

    def problem(self) -> BaseException | None:
        """What is wrong now, or None."""
        if self.broker_age_seconds > self._limit:
            return BrokerLost(f"the broker has not answered for {self.broker_age_seconds:.0f} s. Nothing is read or sent meanwhile.")
        if self._app.crashed:
            return Stalled(f"the Faust app has crashed: {self._app.crash_reason!r}. Nothing more is read or sent.")
        dead = [agent.name for agent in self._app.agents.values() if agent.started and agent.should_stop]
        if dead and not self._app.should_stop:
            return Stalled(f"agents have stopped: {', '.join(sorted(dead))}. Their topics would not be read any more.")
        if self.poll_age_seconds > self._limit:
            return Stalled(f"the consumer has not polled for {self.poll_age_seconds:.0f} s.")
        return self._standing_partition()

    def _standing_partition(self) -> Stalled | None:
        now = monotonic()
        standing: dict[object, tuple[int, float]] = {}
        for partition, task in self._partitions.tasks.items():
            if task.busy_since is not None and now - task.busy_since > self._limit:
                seconds = now - task.busy_since
                return Stalled(f"a batch of {task.partition} has not ended for {seconds:.0f} s. Its outcome is stored or looked up.")
            end = self._app.last_stable_offset(partition)
            if end is None or end <= task.next_offset:
                continue
            offset, since = self._standing.get(partition, (task.next_offset, now))
            standing[partition] = (task.next_offset, now if offset != task.next_offset else since)
            if now - standing[partition][1] > self._limit:
                return Stalled(f"{end - task.next_offset} records of {task.partition} are not worked on for {now - since:.0f} s.")
        self._standing = standing
        return None
