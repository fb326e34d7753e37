"""Halts: who stops trading, where, and what that does.

A halt has a scope (`all`, an exchange, a symbol, a user) and a level: `halt` lets nothing new be submitted, `reduce` only what makes a
position smaller. Cancels pass both. Set by an operator's command with token and second factor, or by the system itself (a trip).

Invariants:
1. Every record of `trade.commands` has exactly one audit event: in its operator's chain, or in that of `@commands` when nobody is proven to
   have sent it.
2. What stands at the exchange stays there unless the command asks for cancels.

On the same topic, and judged the same way, come operators' decisions about withdrawals (pipeline/withdrawals) and their words on what is in
doubt (pipeline/doubts).

Start with `decide_commands`; what the system itself asks for is in pipeline/trip.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from pipeline.audit import Value
from pipeline.authentication import Scope, TokenVerifier, authorization_of, scope_refusal
from pipeline.changes import Changes, SetHalt
from pipeline.code_trial import second_factor_refusal
from pipeline.doubts import decide_doubt
from pipeline.gate.context import AccountState, Halt, Refusal
from pipeline.rules import Rules
from pipeline.trip import halt_fields
from pipeline.withdrawals import decide_withdrawal
from schemas.audit import EventType
from schemas.commands import (
    COMMAND,
    COMMANDS_ACCOUNT,
    DECISION,
    DOUBT_DECISION,
    Command,
    CommandWord,
    DoubtDecision,
    HaltLevel,
    WithdrawalDecision,
)
from schemas.reasons import ReasonCode
from schemas.routing import Action, RoutedOrder
from schemas.wire import SourceOffset

COMMAND_BYTES_MAX: Final = 16 * 1024
AnyCommand = Command | WithdrawalDecision | DoubtDecision


@dataclass(frozen=True, slots=True)
class CommandArrival:
    """One record of `trade.commands`. `command` is None, and `refusal` says why, for what is none or comes from nobody who may command."""

    source: SourceOffset
    appended_at: datetime
    headers: tuple[tuple[str, bytes], ...]
    command: AnyCommand | None
    refusal: Refusal | None
    needs_second_factor: bool

    @property
    def account(self) -> str:
        """Whose audit chain tells of it."""
        return COMMANDS_ACCOUNT if self.command is None or self.refusal is not None else self.command.operator


def arrive_command(
    source: SourceOffset,
    appended_at: datetime,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
    verifier: TokenVerifier | None,
) -> CommandArrival:
    """Reads a record and judges its sender; `verifier` None where this installation does not ask. Never raises for what was sent."""
    named = tuple((name, text or b"") for name, text in headers)
    command: AnyCommand | None = None
    refusal: Refusal | None = None
    if value is None or len(value) > COMMAND_BYTES_MAX:
        refusal = Refusal(ReasonCode.SCHEMA_INVALID, f"a command has a value of up to {COMMAND_BYTES_MAX} bytes; nothing was changed")
    else:
        try:
            command = _read(value)
        except ValidationError as error:
            problems = error.errors(include_input=False, include_url=False)
            fields = sorted({".".join(str(part)[:64] for part in problem["loc"]) or "command" for problem in problems})
            refusal = Refusal(ReasonCode.SCHEMA_INVALID, f"the record is no command ({', '.join(fields[:5])}); nothing was changed")
    if command is not None and verifier is not None:
        refusal = _unproven(command, named, verifier, appended_at)
    return CommandArrival(source, appended_at, named, command, refusal, needs_second_factor=verifier is not None)


def _read(value: bytes) -> AnyCommand:
    """Raises ValidationError, as of a command, for what is none."""
    try:
        return COMMAND.validate_json(value)
    except ValidationError as error:
        for other in (DECISION, DOUBT_DECISION):
            with suppress(ValidationError):
                return other.validate_json(value)
        raise error from None


def _unproven(
    command: AnyCommand, headers: tuple[tuple[str, bytes], ...], verifier: TokenVerifier, at: datetime
) -> Refusal | None:
    authorization = authorization_of(headers)
    token = authorization if isinstance(authorization, Refusal) else verifier.verify(authorization, at)
    if isinstance(token, Refusal):
        return token
    if token.user_id != command.operator:
        return Refusal(ReasonCode.AUTH_USER_MISMATCH, "`operator` is not the token's `sub`; nothing was changed")
    return scope_refusal(token, Scope.OPERATE)


def decide_commands(
    arrivals: Sequence[CommandArrival], accounts: Mapping[str, AccountState], changes: Changes, rules: Rules
) -> list[Refusal]:
    """Applies commands in order; returns why some were refused. `changes.halts` holds what is in force, loaded under its lock; `accounts`
    the operators."""
    refused: list[Refusal] = []
    for arrival in arrivals:
        command = arrival.command
        refusal = arrival.refusal
        if command is not None and refusal is None:
            refusal = _may_not_command(arrival, accounts[command.operator], changes)
        if isinstance(command, WithdrawalDecision) and refusal is None:
            refusal = _decide_withdrawal(command, changes)
        if isinstance(command, DoubtDecision) and refusal is None:
            refusal = decide_doubt(command, changes, rules)
        if command is None or refusal is not None:
            refused.append(refusal or Refusal(ReasonCode.SCHEMA_INVALID, "the record is no command; nothing was changed"))
            refuse_command(arrival, refused[-1], changes)
            continue
        if isinstance(command, Command):
            _apply(command, changes)
    return refused


def _decide_withdrawal(decision: WithdrawalDecision, changes: Changes) -> Refusal | None:
    if decision.withdrawal_id in changes.unpublished:
        text = "its last change is not on the topics yet, and a decision must not overtake it; it is as it was. Give the command again"
        return Refusal(ReasonCode.APPROVAL_NOT_PENDING, text)
    return decide_withdrawal(decision, changes)


def _may_not_command(arrival: CommandArrival, operator: AccountState, changes: Changes) -> Refusal | None:
    if not arrival.needs_second_factor:
        return None
    if operator.role != "operator" or operator.status != "active":
        return Refusal(ReasonCode.USER_INACTIVE, "the sender is no active operator; nothing was changed")
    return second_factor_refusal(operator, arrival.headers, arrival.appended_at, None, changes)


def refuse_command(arrival: CommandArrival, refusal: Refusal, changes: Changes) -> None:
    """Says in its account's chain why a command was not applied."""
    command = arrival.command
    fields: dict[str, Value] = {
        "request_id": command.command_id if command is not None else str(arrival.source),
        "reason_code": refusal.code.value,
        "reason": refusal.reason,
    }
    changes.audit(arrival.account, None, EventType.COMMAND_REFUSED, fields, None)


