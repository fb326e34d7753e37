"""The data directory: who may use it, and where in it what lives.

1. One start at a time: `lock` is held (flock) by the owner, both guards and both servers, so it is free only when the last is gone.
   The pid of the owner is in it.
2. Nothing is read from or written to the directory before the lock is held. So a lock or pid file of a server that is found
   afterwards is stale.

Layout: `lock`, `kafka/` (server.properties, broker.log, data/), `database/` (database.log, data/, socket).
"""

import asyncio
import errno
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from embedded.errors import ChooseOtherDirectoryError, FixHostError, FreeDiskSpaceError

# Two fresh servers take 150 MB; the rest is room to write orders until somebody looks.
FREE_BYTES_MIN = 256 * 1024 * 1024
# Less than a server needs for its next file.
_FULL_BYTES_MAX = 64 * 1024
# How long servers of a killed owner may take to stop (their grace times and the guard's).
_RELEASE_SECONDS_MAX = 45.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class DataDirectory:
    """A locked data directory. `lock_fd` goes to every process that uses the directory."""

    path: Path
    lock_fd: int

    @property
    def kafka(self) -> Path:
        return self.path / "kafka"

    @property
    def database(self) -> Path:
        return self.path / "database"


@asynccontextmanager
async def locked_data_directory(
    path: Path, *, progress: Callable[[str], None], release_seconds_max: float = _RELEASE_SECONDS_MAX
) -> AsyncIterator[DataDirectory]:
    """Make the directory if need be and hold its lock.

    Raises ChooseOtherDirectoryError when another start uses it, FreeDiskSpaceError when less than `FREE_BYTES_MIN` is free,
    FixHostError when it cannot be written.
    """
    path = absolute(path)
    lock_fd = _open_lock(path)
    try:
        await _acquire(path, lock_fd, progress, release_seconds_max)
        _write_owner(path, lock_fd)
        _check_free_space(path)
        yield DataDirectory(path, lock_fd)
    finally:
        # Closed, never unlocked: unlocking would free it for servers that still stop and share this lock.
        os.close(lock_fd)


def absolute(path: Path) -> Path:
    """The path from the root, `~` resolved."""
    return path.expanduser().absolute()


def _open_lock(path: Path) -> int:
    try:
        # Others may pass, not read: PostgreSQL runs as another account when we are root.
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        return os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from error
        raise FixHostError(
            f"The data directory {path} cannot be written: {error.strerror}. No order was accepted. "
            "Make it writable for this user, or choose another with ORCHESTRATOR_DATA_DIR."
        ) from error


async def _acquire(path: Path, lock_fd: int, progress: Callable[[str], None], release_seconds_max: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + release_seconds_max
    told = False
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read_owner(lock_fd)
            if (owner is not None and is_running(owner)) or loop.time() >= deadline:
                raise _in_use(path, owner) from None
        else:
            return
        # The owner has ended: its servers are on their way out and hold the lock until they are gone.
        if not told:
            progress(f"Waiting for the servers of an earlier run in {path} to stop…")
            told = True
        await asyncio.sleep(_POLL_SECONDS)


def _in_use(path: Path, owner: int | None) -> ChooseOtherDirectoryError:
    holder = "another process" if owner is None else "this process" if owner == os.getpid() else f"process {owner}"
    return ChooseOtherDirectoryError(
        f"The data directory {path} is in use by {holder}. Two starts on one directory would damage orders and balances, so this one "
        "stops here; the running one is not affected. Stop it first, or choose another directory: ORCHESTRATOR_DATA_DIR=/some/other/path"
    )


def _read_owner(lock_fd: int) -> int | None:
    text = os.pread(lock_fd, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else None


def _write_owner(path: Path, lock_fd: int) -> None:
    try:
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise disk_full(path) from error


def is_running(pid: int) -> bool:
    """Whether there is a process with this pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _check_free_space(path: Path) -> None:
    free_bytes = shutil.disk_usage(path).free
    if free_bytes < FREE_BYTES_MIN:
        raise FreeDiskSpaceError(
            f"Only {free_bytes // 2**20} MiB are free where the data directory {path} lies; {FREE_BYTES_MIN // 2**20} MiB are needed. "
            "Nothing was started and no order was accepted; what is stored is untouched. "
            "Free some space, or choose a directory on another disk: ORCHESTRATOR_DATA_DIR=/some/other/path"
        )


def disk_full(path: Path) -> FreeDiskSpaceError:
    """The disk filled up while something was written below `path`."""
    return FreeDiskSpaceError(
        f"The disk is full where the data directory {path} lies. The start was given up and no order was accepted; what was stored "
        "before is untouched. Free some space, or choose a directory on another disk: ORCHESTRATOR_DATA_DIR=/some/other/path"
    )


def is_disk_full(path: Path, output: str) -> bool:
    """Whether a full disk is why a server ended: its output says so, or there is no room (it may not even have been able to say it)."""
    return says_disk_full(output) or shutil.disk_usage(path).free < _FULL_BYTES_MAX


def says_disk_full(text: str) -> bool:
    """Whether a server's output names a full disk (ENOSPC, EDQUOT, as the C library words them)."""
    return os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text
