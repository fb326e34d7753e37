"""Looks at processes through /proc, for tests that prove that none is left behind. Linux only."""

import asyncio
import os
from pathlib import Path


def processes_naming(text: str) -> dict[int, str]:
    """Pid and command line of every running process, other than this one, whose command line holds `text`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found[int(entry.name)] = line
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until_dead(*pids: int, seconds_max: float = 30.0) -> None:
    """Wait until none of the processes runs; TimeoutError otherwise."""
    async with asyncio.timeout(seconds_max):
        while any(is_alive(pid) for pid in pids):
            await asyncio.sleep(0.02)


async def until_none_named(text: str, seconds_max: float = 60.0) -> None:
    """Wait until no process names `text`; TimeoutError otherwise."""
    async with asyncio.timeout(seconds_max):
        while processes_naming(text):
            await asyncio.sleep(0.05)
