"""Guides name commands that exist: every `orchestrator …` in them, in a block or in a sentence, is understood by the command line itself.

What the commands do is run elsewhere (test_printed_lines, test_cli_commands); that would take too long for each line of each guide.
"""

import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Final

import pytest
import typer
from typer import _click as click  # typer has its own copy of click, and no public name for an error of usage

from checks.tree import ROOT
from cli.main import app

GUIDES: Final = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK: Final = re.compile(r"```(?:sh|bash)\n(.*?)```", re.DOTALL)
_SPAN: Final = re.compile(r"`(?:\.venv/bin/)?orchestrator ([^`]+)`")
# What stands for a value in a guide, and values of every kind that one may stand for.
_PLACEHOLDER: Final = re.compile(r"[A-Z][A-Z_]+")
_VALUES: Final = ("1", "binance", "2026-12-01T00:00:00Z")
_FILE: Final = re.compile(r"[\w.-]+\.(?:pem|token|jsonl|key|json|log)")


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """What follows `orchestrator` in each command, without comments, redirections and what comes behind it in a pipe; and whether it stands
    in a sentence."""
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;|\|", re.sub(r"\s#.*$", "", line)):
                found = re.match(r"\s*(?:\S*/)?orchestrator\s+(.*)", part)
                if found is not None:
                    yield re.sub(r"[<>]\s*\S+", "", found[1]), False
    for span in _SPAN.findall(text):
        yield span.replace("\n", " ").replace("…", ""), True


def _commands(text: str) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Each command as its words, and whether it stands in a sentence. Of alternatives (`list|show`) each, and what is in brackets as if it
    were asked for."""
    for line, in_sentence in _lines(text):
        words = shlex.split(re.sub(r"[\[\]]", "", line.replace(" | ", "|")))
        for chosen in product(*(word.split("|") for word in words)):
            yield chosen, in_sentence


def _parse(words: tuple[str, ...]) -> None:
    """Raises UsageError for what the command line does not understand. Runs nothing."""
    command = typer.main.get_command(app)
    context, arguments, name = None, list(words), "orchestrator"
    while True:
        context = command.make_context(name, arguments, parent=context)
        if not hasattr(command, "resolve_command") or not (rest := [*context._protected_args, *context.args]):
            return
        found, inner, arguments = command.resolve_command(context, rest)
        if inner is None:
            raise click.exceptions.UsageError(f"no command {found}")
        command, name = inner, str(found)


def _is_understood(words: tuple[str, ...]) -> str | None:
    """What is wrong with a command whose placeholders may stand for a value of any kind; None where it is understood."""
    problem = None
    for value in _VALUES:
        try:
            _parse(tuple(_PLACEHOLDER.sub(value, word) if _PLACEHOLDER.fullmatch(word) else word for word in words))
        except click.exceptions.UsageError as error:
            problem = problem or error.format_message()
        except typer.Exit:
            # `--help` and `--version` answer while they are read.
            return None
        else:
            return None
    return problem


def _problems(text: str) -> list[str]:
    found = []
    for words, in_sentence in _commands(text):
        for file in filter(_FILE.fullmatch, words):
            Path(file).touch()
        problem = _is_understood(words)
        # A sentence may name a command without what it needs, and a group of them without saying which.
        if problem is not None and not (in_sentence and (problem == "" or problem.startswith("Missing "))):
            found.append(f"orchestrator {' '.join(words)}: {problem}")
    return found


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_commands_of_a_guide_are_understood(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No guide names a command, an option or a value that does not exist."""
    monkeypatch.chdir(tmp_path)
    assert _problems(guide.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```sh\norchestrator haltt --reason x\n```", "No such command"),
        ("`orchestrator halt --reson x`", "No such option"),
        ("```sh\n.venv/bin/orchestrator users add olga --role boss\n```", "Invalid value"),
        ("`orchestrator quarantine list|shows`", "No such command"),
        ("```sh\norchestrator orders --limit many  # a number\n```", "Invalid value"),
        ("```sh\norchestrator halt --user alice\n```", "Missing option"),
    ],
)
def test_command_that_does_not_exist_is_found(text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks and in sentences, whatever is wrong with it."""
    monkeypatch.chdir(tmp_path)
    (found,) = _problems(text)
    assert problem in found


def test_guides_name_many_commands() -> None:
    """What is looked for is found at all."""
    assert sum(len(list(_commands(guide.read_text(encoding="utf-8")))) for guide in GUIDES) > 100
