"""One worker process: waits for its services, starts its parts, and ends with an exit code that says why.

| code | why | what the supervisor should do |
|---|---|---|
| 0 | asked to stop | nothing |
| 2 | the settings cannot work | tell a person |
| 3 | broker or database out of reach for too long | start it again |
| 4 | fenced, or a commit whose outcome is unknown | start it again |
| 5 | it stood still | start it again |
| 6 | something impossible happened; a person must look | start it again: it stops at the same place until mended |
"""

import asyncio
import gc
import os
import signal
import sys
import tempfile
from contextlib import AsyncExitStack, suppress
from enum import IntEnum
from pathlib import Path
from time import monotonic
from typing import Final

import structlog
import uvloop

from agents.app import ExchangeNotPermitted, Parts, compose, require_base_addresses
from agents.watchdog import BrokerLost, Stalled, Watchdog
from infra.exchange.gateway import UnknownVenue
from infra.health import Health, HealthServer
from infra.kafka.topics import TopicsUnfit, ensure_topics
from infra.kafka.transactions import CommitUnknown
from infra.keyring import MasterKeyError
from infra.log import configure_logging
from infra.postgres.migrate import migrate
from infra.postgres.step import Database, connect
from infra.settings import Settings
from pipeline.crash_points import Reached, pass_by
from pipeline.invariants import Fenced, Retryable

log = structlog.get_logger(__name__)

_START_RETRY_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 30.0


class ExitCode(IntEnum):
    """See the module."""

    DONE = 0
    SETTINGS = 2
    OUT_OF_REACH = 3
    FENCED = 4
    STALLED = 5
    IMPOSSIBLE = 6


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code for what ended a worker."""
    match error:
        case MasterKeyError() | UnknownVenue() | TopicsUnfit() | ExchangeNotPermitted():
            return ExitCode.SETTINGS
        case Retryable() | BrokerLost():
            return ExitCode.OUT_OF_REACH
        case Fenced() | CommitUnknown():
            return ExitCode.FENCED
        case Stalled():
            return ExitCode.STALLED
        case _:
            return ExitCode.IMPOSSIBLE


class _Ending:
    """What ends this worker: the first failure, or a request to stop."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.event = asyncio.Event()

    def fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self.event.set()

    def stop(self) -> None:
        self.event.set()


def run_worker(settings: Settings, bootstrap_servers: str, database_url: str, reached: Reached = pass_by) -> int:
    """Runs a worker until it is asked to stop or something ends it; returns the exit code. Call it in a process of its own."""
    configure_logging(settings.log_level)
    try:
        require_base_addresses(settings)
    except ExchangeNotPermitted as error:
        log.error("worker_ends", what=str(error), exit_code=int(ExitCode.SETTINGS))
        return ExitCode.SETTINGS
    uvloop.install()
    ending = asyncio.run(_main(settings, bootstrap_servers, database_url, reached))
    return ExitCode.DONE if ending is None else exit_code_of(ending)


def _end_now(error: BaseException) -> None:
    """Ends the process at once: waiting for threads and connections of a worker that lost its claim can only do harm."""
    code = exit_code_of(error)
    log.error("worker_ends", error=type(error).__name__, exit_code=int(code), what=str(error), exc_info=error if code == 6 else None)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)


async def _main(settings: Settings, bootstrap_servers: str, database_url: str, reached: Reached) -> BaseException | None:
    ending = _Ending()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, ending.stop)
    database = await _first_contact(settings, bootstrap_servers, database_url, ending)
    if database is None:
        return ending.error
    with tempfile.TemporaryDirectory(prefix="orchestrator-worker-") as data_dir:
        try:
            parts = compose(settings, bootstrap_servers, database, Path(data_dir), reached, ending.fail)
        except (MasterKeyError, UnknownVenue) as error:
            log.error("worker_ends", what=str(error), exit_code=int(ExitCode.SETTINGS))
            await database.close()
            return error
        async with AsyncExitStack() as stack:
            await _start(parts, settings, stack, ending)
            await ending.event.wait()
            if ending.error is not None:
                _end_now(ending.error)
            log.info("worker_stops", money="what has begun is finished; the rest waits in Kafka")
            # A stop that hangs would keep the partitions from other workers.
            loop.call_later(_STOP_SECONDS, _end_now, Stalled(f"the worker did not stop within {_STOP_SECONDS:.0f} s."))
    return None


