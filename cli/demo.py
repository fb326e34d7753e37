"""`orchestrator demo`: the whole system on this machine, under load, and every promise checked afterwards.

Invariants:
1. Nothing of a configured installation is touched: broker, database and exchange are the demo's own.
2. What is printed is counted afterwards from the topics, the database and the exchange's log, never from counters of a worker.
3. Whatever happens, all that was started is stopped.

Start with `run_demo`.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import BinaryIO, Final
from uuid import uuid4

from aiokafka import AIOKafkaProducer
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.demo_exchange import ExchangeAccount, SimulatorAdmin, injected_faults
from cli.demo_faults import WorkerFaults
from cli.demo_load import Rest, begin_offsets, publish, standing
from cli.demo_report import show, summary, to_line
from cli.demo_requests import API_KEY_ID, EXCHANGE, OPENING_BALANCES, Generator
from cli.output import Exit, say, write_line
from cli.supervision import WorkerPool, supervised_workers, worker_environment
from infra.embedded.errors import ServicesError
from infra.embedded.services import Endpoints, services
from infra.exchange.simulator.options import SimulatorOptions
from infra.exchange.simulator.process import SimulatorNotReady, SimulatorProcess, start
from infra.exchange.simulator.records import LogDamaged
from infra.kafka.connection import client_options
from infra.kafka.topics import TopicsUnfit, ensure_topics
from infra.keyring import StoredSecret, keyring_of, new_master_key
from infra.postgres.accounts import NewUser, add_users
from infra.postgres.migrate import migrate
from infra.postgres.step import Database, connect
from infra.settings import Settings
from infra.verification.evidence import gather_evidence
from pipeline.invariants import Retryable
from pipeline.verification.answers import tally
from pipeline.verification.finding import Check, Finding
from pipeline.verification.promises import all_hold, check_all
from schemas.topics import Topics

_USERS: Final = 50
_TERMINATED: Final = 143
_SECONDS_PER_FAULT: Final = 13.0
_FAULTS_MIN_MAX: Final = (3, 9)
_REQUESTS_PER_FAULT: Final = 2_000
_REST_SECONDS_MAX: Final = 60.0
_REST_SECONDS_PER_REQUEST: Final = 0.01


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`requests` and `workers` are counts. `worker_argv` is how a worker is started: tests replace it by one with a broken mechanism.

    `worker_environment` is added to what every worker gets.
    """

    requests: int = 2000
    workers: int = 2
    kill: bool = False
    as_json: bool = False
    seed: int = 1
    worker_argv: tuple[str, ...] = (sys.executable, "-m", "agents")
    worker_environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Stage:
    """What a demo runs on."""

    settings: Settings
    endpoints: Endpoints
    simulator: SimulatorProcess
    database: Database


async def run_demo(options: DemoOptions) -> int:
    """Runs the demo; returns the exit code: 0, 1 when a promise is broken, 3 when a service did not start or went away."""
    terminated = _cancel_on_sigterm()
    directory = _DataDirectory()
    try:
        code = await _run(options, directory.path)
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
        directory.keep()
    return code


def _cancel_on_sigterm() -> asyncio.Event:
    """SIGTERM ends the demo like Ctrl-C does: what was started is stopped. The event tells the one from the other."""
    terminated = asyncio.Event()
    task = asyncio.current_task()

    def end() -> None:
        terminated.set()
        if task is not None:
            task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    return terminated


class _DataDirectory:
    """The directory that ORCHESTRATOR_DATA_DIR names, else a temporary one that is removed after a demo that ended well."""

    def __init__(self) -> None:
        given = os.environ.get("ORCHESTRATOR_DATA_DIR")
        self._is_temporary = given is None
        self.path = Path(tempfile.mkdtemp(prefix="orchestrator-demo-") if given is None else given)
        if self._is_temporary:
            # Others may pass: PostgreSQL runs as another account when we are root.
            self.path.chmod(0o711)

    def remove(self) -> None:
        if self._is_temporary:
            shutil.rmtree(self.path, ignore_errors=True)

    def keep(self) -> None:
        say(f"Logs and data are kept in {self.path}.")


