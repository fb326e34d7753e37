"""The guard: a small process that owns one server and outlives whoever asked for it just long enough to stop that server.

Invariants:
1. The server never outlives its owner. The guard's standard input is a pipe that only the owner holds open: its end of file, which
   also follows `kill -9`, stops the server. On Linux the owner's process is watched as well, for owners that fork.
2. The server never outlives the guard: on Linux the kernel sends the server a signal when the guard ends (PR_SET_PDEATHSIG).
3. A stop is graceful for `--grace` seconds, then SIGKILL, for every descendant (the guard is their subreaper on Linux).
4. Ctrl-C in a terminal reaches neither guard nor server: each has a session of its own.
5. The log is bounded: two files of `LOG_BYTES_MAX`.

Imports the standard library alone and runs without site packages, so that it starts in about 20 ms. Start reading at `main`.
"""

import argparse
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

LOG_BYTES_MAX = 8 * 1024 * 1024
# The first words of the line that begins each run in the log.
RUN_MARK = "==== started"
# The guard's exit code when the server could not be executed at all.
NOT_EXECUTED = 125

# linux/prctl.h and linux/capability.h
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_CHILD_SUBREAPER = 36
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522

_KILL_SECONDS_MAX = 5.0
_WAKING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class BoundedLog:
    """The server's output on disk. A full disk loses log lines, never stops the server: the loss is noted when there is room again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lost_bytes = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size

    def write(self, data: bytes) -> None:
        if self._lost_bytes:
            data = f"==== {self._lost_bytes} bytes of log lost, the disk was full\n".encode() + data
        try:
            if self._size + len(data) > LOG_BYTES_MAX:
                self._rotate()
            self._size += os.write(self._file, data)
            self._lost_bytes = 0
        except OSError:
            self._lost_bytes += len(data)

    def note(self, text: str) -> None:
        self.write(f"{text}\n".encode())

    def _rotate(self) -> None:
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        fresh = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.close(self._file)
        self._file, self._size = fresh, 0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _entrance(options: argparse.Namespace, guard_pid: int) -> Callable[[], None]:
    """What the child does between fork and exec: change to the account, keep at most one capability, ask to die with the guard."""
    linux = sys.platform == "linux"
    libc = _libc() if linux else None

    def enter() -> None:
        if options.uid is not None:
            if libc is not None and options.capability is not None:
                _checked(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
            os.setgroups([])
            os.setgid(options.gid)
            os.setuid(options.uid)
            if libc is not None and options.capability is not None:
                _keep_one_capability(libc, options.capability)
        if libc is not None:
            # After the change of account, which clears it (prctl(2)).
            _checked(libc.prctl(_PR_SET_PDEATHSIG, int(options.death_signal), 0, 0, 0), "parent-death signal")
            if os.getppid() != guard_pid:
                os._exit(NOT_EXECUTED)

    return enter


def _keep_one_capability(libc: ctypes.CDLL, capability: int) -> None:
    """Leave exactly one capability (below 32), ambient so that it survives exec, and no other."""
    mask = 1 << capability
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Two blocks of effective, permitted, inheritable: capabilities 0–31 and 32–63.
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    _checked(libc.capset(header, data), "capset")
    _checked(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0), "ambient capability")


def _children_of(parent_pid: int) -> list[int]:
    """Pids of the living or unreaped children of a process, from /proc; none where there is no /proc."""
    children = []
    with suppress(OSError):
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with suppress(OSError, ValueError, IndexError):
                    # The command's name stands in parentheses and may hold anything; the parent is the second field after it.
                    if int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1]) == parent_pid:
                        children.append(int(entry.name))
    return children


class Guard:
    """Runs one server to its end. `run` returns its exit code, or 128 + the signal that ended it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._log = BoundedLog(options.log)
        self._selector = selectors.DefaultSelector()
        self._server_pid = 0
        self._exit_code: int | None = None
        self._kill_at: float | None = None

    def run(self) -> int:
        if sys.platform == "linux":
            _checked(_libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
        wake, wake_write = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in _WAKING_SIGNALS:
            signal.signal(number, lambda *_: None)
        output, output_write = os.pipe()
        os.set_blocking(output, False)
        self._log.note(f"{RUN_MARK} {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {self._options.command[0]}")
        try:
            server = subprocess.Popen(  # noqa: S603 - the command comes from our own broker and database modules
                self._options.command,
                stdin=subprocess.DEVNULL,
                stdout=output_write,
                stderr=output_write,
                start_new_session=True,
                pass_fds=self._options.keep_fd,
                preexec_fn=_entrance(self._options, os.getpid()),  # noqa: PLW1509 - this process has no threads
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._log.note(f"{self._options.command[0]} could not be executed: {error}")
            return NOT_EXECUTED
        finally:
            os.close(output_write)
        self._server_pid = server.pid
        self._watch(0, self._on_owner_pipe)
        self._watch(wake, self._on_signal)
        self._watch(output, self._on_output)
        self._watch_owner_process()
        while self._exit_code is None:
            self._step()
        # Reaped by hand: Popen must not wait again for a pid that may be another process by now.
        server.returncode = self._exit_code
        self._sweep()
        self._on_output(output)
        return self._exit_code

    def _watch(self, descriptor: int, reaction: Callable[[int], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, reaction)

    def _watch_owner_process(self) -> None:
        """A forked child of the owner would hold the pipe open after the owner's death, so the owner itself is watched too."""
        if sys.platform == "linux":
            try:
                self._watch(os.pidfd_open(self._options.owner), self._on_owner_end)
            except ProcessLookupError:
                self._stop("the owner has ended")
            except OSError as error:
                self._log.note(f"the owner's process cannot be watched ({error}); its pipe alone is")

    def _step(self) -> None:
        timeout = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
        for key, _ in self._selector.select(timeout):
            key.data(key.fd)
        if self._kill_at is not None and self._exit_code is None and time.monotonic() >= self._kill_at:
            self._log.note(f"did not stop within {self._options.grace} s: killed")
            self._kill_at = time.monotonic() + _KILL_SECONDS_MAX
            with suppress(ProcessLookupError):
                os.killpg(self._server_pid, signal.SIGKILL)
        self._reap()

    def _on_owner_pipe(self, descriptor: int) -> None:
        if not os.read(descriptor, 4096):
            self._selector.unregister(descriptor)
            self._stop("the owner closed its pipe or has ended")

    def _on_owner_end(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        self._stop("the owner has ended")

    def _on_signal(self, descriptor: int) -> None:
        with suppress(BlockingIOError):
            numbers = os.read(descriptor, 4096)
            if any(number != signal.SIGCHLD for number in numbers):
                self._stop("the guard was asked to end")

    def _on_output(self, descriptor: int) -> None:
        with suppress(BlockingIOError):
            while data := os.read(descriptor, 65_536):
                self._log.write(data)
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)

    def _stop(self, reason: str) -> None:
        if self._kill_at is None:
            self._log.note(f"stopping: {reason}")
            self._kill_at = time.monotonic() + self._options.grace
            with suppress(ProcessLookupError):
                os.kill(self._server_pid, self._options.stop_signal)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._server_pid:
                    code = os.waitstatus_to_exitcode(status)
                    self._exit_code = code if code >= 0 else 128 - code

    def _sweep(self) -> None:
        """Kill what the server left behind: its orphans are the guard's children now."""
        deadline = time.monotonic() + _KILL_SECONDS_MAX
        while (left := _children_of(os.getpid())) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            time.sleep(0.01)


def _signal_named(name: str) -> signal.Signals:
    return signal.Signals[name]


def main(arguments: Sequence[str] | None = None) -> int:
    """`guard --owner PID --log FILE [options] -- COMMAND…`; returns the server's exit code, 128 + signal, or NOT_EXECUTED."""
    parser = argparse.ArgumentParser(prog="guard", description="Run one server and stop it when standard input reaches its end.")
    parser.add_argument("--owner", type=int, required=True, help="pid whose end stops the server")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--grace", type=float, default=10.0, help="seconds between the stop signal and SIGKILL")
    parser.add_argument("--stop-signal", type=_signal_named, default=signal.SIGTERM)
    parser.add_argument("--death-signal", type=_signal_named, default=signal.SIGKILL)
    parser.add_argument("--keep-fd", type=int, action="append", default=[], help="descriptor the server inherits (a lock)")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--capability", type=int, help="the one Linux capability that stays with --uid")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    if (options.uid is None) != (options.gid is None):
        parser.error("--uid and --gid go together")
    return Guard(options).run()


if __name__ == "__main__":
    sys.exit(main())