async def _first_contact(settings: Settings, bootstrap_servers: str, database_url: str, ending: _Ending) -> Database | None:
    """Waits until broker and database answer, says so, and brings topics and schema up to date. None when asked to stop meanwhile."""
    said = ""
    while not ending.event.is_set():
        try:
            await ensure_topics(settings, bootstrap_servers)
            await migrate(database_url)
            return await connect(database_url, settings.database_pool_size, settings.database_timeout_seconds)
        except TopicsUnfit as error:
            log.error("worker_ends", what=str(error), exit_code=int(ExitCode.SETTINGS))
            ending.error = error
            return None
        except (Retryable, OSError, TimeoutError) as error:
            text = f"{type(error).__name__}: {error}"
            if text != said:
                log.warning("waiting_to_start", error=text, money="nothing is read or sent yet; requests wait in Kafka")
                said = text
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_RETRY_SECONDS):
                await ending.event.wait()
    return None


async def _start(parts: Parts, settings: Settings, stack: AsyncExitStack, ending: _Ending) -> None:
    """Starts the parts in order; the stack stops them in reverse."""
    stack.push_async_callback(parts.database.close)
    for gateway in parts.gateways.values():
        stack.push_async_callback(gateway.close)
    for feed in parts.feeds.values():
        feed.start()
        stack.push_async_callback(feed.stop)
    # Without a first price every early order would be refused; a venue that is down must not keep the others waiting for ever, though.
    await asyncio.gather(*(feed.first_answer(settings.exchange_timeout_ms / 1000) for feed in parts.feeds.values()))
    await parts.report_producer.start()
    stack.push_async_callback(parts.report_producer.stop)
    await parts.app.start()
    stack.push_async_callback(parts.app.stop)
    for name, coroutine in (("reconciler", parts.reconciler.run()), ("watchdog", parts.watchdog.run())):
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(lambda done: _report_end(done, ending))
        stack.callback(task.cancel)
    # A batch makes tens of thousands of objects that die with it; what was made until now stays. Without this the collector would look
    # through all of ccxt's tables several times a second.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    started_at = monotonic()
    health = HealthServer(
        settings.web_host,
        settings.web_port,
        lambda: _livez(parts.watchdog, settings),
        lambda: _readyz(parts, started_at),
    )
    await health.start()
    stack.push_async_callback(health.stop)
    log.info("worker_started", health=health.address, consumer_group=settings.consumer_group, pid=os.getpid())


def _report_end(task: asyncio.Task[None], ending: _Ending) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        ending.fail(error)


def _livez(watchdog: Watchdog, settings: Settings) -> Health:
    problem = watchdog.problem()
    if problem is None and watchdog.poll_age_seconds > settings.stall_seconds_max:
        problem = Stalled(f"the consumer has not polled for {watchdog.poll_age_seconds:.0f} s")
    return Health((str(problem),) if problem else ())


def _readyz(parts: Parts, started_at: float) -> Health:
    problems = []
    if parts.partitions.assigned_at is None:
        problems.append(f"no partitions are assigned yet, {monotonic() - started_at:.0f} s after the start")
    problems += [f"{name} has not told its markets yet" for name, feed in parts.feeds.items() if not feed.snapshot.markets]
    if parts.watchdog.broker_age_seconds > 15:
        problems.append(f"the broker has not answered for {parts.watchdog.broker_age_seconds:.0f} s")
    return Health(tuple(problems))
