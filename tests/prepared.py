"""Programs of tests that begin with their libraries loaded: workers and simulated exchanges.

A worker spends two seconds of processor time on loading libraries before its first own line, and the suite starts hundreds of them. So one
process per test process loads them once, and each program is a fork of it, which then runs as `python -m` would run it: its module as
`__main__`, with its own arguments, environment, files and process id. What `python -m` itself does, the demo, `up` and their tests show.

1. A fork is made before anything of the program has run: no thread, no event loop and no setting is shared.
2. The forks end with the test process, however it ends: the parent of all of them kills them when its socket closes.

Start with `start`.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
# What the programs need, and nothing that acts when it is loaded.
_LIBRARIES = ("agents.process.worker", "simulator.options", "simulator.server")
_BYTES_MAX = 1024 * 1024
_POLL_SECONDS = 0.02


class _Parent:
    """The test process's side of the parent of all forks, which is started when the first program is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def ask(self, question: dict[str, Any], files: Sequence[int] = ()) -> Any:
        with self._lock:
            if self._socket is None:
                self._socket = self._start()
            socket.send_fds(self._socket, [json.dumps(question).encode()], list(files))
            answer = self._socket.recv(_BYTES_MAX)
        if not answer:
            raise RuntimeError("the parent of the tests' programs has ended; its message is on standard error")
        return json.loads(answer)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.prepared", str(theirs.fileno())],
                cwd=_ROOT,
                pass_fds=(theirs.fileno(),),
                # Ctrl-C must reach the tests first.
                start_new_session=True,
            )
        atexit.register(self._end, ours, process)
        return ours

    @staticmethod
    def _end(ours: socket.socket, process: "subprocess.Popen[bytes]") -> None:
        ours.close()
        process.wait(10)


_PARENT = _Parent()


class PreparedProcess(subprocess.Popen[bytes]):
    """A program that was forked. Its exit code comes from its parent, as it is not this process's child."""

    def __init__(self, pid: int, args: Sequence[str], stdin: Any = None, stdout: Any = None) -> None:
        # Not the base's: nothing is executed.
        self._child_created = False
        self.pid, self.args = pid, list(args)
        self.stdin, self.stdout, self.stderr = stdin, stdout, None
        self.returncode = None  # type: ignore[assignment] # the base's type leaves out that it runs

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _PARENT.ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(_POLL_SECONDS)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)


def start(module: str, *arguments: str, env: Mapping[str, str], output: int) -> "subprocess.Popen[bytes]":
    """Starts `python -m module arguments` in the repository's directory, with standard output and error to a descriptor."""
    if sys.platform != "linux":
        return subprocess.Popen([sys.executable, "-m", module, *arguments], env=dict(env), cwd=_ROOT, stdout=output, stderr=output)
    with Path(os.devnull).open("rb") as nothing:
        return _forked(module, arguments, env, (nothing.fileno(), output, output))


def start_piped(module: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """The same with this process's environment and standard error, and with pipes as standard input and output."""
    if sys.platform != "linux":
        return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    try:
        made = _forked(module, arguments, os.environ, (stdin_read, stdout_write, 2))
    finally:
        os.close(stdin_read)
        os.close(stdout_write)
    made.stdin, made.stdout = os.fdopen(stdin_write, "wb", 0), os.fdopen(stdout_read, "rb", 0)
    return made


def _forked(module: str, arguments: Sequence[str], env: Mapping[str, str], files: tuple[int, int, int]) -> PreparedProcess:
    pid = _PARENT.ask({"module": module, "arguments": arguments, "environment": dict(env)}, files)
    return PreparedProcess(pid, [sys.executable, "-m", module, *arguments])


def _serve(asked: socket.socket) -> dict[str, Any]:
    """Forks and tells exit codes until the socket closes. Returns in a fork alone: what it is to run."""
    running: set[int] = set()
    while True:
        message, files, _, _ = socket.recv_fds(asked, _BYTES_MAX, 3)
        if not message:
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os._exit(0)
        question = json.loads(message)
        if "ended" in question:
            pid, status = os.waitpid(question["ended"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                asked.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                return dict(question)
            running.add(answer)
            for file in files:
                os.close(file)
        asked.send(json.dumps(answer).encode())


def _main(descriptor: int) -> None:
    for name in _LIBRARIES:
        importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError("a library has started a thread, which no fork would have")
    gc.freeze()
    told = _serve(socket.socket(fileno=descriptor))
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.argv = [told["module"], *told["arguments"]]
    runpy.run_module(told["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
