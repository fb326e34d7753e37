"""Publishes requests, and sees when their final results become visible to a read_committed consumer.

Invariants:
1. Both times come from one clock: the broker stamps requests when it appends them, this process looks at the clock when it gets a result,
   and both run on this machine.
2. Requests and results are matched by idempotency key; every request has exactly one final result, or the run fails.

Start with `Load.saturate` and `Load.pace`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from bench.stage import Stage, requests_of

# The slowest row answers well over one request a second.
_SILENCE_SECONDS_MAX: Final = 60.0

Answered = Callable[[ConsumerRecord], str | None]


class BenchFailed(Exception):
    """A run that measured something else than it should have. Its text says what."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """From the broker's append to the result's visibility, in ms."""

    p50_ms: float
    p99_ms: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values have no percentile")
    return sorted(values)[max(0, ceil(len(values) * percent / 100) - 1)]


def key_of_final_result(record: ConsumerRecord) -> str | None:
    """The idempotency key that a final result answers; None for progress. Raises BenchFailed unless the order was executed."""
    result: dict[str, Any] = orjson.loads(record.value or b"{}")
    if not result.get("final"):
        return None
    if result.get("status") != "executed":
        raise BenchFailed(f"a request was {result.get('status')} where every one should be executed: {result.get('reason')}")
    return str(result["idempotency_key"])


def key_of_copy(record: ConsumerRecord) -> str | None:
    """The idempotency key of a request that was copied."""
    request: dict[str, Any] = orjson.loads(record.value or b"{}")
    return str(request["idempotency_key"])


@dataclass(slots=True)
class Load:
    """The requests and results of one run. Made by `open_load`. `visible_ms` is when each key's final result was seen, in ms since 1970."""

    producer: AIOKafkaProducer
    requests_topic: str
    answered: Answered
    visible_ms: dict[str, float] = field(default_factory=dict)
    failure: BenchFailed | None = None
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def saturate(self, name: str, count: int) -> float:
        """Publishes at full speed; returns requests a second, from the first append to the last visible result."""
        futures = {}
        for record_key, key, value in requests_of(name, count):
            futures[key] = await self.producer.send(self.requests_topic, value, key=record_key)
        appended_ms = {key: (await future).timestamp for key, future in futures.items()}
        await self._all_visible(appended_ms)
        last_ms = max(self.visible_ms[key] for key in appended_ms)
        first_ms = float(min(appended_ms.values()))
        return count / (last_ms - first_ms) * 1000

    async def pace(self, name: str, rate: int, seconds: float) -> Latencies:
        """Publishes `rate` requests a second, evenly; returns how long they took."""
        futures = {}
        begin = time.monotonic()
        for number, (record_key, key, value) in enumerate(requests_of(name, int(rate * seconds))):
            await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
            futures[key] = await self.producer.send(self.requests_topic, value, key=record_key)
        appended_ms = {key: (await future).timestamp for key, future in futures.items()}
        await self._all_visible(appended_ms)
        taken = [self.visible_ms[key] - appended for key, appended in appended_ms.items()]
        return Latencies(percentile(taken, 50), percentile(taken, 99))

    async def _all_visible(self, wanted: dict[str, int]) -> None:
        missing = wanted.keys() - self.visible_ms.keys()
        while missing:
            self._arrived.clear()
            if self.failure is not None:
                raise self.failure
            try:
                async with asyncio.timeout(_SILENCE_SECONDS_MAX):
                    await self._arrived.wait()
            except TimeoutError:
                raise BenchFailed(f"{len(missing)} of {len(wanted)} requests have no result, and none came for a while") from None
            missing -= self.visible_ms.keys()

    async def watch(self, consumer: AIOKafkaConsumer) -> None:
        """Notes results until it is cancelled; a failure is kept for whoever waits."""
        try:
            while True:
                fetched = await consumer.getmany(timeout_ms=1_000)
                self._note(fetched.values(), time.time() * 1000)
        except BenchFailed as error:
            self.fail(error)

    def fail(self, error: BenchFailed) -> None:
        """Ends the run: whoever waits for results gets the first of these errors."""
        self.failure = self.failure or error
        self._arrived.set()

    def _note(self, fetched: Any, now_ms: float) -> None:
        for records in fetched:
            for record in records:
                key = self.answered(record)
                if key is None:
                    continue
                if key in self.visible_ms:
                    raise BenchFailed(f"request {key} was answered twice")
                self.visible_ms[key] = now_ms
        self._arrived.set()


@asynccontextmanager
async def open_load(stage: Stage, answered: Answered) -> AsyncIterator[Load]:
    """A producer for the run's requests and a read_committed consumer of its results."""
    producer = AIOKafkaProducer(bootstrap_servers=stage.kafka, acks="all", linger_ms=0, max_batch_size=64 * 1024)
    consumer = AIOKafkaConsumer(bootstrap_servers=stage.kafka, isolation_level="read_committed", fetch_max_wait_ms=500)
    await producer.start()
    try:
        await consumer.start()
        try:
            partitions = [TopicPartition(stage.topics.results, number) for number in range(stage.settings.kafka_partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            load = Load(producer, stage.topics.requests, answered)
            watcher = asyncio.create_task(load.watch(consumer))
            try:
                yield load
            finally:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher
        finally:
            await consumer.stop()
    finally:
        await producer.stop()
