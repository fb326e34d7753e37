"""Halts: who stops trading, where, and what that does.

A halt has a scope (`all`, an exchange, a symbol, a user) and a level: `halt` lets nothing new be submitted, `reduce` only what makes a
position smaller. Cancels pass both. Set by an operator's command with a token, or by the system itself (a trip); only a code as well makes
anything less strict.

Invariants:
1. Every record of `trade.commands` has exactly one audit event: in its operator's chain, or in that of `@commands` when nobody is proven to
   have sent it.
2. What stands at the exchange stays there unless the command asks for cancels.

On the same topic, and judged the same way, come operators' decisions about withdrawals (pipeline/withdrawals/acceptance) and their words
on what is in doubt (pipeline/commands/doubts).

Start with `decide_commands`; what the system itself asks for is in pipeline/books/trip.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, SetHalt
from pipeline.books.trip import halt_fields
from pipeline.commands.doubts import decide_doubt
from pipeline.commands.operators import UNVERIFIED, operator_refusal
from pipeline.gate.context import AccountState
from pipeline.model.halts import Halt
from pipeline.model.refusal import Refusal
from pipeline.model.rules import Rules
from pipeline.requests.authentication import Scope, TokenVerifier, authorization_of, scope_refusal
from pipeline.requests.second_factor_check import second_factor_refusal
from pipeline.withdrawals.acceptance import decide_withdrawal
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

    @property
    def facts(self) -> dict[str, Value]:
        """What its audit event says of who sent it, what it asks for and what it is about. The actor is whom a token proved."""
        command = self.command
        if command is None:
            return {"actor": UNVERIFIED, "request_id": str(self.source)}
        if self.needs_second_factor and self.refusal is None:
            sender: dict[str, Value] = {"actor": command.operator}
        else:
            sender = {"actor": UNVERIFIED, "claimed_operator": command.operator}
        asked: dict[str, Value] = {"command": command.command.value, "target_id": command.target_id, "operator_reason": command.reason}
        return {**sender, **asked, "request_id": command.command_id}


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
            refusal = _decide_withdrawal(command, arrival.facts, changes)
        if isinstance(command, DoubtDecision) and refusal is None:
            refusal = decide_doubt(command, arrival.facts, changes, rules)
        if command is None or refusal is not None:
            refused.append(refusal or Refusal(ReasonCode.SCHEMA_INVALID, "the record is no command; nothing was changed"))
            refuse_command(arrival, refused[-1], changes)
            continue
        if isinstance(command, Command):
            _apply(command, arrival.facts, changes)
    return refused


def _decide_withdrawal(decision: WithdrawalDecision, facts: Mapping[str, Value], changes: Changes) -> Refusal | None:
    if decision.withdrawal_id in changes.unpublished:
        text = "its last change is not on the topics yet, and a decision must not overtake it; it is as it was. Give the command again"
        return Refusal(ReasonCode.APPROVAL_NOT_PENDING, text)
    return decide_withdrawal(decision, changes, facts)


def _may_not_command(arrival: CommandArrival, operator: AccountState, changes: Changes) -> Refusal | None:
    if not arrival.needs_second_factor:
        return None
    refusal = operator_refusal(operator.role, operator.status)
    if refusal is not None or _only_stops(arrival.command, changes):
        return refusal
    return second_factor_refusal(operator, arrival.headers, arrival.appended_at, None, changes)


def _only_stops(command: AnyCommand | None, changes: Changes) -> bool:
    """Whether a command leaves nothing less strict than it is. Such a one needs no code: whoever has lost the device, or is locked out by
    somebody's guesses, must still be able to stop. A code that comes with it all the same is not tried, and stays good."""
    if not isinstance(command, Command) or command.command is CommandWord.RESUME:
        return False
    before = changes.halts.get((command.scope, command.target))
    if before is None:
        return True
    softer = command.command is CommandWord.REDUCE and before.halt.level is HaltLevel.HALT
    return not softer and (command.cancel_open or not before.cancel_open)


def refuse_command(arrival: CommandArrival, refusal: Refusal, changes: Changes) -> None:
    """Says in its account's chain why a command was not applied."""
    command = arrival.command
    fields: dict[str, Value] = {**arrival.facts, "reason_code": refusal.code.value, "reason": refusal.reason}
    if isinstance(command, Command):
        fields |= {"halt_scope": command.scope.value, "halt_target": command.target or None}
    elif command is not None and arrival.refusal is None:
        about = changes.withdrawals.get(command.target_id) or changes.orders.get(command.target_id)
        if about is not None:
            fields["idempotency_key"] = about.idempotency_key
    changes.audit(arrival.account, None, EventType.COMMAND_REFUSED, fields, None)


def _apply(command: Command, facts: Mapping[str, Value], changes: Changes) -> None:
    key = command.scope, command.target
    if command.command is CommandWord.RESUME:
        before = changes.halts.pop(key, None)
        if before is not None:
            changes.halts_moved.add(key)
        text = command.reason if before is not None else f"nothing was stopped there. {command.reason}"
        fields = halt_fields(command.scope, command.target, before.halt.level if before is not None else None, text)
        changes.audit(command.operator, None, EventType.HALT_LIFTED, {**facts, **fields}, None)
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
    changes.audit(command.operator, None, EventType.HALT_SET, {**facts, **fields}, None)


def cancel_of_halt(order_id: str, user_id: str, attempt: int) -> RoutedOrder:
    """The work that a halt with cancels makes of a resting order, for its execution agent."""
    return RoutedOrder(schema_version=1, action=Action.CANCEL, order_id=order_id, user_id=user_id, attempt=attempt)
