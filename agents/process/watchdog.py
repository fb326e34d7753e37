"""The watchdog: ends the process rather than letting it stand still.

A worker that makes no progress is worse than a dead one: a dead one is replaced. It watches for
- a broker that does not answer,
- a Faust app, an agent or a price feed that has stopped,
- a consumer that does not poll, or a rebalance that does not end,
- a partition whose records the broker is not asked for any more,
- a batch that does not end, and records behind a partition that are not worked on.
Progress is judged by poll age and by what lies behind, never by traffic: an idle worker is healthy. What runs in the event loop cannot see
that the loop itself has stopped: that is agents/process/last_resort.

A database that does not answer ends only a worker that has a batch for it (agents/steps/batch); an idle one waits, and is not ready.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from agents.steps.batch import PartitionTask
from agents.steps.partitions import Partitions
from infra.exchange.market_data import MarketDataFeed
from infra.kafka.transport import OrchestratorApp
from infra.metrics import DOUBT_AGE, ORDERS_IN_DOUBT, PARTITIONS_ASSIGNED, PARTITIONS_STOPPED, RECORDS_BEHIND, WITHDRAWALS_IN_DOUBT
from infra.postgres.database import Database
from infra.postgres.probe import Doubts, doubts_by_exchange
from pipeline.model.invariants import Retryable

log = structlog.get_logger(__name__)

_TASKS_MAX: Final = 60
_DEPTH_MAX: Final = 30
_LOOK_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 2.0
_PROBE_SECONDS_MAX: Final = 5.0
# An answer that takes longer than this is not just on its way.
_OWES_SECONDS: Final = 1.0


def waiting_tasks(loops: Sequence[asyncio.AbstractEventLoop]) -> list[str]:
    """Where each task of these loops waits, the innermost line of each, for whoever looks into the end of a worker. Bounded."""
    tasks = [task for loop in loops for task in asyncio.all_tasks(loop)]
    return [_place_of(task) for task in tasks[:_TASKS_MAX]]


def _place_of(task: asyncio.Task[object]) -> str:
    waiting: object = task.get_coro()
    place = ""
    # Through what it awaits, down to where that ends in a future.
    for _ in range(_DEPTH_MAX):
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is None:
            break
        place = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename.rpartition('site-packages/')[2]}:{frame.f_lineno})"
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return f"{task.get_name()}: {place}"


class Stalled(Exception):
    """This worker stands still. It ends so that its supervisor starts another."""


class BrokerLost(Exception):
    """The broker has not answered for too long."""


class _Probe:
    """Asks one service again and again. `silent_seconds` is how long it has owed an answer; 0 while it gives them."""

    def __init__(self, name: str, ask: Callable[[], Awaitable[None]], money: str) -> None:
        self._name = name
        self._ask = ask
        self._money = money
        self._owes_since: float | None = None
        self._said = False

    @property
    def silent_seconds(self) -> float:
        return 0.0 if self._owes_since is None else monotonic() - self._owes_since

    async def run(self) -> None:
        while True:
            await self._once()
            await asyncio.sleep(_PROBE_SECONDS)

    async def _once(self) -> None:
        if self._owes_since is None:
            self._owes_since = monotonic()
        try:
            async with asyncio.timeout(_PROBE_SECONDS_MAX):
                await self._ask()
        except (Retryable, KafkaError, OSError, TimeoutError) as error:
            if not self._said:
                log.warning(f"{self._name}_silent", error=str(error) or type(error).__name__, money=self._money)
            self._said = True
            return
        if self._said:
            log.info(f"{self._name}_answers_again", after_seconds=round(self.silent_seconds, 1))
        self._said = False
        self._owes_since = None


class _Ages:
    """For each partition: since when a value that changes while all is well has not changed."""

    def __init__(self) -> None:
        self._seen: dict[TopicPartition, tuple[object, float]] = {}

    def of(self, partition: TopicPartition, value: object) -> float:
        """Seconds since the partition's value was last another one."""
        now = monotonic()
        seen, since = self._seen.get(partition, (value, now))
        if seen != value:
            since = now
        self._seen[partition] = (value, since)
        return now - since

    def begin_anew(self, partition: TopicPartition) -> None:
        self._seen.pop(partition, None)

    def keep_only(self, partitions: Mapping[TopicPartition, object]) -> None:
        for partition in self._seen.keys() - partitions.keys():
            del self._seen[partition]


