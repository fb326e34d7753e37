"""The system's own accounts are nobody's name: no request, command, token or command line acts, or is kept, under one."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from cli.access.administration import user_id_of
from cli.terminal.exits import CommandFailed
from infra.postgres.admin.administration import ADMINISTRATION
from pipeline.books.ledger import SYSTEM_OWNERS
from pipeline.commands.halts import arrive_command
from pipeline.commands.operators import UNVERIFIED
from pipeline.model.quarantine import QUARANTINE_ACCOUNT
from pipeline.model.refusal import Refusal
from schemas.commands import COMMANDS_ACCOUNT, TRIPS_ACCOUNT
from schemas.reasons import ReasonCode
from schemas.requests import Unreadable, UserId, decode_request, is_reserved
from schemas.wire import SourceOffset
from tests.unit.tokens import AT, issuer, verifier

SYSTEM: tuple[str, ...] = (*sorted(SYSTEM_OWNERS), ADMINISTRATION, COMMANDS_ACCOUNT, QUARANTINE_ACCOUNT, TRIPS_ACCOUNT, UNVERIFIED)
NAMES = (*SYSTEM, "@", "@nobody.yet")
_ORDER: dict[str, Any] = {
    "schema_version": 1, "type": "trade", "idempotency_key": "k", "mode": "live", "exchange": "binance", "api_key_id": "main",
    "symbol": "BTC/USDT", "side": "buy", "order_type": "market", "quantity": "1",
}  # fmt: skip
_HALT: dict[str, Any] = {"schema_version": 1, "command_id": "c", "command": "halt", "scope": "all", "reason": "why"}


def test_every_account_of_the_system_has_a_reserved_name() -> None:
    """So one rule is enough, for those of tomorrow too."""
    assert [name for name in SYSTEM if not is_reserved(name)] == []


@pytest.mark.parametrize("name", NAMES)
def test_request_under_a_reserved_name_is_nobodys(name: str) -> None:
    """It is refused, claims no key, and so is written into nobody's audit chain."""
    refused = decode_request(json.dumps({**_ORDER, "user_id": name}).encode())
    assert isinstance(refused, Unreadable)
    assert (refused.user_id, refused.idempotency_key, refused.reason_code) == (None, None, ReasonCode.SCHEMA_INVALID)
    assert "own accounts" in refused.reason and name not in refused.reason.replace("begin with @", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("asked", [True, False], ids=["required", "sandbox"])
def test_command_under_a_reserved_name_changes_nothing(name: str, asked: bool) -> None:
    """Where nobody is asked who commands, too: a stop that says it came from the system must have come from it."""
    value, at = json.dumps({**_HALT, "operator": name}).encode(), datetime(2026, 11, 24, tzinfo=UTC)
    arrival = arrive_command(SourceOffset("t", 0, 0), at, value, [], verifier(issuer()) if asked else None)
    assert arrival.command is None
    assert arrival.refusal is not None and arrival.refusal.code is ReasonCode.SCHEMA_INVALID
    assert arrival.account == COMMANDS_ACCOUNT and arrival.facts["actor"] == UNVERIFIED


@pytest.mark.parametrize("name", NAMES)
def test_token_of_a_reserved_name_proves_nobody(name: str) -> None:
    """Whatever an issuer lets its users be called."""
    refused = verifier(issuer()).verify(issuer().bearer(sub=name), AT)
    assert isinstance(refused, Refusal)
    assert refused.code is ReasonCode.AUTH_TOKEN_INVALID and "own accounts" in refused.reason


@pytest.mark.parametrize("name", NAMES)
def test_command_line_knows_no_user_of_a_reserved_name(name: str) -> None:
    """Neither to add, nor to name anywhere else."""
    with pytest.raises(CommandFailed, match="own accounts"):
        user_id_of(name)


@pytest.mark.parametrize("name", ["alice", "a@b.example", "commands", "quarantine@", "-@-"])
def test_name_with_an_at_sign_elsewhere_is_a_users(name: str) -> None:
    """Such as an address of mail."""
    adapter: TypeAdapter[str] = TypeAdapter(UserId)
    assert adapter.validate_python(name) == user_id_of(name) == name
    with pytest.raises(ValidationError, match="own accounts"):
        adapter.validate_python(f"@{name}")
