"""The words of help texts, metrics, documents and messages: plain English that a platform engineer expects."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase

from checks.tree import ROOT, modules
from cli.main import commands, load
from infra import metrics

# What is said instead.
BANNED = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bNo [\w ]+ fits\b": "No matching …",
    r"\b(is|are|all) well\b(?! (as|below|above|within))": "healthy",
    r"\bBROKEN\b": "FAIL",
    r"\bdoubled\b": "duplicated",
}


def _helps(command: Any, path: str) -> Iterator[tuple[str, str]]:
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, inner in getattr(command, "commands", {}).items():
        yield from _helps(inner, f"{path} {name}")


def _texts() -> Iterator[tuple[str, str]]:
    """(place, text) of everything that people read."""
    for name in commands():
        yield from _helps(load(name), name)
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            yield from ((described.name, described.documentation) for described in metric.describe())
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        yield document.name, document.read_text(encoding="utf-8")
    for path in modules("cli", "embedded"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.name}:{node.lineno}", node.value


@pytest.mark.parametrize("phrase", BANNED)
def test_no_text_uses_a_banned_phrase(phrase: str) -> None:
    """Each has a word that everybody in the field knows."""
    found = [
        f"{place}: {text[max(0, match.start() - 30) : match.end() + 30]!r}"
        for place, text in _texts()
        for match in re.finditer(phrase, text)
    ]
    assert found == [], f"say {BANNED[phrase]!r}"
