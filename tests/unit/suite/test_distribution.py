"""How tests are dealt out to the processes of a run."""

import subprocess
import sys
from pathlib import Path

from tests.distribution import groups_of

_ROOT = Path(__file__).parents[3]


def test_group_of_every_file_that_names_one_is_found() -> None:
    """Also where it is one mark of several."""
    tests, mark = _ROOT / "tests", "mark." + "xdist_group("
    groups = groups_of(tests)
    named = {str(file.relative_to(tests)) for file in tests.rglob("test_*.py") if mark in file.read_text()}
    assert set(groups) == named
    assert groups["integration/test_cli_commands.py"] == "cli_commands"
    assert groups["integration/test_printed_lines.py"] == "printed_lines"


def test_tests_of_a_group_run_in_one_process() -> None:
    """A run of its own, of this suite's tests that need no server: both files with a group are whole in one process each."""
    files = ("tests/integration/test_simulator_wire.py", "tests/integration/test_simulator_ccxt.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-n", "2", "--dist=loadgroup", "-k", "time or key", *files],
        cwd=_ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    where = [(line.split("]")[0], line.split("PASSED ")[1].split("::")[0]) for line in ran.stdout.splitlines() if "PASSED " in line]
    assert {file for _, file in where} == set(files)
    assert len(set(where)) == 2 < len(where), ran.stdout
