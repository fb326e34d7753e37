"""A worker is asked to stop, once or twice, or killed: how it ends, and who goes on with its partitions, how soon."""

import asyncio
import signal
from pathlib import Path
from time import monotonic

from agents.process.worker import ExitCode
from tests.installation import SESSION_TIMEOUT_MS, Installation, ended, installation, order
from tests.promises import assert_promises_hold

START_SECONDS_MAX = 120
ANSWER_SECONDS_MAX = 120
REQUESTS = 200


async def two_workers(made: Installation) -> None:
    """Starts two workers; returns when each has half of the eight input partitions."""
    made.start_worker()
    await made.event(0, "worker_started", START_SECONDS_MAX)
    made.start_worker()
    await made.event(1, "worker_started", START_SECONDS_MAX)
    await owns(made, 0, 4, START_SECONDS_MAX)
    await owns(made, 1, 4, START_SECONDS_MAX)


async def owns(made: Installation, worker: int, partitions: int, within_seconds: float) -> float:
    """Waits until a worker owns this many partitions; seconds waited."""
    began_at = monotonic()
    while True:
        events = [event for event in made.events(worker) if event["event"] in {"partitions_assigned", "partitions_revoked"}]
        if events and events[-1]["event"] == "partitions_assigned" and len(events[-1]["partitions"]) == partitions:
            return monotonic() - began_at
        assert monotonic() - began_at < within_seconds, made.worker_log(worker)[-3_000:]
        await asyncio.sleep(0.02)


async def test_worker_that_is_asked_to_stop_under_load_drains_and_hands_over_at_once(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """SIGTERM under load: exit code 0 within seconds, and the other worker has the partitions before any session could time out."""
    # A session that would take a minute to time out: whoever waits for that fails the test.
    async with installation(
        kafka, database_url, unique_prefix, tmp_path, session_timeout_ms=30_000, rebalance_timeout_ms=30_000, stall_seconds_max=60
    ) as made:
        await two_workers(made)
        sent = await made.publish([order(number) for number in range(REQUESTS)])
        made.workers[0].send_signal(signal.SIGTERM)
        asked_at = monotonic()
        assert await ended(made.workers[0], 25) == ExitCode.DONE, made.worker_log(0)
        stopped_after = monotonic() - asked_at
        taken_over_after = stopped_after + await owns(made, 1, 8, 25)
        finals = await made.final_results(sent, ANSWER_SECONDS_MAX)
        assert {result["status"] for result in finals.values()} == {"executed"}
        assert len(made.accepted_orders()) == REQUESTS
        # About a second on a quiet machine; far from the session's time-out on any.
        assert taken_over_after < 15, (stopped_after, taken_over_after)
        print(f"stopped after {stopped_after:.2f} s, taken over after {taken_over_after:.2f} s")
        await assert_promises_hold(made)


async def test_worker_that_is_killed_is_replaced_when_its_session_times_out(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """kill -9 under load: the other worker has the partitions after the session time-out, and every promise holds."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        await two_workers(made)
        sent = await made.publish([order(number) for number in range(REQUESTS)])
        made.workers[0].kill()
        taken_over_after = await owns(made, 1, 8, SESSION_TIMEOUT_MS / 1000 + 30)
        print(f"taken over after {taken_over_after:.2f} s with a session of {SESSION_TIMEOUT_MS / 1000:.0f} s")
        finals = await made.final_results(sent, ANSWER_SECONDS_MAX)
        assert {result["status"] for result in finals.values()} == {"executed"}
        assert len(made.accepted_orders()) == REQUESTS
        await assert_promises_hold(made)


async def test_worker_that_is_asked_to_stop_twice_ends_at_once(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Ctrl-C twice, with a batch under way that never ends: the second one ends the worker, and says so."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        worker = made.start_worker("tests.stalling_worker", TEST_STALL="step_never_ends")
        await made.event(0, "worker_started", START_SECONDS_MAX)
        await made.publish([order(1)])
        # Long enough for the record to arrive; the batch under way never ends.
        await asyncio.sleep(2)
        worker.send_signal(signal.SIGINT)
        await made.event(0, "worker_stops", 30)
        assert worker.poll() is None
        worker.send_signal(signal.SIGINT)
        assert await ended(worker, 10) == ExitCode.STOPPED_TWICE
        end = made.end(0)
        assert end["exit_code"] == 130


async def test_worker_whose_batch_never_ends_stops_all_the_same(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Asked once to stop, a worker that cannot drain ends itself within its limit, with a message."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        worker = made.start_worker("tests.stalling_worker", TEST_STALL="step_never_ends")
        await made.event(0, "worker_started", START_SECONDS_MAX)
        await made.publish([order(1)])
        await asyncio.sleep(2)
        worker.send_signal(signal.SIGTERM)
        assert await ended(worker, 30) == ExitCode.STALLED
        assert "did not stop within" in made.end(0)["what"]


async def test_worker_that_is_asked_to_stop_while_it_waits_for_its_services_stops(
    database_url: str, unique_prefix: str, kafka: str, tmp_path: Path
) -> None:
    """Nothing has begun, so nothing has to be finished: exit code 0 at once."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        worker = made.start_worker(ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
        await made.event(0, "waiting_to_start", START_SECONDS_MAX)
        worker.send_signal(signal.SIGTERM)
        assert await ended(worker, 20) == ExitCode.DONE
