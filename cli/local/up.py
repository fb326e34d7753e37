"""`up`: services, a simulated exchange with trial users, and workers, until it is stopped.

Invariants:
1. Nothing that was started outlives this process: servers and workers run under guards, the simulated exchange ends with its pipe to us.
   The first Ctrl-C (or SIGTERM, SIGHUP) stops everything in order, workers first; the second ends this process, and the rest follows.
2. The addresses are in `endpoints.json` of the data directory exactly while it runs.
3. An exchange that is configured is used as it is: no account is opened there and no user is added.

Start with `run_up`.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from agents.process.permitted import ExchangeNotPermitted, require_permitted
from cli.access.installation import (
    RunningInstallation,
    announced,
    data_directory,
    forget_ended,
    process_started,
    read_running,
    read_settings,
)
from cli.local.supervision import WorkerPool, supervised_workers, worker_environment
from cli.local.trial_issuer import with_trial_issuer
from cli.local.trial_users import ensure_trial_users
from cli.local.up_addresses import address_lines, addresses
from cli.local.worker_logs import all_ready
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import reason_of, say, to_json, write_line
from embedded.ports import PORT_MAX, RememberedPorts
from embedded.services import Endpoints, services
from infra.kafka.topics import TopicsUnfit, ensure_topics
from infra.keyring import MasterKeyError, keyring_of, new_master_key
from infra.postgres.migrate import migrate
from infra.settings import Settings
from infra.trusted_keys import TrustedKeysError
from pipeline.model.invariants import Retryable
from simulator.options import SimulatorOptions
from simulator.process import SimulatorNotReady, SimulatorProcess, start

_WORKER: Final = (sys.executable, "-m", "agents")
# What the simulated exchange can stand in for.
_SIMULATED: Final = frozenset({"binance", "binanceus"})
# Includes all migrations of an empty database, on a machine that starts everything else at the same time.
_FIRST_CONTACT_SECONDS: Final = 90.0
_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True)
class _Ground:
    """What workers run on. `simulator` None: the exchanges are configured ones."""

    settings: Settings
    endpoints: Endpoints
    simulator: SimulatorProcess | None


class _Stop:
    """Turns the first signal into a cancellation of the block, the second into the end of the process."""

    def __init__(self) -> None:
        self.asked = False
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("signals can be taken by a task alone")
        self._task = task

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self.asked:
            say("Ended at once; what was started stops by itself.")
            # Guards and simulator see the end of their pipes.
            os._exit(Exit.INTERRUPTED)
        self.asked = True
        say("Stopping: workers finish what they have begun; once more ends at once.")
        self._task.cancel()


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What was asked for. Ports are 0 where none was: those of the last start in the data directory, else free ones. `authentication` None:
    as the settings say, and none at a simulated exchange unless they name the keys of tokens."""

    workers: int = 2
    kafka_port: int = 0
    exchange_port: int = 0
    web_port: int = 0
    authentication: str | None = None
    as_json: bool = False


async def run_up(options: UpOptions) -> Exit:
    """Runs until it is stopped. Raises CommandFailed, and ServicesError where a service cannot be started or goes away."""
    stop = _Stop()
    stop.listen()
    settings = _with_ports(read_settings(), options)
    if options.authentication is not None:
        settings = settings.model_copy(update={"authentication": options.authentication})
    directory = _made(data_directory(settings))
    _refuse_second(directory)
    # What a start that was killed has left names services that are gone.
    forget_ended(directory)
    is_ready = False
    try:
        async with services(settings, progress=say) as endpoints, _ground(settings, endpoints, directory, options) as ground:
            # Workers tell where they answer for their health at this level.
            level = "debug" if settings.log_level == "debug" else "info"
            environment = worker_environment(ground.settings.model_copy(update={"log_level": level}), endpoints)
            ports = await _web_ports(settings, directory, options.workers)
            logs = directory / "workers"
            async with supervised_workers(options.workers, _WORKER, environment, logs, say, ports) as pool:
                say("Starting the workers…")
                health = tuple(f"http://{_in_url(settings.web_host)}:{port}" for port in ports)
                await _until_ready(health, pool, ground.simulator)
                running = _described(ground, health)
                is_ready = True
                with announced(directory, running):
                    write_line(to_json(addresses(running)) if options.as_json else "\n".join(address_lines(running, directory)))
                    await _watch(pool, ground.simulator)
    except asyncio.CancelledError:
        if not stop.asked:
            raise
        say("Everything has stopped.")
    except (SimulatorNotReady, TimeoutError, Retryable) as error:
        raise CommandFailed(
            f"The start was given up: {'no answer in time' if isinstance(error, TimeoutError) else error}. No order was accepted. "
            "`orchestrator doctor` checks every service.",
            Exit.OUT_OF_REACH,
        ) from error
    except (MasterKeyError, TrustedKeysError, TopicsUnfit, ExchangeNotPermitted) as error:
        raise CommandFailed(str(error), Exit.USAGE) from error
    return Exit.DONE if is_ready else Exit.INTERRUPTED


