"""Whatever stands still in a worker ends it soon, with a message and an exit code; an idle worker lives on."""

import asyncio
from pathlib import Path
from time import monotonic

import aiohttp
import pytest

from agents.worker import ExitCode
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
        worker = made.start_worker("tests.stalling_worker", TEST_STALL=stall)
        await made.event(0, "worker_started", START_SECONDS_MAX)
        await made.publish([order(number) for number in range(4)])
        began_at = monotonic()
        assert await ended(worker, START_SECONDS_MAX) == ExitCode.STALLED, made.worker_log(0)
        assert monotonic() - began_at < NOTICED_SECONDS_MAX
        end = made.events(0)[-1]
        assert (end["event"], end["exit_code"]) == ("worker_ends", ExitCode.STALLED)
        assert MESSAGES[stall] in end["what"]
        if stall == "loop_blocked":
            assert "time.sleep" in "".join(end["loop_stack"])


async def test_worker_whose_reconciler_fails_ends_with_its_traceback(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A defect in a background task ends the process as something impossible, with the traceback in the log."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        worker = made.start_worker("tests.stalling_worker", TEST_STALL="reconciler_raises")
        assert await ended(worker, START_SECONDS_MAX) == ExitCode.IMPOSSIBLE, made.worker_log(0)
        assert "Traceback" in made.events(0)[-1]["exception"]


async def test_idle_worker_stays_alive_and_ready(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Without any record for longer than the limit, a worker lives on, says that it is alive and ready, and then does its work."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, stall_seconds_max=STALL_SECONDS_MAX) as made:
        worker = made.start_worker()
        address = (await made.event(0, "worker_started", START_SECONDS_MAX))["health"]
        await made.event(0, "partitions_assigned", START_SECONDS_MAX)
        until = monotonic() + STALL_SECONDS_MAX + 3
        async with aiohttp.ClientSession() as session:
            while monotonic() < until:
                for path in ("livez", "readyz"):
                    async with session.get(f"{address}/{path}") as response:
                        assert response.status == 200, (path, await response.text())
                await asyncio.sleep(0.5)
        assert worker.poll() is None
        finals = await made.final_results(await made.publish([order(1)]), 20)
        assert {result["status"] for result in finals.values()} == {"executed"}


async def test_worker_without_partitions_stays_alive(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """With more workers than partitions one has none; it is idle, not stuck."""
    async with installation(
        kafka, database_url, unique_prefix, tmp_path, stall_seconds_max=STALL_SECONDS_MAX, kafka_partitions=1
    ) as made:
        # Three input topics of one partition each are dealt out in turn: the fourth worker gets none.
        workers = [made.start_worker() for _ in range(4)]
        for number in range(4):
            await made.event(number, "worker_started", START_SECONDS_MAX)
        await asyncio.sleep(STALL_SECONDS_MAX + 3)
        assert [worker.poll() for worker in workers] == [None] * 4, "".join(made.worker_log(number)[-1_500:] for number in range(4))
