"""The `orchestrator` command: finds the commands, and ends the process with what came of one.

A command is a file in a folder of `cli/commands/`: the file's name is the command's, its docstring the help, the folder its panel in
`--help`, and `app` in it a typer application of one command or of several.

Invariants:
1. `--help` and a usage error answer at once: a command is loaded when it is called, and what needs an exchange's, Kafka's or the database's
   libraries when it runs.
2. A user's mistake or a service that is away ends with one message on standard error and an exit code of `cli.terminal.exits.Exit`, never a
   traceback. A traceback means a defect.

Start with `run`.
"""

import importlib
import os
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from cli.terminal.exits import CommandFailed, Exit, ReaderGone

_COMMANDS: Final = Path(__file__).parent / "commands"
# The panels of `--help`, in their order; a folder that is not named here comes behind them.
_PANELS: Final = ("local", "show", "operate", "admin", "check")


@cache
def commands() -> dict[str, Path]:
    """The file of each command, in the order of `--help`. Nothing is loaded."""
    folders = sorted(
        (path for path in _COMMANDS.iterdir() if (path / "__init__.py").is_file()),
        key=lambda path: (_PANELS.index(path.name) if path.name in _PANELS else len(_PANELS), path.name),
    )
    files = [file for folder in folders for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
    return {file.stem.replace("_", "-"): file for file in files}


def load(name: str) -> TyperCommand | TyperGroup:
    """The command of this name, with its sub-commands. Raises KeyError."""
    file = commands()[name]
    module = importlib.import_module(f"cli.commands.{file.parent.name}.{file.stem}")
    command = typer.main.get_command(module.app)
    if not isinstance(command, TyperCommand | TyperGroup):
        raise TypeError(f"{file} makes no command of typer's")
    command.name, command.help = name, module.__doc__
    return command


def _docstring(file: Path) -> str:
    """A module's docstring, read from its text: to load it would load what it needs."""
    return file.read_text(encoding="utf-8").split('"""', 2)[1]


class _Commands(TyperGroup):
    """The commands in `cli/commands/`, each loaded when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(commands())

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """What `--help` says of a command."""
        file = commands().get(cmd_name)
        if file is None:
            return None
        help_text = " ".join(_docstring(file).partition("\n\n")[0].split())
        return TyperCommand(cmd_name, help=help_text, rich_help_panel=_docstring(file.with_name("__init__.py")).strip())

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Raises UsageError for a name that is no command's."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, load(str(name)) if found is not None else None, rest


app = typer.Typer(
    name="orchestrator",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Trade requests on Kafka, executed on crypto exchanges exactly once.\n\n"
    "Exit codes: 0 done · 1 the thing asked about does not hold · 2 wrong usage · 3 a service is out of reach.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 — invariant 1

        from cli.terminal.output import write_line  # noqa: PLC0415 — invariant 1

        write_line(f"orchestrator {version('crypto-orchestrator')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")] = False,
) -> None:
    pass


def _expected(error: Exception) -> tuple[str, Exit] | None:
    """What to say about an error that is no defect; None for a defect."""
    from embedded.errors import ServicesError  # noqa: PLC0415 — invariant 1
    from pipeline.model.invariants import Retryable  # noqa: PLC0415 — invariant 1

    if isinstance(error, CommandFailed):
        return str(error), error.code
    if isinstance(error, ServicesError):
        return str(error), Exit.OUT_OF_REACH
    if isinstance(error, Retryable):
        return f"A service does not answer: {error}. Requests wait in Kafka. `orchestrator doctor` checks all of them.", Exit.OUT_OF_REACH
    return None


def run() -> NoReturn:
    """The entry point: runs the command line and ends the process with its exit code."""
    try:
        app(prog_name="orchestrator")
    except ReaderGone:
        # What is left in the buffer has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.READER_GONE)
    except Exception as error:
        expected = _expected(error)
        if expected is None:
            raise
        from cli.terminal.output import say  # noqa: PLC0415 — invariant 1

        say(expected[0])
        sys.exit(expected[1])
    sys.exit(Exit.DONE)
