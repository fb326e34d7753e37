"""One worker process: waits for its services, starts its parts, and ends with an exit code that says why.

| code | why | what the supervisor should do |
|---|---|---|
| 0 | asked to stop | nothing |
| 1 | it stood still so that not even its message could be written; where it stood is on standard error | start it again |
| 2 | the settings cannot work | tell a person |
| 3 | broker or database out of reach for too long | start it again |
| 4 | fenced, or a commit whose outcome is unknown | start it again |
| 5 | it stood still | start it again |
| 6 | something impossible happened; a person must look | start it again: it stops at the same place until fixed |
| 130 | asked to stop a second time, and ended at once; the next owner finishes what was under way | nothing |

Whatever fails ends the process at once, through `agents/process/last_resort`. A request to stop drains: partitions are given back, so that
other workers have them without waiting for a session to time out.
"""

import asyncio
import gc
import os
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from enum import IntEnum
from importlib.metadata import version
from time import monotonic
from typing import Final, NoReturn

import structlog
import uvloop
from aiokafka.errors import KafkaError

from agents.process.app import Parts, compose
from agents.process.last_resort import RUNTIME_EXIT_CODE, LoopWatch, end_process
from agents.process.permitted import ExchangeNotPermitted, require_permitted, trades_real_money
from agents.process.watchdog import BrokerLost, Stalled
from agents.watches.watch import keep
from infra.exchange.gateway import UnknownVenue
from infra.health import AddressTaken, Health, HealthServer
from infra.kafka.topics import TopicsUnfit, ensure_topics
from infra.kafka.transactions import CommitUnknown
from infra.keyring import MasterKeyError
from infra.log import configure_logging
from infra.metrics import record_build
from infra.postgres.database import Database, connect
from infra.postgres.durability import require_durable
from infra.postgres.schema import DatabaseUnfit, is_newest
from infra.settings import Settings
from infra.trusted_keys import TrustedKeysError
from pipeline.model.crash_points import Reached, pass_by
from pipeline.model.invariants import Fenced, Retryable

log = structlog.get_logger(__name__)

_START_RETRY_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 15.0
_SILENT_SECONDS_READY: Final = 15.0


