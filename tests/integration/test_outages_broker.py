"""The broker goes away and comes back: a worker waits, goes on, or ends with a message; never silently, and nothing is lost or doubled."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import aiohttp
import pytest

from agents.process.worker import ExitCode
from tests.fragile_servers import FragileServer, fragile_broker, free_port
from tests.installation import Installation, ended, installation, order
from tests.promises import assert_promises_hold

pytestmark = pytest.mark.xdist_group("fragile_broker")

START_SECONDS_MAX = 120
ANSWER_SECONDS_MAX = 120
REQUESTS = 60


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FragileServer]:
    """This module's own broker."""
    with fragile_broker(tmp_path_factory.mktemp("broker") / "data") as server:
        yield server


async def keep_running(made: Installation, until: asyncio.Event) -> set[int]:
    """What a supervisor does: starts a worker, and another one whenever it ends; returns the exit codes that it saw."""
    codes: set[int] = set()
    while not until.is_set():
        worker = made.start_worker()
        while worker.poll() is None and not until.is_set():
            await asyncio.sleep(0.05)
        if worker.returncode is not None:
            codes.add(worker.returncode)
            assert made.end(len(made.workers) - 1), "a worker ended without a word"
    return codes


async def test_broker_that_is_down_at_start_is_waited_for(
    broker: FragileServer, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A worker waits for the broker, says so once, is alive but not ready meanwhile, and goes on when it comes."""
    async with installation(broker.address, database_url, unique_prefix, tmp_path) as made:
        sent = await made.publish([order(number) for number in range(4)])
        await broker.stop()
        port = free_port()
        try:
            worker = made.start_worker(ORCHESTRATOR_WEB_PORT=str(port))
            waiting = await made.event(0, "waiting_to_start", START_SECONDS_MAX)
            assert "the broker is out of reach" in waiting["error"]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/livez") as response:
                    assert response.status == 200
                async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                    assert response.status == 503
                    assert "the broker is out of reach" in (await response.json())["problems"][0]
            await asyncio.sleep(3)
            assert [event["event"] for event in made.events(0)].count("waiting_to_start") == 1
            assert worker.poll() is None
        finally:
            await broker.start()
        finals = await made.final_results(sent, ANSWER_SECONDS_MAX)
        assert {result["status"] for result in finals.values()} == {"executed"}


async def test_broker_that_restarts_under_load_loses_nothing(
    broker: FragileServer, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A broker that is restarted, and one that is killed, under load: whether workers survive it or are replaced, every promise holds."""
    async with installation(broker.address, database_url, unique_prefix, tmp_path, stall_seconds_max=8) as made:
        done = asyncio.Event()
        supervisor = asyncio.create_task(keep_running(made, done))
        try:
            await asyncio.sleep(0)
            await made.event(0, "partitions_assigned", START_SECONDS_MAX)
            sent = await made.publish([order(number) for number in range(REQUESTS)])
            await broker.stop()
            await broker.start()
            sent += await made.publish([order(number) for number in range(REQUESTS, 2 * REQUESTS)])
            await broker.kill()
            await broker.start()
            finals = await made.final_results(sent, ANSWER_SECONDS_MAX)
        finally:
            done.set()
            codes = await supervisor
        assert {result["status"] for result in finals.values()} == {"executed"}
        assert len(made.accepted_orders()) == 2 * REQUESTS
        ends = [made.end(number) for number in range(len(made.workers))]
        assert codes <= {ExitCode.OUT_OF_REACH, ExitCode.FENCED}, ends
        made.start_worker()
        await assert_promises_hold(made)


@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_broker_that_stays_away_ends_the_worker_and_the_next_goes_on(
    how: str, broker: FragileServer, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """An idle worker whose broker refuses connections, or answers nothing, ends with code 3 and says so; afterwards all goes on."""
    async with installation(broker.address, database_url, unique_prefix, tmp_path, stall_seconds_max=6) as made:
        worker = made.start_worker()
        await made.event(0, "worker_started", START_SECONDS_MAX)
        first = await made.publish([order(number) for number in range(8)])
        await made.final_results(first, ANSWER_SECONDS_MAX)
        away_at = monotonic()
        if how == "stopped":
            await broker.stop()
        else:
            broker.pause()
        try:
            assert await ended(worker, 60) == ExitCode.OUT_OF_REACH, made.worker_log(0)
            assert monotonic() - away_at < 6 + 12
            end = made.end(0)
            assert end["error"] == "BrokerLost"
            # One line for the outage and one for the end, not one per attempt.
            assert [event["event"] for event in made.events(0)].count("broker_silent") == 1
        finally:
            broker.resume()
            await broker.start()
        sent = first + await made.publish([order(number) for number in range(8, 16)])
        made.start_worker()
        finals = await made.final_results(sent, ANSWER_SECONDS_MAX)
        assert {result["status"] for result in finals.values()} == {"executed"}
        assert len(made.accepted_orders()) == 16
        await assert_promises_hold(made)


async def test_worker_at_the_wrong_brokers_refuses_and_disturbs_nobody(
    broker: FragileServer, kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Two installations with one database and one group by mistake: the second one's worker ends with code 6, says why, and
    takes nothing away from the first."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        right = made.start_worker()
        await made.final_results(await made.publish([order(number) for number in range(8)]), START_SECONDS_MAX)
        wrong = made.start_worker(ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS=broker.address)
        assert await ended(wrong, START_SECONDS_MAX) == ExitCode.IMPOSSIBLE, made.worker_log(1)
        end = made.end(1)
        assert end["error"] == "OffsetsMoved"
        assert "if these are not the brokers that belong to the database" in end["what"]
        finals = await made.final_results(await made.publish([order(number) for number in range(8, 16)]), ANSWER_SECONDS_MAX)
        assert {result["status"] for result in finals.values()} == {"executed"}
        # Not even fenced and replaced.
        assert right.poll() is None
        await assert_promises_hold(made)
