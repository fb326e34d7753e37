"""Keeps a number of workers running: starts them, starts a new one where one ends, stops them all.

Invariants:
1. No worker outlives its supervisor: each runs under a guard (embedded/guard), which stops it when this process ends, however it
   ends, and kills it when it does not stop in time.
2. A worker that ends is replaced, after a pause that grows. One that ends again and again without having run for `SETTLED_SECONDS`, or
   whose settings cannot work, is not: the pool fails and says why.
3. The end of a worker's log is what a person is shown; it is bounded, as is the log (see the guard).

Start with `supervised_workers`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Final

import psutil
from pydantic import SecretStr

from agents.process.worker import ExitCode
from embedded.guarded import Command, GuardedServer
from embedded.services import Endpoints
from infra.settings import Settings

SETTLED_SECONDS: Final = 15.0
# Ends in a row before SETTLED_SECONDS of life. Workers that meet a broker or a database that is away wait by themselves and do not end.
RESTARTS_MAX: Final = 8
_PAUSES: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
# A worker finishes the batch under way; that takes no longer than its exchange calls and two transactions.
_STOP_SECONDS: Final = 20.0
_LOG_LINES: Final = 8


class WorkerPool:
    """The workers of `supervised_workers`. `restarts` counts the workers that were started in place of another."""

    def __init__(
        self, argv: tuple[str, ...], environment: Mapping[str, str], logs: Path, said: Callable[[str], None], web_ports: Sequence[int]
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.restarts = 0
        self._argv = argv
        self._environment = dict(environment)
        self._logs = logs
        self._said = said
        self._web_ports = web_ports
        self._running: dict[int, GuardedServer] = {}
        self._failure: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def failure(self) -> str | None:
        """Why the pool has given up a worker; None while it has not."""
        return self._failure.result() if self._failure.done() else None

    async def failed(self) -> str:
        """Waits until the pool gives up a worker, if it ever does, and says why."""
        return await asyncio.shield(self._failure)

    def processes(self) -> list[psutil.Process]:
        """The worker processes that run now (their guards are not among them), for those who inject faults."""
        found: list[psutil.Process] = []
        for _, server in sorted(self._running.items()):
            try:
                found += psutil.Process(server.guard_pid).children()
            except psutil.NoSuchProcess:
                continue
        return found

    def paused(self) -> int:
        """How many workers were stopped by a signal, and may go on later as if nothing had happened."""
        count = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                count += process.status() == psutil.STATUS_STOPPED
        return count

    async def keep(self, number: int) -> None:
        """Keeps one worker running until it is cancelled or given up."""
        short_lives = 0
        while True:
            started_at = monotonic()
            code = await self._run(number)
            short_lives = 0 if monotonic() - started_at >= SETTLED_SECONDS else short_lives + 1
            ended = f"worker {number} ended ({describe_exit(code)})"
            if code == ExitCode.SETTINGS:
                self._give_up(f"{ended}: another would end the same way. Requests wait in Kafka.", number)
                return
            if short_lives > RESTARTS_MAX:
                often = f"{short_lives} times in a row within {SETTLED_SECONDS:.0f} s of its start"
                self._give_up(f"{ended}, {often}. Requests wait in Kafka.", number)
                return
            self._said(f"{ended}; another is started.")
            await asyncio.sleep(_PAUSES[min(max(short_lives - 1, 0), len(_PAUSES) - 1)])
            self.restarts += 1

    async def _run(self, number: int) -> int:
        log = self._log(number)
        environment = self._environment
        if self._web_ports:
            environment = {**environment, "ORCHESTRATOR_WEB_PORT": str(self._web_ports[number - 1])}
        server = await GuardedServer.start(Command(self._argv, log, grace_seconds=_STOP_SECONDS, environment=environment))
        self._running[number] = server
        try:
            return await server.wait()
        finally:
            await server.stop()
            del self._running[number]

    def _log(self, number: int) -> Path:
        return self._logs / f"worker-{number}.log"

    def _give_up(self, why: str, number: int) -> None:
        log = self._log(number)
        try:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        except OSError as error:
            tail = f"({log} cannot be read: {error.strerror})"
        if not self._failure.done():
            self._failure.set_result(f"{why} The end of {log}:\n{tail}")
        self._said(why)


def describe_exit(code: int) -> str:
    """An exit code in words; a guard gives 128 plus the number of the signal that ended a worker."""
    try:
        return f"exit code {code}, {ExitCode(code).name.lower().replace('_', ' ')}"
    except ValueError:
        return f"signal {code - 128}" if code > 128 else f"exit code {code}"


@asynccontextmanager
async def supervised_workers(
    count: int,
    argv: tuple[str, ...],
    environment: Mapping[str, str],
    logs: Path,
    said: Callable[[str], None],
    web_ports: Sequence[int] = (),
) -> AsyncIterator[WorkerPool]:
    """Runs `count` workers while the block runs, and stops them when it is left, however it is left.

    `argv` starts one worker with `environment` added to our own; worker n serves its health at the n-th of `web_ports`, if any.
    `logs` is the directory of their log files; `said` gets sentences for people. Look at `failed` of the pool: nothing is raised when a
    worker is given up.
    """
    pool = WorkerPool(argv, environment, logs, said, web_ports)
    tasks = [asyncio.create_task(pool.keep(number), name=f"worker {number}") for number in range(1, count + 1)]
    try:
        yield pool
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def worker_environment(settings: Settings, endpoints: Endpoints) -> dict[str, str]:
    """The environment variables of a worker that shall run with these settings against these services. They hold secrets."""
    values: dict[str, object] = {name: getattr(settings, name) for name in Settings.model_fields}
    values |= {"kafka_bootstrap_servers": endpoints.kafka_bootstrap_servers, "database_url": endpoints.database_url}
    variables = {f"ORCHESTRATOR_{name.upper()}": _text(value) for name, value in values.items() if value is not None}
    # Everything is said already; a file would only add what these settings do not have.
    return variables | {"ORCHESTRATOR_CONFIG": ""}


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, dict)):
        return json.dumps(value)
    return str(value)