def _settings(path: Path) -> Settings:
    """Everything short, so that what the demo breaks is mended while somebody watches; the addresses are the demo's own."""
    containers = os.environ.get("ORCHESTRATOR_INFRA") == "containers"
    return Settings(
        infra="containers" if containers else "embedded",
        data_dir=path,
        kafka_bootstrap_servers=None,
        kafka_security_protocol="PLAINTEXT",
        kafka_replication_factor=1,
        kafka_min_insync_replicas=1,
        database_url=None,
        database_timeout_seconds=5,
        exchanges=(EXCHANGE,),
        exchange_rate_limit=False,
        exchange_timeout_ms=1_500,
        receive_window_ms=3_000,
        venue_timeout_ms=1_000,
        reconcile_interval_ms=500,
        transaction_timeout_ms=10_000,
        session_timeout_ms=6_000,
        rebalance_timeout_ms=10_000,
        stall_seconds_max=30,
        web_port=0,
    )


async def _run(options: DemoOptions, path: Path) -> int:
    if os.environ.get("ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS") or os.environ.get("ORCHESTRATOR_DATABASE_URL"):
        say("The demo starts a broker and a database of its own; the configured ones are not touched.")
    settings = _settings(path)
    async with services(settings, progress=say) as endpoints:
        settings = settings.model_copy(update={"master_key": SecretStr(_master_key(path))})
        async with _stage(settings, endpoints, options.seed) as stage:
            return await _play(stage, options)


def _master_key(path: Path) -> str:
    """The key of the data directory, made at its first use: stored exchange keys of an earlier run must stay readable."""
    file = path / "master.key"
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as key:
            key.write(new_master_key())
    return file.read_text()


@asynccontextmanager
async def _stage(settings: Settings, endpoints: Endpoints, seed: int) -> AsyncIterator[_Stage]:
    """The simulated exchange, topics and schema, side by side."""
    options = SimulatorOptions(
        data_dir=settings.data_dir / "simulator", venue_timeout_ms=settings.venue_timeout_ms, seed=seed, parent_pipe=True
    )
    with _log(settings.data_dir / "simulator.log") as errors:
        starting = asyncio.create_task(asyncio.to_thread(start, options, errors))
        try:
            await asyncio.gather(ensure_topics(settings, endpoints.kafka_bootstrap_servers), migrate(endpoints.database_url))
            database = await connect(endpoints.database_url, 2, settings.database_timeout_seconds)
            try:
                simulator = await asyncio.shield(starting)
                addressed = settings.model_copy(update={"exchange_urls": {EXCHANGE: simulator.url}})
                yield _Stage(addressed, endpoints, simulator, database)
            finally:
                await database.close()
        finally:
            # The thread ends by itself, in bounded time, also when this was cut short.
            simulator = await starting
            await asyncio.to_thread(simulator.stop)


def _log(path: Path) -> BinaryIO:
    return path.open("ab")


async def _play(stage: _Stage, options: DemoOptions) -> int:
    run = uuid4().hex[:8]
    users = await _add_users(stage, run)
    asked_from = await begin_offsets(stage.settings, stage.endpoints.kafka_bootstrap_servers)
    environment = {**worker_environment(stage.settings, stage.endpoints), **options.worker_environment}
    logs = stage.settings.data_dir / "workers"
    notes: list[str] = []
    async with supervised_workers(options.workers, options.worker_argv, environment, logs, notes.append) as pool:
        faults, rested = await _load(stage, options, pool, run, users)
    say("Everything has stopped; the promises are checked.")
    evidence = await gather_evidence(
        stage.settings, stage.endpoints.kafka_bootstrap_servers, stage.endpoints.database_url, stage.simulator.log_path
    )
    findings = [*check_all(evidence), _workers_run(pool, rested)]
    figures = summary(
        findings,
        tally(evidence.answers, asked_from),
        len(evidence.books.orders) if evidence.books else 0,
        {**injected_faults(stage.simulator.options.data_dir), **faults},
        {"workers": options.workers, "workers_restarted": pool.restarts, "seed": options.seed},
    )
    if options.as_json:
        write_line(to_line(figures))
    else:
        show(Console(), figures, findings)
    return Exit.DONE if all_hold(findings) else Exit.NOT_SO


