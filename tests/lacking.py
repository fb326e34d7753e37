"""A run of one test on a machine that lacks every program, as its user sees it."""

import os
import subprocess
import sys
from pathlib import Path

from checks.tree import ROOT


def run_without_programs(test: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs one test by its id with nothing on the path but an empty `directory`; `environment` is set as well."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "TESTS_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={directory / 'base'}", test],
        cwd=ROOT,
        env={**kept, "PATH": str(directory), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
