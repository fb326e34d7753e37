"""The last release, as its commit in this repository's history: tests run its code beside the one that is here.

Start with `source_of_last_release`. It needs git and a checkout with history. Where either is missing (a tarball, a shallow clone), the
tests that need it are left out and the report names them; with `TESTS_REQUIRE_HISTORY` set the run does not begin.
"""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import pytest

from checks.tree import ROOT

# Moved at each release, to the commit that is released, and at no other time: a rolling update begins with workers of this code, and what
# the code here writes and migrates must be good for them.
COMMIT: Final = "548462ec071ab33cefa65fe93beaaac0674707e7"

# What a worker is made of, and the module that gives tests their switches.
_PATHS: Final = ("agents", "cli", "infra", "pipeline", "schemas", "pyproject.toml", "tests/worker_under_test.py")
_SECONDS_MAX: Final = 60


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Raises OSError where there is no git, TimeoutExpired."""
    # A hook's variables would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(["git", *arguments], cwd=ROOT, env=environment, capture_output=True, timeout=_SECONDS_MAX, check=False)


def absence_of(commit: str) -> str | None:
    """Why the source of a commit cannot be had here; None where it can."""
    try:
        found = _git("cat-file", "-e", f"{commit}^{{commit}}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"git cannot be run ({type(error).__name__})"
    if found.returncode == 0:
        return None
    lines = found.stderr.decode(errors="replace").strip().splitlines()
    return f"commit {commit[:12]} is not in this checkout's history ({lines[0] if lines else f'git ends with {found.returncode}'})"


ABSENCE: Final = absence_of(COMMIT)
# In the reason of every test that is left out for it.
LEFT_OUT: Final = "the last release is not here"
needs_last_release = pytest.mark.skipif(ABSENCE is not None, reason=f"{LEFT_OUT}: {ABSENCE}")


def source_of_last_release(directory: Path) -> Path:
    """Writes the last release's source into an empty directory; returns it. Raises RuntimeError where git cannot give it."""
    archived = _git("archive", "--format=tar", COMMIT, *_PATHS)
    if archived.returncode != 0:
        raise RuntimeError(f"git cannot archive the last release: {archived.stderr.decode(errors='replace')}")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory


def environment_of(source: Path) -> dict[str, str]:
    """What makes this Python import a source tree instead of the one that is installed; with `source` as the working directory as well."""
    return {"PYTHONPATH": str(source)}


def run_there(source: Path, script: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Output of a script that imports the packages of a source tree. Raises RuntimeError with its words."""
    # -P: the script's own directory is not looked in.
    argv = [sys.executable, "-P", str(script), *arguments]
    environment = {**os.environ, **environment_of(source)}
    ran = subprocess.run(argv, cwd=source, env=environment, input=stdin, capture_output=True, timeout=_SECONDS_MAX, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"{script.name} ends with {ran.returncode}: {ran.stderr.decode(errors='replace')[-4_000:]}")
    return ran.stdout
