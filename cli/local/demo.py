"""`orchestrator demo`: the whole system on this machine, under load, and every promise checked afterwards.

Invariants:
1. Nothing of a configured installation is touched: broker, database and exchange are the demo's own.
2. What is printed is counted afterwards from the topics, the database and the exchange's log, never from counters of a worker.
3. Whatever happens, all that was started is stopped.

Start with `run_demo`.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Final
from uuid import uuid4

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.local.demo_cast import open_sessions
from cli.local.demo_deposits import DepositSender
from cli.local.demo_exchange import ForeignOrders, SimulatorAdmin, injected_faults
from cli.local.demo_faults import WorkerFaults
from cli.local.demo_halts import OwnHalts
from cli.local.demo_load import Rest, begin_offsets, publish, standing
from cli.local.demo_poison import PoisonRecords
from cli.local.demo_report import show, summary, to_line
from cli.local.demo_requests import DemoRecord, Generator, begins_session
from cli.local.demo_stage import DataDirectory, Stage, add_demo_users, staged
from cli.local.supervision import WorkerPool, supervised_workers, worker_environment
from cli.local.worker_logs import HealthAddresses
from cli.terminal.exits import Exit
from cli.terminal.output import say, write_line
from embedded.errors import ServicesError
from infra.kafka.topics import TopicsUnfit
from infra.settings import Settings
from pipeline.model.invariants import Retryable
from simulator.process import SimulatorNotReady
from simulator.records import LogDamaged
from verification.evidence.evidence import gather_evidence
from verification.promises.answers import tally
from verification.promises.finding import Check, Finding
from verification.promises.promises import all_hold, check_all

# 128 + SIGTERM, as shells report it.
_TERMINATED: Final = 143
_READY_SECONDS_MAX: Final = 30.0
_POLL_SECONDS: Final = 0.2
_SECONDS_PER_FAULT: Final = 13.0
_FAULTS_MIN_MAX: Final = (3, 9)
_REQUESTS_PER_FAULT: Final = 2_000
_REST_SECONDS_MAX: Final = 60.0
_REST_SECONDS_PER_REQUEST: Final = 0.02
# What the venue is known to lag, its acceptance horizon, and the pauses between look-ups.
_DOUBT_SECONDS_MAX: Final = 200.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`requests` and `workers` are counts. `worker_argv` is how a worker is started: tests replace it by one with a broken mechanism.

    `worker_environment` is added to what every worker gets. `rest_seconds_max` bounds the wait for the last answers, None: by their count.
    """

    requests: int = 2000
    workers: int = 2
    kill: bool = False
    as_json: bool = False
    seed: int = 1
    worker_argv: tuple[str, ...] = (sys.executable, "-m", "agents")
    worker_environment: Mapping[str, str] = field(default_factory=dict)
    rest_seconds_max: float | None = None
    # Over how many seconds the requests are spread at least: what is done to workers must happen while they have work.
    load_seconds_min: float = 0.0

    @property
    def rest_seconds(self) -> float:
        if self.rest_seconds_max is not None:
            return self.rest_seconds_max
        return _REST_SECONDS_MAX + _REST_SECONDS_PER_REQUEST * self.requests + (_DOUBT_SECONDS_MAX if self.kill else 0.0)

    def settings(self, staged: Settings) -> Settings:
        """What workers run with: where the exchange's books lag, what is known of the real one."""
        return staged.model_copy(update={"venue_read_lag_ms": None}) if self.kill else staged

    @property
    def worker_faults(self) -> int:
        """How often a worker is killed, stopped or paused."""
        least, most = _FAULTS_MIN_MAX
        return min(max(self.requests // _REQUESTS_PER_FAULT, least), most) if self.kill else 0


async def run_demo(options: DemoOptions) -> int:
    """Runs the demo; returns the exit code: 0, 1 when a promise is broken, 3 when a service did not start or went away."""
    with _cancelled_by_sigterm() as terminated:
        return await _run(options, terminated)


async def _run(options: DemoOptions, terminated: asyncio.Event) -> int:
    directory = DataDirectory()
    if os.environ.get("ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS") or os.environ.get("ORCHESTRATOR_DATABASE_URL"):
        say("The demo starts a broker and a database of its own; the configured ones are not touched.")
    try:
        async with staged(directory.path, options.seed, say) as stage:
            code = await _play(stage, options)
    except (ServicesError, SimulatorNotReady, Retryable, TopicsUnfit, LogDamaged) as error:
        say(f"The demo could not be run to its end: {error}")
        code = Exit.OUT_OF_REACH
    except asyncio.CancelledError:
        directory.remove()
        if terminated.is_set():
            return _TERMINATED
        raise
    if code == Exit.DONE:
        directory.remove()
    else:
        say(f"Logs and data are kept in {directory.path}.")
    return code


@contextmanager
def _cancelled_by_sigterm() -> Iterator[asyncio.Event]:
    """SIGTERM ends the demo like Ctrl-C does: what was started is stopped. The event tells the one from the other."""
    loop = asyncio.get_running_loop()
    terminated = asyncio.Event()
    task = asyncio.current_task()

    def end() -> None:
        terminated.set()
        if task is not None:
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        yield terminated
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def _play(stage: Stage, options: DemoOptions) -> Exit:
    """Load, rest, verification, summary."""
    run = uuid4().hex[:8]
    cast = await add_demo_users(stage, run)
    users = cast.traders
    # A data directory that was used before has earlier faults in its log.
    simulator_dir = stage.simulator.options.data_dir
    faults_before = injected_faults(simulator_dir)
    generator = Generator(options.seed, run, list(users), datetime.now(UTC))
    records = list(generator.records(options.requests))
    deposits = DepositSender(SimulatorAdmin(stage.simulator.url), generator.deposits, users)
    environment = {**worker_environment(options.settings(stage.settings), stage.endpoints), **options.worker_environment}
    logs = stage.settings.data_dir / "workers"
    console = Console(stderr=True)

    def said(text: str) -> None:
        # Above the bars, and without taking brackets in a log line for markup.
        console.print(text, markup=False, highlight=False)

    health = HealthAddresses(logs, options.workers)
    async with supervised_workers(options.workers, options.worker_argv, environment, logs, said) as pool:
        await _until_ready(health, pool)
        in_session = [user_id for number, user_id in enumerate(users) if begins_session(number)]
        sessions = await open_sessions(stage.settings, stage.kafka, stage.database, stage.identities, run, in_session)
        # Behind the requests that began them, which are not part of the load.
        asked_from = await begin_offsets(stage.settings, stage.kafka)
        foreign = ForeignOrders(SimulatorAdmin(stage.simulator.url), options.seed, users)
        poison = PoisonRecords(stage.settings, stage.kafka, stage.database, options.seed)
        halts = await OwnHalts.watched(stage.database)
        faults, restless = await _Load(stage, options, pool, console, said, foreign, poison).run(records, deposits)
    say("Everything has stopped; the promises are checked.")
    evidence = await gather_evidence(stage.settings, stage.kafka, stage.endpoints.database_url, stage.simulator.log_path)
    findings = [*check_all(evidence), await poison.finding(), await halts.finding(), _workers_run(pool, restless)]
    own = set(cast.everybody)
    figures = summary(
        findings,
        tally(evidence.answers, asked_from),
        sum(1 for order in evidence.books.orders if order.user_id in own and not order.foreign) if evidence.books else 0,
        # Those that were taken back afterwards among them: the promises say that they were.
        sum(1 for deposit in evidence.deposited.deposits.values() if deposit.user_id in own and deposit.credited_at is not None),
        {**(injected_faults(simulator_dir) - faults_before), **faults},
        {"workers": options.workers, "workers_restarted": pool.restarts, "seed": options.seed, "sessions": sessions},
    )
    if options.as_json:
        write_line(to_line(figures))
    else:
        show(Console(), figures, findings)
    return Exit.DONE if all_hold(findings) else Exit.NOT_SO


async def _until_ready(health: HealthAddresses, pool: WorkerPool) -> None:
    """Waits in bounded time until every worker is ready, so that latencies are those of a system that runs."""
    deadline = monotonic() + _READY_SECONDS_MAX
    while monotonic() < deadline and pool.failure is None:
        if await health.all_ready():
            return
        await asyncio.sleep(_POLL_SECONDS)


def _workers_run(pool: WorkerPool, restless: str) -> Finding:
    check = Check("workers_run", "workers that end are replaced, and everything under way comes to rest", checked=1)
    if pool.failure is not None:
        check.breach(pool.failure)
    if restless:
        check.breach(restless)
    return check.finding()


class _Load:
    """Publishes everything while faults are made, then waits for rest."""

    def __init__(
        self,
        stage: Stage,
        options: DemoOptions,
        pool: WorkerPool,
        console: Console,
        said: Callable[[str], None],
        foreign: ForeignOrders,
        poison: PoisonRecords,
    ) -> None:
        self._foreign = foreign
        self._poison = poison
        self._stage = stage
        self._options = options
        self._pool = pool
        self._admin = SimulatorAdmin(stage.simulator.url)
        self._said = said
        self._faults = WorkerFaults(pool, options.seed, said)
        self._progress = Progress(
            TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._published = self._progress.add_task("published", total=options.requests)
        self._answered = self._progress.add_task("answered", total=options.requests)
        self._answered_before = 0
        self._published_so_far = 0

    async def run(self, records: Sequence[DemoRecord], deposits: DepositSender) -> tuple[dict[str, int], str]:
        """Returns what was done to workers, and why there is no rest (empty: there is)."""
        stage = self._stage
        before = await standing(stage.database, stage.settings)
        self._answered_before = before.answered
        rest = Rest(stage.settings, stage.kafka, stage.database, stage.simulator.log_path, before.read + len(records), self._pool.paused)
        with self._progress:
            await self._publish(records, deposits)
            restless = await self._come_to_rest(rest)
        return {**self._faults.counts, **self._foreign.counts, **self._poison.counts}, restless

    async def _publish(self, records: Sequence[DemoRecord], deposits: DepositSender) -> None:
        count = self._options.worker_faults
        seconds = max(count * _SECONDS_PER_FAULT, self._options.load_seconds_min)
        if self._options.kill:
            await self._admin.make_faults(self._options.seed)
        stage = self._stage
        publishing = publish(stage.settings, stage.kafka, stage.identities, records, seconds, self._show_published)
        sending = deposits.run(lambda: self._published_so_far)
        works = [publishing, self._faults.run(count, seconds), sending]
        if self._options.kill:
            works.append(self._foreign.run(lambda: self._published_so_far < len(records)))
            works.append(self._poison.run(lambda: self._published_so_far < len(records)))
        tasks = [asyncio.create_task(work) for work in works]
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, watching):
                task.cancel()
            await asyncio.gather(*tasks, watching, return_exceptions=True)
        await self._admin.end_faults()

    async def _come_to_rest(self, rest: Rest) -> str:
        await self._admin.hold_prices()
        if self._options.kill:
            seconds = self._options.rest_seconds
            self._said(f"Published. The exchange's books lag by up to 90 s, so doubts last minutes: waiting for {seconds:.0f} s at most.")
        began = monotonic()
        waiting = asyncio.create_task(rest.reached(self._options.rest_seconds, self._show_answered))
        failing = asyncio.create_task(self._pool.failed())
        try:
            await asyncio.wait({waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return "" if waiting.result() else f"no rest within {monotonic() - began:.0f} s: {rest.why_not}"
            return f"no rest was reached, as a worker was given up: {rest.why_not}"
        finally:
            for task in (waiting, failing):
                task.cancel()
            await asyncio.gather(waiting, failing, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self._show_answered((await standing(self._stage.database, self._stage.settings)).answered)
            await asyncio.sleep(0.5)

    def _show_published(self, count: int) -> None:
        self._published_so_far = count
        self._progress.update(self._published, completed=count)

    def _show_answered(self, count: int) -> None:
        self._progress.update(self._answered, completed=count - self._answered_before)
