"""Every command of the command line, loaded: for tests of help, documents and options."""

from collections.abc import Iterator

from typer.core import TyperCommand, TyperGroup

from cli.main import commands, load


def every_command() -> Iterator[tuple[tuple[str, ...], TyperCommand | TyperGroup]]:
    """(its words, the command) of all that can be run; groups that run nothing by themselves are left out."""
    for name in commands():
        yield from _below((name,), load(name))


def _below(words: tuple[str, ...], command: TyperCommand | TyperGroup) -> Iterator[tuple[tuple[str, ...], TyperCommand | TyperGroup]]:
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from _below((*words, name), inner)
    if not isinstance(command, TyperGroup) or command.invoke_without_command:
        yield words, command
