"""Whatever stands still in a worker ends it soon, with a message and an exit code; an idle worker lives on."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic

import aiohttp
import pytest

from agents.process.worker import ExitCode
from tests.installation import ended, installation, order

STALL_SECONDS_MAX = 5
# From the first moment of standing still: the limit, a look, and a busy machine.
NOTICED_SECONDS_MAX = STALL_SECONDS_MAX + 8
# On a machine that has other things to do as well.
START_SECONDS_MAX = 120

# What a person reads about each.
MESSAGES = {
    "step_never_ends": "a batch of",
    "loop_blocked": "the event loop has stood still",
    "agent_raises": "a defect in an agent's body",
    "agent_canceled": "CancelledError",
    "records_not_taken": "have not been worked on",
    "consumer_thread_blocked": "has not polled for",
    "fetcher_ended": "the broker has told nothing about",
    "price_feed_ended": "the price feed of binance has stopped",
}


@pytest.mark.parametrize("stall", MESSAGES)
async def test_worker_that_stands_still_ends_with_a_message(
    stall: str, kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Each way to stand still ends the process within the limit and a few seconds, says what stood still, and with exit code 5."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, stall_seconds_max=STALL_SECONDS_MAX) as made:
        await made.publish([order(number) for number in range(4)])
        worker = made.start_worker("tests.stalling_worker", TEST_STALL=stall)
        assert await ended(worker, START_SECONDS_MAX) == ExitCode.STALLED, made.worker_log(0)
        end = made.end(0)
        assert MESSAGES[stall] in end["what"]
        # It stands still from its first record, which it cannot have before this.
        assigned = [event for event in made.events(0) if event["event"] == "partitions_assigned"]
        since = assigned[0] if assigned else made.events(0)[0]
        assert at(end) - at(since) < timedelta(seconds=NOTICED_SECONDS_MAX)
        if stall == "loop_blocked":
            assert "time.sleep" in "".join(end["loop_stack"])


def at(event: dict[str, str]) -> datetime:
    """When a line of a log was written."""
    return datetime.fromisoformat(event["timestamp"])


async def test_worker_whose_watch_fails_ends_with_its_traceback(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A defect in a background task ends the process as something impossible, with the traceback in the log."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        worker = made.start_worker("tests.stalling_worker", TEST_STALL="watch_raises")
        assert await ended(worker, START_SECONDS_MAX) == ExitCode.IMPOSSIBLE, made.worker_log(0)
        assert "Traceback" in made.end(0)["exception"]


async def test_idle_workers_stay_alive_and_ready(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Without any record for longer than the limit, workers live on, also one without a partition, and then do their work."""
    async with installation(
        kafka, database_url, unique_prefix, tmp_path, stall_seconds_max=STALL_SECONDS_MAX, kafka_partitions=1
    ) as made:
        # Three input topics of one partition each are dealt out in turn: the fourth worker gets none.
        workers = [made.start_worker() for _ in range(4)]
        addresses = [(await made.event(number, "worker_started", START_SECONDS_MAX))["health"] for number in range(4)]
        await asyncio.gather(*(until_ready(address) for address in addresses))
        until = monotonic() + STALL_SECONDS_MAX + 3
        async with aiohttp.ClientSession() as session:
            while monotonic() < until:
                for address in addresses:
                    for path in ("livez", "readyz"):
                        async with session.get(f"{address}/{path}") as response:
                            assert response.status == 200, (path, await response.text())
                await asyncio.sleep(0.5)
        assert [worker.poll() for worker in workers] == [None] * 4
        finals = await made.final_results(await made.publish([order(1)]), START_SECONDS_MAX)
        assert {result["status"] for result in finals.values()} == {"executed"}


async def until_ready(address: str) -> None:
    """Waits for the rebalances of the start to be over."""
    async with asyncio.timeout(START_SECONDS_MAX), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{address}/readyz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.1)
