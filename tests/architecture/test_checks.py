"""The checks of `make check` fail on what they are there for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checks import locks, secrets
from checks.tree import PACKAGES, ROOT, files

# Put together here, so that this file passes the check itself.
SECRETS = {
    "private key": "-----BEGIN RSA PRIVATE " + "KEY-----",
    "AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "GitHub token": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "Slack token": "xoxb-" + "123456789012-abcdefghij",
    "Google API key": "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiJhbGljZSJ9." + "c2lnbmF0dXJlLW9mLWl0",
    "password in an address": "postgresql://orchestrator:" + "s3cr3t-pw@db/orchestrator",
    "random value under a telling name": 'API_SECRET = "' + "kJ8vQ2xN7pLw4RzT9mYb3HcF6sDgA1Ue" + '"',
}
HARMLESS = [
    'password = settings.kafka_sasl_password.get_secret_value()',
    "ORCHESTRATOR_DATABASE_URL=postgresql://orchestrator:${POSTGRES_PASSWORD}@postgres/orchestrator",
    "`postgresql://user:password@host:port/name`",
    "postgresql://u:a-long-password@127.0.0.1/db",
    "postgresql://u:a-long-password@db.example/db",
    'api_key = "scripted-api-key-0123456789"',
    "--hash=sha256:065665c041c42a5938ed220bdcd7230f22527fbec085e1853d2402c8a3615d9d",
]

IN = "# What is wanted.\naiokafka==0.14.0\nccxt>=4.5\n"
LOCK = """\
aiokafka==0.14.0 \\
    --hash=sha256:00
    # via -r requirements.in
async-timeout==5.0.1 \\
    --hash=sha256:01
    # via aiokafka
ccxt==4.5.90 \\
    --hash=sha256:02 \\
    --hash=sha256:03
    # via
    #   -r requirements.in
"""


@pytest.mark.parametrize(("kind", "text"), SECRETS.items())
def test_secrets_check_finds_what_looks_like_one(kind: str, text: str) -> None:
    """Every kind is found with its line, and is not repeated in the finding."""
    assert secrets.findings(f"first line\n{text}\n") == [(2, kind)]


@pytest.mark.parametrize("text", HARMLESS)
def test_secrets_check_lets_harmless_lines_pass(text: str) -> None:
    """Names, placeholders, substitutions, counters and checksums are no secrets."""
    assert secrets.findings(text) == []


def test_secrets_check_needs_a_reason_for_an_exception() -> None:
    """A marked line passes only when it says why."""
    line = SECRETS["random value under a telling name"]
    assert secrets.findings(f"{line}  # not a secret: of the venue's own documentation") == []
    assert secrets.findings(f"{line}  # not a secret:") != []


def test_secrets_check_reads_what_git_would_commit(tmp_path: Path) -> None:
    """A file in an ignored directory is left out, one beside it is found."""
    (tmp_path / ".gitignore").write_text(".venv/\n*.pyc\n.env\n")
    (tmp_path / ".venv").mkdir()
    for name in (".venv/key.pem", ".env", "key.pem", "key.pyc"):
        (tmp_path / name).write_text(SECRETS["private key"])
    assert [problem.split(":")[0] for problem in secrets.problems(tmp_path)] == ["key.pem"]


def lock_problems(tmp_path: Path, wanted: str, locked: str) -> list[str]:
    (tmp_path / "requirements.in").write_text(wanted)
    (tmp_path / "requirements.lock").write_text(locked)
    read = locks.read_in(tmp_path / "requirements.in"), locks.read_lock(tmp_path / "requirements.lock")
    return locks.problems_of(*read, "requirements.lock")


def test_locks_check_passes_what_belongs_together(tmp_path: Path) -> None:
    """A lock that was made from its `.in` file has no problem."""
    assert lock_problems(tmp_path, IN, LOCK) == []


@pytest.mark.parametrize(
    ("wanted", "locked", "problem"),
    [
        (IN + "orjson>=3\n", LOCK, "orjson>=3 is asked for but not locked"),
        (IN + "async-timeout\n", LOCK, "async-timeout is asked for, but the lock was made when it was not"),
        (IN.replace("0.14.0", "0.15.0"), LOCK, "aiokafka 0.14.0 is locked, but aiokafka==0.15.0 is asked for"),
        (IN.replace("ccxt>=4.5\n", ""), LOCK, "nothing asks for ccxt any more"),
        (IN, LOCK.replace("    --hash=sha256:01\n", ""), "async-timeout has no hash"),
        (IN, LOCK.replace("# via aiokafka", "# via faust-streaming"), "async-timeout is there for faust-streaming, which is not locked"),
    ],
    ids=["added", "added-transitive", "changed", "removed", "without-hash", "orphaned"],
)
def test_locks_check_finds_a_lock_that_is_not_current(tmp_path: Path, wanted: str, locked: str, problem: str) -> None:
    """Whatever is changed on one side only is named."""
    assert f"requirements.lock: {problem}" in lock_problems(tmp_path, wanted, locked)


def test_locks_check_compares_the_two_environments(tmp_path: Path) -> None:
    """The developers' lock has the product's versions, so that what is tested is what runs."""
    for name in (name for pair in locks.PAIRS for name in pair):
        shutil.copy(ROOT / name, tmp_path / name)
    assert locks.problems(tmp_path) == []
    lock = tmp_path / "requirements-dev.lock"
    lock.write_text(lock.read_text().replace("aiokafka==0.14.0", "aiokafka==0.13.0", 1))
    assert any("aiokafka is 0.13.0, the product runs with 0.14.0" in problem for problem in locks.problems(tmp_path))


@pytest.mark.parametrize(
    ("package", "statement"),
    [
        ("pipeline", "import asyncio"),
        ("pipeline", "import time"),
        ("pipeline", "from infra.settings import Settings"),
        ("schemas", "from pipeline.model.money import round_up"),
        ("infra/kafka", "from infra.postgres.step import Database"),
        ("infra/postgres", "from infra.exchange.gateway import Gateway"),
        ("infra/exchange", "import faust"),
        ("simulator", "from infra.exchange.venues.registry import VENUES"),
        ("infra", "from agents.steps.batch import Batch"),
        ("agents", "import asyncpg"),
        ("agents", "from cli.terminal.output import say"),
        ("cli", "import ccxt"),
        ("embedded", "import rich"),
    ],
)
def test_layers_check_finds_a_forbidden_import(tmp_path: Path, package: str, statement: str) -> None:
    """Each contract breaks on one import that it forbids."""
    for name in (*PACKAGES, "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / package / "intruder.py").write_text(f"{statement}\n")
    program = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache', '--no-logo'])"
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 1, found.stdout + found.stderr
    assert "intruder" in found.stdout


def test_tree_leaves_out_what_git_ignores() -> None:
    """The environment, caches and byte code are no part of the project; its sources are."""
    names = {path.relative_to(ROOT).as_posix() for path in files()}
    assert {"Makefile", "pyproject.toml", "pipeline/model/order.py", ".ci/run"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv/", ".git/"))]
