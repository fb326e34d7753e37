"""Checks without the network that the lock files belong to their `.in` files: `python -m checks.locks`.

What it finds: a requirement without a lock entry, an entry that nothing asks for any more, a version outside what is asked for, an entry
without hashes, and a version that differs between the product's lock and the developers'. What only a resolver can find (a newer version,
a conflict deep down) shows when `make lock` is run.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from checks.tree import ROOT

# (what is asked for, what is locked); a file's `-r` and `-c` lines are followed.
PAIRS: Final = (
    ("requirements.in", "requirements.lock"),
    ("requirements-dev.in", "requirements-dev.lock"),
    ("requirements-build.in", "requirements-build.lock"),
)
_ENTRY: Final = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)")


@dataclass(slots=True)
class Locked:
    """One lock entry: `askers` are the lines below `# via`, a package's name or `-r FILE`."""

    version: Version
    hashes: int
    askers: set[str]


def read_in(path: Path) -> dict[str, Requirement]:
    """What a `.in` file asks for, with what its `-r` files ask for."""
    wanted: dict[str, Requirement] = {}
    for raw in path.read_text(encoding="utf-8").splitlines():
        line = raw.split(" #")[0].strip()
        if line.startswith("-r "):
            wanted |= read_in(path.parent / line[3:].strip())
        elif line and not line.startswith(("#", "-c ")):
            requirement = Requirement(line)
            wanted[canonicalize_name(requirement.name)] = requirement
    return wanted


def read_lock(path: Path) -> dict[str, Locked]:
    """The entries of a lock file as uv writes it."""
    entries: dict[str, Locked] = {}
    entry: Locked | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _ENTRY.match(line):
            entry = entries[canonicalize_name(match["name"])] = Locked(Version(match["version"]), 0, set())
        elif entry is not None and line.strip().startswith("--hash="):
            entry.hashes += 1
        elif entry is not None and line.strip().startswith("#"):
            asker = line.strip().lstrip("#").strip().removeprefix("via").strip()
            if asker:
                entry.askers.add(asker)
    return entries


def problems_of(wanted: dict[str, Requirement], locked: dict[str, Locked], lock: str) -> list[str]:
    """What is wrong with one lock file."""
    found = []
    for name, requirement in wanted.items():
        entry = locked.get(name)
        if entry is None:
            found.append(f"{lock}: {requirement} is asked for but not locked")
        elif not requirement.specifier.contains(entry.version, prereleases=True):
            found.append(f"{lock}: {name} {entry.version} is locked, but {requirement} is asked for")
        elif not any(asker.startswith("-r ") for asker in entry.askers):
            found.append(f"{lock}: {name} is asked for, but the lock was made when it was not")
    for name, entry in locked.items():
        if entry.hashes == 0:
            found.append(f"{lock}: {name} has no hash")
        asking = {asker for asker in entry.askers if not asker.startswith("-c ")}
        packages = {canonicalize_name(asker) for asker in asking if not asker.startswith("-r ")}
        if gone := sorted(packages - locked.keys()):
            found.append(f"{lock}: {name} is there for {', '.join(gone)}, which is not locked")
        if not asking or (not packages and name not in wanted):
            found.append(f"{lock}: nothing asks for {name} any more")
    return found


def problems(root: Path) -> list[str]:
    """What is wrong with the lock files of a project."""
    found = []
    locks = {}
    for asked, lock in PAIRS:
        locks[lock] = read_lock(root / lock)
        found += problems_of(read_in(root / asked), locks[lock], lock)
    developers = locks["requirements-dev.lock"]
    for name, entry in locks["requirements.lock"].items():
        other = developers.get(name)
        if other is None or other.version != entry.version:
            found.append(f"requirements-dev.lock: {name} is {other.version if other else 'missing'}, the product runs with {entry.version}")
    return found


def main() -> int:
    found = problems(ROOT)
    for line in found:
        sys.stderr.write(f"{line}\n")
    if found:
        sys.stderr.write("Run `make lock` and commit what it writes.\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