class Watchdog:
    """`stall_seconds_max` is how long something may stand still before the process ends; a rebalance may take its own time on top."""

    def __init__(
        self,
        app: OrchestratorApp,
        partitions: Partitions,
        producer: AIOKafkaProducer,
        database: Database,
        feeds: Mapping[str, MarketDataFeed],
        stall_seconds_max: float,
        rebalance_seconds_max: float,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._app = app
        self._partitions = partitions
        self._producer = producer
        self._database = database
        self._feeds = feeds
        self._limit = stall_seconds_max
        self._rebalance_limit = rebalance_seconds_max
        self._fail = fail
        self.broker = _Probe("broker", self._ask_the_broker, "nothing is read or published meanwhile")
        self.database = _Probe("database", self._ask_the_database, "nothing is decided or sent meanwhile")
        self._fetches, self._offsets = _Ages(), _Ages()
        self._labels: set[tuple[str, str]] = set()

    @property
    def poll_age_seconds(self) -> float:
        return monotonic() - self._app.polled_at

    async def run(self) -> None:
        """Looks every second; calls `fail` with the first problem and returns."""
        # What stood still before there was anybody to look is not held against it: the start takes as long as it takes.
        self._app.polled_at = max(self._app.polled_at, monotonic())
        probes = [asyncio.create_task(probe.run()) for probe in (self.broker, self.database)]
        try:
            problem = self._look()
            while problem is None:
                await asyncio.sleep(_LOOK_SECONDS)
                problem = self._look()
        finally:
            for task in probes:
                task.cancel()
        log.error("standing_still", tasks=waiting_tasks(self._app.loops()))
        self._fail(problem)

    async def _ask_the_broker(self) -> None:
        await self._producer.client.fetch_all_metadata()

    async def _ask_the_database(self) -> None:
        found = await doubts_by_exchange(self._database)
        for exchange in self._feeds:
            doubts = found.get(exchange, Doubts())
            ORDERS_IN_DOUBT.labels(exchange).set(doubts.orders)
            WITHDRAWALS_IN_DOUBT.labels(exchange).set(doubts.withdrawals)
            DOUBT_AGE.labels(exchange).set(doubts.age_seconds)

    def _look(self) -> BaseException | None:
        self._measure()
        return self.problem()

    def problem(self) -> BaseException | None:
        """What is wrong now, or None."""
        return next(self._problems(), None)

    def _problems(self) -> Iterator[BaseException]:
        """The broker first: where it is lost, everything else stands still as well."""
        if self.broker.silent_seconds > self._limit:
            yield BrokerLost(
                f"the broker has not answered for {self.broker.silent_seconds:.0f} s. Nothing is read or published meanwhile; the next "
                "worker that reaches it publishes what is stored."
            )
        yield from self._stopped_parts()
        if self.broker.silent_seconds > _OWES_SECONDS:
            # Polls and fetches stand still for that reason. It has the same limit, and a better name for it.
            return
        allowed = self._limit + (self._rebalance_limit if self._app.rebalancing or self._partitions.assigned_at is None else 0)
        if self.poll_age_seconds > allowed:
            doing = "is in a rebalance that does not end and" if self._app.rebalancing else "did not crash, but"
            yield Stalled(f"the consumer {doing} has not polled for {self.poll_age_seconds:.0f} s. Requests wait in Kafka.")
        for partition, task in self._partitions.tasks.items():
            yield from self._standing(partition, task)

    def crash(self) -> Stalled | None:
        """What a crash of the Faust app is worth; it is the cause of every other failure that follows it."""
        if not self._app.crashed:
            return None
        return Stalled(f"the Faust app has crashed: {self._app.crash_reason!r}. Nothing more is read; requests wait in Kafka.")

    def _stopped_parts(self) -> Iterator[BaseException]:
        crash = self.crash()
        if crash is not None:
            yield crash
        dead = sorted(name for name in self._app.dead_agents())
        if dead and not self._app.should_stop:
            yield Stalled(f"agents have stopped: {', '.join(dead)}. Their topics would not be read any more; records wait in Kafka.")
        for exchange, feed in self._feeds.items():
            if feed.failure is not None:
                yield Stalled(
                    f"the price feed of {exchange} has stopped ({feed.failure!r}). Without prices every order there would be refused."
                )

    def _standing(self, partition: TopicPartition, task: PartitionTask) -> Iterator[Stalled]:
        if task.busy_since is not None and (seconds := monotonic() - task.busy_since) > self._limit:
            yield Stalled(
                f"a batch of {task.partition} has not ended for {seconds:.0f} s. The next worker publishes what it stored, and looks up "
                "what it sent."
            )
        behind, seconds = self._records_behind(partition, task), self._offsets.of(partition, task.next_offset)
        # Records that are missing are for a person to judge, and no other worker would find them.
        if behind == 0 or task.busy_since is not None or task.stands:
            self._offsets.begin_anew(partition)
        elif seconds > self._limit:
            yield Stalled(f"{behind} records of {task.partition} have not been worked on for {seconds:.0f} s. They wait in Kafka.")
        asked = self._fetches.of(partition, self._app.fetched_at_ms(partition))
        if self._app.rebalancing or task.held or task.stands:
            self._fetches.begin_anew(partition)
        elif asked > self._limit:
            yield Stalled(f"the broker has told nothing about {task.partition} for {asked:.0f} s. Its records wait in Kafka.")

    def _records_behind(self, partition: TopicPartition, task: PartitionTask) -> int:
        end = self._app.last_stable_offset(partition)
        return max(0, end - task.next_offset) if end is not None and task.next_offset >= 0 else 0

    def _measure(self) -> None:
        tasks = self._partitions.tasks
        labels = set()
        for partition, task in tasks.items():
            label = (partition.topic, str(partition.partition))
            RECORDS_BEHIND.labels(*label).set(self._records_behind(partition, task))
            labels.add(label)
        for gone in self._labels - labels:
            # Its new owner tells it from now on.
            RECORDS_BEHIND.remove(*gone)
        self._labels = labels
        PARTITIONS_ASSIGNED.set(len(tasks))
        PARTITIONS_STOPPED.set(sum(task.stands for task in tasks.values()))
        self._fetches.keep_only(tasks)
        self._offsets.keep_only(tasks)
