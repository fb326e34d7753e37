"""Who asks for a change of administration: the one place that turns a token and a code, or a mere claim, into the `By` of an audit event.

Invariants:
1. An installation has operators as soon as one is enrolled: a user of that role with a second factor, whatever the settings say. From then
   on nobody is believed without token and code.
2. The state of the second factor is stored in a transaction of its own, before the change: a code that was tried is never good again, also
   where the change then does not happen.
3. The time is the database's, for the token, for the code and for the event: the clock of whoever asks says nothing.

Start with `proven_by`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from infra.postgres.admin.accounts import store_events
from infra.postgres.database import Connection, Database
from infra.postgres.step import lock_chains
from pipeline.books.audit import AuditTrail, Value
from pipeline.commands.operators import ClaimedOperator, Operator, OperatorAccount, judge_operator, operator_token
from pipeline.model.invariants import InvariantViolation
from pipeline.model.refusal import Refusal
from pipeline.model.second_factor import SecondFactor
from pipeline.requests.authentication import TokenVerifier
from schemas.audit import EventType

Unseal = Callable[[str, str, bytes], str]

_HAS_OPERATORS: Final = """
    SELECT EXISTS (SELECT FROM users JOIN second_factors USING (user_id) WHERE role = 'operator') AS has_operators,
        clock_timestamp() AS at, session_user::text AS role
"""
_ACCOUNT: Final = """
    SELECT role, status, encryption_key_id, ciphertext, last_step, wrong_at, locked
    FROM users LEFT JOIN second_factors USING (user_id) WHERE user_id = $1
"""


class NotProven(Exception):
    """Whoever asks was not proven to be an operator; nothing was changed. `code` is the reason's, for programs."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code.value}: {refusal.reason}")
        self.code = refusal.code


@dataclass(frozen=True, slots=True)
class By:
    """Who changes something, when (UTC, the database's clock), and why, in the operator's words as they were given."""

    operator: Operator
    at: datetime
    reason: str | None = None

    @property
    def name(self) -> str:
        """As columns and listings show who it was."""
        return self.operator.name

    def facts(self) -> dict[str, Value]:
        """What every audit event of an operator's change says of who made it, when and why."""
        words: dict[str, Value] = {} if self.reason is None else {"operator_reason": self.reason}
        return {"ts_event": self.at, **self.operator.facts(), **words}


@dataclass(frozen=True, slots=True)
class About:
    """What an operator asks for: the command's words, such as `users freeze`, and the id of what it is about."""

    command: str
    target_id: str


async def has_operators(database: Database) -> bool:
    """Whether anybody is enrolled who could be asked for a token and a code."""
    return (await _standing(database))[0]


async def claimed_by(database: Database, claimed: str, system_user: str, reason: str | None) -> By | None:
    """Who claims to ask, for an installation without operators; None where there are some: then only a proof counts."""
    known, at, role = await _standing(database)
    return None if known else By(ClaimedOperator(claimed, system_user, role), at, reason)


async def set_up_by(database: Database, program: str, system_user: str) -> By:
    """Who sets up an installation for trials: a program, for what nobody asked for by a command (`demo`)."""
    _, at, role = await _standing(database)
    return By(ClaimedOperator(program, system_user, role), at)


async def _standing(database: Database) -> tuple[bool, datetime, str]:
    """Whether there are operators, the database's time, and by which of its roles we are connected."""
    async with database.connection() as connection:
        row = await connection.fetchrow(_HAS_OPERATORS)
    if row is None:
        raise InvariantViolation("a SELECT without FROM gave no row; nothing was changed.")
    return row["has_operators"], row["at"], row["role"]


async def proven_by(
    database: Database, token: str | None, code: str | None, verifier: TokenVerifier, unseal: Unseal, about: About, reason: str | None
) -> By:
    """The operator whom a token and a one-time code prove. Raises NotProven; a refusal of somebody whose token holds is audited.

    `unseal` decrypts a second factor's secret: (user id, encryption key id, ciphertext).
    """
    authorization = None if token is None else f"Bearer {token}".encode()
    async with database.connection() as connection:
        at = await connection.fetchval("SELECT clock_timestamp()")
        held = operator_token(authorization, verifier, at)
        if isinstance(held, Refusal):
            raise NotProven(held)
        async with connection.transaction():
            if await connection.fetchval("SELECT 1 FROM users WHERE user_id = $1", held.user_id) is None:
                # Without a chain of audit events of their own.
                judged, after = judge_operator(held, OperatorAccount(None, None, None), None, at)
            else:
                trail = AuditTrail(await lock_chains(connection, [held.user_id]), at)
                account = await _account(connection, held.user_id, unseal)
                judged, after = judge_operator(held, account, None if code is None else code.encode(), at)
                await _store(connection, trail, held.user_id, after, judged if isinstance(judged, Refusal) else None, about, reason)
    if isinstance(judged, Refusal):
        raise NotProven(judged)
    return By(judged, at, reason)


async def _account(connection: Connection, user_id: str, unseal: Unseal) -> OperatorAccount:
    row = await connection.fetchrow(_ACCOUNT, user_id)
    if row is None:
        return OperatorAccount(None, None, None)
    factor = None
    if row["ciphertext"] is not None:
        secret = unseal(user_id, row["encryption_key_id"], row["ciphertext"])
        factor = SecondFactor(secret, row["last_step"], tuple(row["wrong_at"]), row["locked"])
    return OperatorAccount(row["role"], row["status"], factor)


async def _store(
    connection: Connection,
    trail: AuditTrail,
    user_id: str,
    factor: SecondFactor | None,
    refusal: Refusal | None,
    about: About,
    reason: str | None,
) -> None:
    """The factor's state, and what is audited of a try that failed."""
    if factor is not None:
        await connection.execute(
            "UPDATE second_factors SET last_step = $2, wrong_at = $3, locked = $4 WHERE user_id = $1",
            user_id,
            factor.last_step,
            list(factor.wrong_at),
            factor.locked,
        )
    if refusal is None:
        return
    own: dict[str, Value] = {"actor": user_id, "ts_event": trail.recorded_at, "user_id": user_id}
    if factor is not None and factor.locked:
        locked: dict[str, Value] = {**own, "reason": "too many wrong codes", "reason_code": "TOTP_LOCKED"}
        trail.append(user_id, None, EventType.USER_LOCKED_TOTP, locked)
    fields: dict[str, Value] = {"command": about.command, "target_id": about.target_id, "operator_reason": reason}
    fields |= {"reason_code": refusal.code.value, "reason": refusal.reason}
    trail.append(user_id, None, EventType.COMMAND_REFUSED, {**own, **fields})
    await store_events(connection, trail, trail.recorded_at)
