"""The database goes away and comes back: workers wait, say so, and go on; nothing is lost or doubled."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import aiohttp
import asyncpg
import pytest

from agents.process.worker import ExitCode
from infra.postgres.database import connect
from tests.fragile_servers import FragileServer, fragile_database
from tests.installation import Installation, ended, installation, order
from tests.promises import assert_promises_hold
from tests.servers import fresh_database

pytestmark = pytest.mark.xdist_group("fragile_database")

START_SECONDS_MAX = 120
ANSWER_SECONDS_MAX = 120
REQUESTS = 120


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FragileServer]:
    """This module's own server."""
    with fragile_database(tmp_path_factory.mktemp("database") / "data") as server:
        yield server


async def executed_once(made: Installation, sent: list[object], requests: int) -> None:
    """Every record has its answer, every order was sent once, and every promise holds."""
    finals = await made.final_results(sent, ANSWER_SECONDS_MAX)
    assert {result["status"] for result in finals.values()} == {"executed"}
    assert len(made.accepted_orders()) == requests
    await assert_promises_hold(made)


async def test_database_that_is_down_at_start_is_waited_for(
    database: FragileServer, kafka: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A worker waits for the database, says so once, is alive but not ready meanwhile, and goes on when it comes."""
    with fresh_database(database.address, None) as url:
        async with installation(kafka, url, unique_prefix, tmp_path) as made:
            sent = await made.publish([order(number) for number in range(4)])
            await database.stop()
            try:
                worker = made.start_worker()
                waiting = await made.event(0, "waiting_to_start", START_SECONDS_MAX)
                assert "the database is out of reach" in waiting["error"]
                # Several tries later it has not said it again.
                await asyncio.sleep(3)
                assert [event["event"] for event in made.events(0)].count("waiting_to_start") == 1
                assert worker.poll() is None
            finally:
                await database.start()
            await executed_once(made, sent, 4)


async def test_database_that_is_away_for_a_moment_costs_nothing(
    database: FragileServer, kafka: str, unique_prefix: str, tmp_path: Path
) -> None:
    """With the database away for 5 s under load, and its sessions ended before that, the same worker goes on and nothing is lost."""
    with fresh_database(database.address, None) as url:
        async with installation(kafka, url, unique_prefix, tmp_path, stall_seconds_max=40) as made:
            worker = made.start_worker()
            address = (await made.event(0, "worker_started", START_SECONDS_MAX))["health"]
            sent = await made.publish([order(number) for number in range(REQUESTS)])
            for _ in range(5):
                await end_sessions(url)
                await asyncio.sleep(0.1)
            sent += await made.publish([order(number) for number in range(REQUESTS, 2 * REQUESTS)])
            await database.stop()
            away_at = monotonic()
            try:
                await made.event(0, "waiting_for_database", 20)
                await asyncio.sleep(max(0.0, away_at + 5 - monotonic()))
            finally:
                await database.start()
            await executed_once(made, sent, 2 * REQUESTS)
            assert worker.poll() is None
            async with aiohttp.ClientSession() as session, session.get(f"{address}/readyz") as response:
                assert response.status == 200, await response.text()


async def test_database_that_is_away_for_too_long_ends_the_worker_and_the_next_goes_on(
    database: FragileServer, kafka: str, unique_prefix: str, tmp_path: Path
) -> None:
    """After its patience a worker with work ends with code 3 and says so; an idle one stays, but is not ready; afterwards all goes on."""
    with fresh_database(database.address, None) as url:
        async with installation(kafka, url, unique_prefix, tmp_path, stall_seconds_max=6) as made:
            worker = made.start_worker()
            address = (await made.event(0, "worker_started", START_SECONDS_MAX))["health"]
            first = await made.publish([order(number) for number in range(8)])
            await made.final_results(first, ANSWER_SECONDS_MAX)
            # A worker that still moves offsets past markers of its transactions is not idle.
            await made.until_at_rest(ANSWER_SECONDS_MAX)
            await database.kill()
            try:
                # Said once by each part that asks, however often it asks.
                for name in ("database_silent", "watch_waits"):
                    await made.event(0, name, 60)
                await until_not_ready(address, "the database has not answered", 60)
                said = [(event["event"], event.get("watch")) for event in made.events(0)]
                assert said.count(("database_silent", None)) == 1
                waiting = [watch for event, watch in said if event == "watch_waits"]
                assert "reconciliation binance" in waiting
                assert len(set(waiting)) == len(waiting), waiting
                assert worker.poll() is None
                sent = await made.publish([order(number) for number in range(8, 16)])
                assert await ended(worker, 60) == ExitCode.OUT_OF_REACH, made.worker_log(0)
                end = made.end(0)
                assert end["exit_code"] == ExitCode.OUT_OF_REACH
                assert "the database is out of reach" in end["what"]
            finally:
                await database.start()
            made.start_worker()
            await executed_once(made, first + sent, 16)


async def test_database_that_hangs_ends_the_worker(database: FragileServer, kafka: str, unique_prefix: str, tmp_path: Path) -> None:
    """A database that keeps its connections open and answers nothing is noticed by time limits, not by errors."""
    with fresh_database(database.address, None) as url:
        async with installation(kafka, url, unique_prefix, tmp_path, stall_seconds_max=8, database_timeout_seconds=2) as made:
            worker = made.start_worker(ORCHESTRATOR_DATABASE_TIMEOUT_SECONDS="2")
            await made.event(0, "partitions_assigned", START_SECONDS_MAX)
            database.pause()
            try:
                sent = await made.publish([order(number) for number in range(8)])
                assert await ended(worker, 40) in {ExitCode.OUT_OF_REACH, ExitCode.STALLED}, made.worker_log(0)
                assert made.end(0), "the worker ended without a word"
            finally:
                database.resume()
            made.start_worker()
            await executed_once(made, sent, 8)


async def test_session_that_stands_still_in_a_step_is_ended_by_the_server(database: FragileServer) -> None:
    """A paused worker keeps its locks no longer than this, also where it was paused between two messages of one statement."""
    opened = await connect(database.address, 2, 3)
    try:
        async with opened.connection() as connection:
            assert await connection.fetchval("SHOW transaction_timeout") == "6s"
            assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "3s"
    finally:
        await opened.close()


async def end_sessions(url: str) -> None:
    """What an administrator or a fail-over does: the sessions of all workers are ended, wherever they are in their batches."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    finally:
        await connection.close()


async def until_not_ready(address: str, problem: str, within_seconds: float) -> None:
    """Waits until a worker says that it is not ready, for this reason among others."""
    deadline = monotonic() + within_seconds
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{address}/readyz") as response:
                told = await response.json()
                if response.status == 503 and any(problem in each for each in told["problems"]):
                    return
            assert monotonic() < deadline, told
            await asyncio.sleep(0.2)
