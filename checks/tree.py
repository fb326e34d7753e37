"""The files of the project, as a check sees them: all that .gitignore does not name. Works without git, from a source archive too."""

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
# What ships, and so what the strictest rules are for.
PACKAGES: Final = ("schemas", "pipeline", "infra", "embedded", "simulator", "verification", "agents", "cli")


def ignored_patterns(root: Path) -> tuple[str, ...]:
    """The patterns of .gitignore. Only plain names and `*` are understood; anything else is refused rather than misread."""
    lines = [line.strip() for line in (root / ".gitignore").read_text(encoding="utf-8").splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    strange = [pattern for pattern in patterns if pattern.startswith("!") or "**" in pattern]
    if strange:
        raise ValueError(f".gitignore has patterns that checks/tree.py does not understand: {', '.join(strange)}")
    # A directory, or a file in a linked work tree.
    return (".git", *patterns)


def _is_ignored(relative: str, name: str, is_directory: bool, patterns: tuple[str, ...]) -> bool:
    for pattern in patterns:
        if pattern.endswith("/") and not is_directory:
            continue
        bare = pattern.strip("/")
        if fnmatch(relative if "/" in bare else name, bare):
            return True
    return False


def files(root: Path = ROOT) -> Iterator[Path]:
    """Every file that belongs to the project, in sorted order."""
    patterns = ignored_patterns(root)
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        for entry in sorted(directory.iterdir()):
            relative = entry.relative_to(root).as_posix()
            if entry.is_symlink() or _is_ignored(relative, entry.name, entry.is_dir(), patterns):
                continue
            if entry.is_dir():
                waiting.append(entry)
            else:
                yield entry


def modules(*packages: str, root: Path = ROOT) -> list[Path]:
    """The Python files of these top-level directories."""
    return sorted(path for package in packages for path in (root / package).rglob("*.py"))
