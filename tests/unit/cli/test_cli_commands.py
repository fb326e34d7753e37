"""A command is one file: it is found by its name, listed without being loaded, and loads no more than it needs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checks.tree import ROOT
from cli.main import commands, load

# What belongs to the database, Kafka, an exchange or a worker: loading them takes longer than all else.
SLOW = ("sqlalchemy", "asyncpg", "aiokafka", "ccxt", "faust", "alembic", "agents", "pydantic")
NEW = '''"""Say what was asked.

More of it.
"""

from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def repeat(word: Annotated[str, typer.Argument(help="What to say.")]) -> None:
    typer.echo(word)
'''


def _run(code: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {code}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"COLUMNS": "120", "PATH": ""},
    )


def test_new_command_is_one_file(tmp_path: Path) -> None:
    """A file more in a folder of commands: it is listed, explains itself and runs, and nothing else was touched."""
    for package in ("cli", "schemas"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "cli" / "commands" / "show" / "say_it.py").write_text(NEW)
    start = "from cli.main import run; run()"
    listed = _run(start, tmp_path, "--help")
    assert "say-it" in listed.stdout and "Say what was asked." in listed.stdout, listed
    explained = _run(start, tmp_path, "say-it", "--help")
    assert "More of it." in explained.stdout and "What to say." in explained.stdout, explained
    assert _run(start, tmp_path, "say-it", "moon").stdout == "moon\n"
    assert "No such command" in _run(start, tmp_path, "say-tt", "moon").stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-command"]], ids=" ".join)
def test_help_loads_no_command_and_no_slow_library(arguments: list[str]) -> None:
    """Nor does the version, nor a name that is none."""
    code = "import atexit; atexit.register(lambda: print(*sys.modules, file=open(1, 'w', closefd=False))); from cli.main import run; run()"
    loaded = _run(code, ROOT, *arguments).stdout.splitlines()[-1].split()
    assert "cli.main" in loaded
    assert [name for name in loaded if name.startswith("cli.commands.")] == []
    # What prints the version knows amounts, and typer itself loads pydantic where it says what was wrong.
    slow = set(SLOW) if arguments == ["--help"] else set(SLOW) - {"pydantic"}
    assert {name.partition(".")[0] for name in loaded} & slow == set()


@pytest.mark.parametrize("name", commands())
def test_command_loads_no_slow_library_before_it_runs(name: str) -> None:
    """Its help and a usage error answer at once."""
    code = f"from cli.main import load; load({name!r}); print(*sys.modules)"
    loaded = {module.partition(".")[0] for module in _run(code, ROOT).stdout.split()}
    assert "cli" in loaded
    assert loaded & (set(SLOW) - {"pydantic"}) == set()


@pytest.mark.parametrize("name", commands())
def test_command_says_what_it_does(name: str) -> None:
    """By its file's docstring, of which `--help` of all commands shows the first paragraph."""
    command = load(name)
    assert command.name == name
    assert command.help and command.help.strip().partition("\n\n")[0].rstrip().endswith(".")
