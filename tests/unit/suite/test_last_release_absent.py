"""A checkout without the last release says which tests did not run."""

from pathlib import Path

from tests.lacking import run_without_programs
from tests.last_release import absence_of, needs_last_release

_NEEDS_HISTORY = "tests/unit/suite/test_last_release_records.py::test_records_of_this_release_mean_the_same_to_the_last_one"


def test_run_without_git_ends_with_the_names_of_the_tests_that_did_not_run(tmp_path: Path) -> None:
    """Under a heading of its own, at the end, with what is missing."""
    ran = run_without_programs(_NEEDS_HISTORY, tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert "NOT TESTED: the last release is not here: git cannot be run" in ran.stdout
    assert f"did not run: {_NEEDS_HISTORY}" in ran.stdout


def test_run_that_requires_history_does_not_begin_without_it(tmp_path: Path) -> None:
    """Where the last release must be compared, a skipped test would be overlooked for ever."""
    ran = run_without_programs(_NEEDS_HISTORY, tmp_path, TESTS_REQUIRE_HISTORY="1")
    assert ran.returncode == 4
    assert "the last release is not here: no test was run" in ran.stderr


@needs_last_release
def test_commit_that_history_does_not_have_is_said_to_be_missing() -> None:
    """As in a shallow clone."""
    assert "is not in this checkout's history" in str(absence_of("0" * 39 + "1"))