def _apply(command: Command, changes: Changes) -> None:
    key = command.scope, command.target
    if command.command is CommandWord.RESUME:
        before = changes.halts.pop(key, None)
        if before is not None:
            changes.halts_moved.add(key)
        text = command.reason if before is not None else f"nothing was stopped there. {command.reason}"
        fields = halt_fields(command.scope, command.target, before.halt.level if before is not None else None, text)
        changes.audit(command.operator, None, EventType.HALT_LIFTED, {**fields, "request_id": command.command_id}, None)
        return
    level = HaltLevel(command.command.value)
    changes.halts[key] = SetHalt(
        Halt(command.scope, command.target, level),
        command.reason,
        command.operator,
        command.command_id,
        changes.now,
        command.cancel_open,
    )
    changes.halts_moved.add(key)
    fields = halt_fields(command.scope, command.target, level, command.reason)
    fields["evidence"] = ["what rests and would not pass is canceled"] if command.cancel_open else []
    changes.audit(command.operator, None, EventType.HALT_SET, {**fields, "request_id": command.command_id}, None)


def cancel_of_halt(order_id: str, user_id: str, attempt: int) -> RoutedOrder:
    """The work that a halt with cancels makes of a resting order, for its execution agent."""
    return RoutedOrder(schema_version=1, action=Action.CANCEL, order_id=order_id, user_id=user_id, attempt=attempt)
