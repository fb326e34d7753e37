"""Starts and stops a simulated exchange as a child process, for the demo, for tests and for benchmarks.

The child ends with its parent: `--parent-pipe` is set, and the pipe closes when the parent dies, however it dies.
"""

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import orjson

from simulator.journal import LOG_NAME
from simulator.options import SimulatorOptions, to_arguments

# Python and its libraries load within a second or two, on a machine that starts everything else at the same time within half a minute.
READY_SECONDS_MAX: Final = 90.0


class SimulatorNotReady(Exception):
    """The child ended or said nothing in time; its own message is on its standard error."""


@dataclass(slots=True)
class SimulatorProcess:
    """A running simulated exchange. `url` is its base address."""

    url: str
    options: SimulatorOptions
    child: subprocess.Popen[bytes]

    @property
    def log_path(self) -> Path:
        """Its durable log, for `records.read_log`."""
        return self.options.data_dir / LOG_NAME

    def stop(self, timeout_seconds: float = 10.0) -> int:
        """Asks it to stop and waits; returns its exit status. Kills it when the time is over."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.child.returncode
        finally:
            self._close_pipes()

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        self.child.kill()
        self.child.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                pipe.close()


def start(options: SimulatorOptions, errors: IO[bytes] | None = None) -> SimulatorProcess:
    """Starts a simulated exchange and waits until it listens; raises SimulatorNotReady. `errors` gets its standard error."""
    command = [sys.executable, "-m", "simulator", *to_arguments(options), "--parent-pipe"]
    # The package is found as the caller found it, whatever the working directory is.
    root = str(Path(__file__).resolve().parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    child = subprocess.Popen(  # noqa: S603 - our own module
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        # Ctrl-C in a terminal must not reach it before the workers have finished what they sent.
        start_new_session=True,
    )
    line = _first_line(child, READY_SECONDS_MAX)
    if not line.endswith(b"\n"):
        child.kill()
        status = child.wait()
        raise SimulatorNotReady(f"the simulated exchange did not start (exit status {status}); see its message on standard error")
    return SimulatorProcess(orjson.loads(line)["url"], options, child)


def _first_line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The first line of the child's standard output; less than a line where it ended or the time was over."""
    if child.stdout is None:
        return b""
    descriptor = child.stdout.fileno()
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            break
        data = os.read(descriptor, 4096)
        if not data:
            break
        line += data
    return line