def _made(directory: Path) -> Path:
    try:
        # Others may pass, not read: PostgreSQL runs as another account when we are root.
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(
            f"The data directory {directory} cannot be made: {error.strerror}. Nothing was started and no order was accepted. Choose "
            "another with ORCHESTRATOR_DATA_DIR.",
            Exit.OUT_OF_REACH,
        ) from None
    return directory


def _refuse_second(directory: Path) -> None:
    running = read_running(directory)
    if running is not None and running.is_running:
        raise CommandFailed(
            f"An installation runs in {directory} already (process {running.pid}); it is not affected. Use it, stop it first, or choose "
            "another directory: ORCHESTRATOR_DATA_DIR=/some/other/path",
            Exit.OUT_OF_REACH,
        )


def _with_ports(settings: Settings, options: UpOptions) -> Settings:
    """The settings with the ports that were asked for. Raises CommandFailed for some that cannot be meant."""
    kafka_port, web_port = options.kafka_port or settings.kafka_port, options.web_port or settings.web_port
    if kafka_port and settings.service_mode("kafka") != "embedded":
        raise CommandFailed(
            "A port of the broker can be chosen for the embedded one alone, and the settings name another broker (ORCHESTRATOR_INFRA, "
            "ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS). Nothing was started. Leave --kafka-port and ORCHESTRATOR_KAFKA_PORT out.",
            Exit.USAGE,
        )
    if web_port and web_port + options.workers - 1 > PORT_MAX:
        raise CommandFailed(
            f"{options.workers} workers would serve their health at ports from {web_port} on, and {PORT_MAX} is the last one there is. "
            "Nothing was started. Choose a smaller --web-port, or ORCHESTRATOR_WEB_PORT.",
            Exit.USAGE,
        )
    return settings.model_copy(update={"kafka_port": kafka_port, "web_port": web_port})


async def _web_ports(settings: Settings, directory: Path, workers: int) -> list[int]:
    """Where each worker serves its health: the same port whenever it starts again."""
    ports = RememberedPorts(directory, say)
    return [
        await ports.take(
            f"worker {number}",
            settings.web_port + number - 1 if settings.web_port else 0,
            settings.web_host,
            settings="--web-port, or ORCHESTRATOR_WEB_PORT",
        )
        for number in range(1, workers + 1)
    ]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@asynccontextmanager
async def _ground(settings: Settings, endpoints: Endpoints, directory: Path, options: UpOptions) -> AsyncIterator[_Ground]:
    """Master key, topics, schema, and a simulated exchange with its users where no exchange is configured."""
    settings = _with_master_key(settings, directory)
    keyring_of(settings)
    if settings.exchange_urls:
        if options.exchange_port:
            raise CommandFailed(
                "--exchange-port is for the simulated exchange, and ORCHESTRATOR_EXCHANGE_URLS names another, which was not touched. "
                "Leave one of them out.",
                Exit.USAGE,
            )
        require_permitted(settings)
        await _prepare(settings, endpoints)
        yield _Ground(settings, endpoints, None)
        return
    port = await RememberedPorts(directory, say).take("simulated exchange", options.exchange_port, settings="--exchange-port")
    async with _simulator(settings, directory, port) as simulator:
        urls = {exchange: simulator.url for exchange in settings.exchanges if exchange in _SIMULATED}
        # Its limit of requests is for strangers on the internet.
        limited = settings.exchange_rate_limit if "exchange_rate_limit" in settings.model_fields_set else False
        # Trial money needs no tokens, unless somebody wants to try those as well.
        if options.authentication is None and settings.token_keys_file is None:
            settings = settings.model_copy(update={"authentication": "sandbox"})
        settings = settings.model_copy(update={"exchange_urls": urls, "exchange_rate_limit": limited})
        if settings.authentication == "required":
            settings = with_trial_issuer(settings, directory)
        require_permitted(settings)
        await _prepare(settings, endpoints)
        await ensure_trial_users(
            settings,
            exchange=settings.exchanges[0],
            simulator_url=simulator.url,
            bootstrap_servers=endpoints.kafka_bootstrap_servers,
            database_url=endpoints.database_url,
            installation_secret=_installation_secret(settings),
        )
        yield _Ground(settings, endpoints, simulator)


