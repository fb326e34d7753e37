"""What cannot be undone asks, or takes `--yes`: one list, and the commands on it."""

import io
import sys

import pytest
import structlog
from typer.testing import CliRunner

from cli.access.confirmation import IRREVERSIBLE, confirm
from cli.main import app
from cli.terminal.exits import CommandFailed, Exit
from tests.command_tree import every_command


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_commands_with_yes_are_those_of_the_list() -> None:
    """Neither a command that asks for nothing, nor an entry of a command that is not there or does not take `--yes`."""
    asking = {" ".join(words) for words, command in every_command() if any(parameter.name == "yes" for parameter in command.params)}
    assert asking == {name.partition(" --")[0] for name in IRREVERSIBLE}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["quarantine", "drop", "q1"], "`orchestrator quarantine drop` on q1"),
        (["offsets", "accept-loss", "trade.requests", "3", "--from", "10", "--to", "12"], "records 10 to 11 of trade.requests/3"),
    ],
    ids=" ".join,
)
def test_command_asks_before_it_opens_anything(command: list[str], told: str) -> None:
    """Without a terminal and without `--yes` it ends before broker and database are looked for: there are none here."""
    before = structlog.get_config()
    try:
        ended = CliRunner().invoke(app, [*command, "--reason", "fixed", "--operator", "ana"])
    finally:
        # A command silences the log of its process, which here is that of the other tests.
        structlog.configure(**before)
    assert isinstance(ended.exception, CommandFailed), ended.output
    assert ended.exception.code is Exit.USAGE
    assert told in str(ended.exception) and "say --yes" in str(ended.exception)


@pytest.mark.parametrize("command", IRREVERSIBLE)
def test_without_a_terminal_only_yes_says_that_it_is_meant(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 and a text that names what it would do; nothing is taken for an answer."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(CommandFailed, match="--yes") as failed:
        confirm(command, "alice", yes=False)
    assert failed.value.code is Exit.USAGE
    assert "alice" in str(failed.value)
    confirm(command, "alice", yes=True)


@pytest.mark.parametrize(("answer", "done"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_at_a_terminal_somebody_is_asked(answer: str, done: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain return is a no."""
    monkeypatch.setattr(sys, "stdin", _Terminal(answer))
    if done:
        confirm("users close", "alice", yes=False)
        return
    with pytest.raises(CommandFailed, match="Nothing was changed") as failed:
        confirm("users close", "alice", yes=False)
    assert failed.value.code is Exit.NOT_SO
