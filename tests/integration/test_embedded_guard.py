"""The guard: no server outlives its owner or its guard, and none dies of its owner's Ctrl-C."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from embedded import guard
from embedded.account import Account
from embedded.guarded import Command, GuardedServer, log_tail, run_to_end
from tests.processes import is_alive, until_dead

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

ROOT = Path(__file__).parents[2]

# Writes its pid and a grandchild's in a session of its own, then waits for ever.
SERVER = """
import os, signal, subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "tidy" in sys.argv:
    def leave(*_):
        child.kill(); child.wait(); print("left tidily", flush=True); sys.exit(7)
    signal.signal(signal.SIGTERM, leave)
open(sys.argv[1] + ".new", "w").write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True: time.sleep(1000)
"""

# An owner in a process of its own: prints the guard's pid and that of a forked child (or 0), then waits for ever.
OWNER = """
import asyncio, os, sys, time
from pathlib import Path
from embedded.guarded import Command, GuardedServer
async def main():
    server = await GuardedServer.start(Command(tuple(sys.argv[2:]), Path(sys.argv[1]), grace_seconds=1))
    child = os.fork() if "FORK" in os.environ else 0
    if "FORK" in os.environ and child == 0:
        os.close(1)
        time.sleep(1000)
    print(server.guard_pid, child, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


def _server(tmp_path: Path, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-c", SERVER, str(tmp_path / "pids"), *words)


async def _pids(tmp_path: Path) -> tuple[int, int]:
    async with asyncio.timeout(30):
        while not (tmp_path / "pids").exists():
            await asyncio.sleep(0.02)
    server, grandchild = (tmp_path / "pids").read_text().split()
    return int(server), int(grandchild)


@asynccontextmanager
async def _owner(tmp_path: Path, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER, str(tmp_path / "log"), *_server(tmp_path)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
        process_group=0,
    )
    forked_pid = 0
    try:
        assert process.stdout is not None
        guard_pid, forked_pid = (int(pid) for pid in (await asyncio.wait_for(process.stdout.readline(), 30)).split())
        yield process, guard_pid
    finally:
        if process.returncode is None:
            process.kill()
        if forked_pid:
            os.kill(forked_pid, signal.SIGKILL)
        await process.communicate()


async def test_server_stops_in_an_orderly_way_when_its_owner_stops_it(tmp_path: Path) -> None:
    """The server gets its signal and the time to finish; its exit code comes through."""
    server = await GuardedServer.start(Command(_server(tmp_path, "tidy"), tmp_path / "log"))
    pids = await _pids(tmp_path)
    await server.stop()
    assert server.exit_code == 7
    assert not any(is_alive(pid) for pid in pids)
    assert "left tidily" in server.log_tail()


async def test_stubborn_server_is_killed_with_all_it_started_after_its_grace_time(tmp_path: Path) -> None:
    """A server that ignores the signal, and a grandchild in another session, are gone when `stop` returns."""
    server = await GuardedServer.start(Command(_server(tmp_path, "stubborn"), tmp_path / "log", grace_seconds=0.3))
    pids = await _pids(tmp_path)
    await server.stop()
    assert server.exit_code == 128 + signal.SIGKILL
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize("environment", [{}, {"FORK": "1"}], ids=["alone", "with a forked child that holds the pipe"])
async def test_server_stops_when_its_owner_is_killed(tmp_path: Path, environment: dict[str, str]) -> None:
    """`kill -9` of the owner ends guard, server and grandchild."""
    async with _owner(tmp_path, **environment) as (owner, guard_pid):
        pids = await _pids(tmp_path)
        owner.kill()
        await until_dead(guard_pid, *pids, seconds_max=10)


async def test_server_dies_with_its_guard(tmp_path: Path) -> None:
    """`kill -9` of the guard ends the server, and the owner sees it."""
    server = await GuardedServer.start(Command(_server(tmp_path), tmp_path / "log"))
    server_pid, grandchild = await _pids(tmp_path)
    try:
        os.kill(server.guard_pid, signal.SIGKILL)
        assert await asyncio.wait_for(server.wait(), 10) == -signal.SIGKILL
        await until_dead(server_pid, seconds_max=10)
    finally:
        # Its parent and its guard were both killed; real servers' children notice the former (PostgreSQL's do).
        os.kill(grandchild, signal.SIGKILL)
        await server.stop()


async def test_guard_asked_to_end_stops_its_server(tmp_path: Path) -> None:
    """SIGTERM to the guard is an orderly stop."""
    server = await GuardedServer.start(Command(_server(tmp_path, "tidy"), tmp_path / "log"))
    pids = await _pids(tmp_path)
    os.kill(server.guard_pid, signal.SIGTERM)
    assert await asyncio.wait_for(server.wait(), 10) == 7
    assert not any(is_alive(pid) for pid in pids)
    await server.stop()


async def test_control_c_reaches_neither_guard_nor_server(tmp_path: Path) -> None:
    """SIGINT to the owner's whole process group, as a terminal sends it, leaves both to the owner's own orderly stop."""
    async with _owner(tmp_path) as (owner, guard_pid):
        server_pid, _ = await _pids(tmp_path)
        assert os.getpgid(guard_pid) != owner.pid
        assert os.getpgid(server_pid) not in (owner.pid, os.getpgid(guard_pid))
        assert os.getsid(server_pid) != os.getsid(guard_pid) != os.getsid(owner.pid)


async def test_command_that_cannot_be_executed_is_told_in_the_log(tmp_path: Path) -> None:
    """The guard ends with its own code and says what it could not execute."""
    command = Command((str(tmp_path / "absent"),), tmp_path / "log")
    assert await run_to_end(command, 10) == guard.NOT_EXECUTED
    assert "absent could not be executed" in log_tail(tmp_path / "log")


async def test_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """`run_to_end` raises TimeoutError, and nothing runs on."""
    with pytest.raises(TimeoutError):
        await run_to_end(Command(("/bin/sleep", "1000"), tmp_path / "log"), 0.2)


async def test_log_is_bounded_and_its_tail_is_of_the_newest_run(tmp_path: Path) -> None:
    """However much a server writes, two files of bounded size are kept, and the tail begins after the newest start."""
    lines = guard.LOG_BYTES_MAX // 100 * 3
    program = f"import sys\nfor n in range({lines}): sys.stdout.write(f'{{n:099d}}\\n')"
    log = tmp_path / "log"
    assert await run_to_end(Command((sys.executable, "-c", program), log), 60) == 0
    assert log.stat().st_size <= guard.LOG_BYTES_MAX
    assert log.with_name("log.1").stat().st_size <= guard.LOG_BYTES_MAX
    assert int(log_tail(log, 1)) == lines - 1
    await run_to_end(Command(("/bin/echo", "newest"), log), 10)
    assert log_tail(log) == "newest"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can change to another account")
async def test_account_keeps_one_capability_and_dies_with_its_guard(tmp_path: Path) -> None:
    """Under another account a server has exactly the one capability that it was given, reads through closed directories with it,
    and the parent-death signal still holds."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "secret").write_text("read")
    status = "grep -E '^(Uid|Groups|Cap)' /proc/self/status"
    nobody = Account(65_534, 65_534, 2)
    command = Command(("/bin/sh", "-c", f"{status}; cat {closed / 'secret'}; exec sleep 1000"), tmp_path / "log", account=nobody)
    server = await GuardedServer.start(command)
    try:
        async with asyncio.timeout(60):
            while "read" not in server.log_tail():
                await asyncio.sleep(0.02)
        found = dict(line.split(":", 1) for line in server.log_tail().splitlines() if ":" in line)
        assert set(found["Uid"].split()) == {"65534"}
        assert found["Groups"].split() in ([], ["65534"])
        assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {1 << 2}
        (server_pid,) = [int(pid) for pid in Path(f"/proc/{server.guard_pid}/task/{server.guard_pid}/children").read_text().split()]
        os.kill(server.guard_pid, signal.SIGKILL)
        await until_dead(server_pid, seconds_max=10)
    finally:
        await server.stop()


def test_guard_runs_without_site_packages_and_starts_fast() -> None:
    """It imports the standard library alone: nothing of ours, and nothing that is slow to load."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import embedded.guard; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True, timeout=30).stdout.split()
    assert not {"asyncio", "pydantic", "asyncpg", "site"} & set(loaded)
    ours = {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert {name for name in loaded if name.partition(".")[0] in ours} == {"embedded", "embedded.guard"}
