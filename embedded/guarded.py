"""The owner's side of a guard: start a server under one, wait for it, stop it, read the end of its log.

1. Whoever holds a `GuardedServer` holds the pipe that keeps it alive: when this process ends, however it ends, the server stops.
2. `stop` returns when the server and everything it started are gone, or it raises; it has a time limit.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from embedded import guard
from embedded.account import Account

# Between the server's own time limit and the moment the guard itself counts as hung.
_GUARD_SECONDS_MAX = 12.0
_TAIL_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class Command:
    """A server's command line and how it wants to be stopped."""

    argv: Sequence[str]
    log: Path
    # Seconds between the stop signal and SIGKILL.
    grace_seconds: float = 10.0
    stop_signal: signal.Signals = signal.SIGTERM
    # What the kernel sends to the server when its guard dies (Linux).
    death_signal: signal.Signals = signal.SIGKILL
    # The account to run as; None keeps ours.
    account: Account | None = None
    environment: dict[str, str] = field(default_factory=dict)
    # Descriptors that guard and server inherit: the data directory's lock is held until the last of them has ended.
    keep_fds: tuple[int, ...] = ()


class GuardedServer:
    """A running guard with its server. Made by `start` only."""

    def __init__(self, command: Command, process: asyncio.subprocess.Process, lifeline: int) -> None:
        self._command = command
        self._process = process
        self._lifeline: int | None = lifeline

    @classmethod
    async def start(cls, command: Command) -> Self:
        """Start the guard; it starts the server. Returns at once, without waiting for the server to be ready."""
        # A pipe of our own, not asyncio's: it must stay open when the event loop is closed, and close when this process ends.
        read_end, lifeline = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                # Isolated and without site packages: the guard needs none of them and starts four times as fast.
                *(sys.executable, "-I", "-S", guard.__file__),
                *_options(command),
                *("--", *command.argv),
                stdin=read_end,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=command.keep_fds,
                env={**os.environ, **command.environment},
            )
        except BaseException:
            os.close(lifeline)
            raise
        finally:
            os.close(read_end)
        return cls(command, process, lifeline)

    @property
    def guard_pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; afterwards the server's exit code, or 128 + signal."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait, without a limit, until the server has ended; its exit code."""
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop the server in an orderly way within its grace time, by force after it. Harmless when it has ended already."""
        self.let_go()
        try:
            async with asyncio.timeout(self._command.grace_seconds + _GUARD_SECONDS_MAX):
                await self._process.wait()
        except TimeoutError:
            # The guard itself hangs. Its end makes the kernel end the server (invariant 2 of the guard).
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def let_go(self) -> None:
        """Close the pipe: guard and server stop by themselves. For when there is no time to wait."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def log_tail(self, lines_max: int = 20) -> str:
        """The last lines that this run wrote to the log."""
        return log_tail(self._command.log, lines_max)


def _options(command: Command) -> list[str]:
    options = ["--owner", str(os.getpid()), "--log", str(command.log), "--grace", str(command.grace_seconds)]
    options += ["--stop-signal", command.stop_signal.name, "--death-signal", command.death_signal.name]
    for descriptor in command.keep_fds:
        options += ["--keep-fd", str(descriptor)]
    if command.account is not None:
        options += ["--uid", str(command.account.uid), "--gid", str(command.account.gid)]
        if command.account.capability is not None:
            options += ["--capability", str(command.account.capability)]
    return options


async def run_to_end(command: Command, seconds_max: float) -> int:
    """Run a program that ends by itself (initdb, the storage formatter) under a guard; its exit code.

    Raises TimeoutError after `seconds_max`; the program is gone then.
    """
    server = await GuardedServer.start(command)
    try:
        async with asyncio.timeout(seconds_max):
            return await server.wait()
    finally:
        await server.stop()


def log_tail(log: Path, lines_max: int = 20) -> str:
    """The last lines of the newest run in a log written by a guard; empty when there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES_MAX))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    newest_run = text.rpartition(guard.RUN_MARK)[2]
    lines = newest_run.splitlines()[1:] if guard.RUN_MARK in text else newest_run.splitlines()
    return "\n".join(lines[-lines_max:])