async def _prepare(settings: Settings, endpoints: Endpoints) -> None:
    async with asyncio.timeout(_FIRST_CONTACT_SECONDS):
        await asyncio.gather(ensure_topics(settings, endpoints.kafka_bootstrap_servers), _migrated(endpoints.database_url))


async def _migrated(database_url: str) -> None:
    try:
        await migrate(database_url)
    except (OSError, TimeoutError) as error:
        raise Retryable(f"the database is out of reach ({reason_of(error)})") from error


def _with_master_key(settings: Settings, directory: Path) -> Settings:
    """A key of the data directory's own where none is configured: stored exchange keys must stay readable at the next start."""
    if settings.master_key is not None or settings.master_key_file is not None:
        return settings
    file = directory / "master.key"
    if not file.exists():
        unfinished = file.with_suffix(".unfinished")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as key:
            key.write(new_master_key())
            key.flush()
            os.fsync(key.fileno())
        unfinished.replace(file)
    return settings.model_copy(update={"master_key_file": file})


def _installation_secret(settings: Settings) -> bytes:
    if settings.master_key is not None:
        text = settings.master_key.get_secret_value()
    else:
        text = settings.master_key_file.read_text(encoding="ascii").strip() if settings.master_key_file is not None else ""
    return sha256(text.encode()).digest()


@asynccontextmanager
async def _simulator(settings: Settings, directory: Path, port: int) -> AsyncIterator[SimulatorProcess]:
    options = SimulatorOptions(data_dir=directory / "simulator", port=port, venue_timeout_ms=settings.venue_timeout_ms)
    with (directory / "simulator.log").open("ab") as errors:
        starting = asyncio.create_task(asyncio.to_thread(start, options, errors))
        try:
            yield await asyncio.shield(starting)
        finally:
            # Its thread ends within its own time limit, also when this block was left before.
            simulator = await starting
            await asyncio.to_thread(simulator.stop)


def _described(ground: _Ground, health: tuple[str, ...]) -> RunningInstallation:
    settings, simulator = ground.settings, ground.simulator
    file = settings.master_key_file
    return RunningInstallation(
        pid=os.getpid(),
        started=process_started(os.getpid()) or "",
        kafka_bootstrap_servers=ground.endpoints.kafka_bootstrap_servers,
        database_url=ground.endpoints.database_url,
        exchanges=settings.exchanges,
        exchange_urls=settings.exchange_urls,
        topic_prefix=settings.topic_prefix,
        consumer_group=settings.consumer_group,
        authentication=settings.authentication,
        token_keys_file=None if settings.token_keys_file is None else settings.token_keys_file.expanduser().absolute(),
        token_issuer=settings.token_issuer,
        token_audience=settings.token_audience,
        master_key_file=None if file is None else file.expanduser().absolute(),
        exchange_log=None if simulator is None else simulator.log_path.absolute(),
        health=health,
    )


async def _until_ready(health: tuple[str, ...], pool: WorkerPool, simulator: SimulatorProcess | None) -> None:
    """Until every worker says that it is ready."""
    while not await all_ready(health):
        _require_alive(pool, simulator)
        await asyncio.sleep(_POLL_SECONDS)


async def _watch(pool: WorkerPool, simulator: SimulatorProcess | None) -> None:
    """Returns never; raises CommandFailed when workers cannot run any more or the simulated exchange has ended."""
    while True:
        _require_alive(pool, simulator)
        await asyncio.sleep(_POLL_SECONDS)


def _require_alive(pool: WorkerPool, simulator: SimulatorProcess | None) -> None:
    if pool.failure is not None:
        raise CommandFailed(pool.failure, Exit.OUT_OF_REACH)
    if simulator is not None and (status := simulator.child.poll()) is not None:
        raise CommandFailed(
            f"The simulated exchange ended by itself (status {status}), so everything stops. What it accepted is in its log and is "
            f"looked up at the next start. Its last words are in {simulator.options.data_dir.with_name('simulator.log')}.",
            Exit.OUT_OF_REACH,
        )
