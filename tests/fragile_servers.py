"""A broker and a database that a test may stop, pause, kill and start again at the same address. Never the shared ones.

Each runs in an event loop of its own thread, so that it can outlive one test's loop: start one per module where that saves time.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from embedded import broker as embedded_broker
from embedded import java
from embedded.broker import EmbeddedBroker
from embedded.data_dir import DataDirectory, locked_data_directory
from embedded.database import EmbeddedDatabase
from embedded.guarded import GuardedServer
from embedded.jars import BROKER_JARS, jars_directory
from infra.settings import Settings

T = TypeVar("T")
Start = Callable[[DataDirectory], Awaitable[tuple[GuardedServer, str]]]

_STEP_SECONDS_MAX = 120.0


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _say_nothing(text: str) -> None:
    """Progress is for people."""


class FragileServer:
    """One server in a data directory of its own. `start` and `again` start it the first time and afterwards."""

    def __init__(self, directory: Path, start: Start, again: Start) -> None:
        self.address = ""
        self.directory = directory
        self._start, self._again = start, again
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._data: DataDirectory | None = None
        self._server: GuardedServer | None = None

    def __enter__(self) -> "FragileServer":
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_STEP_SECONDS_MAX)

    async def _elsewhere(self, work: Any) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _open(self) -> None:
        self._data = await self._stack.enter_async_context(locked_data_directory(self.directory, progress=_say_nothing))
        self._server, self.address = await self._start(self._data)

    async def _close(self) -> None:
        self.resume()
        if self._server is not None:
            await self._server.stop()
        await self._stack.aclose()

    def _process(self) -> psutil.Process | None:
        """The server itself, below its guard; None when it is not there."""
        if self._server is None or self._server.exit_code is not None:
            return None
        try:
            children: list[psutil.Process] = psutil.Process(self._server.guard_pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0] if children else None

    async def stop(self) -> None:
        """Stops it in an orderly way."""
        if self._server is not None:
            await self._elsewhere(self._server.stop())
            self._server = None

    async def kill(self) -> None:
        """Ends it like a power cut of its process."""
        process = self._process()
        if process is not None:
            process.kill()
        await self.stop()

    async def start(self) -> None:
        """Starts it again, at the same address with the same data, unless it runs."""
        if self._process() is not None:
            return
        await self.stop()
        if self._data is None:
            raise RuntimeError("the server was never started")
        self._server, address = await self._elsewhere(self._again(self._data))
        if address != self.address:
            raise RuntimeError(f"the server came back at {address} instead of {self.address}")

    def pause(self) -> None:
        """Connections stay open, nothing is answered any more."""
        process = self._process()
        if process is not None:
            for each in (*process.children(recursive=True), process):
                each.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """The end of a pause; harmless without one."""
        process = self._process()
        if process is not None:
            for each in (*process.children(recursive=True), process):
                each.send_signal(signal.SIGCONT)


def fragile_broker(directory: Path) -> FragileServer:
    """A broker. Use it as a context manager."""
    cache_dir = Settings().cache_dir

    async def first(data: DataDirectory) -> tuple[GuardedServer, str]:
        made = await EmbeddedBroker.start(data, cache_dir, progress=_say_nothing)
        return made.server, made.address

    async def again(data: DataDirectory) -> tuple[GuardedServer, str]:
        jars = await jars_directory(BROKER_JARS, cache_dir, progress=_say_nothing)
        # The ports stand in its properties from the first start.
        server = await embedded_broker._launch(jars, data, java.StartupCache.for_jars(jars))
        listeners = next(line for line in (data.kafka / "server.properties").read_text().splitlines() if line.startswith("advertised"))
        address = listeners.rpartition("//")[2]
        if not await embedded_broker._until_ready(server, int(address.rpartition(":")[2]), data.path):
            raise RuntimeError("the broker's port was taken meanwhile")
        return server, address

    return FragileServer(directory, first, again)


def fragile_database(directory: Path) -> FragileServer:
    """A PostgreSQL; its address is a URL of the database `postgres`. Use it as a context manager."""

    async def start(data: DataDirectory) -> tuple[GuardedServer, str]:
        made = await EmbeddedDatabase.start(data, progress=_say_nothing)
        return made.server, made.address

    return FragileServer(directory, start, start)


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator["SmallDisk | None"]:
    """A file system of its own in memory; None where none can be mounted (that needs root and a kernel that permits it)."""
    directory.mkdir(parents=True, exist_ok=True)
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(directory)]
        mounted = subprocess.run(mount, capture_output=True, check=False, timeout=10).returncode == 0
    if not mounted:
        yield None
        return
    try:
        yield SmallDisk(directory)
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True, timeout=10)


class SmallDisk:
    """A disk to fill up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fill(self, free_bytes: int = 0) -> None:
        """Leaves this much room."""
        with (self.directory / "ballast").open("wb") as file:
            size = max(0, shutil.disk_usage(self.directory).free - free_bytes)
            os.posix_fallocate(file.fileno(), 0, size)

    def make_room(self) -> None:
        (self.directory / "ballast").unlink(missing_ok=True)


class Line:
    """A TCP line to a server, which a test can cut and fix; its own address stays the same."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.port = 0
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Line":
        await self.fix()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def fix(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = int(self._server.sockets[0].getsockname()[1])

    async def cut(self) -> None:
        """From now on connections are refused, and those that are open are closed."""
        if self._server is not None:
            self._server.close()
            self._server = None
        pipes, self._pipes = self._pipes, set()
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._pipes.add(task)
        try:
            to_reader, to_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer))
        finally:
            to_writer.close()
            writer.close()
            if task is not None:
                self._pipes.discard(task)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return
    finally:
        writer.close()