class ExitCode(IntEnum):
    """See the module."""

    DONE = 0
    RUNTIME = RUNTIME_EXIT_CODE
    SETTINGS = 2
    OUT_OF_REACH = 3
    FENCED = 4
    STALLED = 5
    IMPOSSIBLE = 6
    STOPPED_TWICE = 130


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code for what ended a worker."""
    match error:
        case MasterKeyError() | TrustedKeysError() | UnknownVenue() | TopicsUnfit() | ExchangeNotPermitted():
            return ExitCode.SETTINGS
        case DatabaseUnfit() | AddressTaken():
            return ExitCode.SETTINGS
        case Retryable() | BrokerLost():
            return ExitCode.OUT_OF_REACH
        case Fenced() | CommitUnknown():
            return ExitCode.FENCED
        case Stalled():
            return ExitCode.STALLED
        case KafkaError() if error.retriable:
            return ExitCode.OUT_OF_REACH
        case _:
            return ExitCode.IMPOSSIBLE


def end_now(error: BaseException) -> NoReturn:
    """Ends the process for what went wrong: waiting for threads and connections of a worker that lost its claim can only do harm."""
    code = exit_code_of(error)
    trace = error if code == ExitCode.IMPOSSIBLE else None
    end_process(code, "worker_ends", error=type(error).__name__, what=str(error) or type(error).__name__, exc_info=trace)


def _end_standing(seconds: float, stack: list[str]) -> NoReturn:
    what = (
        f"the event loop has stood still for {seconds:.0f} s (see the stack). The next worker publishes what was stored, and looks up what "
        "was sent."
    )
    end_process(ExitCode.STALLED, "worker_ends", error=Stalled.__name__, what=what, loop_stack=stack)


class _Stop:
    """A request to stop. The second one ends the process."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def ask(self) -> None:
        if self.asked.is_set():
            what = "asked to stop a second time; the next owner finishes what was under way."
            end_process(ExitCode.STOPPED_TWICE, "worker_ends", what=what)
        self.asked.set()

    async def within(self, seconds: float) -> bool:
        """Waits this long for a request; whether there was one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.asked.wait()
        return self.asked.is_set()


class _State:
    """What the health endpoints tell, from the first moment on."""

    def __init__(self, settings: Settings) -> None:
        self.waiting_for = "the worker is starting"
        # Made, though perhaps not started yet.
        self.composed: Parts | None = None
        self.parts: Parts | None = None
        self._stall_seconds_max = settings.stall_seconds_max
        self._started_at = monotonic()

    def fail(self, error: BaseException) -> NoReturn:
        """Ends the process. Where the Faust app has crashed, that is the cause, whatever is told to have failed."""
        crash = None if self.composed is None else self.composed.watchdog.crash()
        end_now(crash or error)

    def livez(self) -> Health:
        """A worker that waits for broker or database is alive."""
        if self.parts is None:
            return Health(())
        problem = self.parts.watchdog.problem()
        return Health((str(problem),) if problem else ())

    def readyz(self) -> Health:
        parts = self.parts
        if parts is None:
            return Health((self.waiting_for,))
        problems = []
        if parts.partitions.assigned_at is None:
            problems.append(f"no partitions are assigned yet, {monotonic() - self._started_at:.0f} s after the start")
        problems += [f"{name} has not told its markets yet" for name, feed in parts.feeds.items() if not feed.snapshot.markets]
        ages = {"broker": parts.watchdog.broker.silent_seconds, "database": parts.watchdog.database.silent_seconds}
        problems += [f"the {name} has not answered for {age:.0f} s" for name, age in ages.items() if age > _SILENT_SECONDS_READY]
        return Health(tuple(problems))


def run_worker(settings: Settings, bootstrap_servers: str, database_url: str, reached: Reached = pass_by) -> int:
    """Runs a worker until it is asked to stop or something ends it; returns the exit code. Call it in a process of its own."""
    configure_logging(settings.log_level)
    try:
        require_permitted(settings)
    except (ExchangeNotPermitted, TrustedKeysError) as error:
        log.error("worker_ends", what=str(error), exit_code=int(ExitCode.SETTINGS))
        return ExitCode.SETTINGS
    record_build(version("crypto-orchestrator"))
    uvloop.install()
    try:
        asyncio.run(_main(settings, bootstrap_servers, database_url, reached))
    # Whatever it is: an exit code without a line in the log would help nobody.
    except Exception as error:  # noqa: BLE001 — told, and turned into the exit code
        end_now(error)
    return ExitCode.DONE


async def _main(settings: Settings, bootstrap_servers: str, database_url: str, reached: Reached) -> None:
    stop = _Stop()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.ask)
    state = _State(settings)
    async with AsyncExitStack() as stack:
        loop_watch = LoopWatch(settings.stall_seconds_max, _end_standing)
        loop_watch.start()
        stack.callback(loop_watch.stop)
        health = HealthServer(settings.web_host, settings.web_port, state.livez, state.readyz)
        await health.start()
        stack.push_async_callback(health.stop)
        try:
            database = await _first_contact(settings, bootstrap_servers, database_url, stop, state)
            if database is None:
                return
            stack.push_async_callback(database.close)
            parts = state.composed = compose(settings, bootstrap_servers, database, reached, state.fail)
            await _start(parts, settings, stack)
        # Here and not further out: what has failed to start may also fail to stop.
        except Exception as error:  # noqa: BLE001 — told, and turned into the exit code
            state.fail(error)
        state.parts = parts
        log.info("worker_started", health=health.address, consumer_group=settings.consumer_group, pid=os.getpid())
        await stop.asked.wait()
        log.info("worker_stops", money="what has begun is finished; the rest waits in Kafka")
        # A stop that hangs would keep the partitions from other workers.
        late = Stalled(f"the worker did not stop within {_STOP_SECONDS:.0f} s. The next owner finishes what was under way.")
        loop.call_later(_STOP_SECONDS, end_now, late)


async def _first_contact(settings: Settings, bootstrap_servers: str, database_url: str, stop: _Stop, state: _State) -> Database | None:
    """Waits until broker and database answer, says so, and brings topics and schema up to date. None when asked to stop meanwhile."""
    said = ""
    while not stop.asked.is_set():
        try:
            await ensure_topics(settings, bootstrap_servers)
            await _bring_up_to_date(database_url)
            return await _connected(settings, database_url)
        except (Retryable, OSError, TimeoutError) as error:
            state.waiting_for = f"waiting to start: {str(error) or type(error).__name__}"
            if state.waiting_for != said:
                log.warning("waiting_to_start", error=str(error), money="nothing is read or sent yet; requests wait in Kafka")
                said = state.waiting_for
        await stop.within(_START_RETRY_SECONDS)
    return None


async def _connected(settings: Settings, database_url: str) -> Database:
    """The database; where money is real, one that keeps what it commits. Raises as `connect` and `require_durable` do."""
    database = await connect(database_url, settings.database_pool_size, settings.database_timeout_seconds)
    try:
        if trades_real_money(settings):
            await require_durable(database)
    except BaseException:
        await database.close()
        raise
    return database


async def _bring_up_to_date(database_url: str) -> None:
    """Applies the migrations that are missing. Raises as they do."""
    if not await is_newest(database_url):
        # A worker that starts again need not load it, and takes over its partitions that much sooner.
        from infra.postgres.migrate import migrate  # noqa: PLC0415

        await migrate(database_url)


async def _start(parts: Parts, settings: Settings, stack: AsyncExitStack) -> None:
    """Starts the parts in order; the stack stops them in reverse."""
    for gateway in parts.gateways.values():
        stack.push_async_callback(gateway.close)
    for feed in parts.feeds.values():
        feed.start()
        stack.push_async_callback(feed.stop)
    # Without a first price every early order would be refused; a venue that is down must not keep the others waiting for ever, though.
    wait = settings.exchange_timeout_ms / 1000
    await asyncio.gather(
        *(feed.first_answer(wait) for feed in parts.feeds.values()), *(feed.first_look(wait) for feed in parts.network_feeds.values())
    )
    await parts.report_producer.start()
    stack.push_async_callback(parts.report_producer.stop)
    # The watchdog first: the broker may go away in the middle of Faust's start, which has no time limit.
    _run_beside(stack, "watchdog", parts.watchdog.run())
    _run_beside(stack, "halt watch", parts.halt_watch.run())
    await parts.app.start()
    stack.push_async_callback(parts.app.stop)
    for watch in parts.watches:
        _run_beside(stack, watch.name, keep(watch))
    # A batch makes tens of thousands of objects that die with it; what was made until now stays. Without this the collector would look
    # through all of ccxt's tables several times a second.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _run_beside(stack: AsyncExitStack, name: str, coroutine: Coroutine[None, None, None]) -> None:
    """Runs something in the background until the stack is left; its failure ends the process."""
    task = asyncio.create_task(coroutine, name=name)
    task.add_done_callback(_report_end)
    stack.callback(task.cancel)


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        end_now(error)
