"""The account that PostgreSQL runs as: it refuses to run as root.

1. Started by an ordinary user, everything runs as that user.
2. Started by root, PostgreSQL runs as the system account `pgserver` (the name that the package of its binaries uses as well), which
   is made when it is missing and has no shell.
3. No permission of any directory outside the data directory is ever loosened. Where that account cannot pass a directory on the way
   to its data or binaries (`/root` is closed to others), it gets one capability instead: to read what root may read.
"""

import asyncio
import os
import pwd
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from embedded.errors import FixHostError

SYSTEM_ACCOUNT = "pgserver"
# linux/capability.h; the first one that this process has is used. Containers often have only the second.
_CAP_DAC_READ_SEARCH = 2
_CAP_DAC_OVERRIDE = 1
_USERADD_SECONDS_MAX = 20


@dataclass(frozen=True)
class Account:
    """Whom a server runs as, and the one Linux capability it keeps, if any."""

    uid: int
    gid: int
    capability: int | None = None


async def unprivileged_account(paths: Iterable[Path]) -> Account | None:
    """The account to run PostgreSQL as so that it can reach `paths`; None when this process is not root.

    Raises FixHostError when there is no such account and none can be made, or when it cannot reach a path.
    """
    if os.geteuid() != 0:
        return None
    entry = await _system_account()
    closed = next((found for path in paths if (found := _first_closed(path, entry.pw_uid, entry.pw_gid)) is not None), None)
    if closed is None:
        return Account(entry.pw_uid, entry.pw_gid)
    held = _effective_capabilities()
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        if held & (1 << capability):
            return Account(entry.pw_uid, entry.pw_gid, capability)
    raise FixHostError(
        f"The database cannot be started as root: PostgreSQL then runs as the account {SYSTEM_ACCOUNT!r}, and {closed} is closed to it. "
        "Nothing was changed. Start as an ordinary user, or choose a data directory that others may pass through: ORCHESTRATOR_DATA_DIR."
    )


async def _system_account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_ACCOUNT)
    except KeyError:
        pass
    advice = "Nothing was changed. Start as an ordinary user, or make the account by hand and start again."
    command = ("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_ACCOUNT)
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        async with asyncio.timeout(_USERADD_SECONDS_MAX):
            output, _ = await process.communicate()
    except (OSError, TimeoutError) as error:
        raise FixHostError(
            f"PostgreSQL refuses to run as root, and the account {SYSTEM_ACCOUNT!r} could not be made "
            f"({error or 'useradd hangs'}). {advice}"
        ) from error
    try:
        # Another start may have made it in the meantime: what counts is that it is there.
        return pwd.getpwnam(SYSTEM_ACCOUNT)
    except KeyError:
        raise FixHostError(
            f"PostgreSQL refuses to run as root, and the account {SYSTEM_ACCOUNT!r} could not be made: "
            f"{output.decode(errors='replace').strip()}. {advice}"
        ) from None


def _first_closed(path: Path, uid: int, gid: int) -> Path | None:
    """The topmost directory on the way to `path` that the account may not pass, by its mode bits."""
    for directory in reversed(path.resolve().parents):
        try:
            mode = directory.stat()
        except FileNotFoundError:
            # Not there yet: whoever makes it gives it to the account.
            return None
        if mode.st_uid == uid:
            needed = stat.S_IXUSR
        elif mode.st_gid == gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not mode.st_mode & needed:
            return directory
    return None


def _effective_capabilities() -> int:
    if sys.platform != "linux":
        return 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