def _workers_run(pool: WorkerPool, rested: str) -> Finding:
    check = Check("workers_run", "workers that end are replaced, and everything under way comes to rest", checked=1)
    if pool.failure is not None:
        check.breach(pool.failure)
    if rested:
        check.breach(rested)
    return check.finding()


async def _add_users(stage: _Stage, run: str) -> list[str]:
    """Users of this run with equal balances here and at the exchange; their audit events are published."""
    keyring = keyring_of(stage.settings)
    user_ids = [f"demo-{run}-{number:02}" for number in range(1, _USERS + 1)]
    accounts = [ExchangeAccount(user_id, f"key{uuid4().hex}", uuid4().hex, dict(OPENING_BALANCES)) for user_id in user_ids]
    await SimulatorAdmin(stage.simulator.url).open_accounts(accounts)
    users = [
        NewUser(
            account.user_id,
            EXCHANGE,
            API_KEY_ID,
            keyring.key_id,
            keyring.encrypt(account.user_id, API_KEY_ID, StoredSecret(account.api_key, account.secret)),
            account.balances,
        )
        for account in accounts
    ]
    rows = await add_users(stage.database, users, datetime.now(UTC), "demo")
    topic = Topics(stage.settings.topic_prefix).audit
    options = client_options(stage.settings, stage.endpoints.kafka_bootstrap_servers)
    producer = AIOKafkaProducer(**options, enable_idempotence=True, acks="all")
    await producer.start()
    try:
        await asyncio.gather(*[await producer.send(topic, row.value, key=row.event_id.encode()) for row in rows])
    finally:
        await producer.stop()
    return user_ids


async def _load(stage: _Stage, options: DemoOptions, pool: WorkerPool, run: str, users: list[str]) -> tuple[dict[str, int], str]:
    """Publishes everything while faults are made, then waits for rest; returns the faults in workers, and why there is no rest."""
    records = list(Generator(options.seed, run, users, datetime.now(UTC)).records(options.requests))
    count = min(max(options.requests // _REQUESTS_PER_FAULT, _FAULTS_MIN_MAX[0]), _FAULTS_MIN_MAX[1]) if options.kill else 0
    seconds = count * _SECONDS_PER_FAULT
    admin = SimulatorAdmin(stage.simulator.url)
    bootstrap_servers = stage.endpoints.kafka_bootstrap_servers
    before = await standing(stage.database, stage.settings)
    with _progress() as progress:
        published = progress.add_task("published", total=options.requests)
        answered = progress.add_task("answered", total=options.requests)

        def show_answered(count_in_all: int) -> None:
            progress.update(answered, completed=count_in_all - before.answered)

        async def watch() -> None:
            while True:
                show_answered((await standing(stage.database, stage.settings)).answered)
                await asyncio.sleep(0.5)

        faults = WorkerFaults(pool, options.seed, progress.console.print)
        if options.kill:
            await admin.make_faults(options.seed)
        watching = asyncio.create_task(watch())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(
                    publish(stage.settings, bootstrap_servers, records, seconds, lambda done: progress.update(published, completed=done))
                )
                group.create_task(faults.run(count, seconds))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await admin.end_faults()
        rest = Rest(stage.settings, bootstrap_servers, stage.database, stage.simulator.log_path, before.read + options.requests)
        why_not = await _come_to_rest(rest, admin, pool, _REST_SECONDS_MAX + options.requests * _REST_SECONDS_PER_REQUEST, show_answered)
    return dict(faults.counts), why_not


async def _come_to_rest(rest: Rest, admin: SimulatorAdmin, pool: WorkerPool, seconds: float, answered: Callable[[int], None]
) -> str:
    await admin.hold_prices()
    began = monotonic()
    waiting = asyncio.create_task(rest.reached(seconds, answered))
    failing = asyncio.create_task(pool.failed())
    try:
        await asyncio.wait({waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done() and waiting.result():
            return ""
        if failing.done():
            return "no rest was reached, as a worker was given up"
        return f"no rest within {monotonic() - began:.0f} s: {rest.why_not}"
    finally:
        for task in (waiting, failing):
            task.cancel()
        await asyncio.gather(waiting, failing, return_exceptions=True)


def _progress() -> Progress:
    """Bars on standard error."""
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
