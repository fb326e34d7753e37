"""docs/administration.md names exactly the commands and events that there are."""

import re

import pytest
import typer

from checks.tree import ROOT
from cli.admin.administration_commands import balances_app, keys_app, limits_app, tokens_app, users_app
from cli.admin.approval_commands import approvals_app
from cli.admin.session_commands import sessions_app
from infra.postgres.admin.administration import administration_event_types

APPS = {
    "approvals": approvals_app,
    "balances": balances_app, "users": users_app, "keys": keys_app, "limits": limits_app, "tokens": tokens_app, "sessions": sessions_app,
}  # fmt: skip


def _text() -> str:
    return (ROOT / "docs/administration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", APPS)
def test_documented_commands_are_those_that_exist(name: str) -> None:
    """A command without a line, and a line without a command, are both found."""
    app: typer.Typer = APPS[name]
    documented = set(re.findall(rf"orchestrator {name} ([a-z-]+)", _text()))
    assert documented == {command.name for command in app.registered_commands}


def test_documented_events_are_those_that_exist() -> None:
    """Every type of event that administration writes is explained, and no other."""
    kinds = "USER|KEY|LIMIT|ADDRESS|PAPER|BALANCES|APPROVAL|SESSION|RECORD|OFFSETS"
    documented = set(re.findall(rf"`((?:{kinds})_[A-Z_]+)`", _text().partition("## Audit")[2]))
    assert documented == set(administration_event_types())
