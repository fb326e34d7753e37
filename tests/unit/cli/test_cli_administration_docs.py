"""docs/administration.md names exactly the commands and events that there are."""

import re

import pytest
from typer.core import TyperGroup

from checks.tree import ROOT
from cli.main import load
from infra.postgres.admin.administration import administration_event_types

NAMES = ("approvals", "balances", "users", "keys", "limits", "tokens", "sessions")


def _text() -> str:
    return (ROOT / "docs/administration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_documented_commands_are_those_that_exist(name: str) -> None:
    """A command without a line, and a line without a command, are both found."""
    group = load(name)
    assert isinstance(group, TyperGroup)
    documented = set(re.findall(rf"orchestrator {name} ([a-z-]+)", _text()))
    assert documented == set(group.commands)


def test_documented_events_are_those_that_exist() -> None:
    """Every type of event that administration writes is explained, and no other."""
    kinds = "USER|KEY|LIMIT|ADDRESS|PAPER|BALANCES|APPROVAL|SESSION|RECORD|OFFSETS"
    documented = set(re.findall(rf"`((?:{kinds})_[A-Z_]+)`", _text().partition("## Audit")[2]))
    assert documented == set(administration_event_types())
