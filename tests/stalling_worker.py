"""A worker for tests: the product's own, with one of its parts standing still on purpose from its first work on.

`TEST_STALL=name` says which: see STALLS. These switches live here and nowhere in the product.
"""

import asyncio
import os
import sys
import time
from typing import Any, NoReturn

from agents.process import worker
from agents.process.worker import run_worker
from agents.steps.batch import PartitionTask
from agents.steps.intake import IntakeStep
from agents.steps.partitions import Partitions
from agents.watches.watch import Watch
from infra.exchange.market_data import MarketDataFeed
from infra.kafka.transport import ConsumerThread
from infra.settings import Settings

_LONG_SECONDS = 3_600.0


def _step_never_ends() -> None:
    async def run(self: IntakeStep, batch: object) -> NoReturn:
        await asyncio.sleep(_LONG_SECONDS)
        raise RuntimeError("the test took too long")

    IntakeStep.run = run


def _loop_blocked() -> None:
    async def run(self: IntakeStep, batch: object) -> NoReturn:
        time.sleep(_LONG_SECONDS)
        raise RuntimeError("the test took too long")

    IntakeStep.run = run


def _agent_raises() -> None:
    def deliver(self: Partitions, event: object) -> NoReturn:
        raise RuntimeError("a defect in an agent's body")

    Partitions.deliver = deliver


def _agent_canceled() -> None:
    def deliver(self: Partitions, event: object) -> None:
        task = asyncio.current_task()
        if task is not None:
            task.cancel()

    Partitions.deliver = deliver


def _records_not_taken() -> None:
    PartitionTask._take = lambda self: None


def _consumer_thread_blocked() -> None:
    fetch = ConsumerThread._fetch_records

    async def fetch_and_block(self: ConsumerThread, *arguments: Any, **named: Any) -> Any:
        fetched = await fetch(self, *arguments, **named)
        if fetched:
            time.sleep(_LONG_SECONDS)
        return fetched

    ConsumerThread._fetch_records = fetch_and_block


def _fetcher_ended() -> None:
    fetch = ConsumerThread._fetch_records

    async def fetch_once(self: ConsumerThread, consumer: Any, *arguments: Any, **named: Any) -> Any:
        fetched = await fetch(self, consumer, *arguments, **named)
        if fetched:
            consumer._fetcher._fetch_task.cancel()
        return fetched

    ConsumerThread._fetch_records = fetch_once


def _price_feed_ended() -> None:
    async def poll(self: MarketDataFeed) -> bool:
        if self.snapshot.quotes:
            raise RuntimeError("a defect in the price feed")
        return await healthy(self)

    healthy = MarketDataFeed.poll
    MarketDataFeed.poll = poll


def _watch_raises() -> None:
    async def fails(_: Watch) -> NoReturn:
        await asyncio.sleep(1)
        raise RuntimeError("a defect in a watch")

    worker.keep = fails



STALLS = {
    "step_never_ends": _step_never_ends,
    "loop_blocked": _loop_blocked,
    "agent_raises": _agent_raises,
    "agent_canceled": _agent_canceled,
    "records_not_taken": _records_not_taken,
    "consumer_thread_blocked": _consumer_thread_blocked,
    "fetcher_ended": _fetcher_ended,
    "price_feed_ended": _price_feed_ended,
    "watch_raises": _watch_raises,
}


def main() -> int:
    STALLS[os.environ["TEST_STALL"]]()
    settings = Settings()
    if settings.kafka_bootstrap_servers is None or settings.database_url is None:
        sys.stderr.write("the test must name broker and database\n")
        return 2
    return run_worker(settings, settings.kafka_bootstrap_servers, settings.database_url.get_secret_value())


if __name__ == "__main__":
    raise SystemExit(main())
