"""One broker and one database for a whole test run, shared by all pytest-xdist workers.

1. Whoever comes first starts a keeper process (`python -m tests.servers DIRECTORY`), which runs the embedded services.
2. Every user holds a shared lock (flock) on `users.lock`. The keeper waits for it exclusively: it gets it when the last user has ended,
   however it ended, and then stops the servers. So nothing is left behind, also after `kill -9` of pytest.
3. A user never meets a keeper that is stopping: it waits until that one has gone and starts another.
"""

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from embedded.errors import ServicesError
from embedded.services import Endpoints, services
from infra.settings import Settings

# Includes the first download of the broker.
START_SECONDS_MAX = 240.0
_POLL_SECONDS = 0.05
_DATABASE_SECONDS_MAX = 60.0

T = TypeVar("T")


@contextmanager
def shared_servers(directory: Path) -> Iterator[Endpoints]:
    """The endpoints of the run's servers, which stay up at least as long as this block."""
    directory.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + START_SECONDS_MAX
    start, users = directory / "start.lock", directory / "users.lock"
    with _locked(start, fcntl.LOCK_EX, deadline) as start_lock, _locked(users, fcntl.LOCK_SH, deadline):
        if not _keeper_runs(directory):
            _start_keeper(directory, deadline)
        endpoints = Endpoints(**json.loads((directory / "endpoints.json").read_text()))
        fcntl.flock(start_lock, fcntl.LOCK_UN)
        yield endpoints


@contextmanager
def _locked(file: Path, operation: int, deadline: float) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{file} was not free in time") from None
                time.sleep(_POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _keeper_runs(directory: Path) -> bool:
    try:
        with _locked(directory / "keeper.lock", fcntl.LOCK_EX, 0):
            return False
    except TimeoutError:
        return (directory / "endpoints.json").exists()


def _start_keeper(directory: Path, deadline: float) -> None:
    failure = directory / "failure.txt"
    if failure.exists():
        # The first worker's failure is everybody's: no second try per worker.
        raise RuntimeError(failure.read_text())
    with (directory / "keeper.log").open("ab") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.servers", str(directory)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C must reach the tests first; the keeper ends when they have.
            start_new_session=True,
        )
    while not (directory / "endpoints.json").exists():
        if keeper.poll() is not None or time.monotonic() > deadline:
            keeper.terminate()
            reason = failure.read_text() if failure.exists() else (directory / "keeper.log").read_text()[-4000:]
            failure.write_text(reason)
            raise RuntimeError(f"the test servers did not start: {reason}")
        time.sleep(_POLL_SECONDS)


async def _keep(directory: Path) -> None:
    """Run the services until the last user has gone or SIGTERM asks for it."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, done.set)
    data = directory / "data"
    # Explicitly none: what the developer's environment names must not be tested on.
    settings = Settings(data_dir=data, infra="embedded", kafka_bootstrap_servers=None, database_url=None)
    endpoints_file = directory / "endpoints.json"
    try:
        async with services(settings, progress=lambda text: print(text, flush=True)) as endpoints:
            _wait_for_last_user(directory, lambda: loop.call_soon_threadsafe(done.set))
            unfinished = endpoints_file.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(asdict(endpoints)))
            unfinished.rename(endpoints_file)
            await done.wait()
            endpoints_file.unlink()
    except ServicesError as error:
        endpoints_file.unlink(missing_ok=True)
        (directory / "failure.txt").write_text(str(error))
        raise
    finally:
        # The logs stay for whoever looks into a failed test.
        for storage in (data / "kafka" / "data", data / "database" / "data"):
            shutil.rmtree(storage, ignore_errors=True)


def _wait_for_last_user(directory: Path, then: Callable[[], object]) -> None:
    def wait() -> None:
        # Stays open, and so locked, until the keeper has ended.
        descriptor = os.open(directory / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(RuntimeError):  # the loop is closed: the keeper stops already
            then()

    threading.Thread(target=wait, daemon=True).start()


def in_thread(work: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine to its end from synchronous code, whatever event loop the test has."""

    async def bounded() -> T:
        async with asyncio.timeout(_DATABASE_SECONDS_MAX):
            return await work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(bounded())).result()


def with_database(url: str, name: str) -> str:
    """The same server's URL for another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@contextmanager
def fresh_database(server_url: str, template: str | None) -> Iterator[str]:
    """The URL of a new database, empty or a copy of `template`, dropped afterwards."""
    name = f"test_{uuid4().hex[:12]}"

    def run(statement: str) -> None:
        in_thread(lambda: _execute(server_url, statement))

    run(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
    try:
        yield with_database(server_url, name)
    finally:
        # Sessions that a failed or crashing test left open do not keep it alive.
        run(f'DROP DATABASE "{name}" WITH (FORCE)')


def template_database(
    directory: Path, server_url: str, migrate: Callable[[str], Awaitable[None]], name: str = "test_template"
) -> str:
    """Make the template once per run, whichever worker comes first: an empty database, given to `migrate`, then closed."""
    async def make() -> None:
        await _execute(server_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await _execute(server_url, f'CREATE DATABASE "{name}"')
        await migrate(with_database(server_url, name))
        # Nobody may be connected to a database while it is copied.
        await _execute(server_url, f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')

    with _locked(directory / "template.lock", fcntl.LOCK_EX, time.monotonic() + START_SECONDS_MAX):
        if not in_thread(lambda: _is_complete(server_url, name)):
            in_thread(make)
    return name


async def _is_complete(server_url: str, name: str) -> bool:
    connection = await asyncpg.connect(server_url, timeout=10)
    try:
        return bool(await connection.fetchval("SELECT NOT datallowconn FROM pg_database WHERE datname = $1", name))
    finally:
        await connection.close(timeout=10)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=10)


def main(directory: Path) -> None:
    """The keeper."""
    with _locked(directory / "keeper.lock", fcntl.LOCK_EX, time.monotonic() + START_SECONDS_MAX):
        asyncio.run(_keep(directory))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
