"""The `orchestrator` command as a user runs it: in a process of its own, with nothing set but what is given.

Start with `orchestrator`, or `running_up` for an installation.
"""

import io
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from cli.main import run

_ROOT = Path(__file__).parents[1]
# Includes the first start of everything on a busy machine.
_READY_SECONDS_MAX = 240.0
_COMMAND_SECONDS_MAX = 90.0
_STOP_SECONDS_MAX = 90.0


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        return json.loads(self.output)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.output.splitlines()]


def environment(data_dir: Path, settings: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a user who has set nothing but these; names without the prefix."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    given = {"DATA_DIR": str(data_dir), **(settings or {})}
    return {**kept, **{f"ORCHESTRATOR_{name}": value for name, value in given.items()}}


def orchestrator(data_dir: Path, *arguments: str, given: str = "", settings: dict[str, str] | None = None) -> Ended:
    """Runs a command to its end. `given` is its standard input."""
    ran = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=_ROOT,
        env=environment(data_dir, settings),
        input=given,
        text=True,
        capture_output=True,
        timeout=_COMMAND_SECONDS_MAX,
        check=False,
    )
    return Ended(ran.returncode, ran.stdout, ran.stderr)


class RunHere:
    """Runs commands in this process, which saves the second in which Python loads the libraries: for tables of many. No signals."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, data_dir: Path, *arguments: str, given: str = "", settings: dict[str, str] | None = None) -> Ended:
        wanted = environment(data_dir, settings)
        for name in [name for name in os.environ if name.startswith("ORCHESTRATOR_")]:
            self._monkeypatch.delenv(name)
        for name, value in wanted.items():
            self._monkeypatch.setenv(name, value)
        self._monkeypatch.setattr(sys, "argv", ["orchestrator", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run()
        captured = self._capfd.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)


@contextmanager
def running_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[RunHere]:
    """See the class; what a command does to this process's logging is undone."""
    structlog_before = structlog.get_config()
    loggers = {name: logging.getLogger(name).level for name in ("aiokafka", "ccxt", "alembic")}
    yield RunHere(monkeypatch, capfd)
    structlog.configure(**structlog_before)
    for name, level in loggers.items():
        logging.getLogger(name).setLevel(level)


@dataclass
class Up:
    """A running `orchestrator up`. `addresses` is what it printed."""

    data_dir: Path
    process: subprocess.Popen[bytes]
    errors_file: Path
    addresses: dict[str, Any] = field(default_factory=dict)

    def run(self, *arguments: str, given: str = "", settings: dict[str, str] | None = None) -> Ended:
        """Another command, which finds the installation by its data directory."""
        return orchestrator(self.data_dir, *arguments, given=given, settings=settings)

    def wait(self) -> int:
        """Waits until it has ended; returns its exit code, negative for a signal."""
        return self.process.wait(_STOP_SECONDS_MAX)

    @property
    def errors(self) -> str:
        return self.errors_file.read_text(errors="replace")


def start_up(data_dir: Path, errors_file: Path, *arguments: str, workers: int = 1, settings: dict[str, str] | None = None) -> Up:
    """Starts `up` and returns at once."""
    command = [sys.executable, "-m", "cli", "up", "--json", "--workers", str(workers), *arguments]
    with errors_file.open("wb") as errors:
        process = subprocess.Popen(command, cwd=_ROOT, env=environment(data_dir, settings), stdout=subprocess.PIPE, stderr=errors)
    return Up(data_dir, process, errors_file)


def until_ready(up: Up) -> None:
    """Waits until it has printed its addresses."""
    if up.process.stdout is None:
        raise RuntimeError("up has no output")
    line = b""
    deadline = time.monotonic() + _READY_SECONDS_MAX
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([up.process.stdout], [], [], left)[0]:
            break
        data = os.read(up.process.stdout.fileno(), 65_536)
        if not data:
            break
        line += data
    assert line.endswith(b"\n"), f"up did not become ready: {up.errors}"
    up.addresses = json.loads(line)


@contextmanager
def running_up(data_dir: Path, errors_file: Path, *, workers: int = 1, settings: dict[str, str] | None = None) -> Iterator[Up]:
    """An installation that is ready; stopped as Ctrl-C stops it, by force where that does not help."""
    up = start_up(data_dir, errors_file, workers=workers, settings=settings)
    try:
        until_ready(up)
        yield up
    except BaseException:
        # Shown where a test fails: whether `up` still ran, and what it said.
        sys.stderr.write(f"up {'runs' if up.process.poll() is None else f'has ended with {up.process.returncode}'}; it wrote:\n{up.errors}")
        raise
    finally:
        if up.process.poll() is None:
            up.process.send_signal(signal.SIGINT)
        try:
            up.wait()
        finally:
            up.process.kill()
            if up.process.stdout is not None:
                up.process.stdout.close()
