"""A machine without kcat says which tests did not run."""

from pathlib import Path

from checks.tree import ROOT
from tests.lacking import run_without_programs

_NEEDS_KCAT = "tests/integration/test_documented_producers.py::test_documented_programs_publish_the_same_order_to_the_same_partition"


def test_run_without_kcat_ends_with_the_names_of_the_tests_that_did_not_run(tmp_path: Path) -> None:
    """Under a heading of its own, at the end."""
    ran = run_without_programs(_NEEDS_KCAT, tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert "NOT TESTED: kcat is not installed" in ran.stdout
    assert f"did not run: {_NEEDS_KCAT}" in ran.stdout


def test_run_that_requires_kcat_does_not_begin_without_it(tmp_path: Path) -> None:
    """As in CI, where a skipped test would be overlooked for ever."""
    ran = run_without_programs(_NEEDS_KCAT, tmp_path, TESTS_REQUIRE_KCAT="1")
    assert ran.returncode == 4
    assert "kcat is not installed: no test was run" in ran.stderr


def test_ci_requires_kcat() -> None:
    """Its script sets what the run looks at."""
    assert "export TESTS_REQUIRE_KCAT=1" in (ROOT / ".ci/run").read_text()
