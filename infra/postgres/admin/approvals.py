"""Four eyes for administration: what widens a user's reach is asked for by one operator and approved by another, then done by the first.

A request says what it would do, in words that are compared letter by letter: what is done under an approval is exactly what was approved.
Secrets are in none: whoever asked gives them again when the change is made.

Invariants:
1. Nobody approves what they asked for; SQL refuses it too.
2. An approval is used once, in the transaction of the change that it is for, by whoever asked for it, and within `VALID_HOURS` of that.
3. Asking, approving and refusing have their events in the chain of the operator who does it; the change's own event names the second.

Start with `require_approval`. What needs it stands in docs/administration.md, as a table.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import uuid4

from infra.postgres.admin.accounts import store_events
from infra.postgres.admin.operators import By
from infra.postgres.database import Connection, Database
from infra.postgres.step import lock_chains
from pipeline.books.audit import AuditTrail, Value
from pipeline.commands.operators import VerifiedOperator
from schemas.audit import EventType

VALID_HOURS: Final = 24

_OTHERS: Final = """
    SELECT count(*) FROM users JOIN second_factors USING (user_id)
    WHERE role = 'operator' AND status = 'active' AND user_id <> $1
"""
_APPROVED: Final = """
    UPDATE administration_requests SET used_at = $5
    WHERE request_id = (
        SELECT request_id FROM administration_requests
        WHERE command = $1 AND target_id = $2 AND what = $3 AND requested_by = $4
          AND approved_at IS NOT NULL AND used_at IS NULL AND refused_at IS NULL AND expires_at > $5
        ORDER BY approved_at LIMIT 1 FOR UPDATE
    ) RETURNING request_id, approved_by
"""
_WAITING: Final = """
    SELECT request_id FROM administration_requests
    WHERE command = $1 AND target_id = $2 AND what = $3 AND requested_by = $4
      AND approved_at IS NULL AND refused_at IS NULL AND expires_at > $5
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A change that needs a second operator: the command, what it is about, and what it would do, in words without secrets."""

    command: str
    target_id: str
    what: str


@dataclass(frozen=True, slots=True)
class Approval:
    """Who is the second of two. `approved_by` None: there is no second operator yet, and the only one acts alone."""

    request_id: str | None
    approved_by: str | None

    def facts(self) -> dict[str, Value]:
        """What the change's event says of it."""
        if self.approved_by is None:
            return {"evidence": ["by the only operator that there is"]}
        return {"approved_by": self.approved_by, "evidence": [f"request {self.request_id}, approved by {self.approved_by}"]}


class NeedsApproval(Exception):
    """The change needs a second operator; nothing was changed."""

    def __init__(self, wanted: Wanted, by: By) -> None:
        super().__init__(f"{wanted.command} on {wanted.target_id} needs a second operator")
        self.wanted = wanted
        self.by = by


class NotDecided(Exception):
    """A request cannot be approved or refused; nothing was changed. The text says why."""


async def require_approval(connection: Connection, wanted: Wanted, by: By, *, alone_allowed: bool = False) -> Approval | None:
    """Takes the approval of a change, in the change's own transaction. None where nobody can be asked (an installation without operators).

    `alone_allowed`: the only operator may do it, as there would never be a second one otherwise. Raises NeedsApproval.
    """
    if not isinstance(by.operator, VerifiedOperator):
        return None
    if alone_allowed and not await connection.fetchval(_OTHERS, by.operator.user_id):
        return Approval(None, None)
    row = await connection.fetchrow(_APPROVED, wanted.command, wanted.target_id, wanted.what, by.operator.user_id, by.at)
    if row is None:
        raise NeedsApproval(wanted, by)
    return Approval(row["request_id"], row["approved_by"])


async def ask_for_approval(database: Database, needed: NeedsApproval) -> str:
    """Stores what is asked for, once while it waits; returns the request's id."""
    wanted, by = needed.wanted, needed.by
    name = by.operator.name
    async with database.connection() as connection, connection.transaction():
        trail = AuditTrail(await lock_chains(connection, [name]), by.at)
        waiting = await connection.fetchval(_WAITING, wanted.command, wanted.target_id, wanted.what, name, by.at)
        if waiting is not None:
            return str(waiting)
        request_id = f"a{uuid4().hex[:15]}"
        await connection.execute(
            """
            INSERT INTO administration_requests (request_id, command, target_id, what, reason, requested_by, requested_at, expires_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            """,
            request_id,
            wanted.command,
            wanted.target_id,
            wanted.what,
            by.reason,
            name,
            by.at,
            by.at + timedelta(hours=VALID_HOURS),
        )
        trail.append(name, None, EventType.APPROVAL_REQUESTED, {**by.facts(), **_told(request_id, wanted)})
        await store_events(connection, trail, by.at)
    return request_id


async def decide_request(database: Database, request_id: str, by: By, *, approve: bool) -> Wanted:
    """An operator's word on what another one asked for. Raises NotDecided."""
    if not isinstance(by.operator, VerifiedOperator):
        raise NotDecided("This installation has no operators, so nothing waits for a second one. Nothing was changed.")
    name = by.operator.user_id
    async with database.connection() as connection, connection.transaction():
        trail = AuditTrail(await lock_chains(connection, [name]), by.at)
        row = await connection.fetchrow("SELECT * FROM administration_requests WHERE request_id = $1 FOR UPDATE", request_id)
        if row is None:
            raise NotDecided(f"There is no request {request_id}. Nothing was changed. `orchestrator approvals list` shows all.")
        standing = standing_of(row["approved_at"] is not None, row["refused_at"] is not None, row["used_at"] is not None)
        if standing != "waiting" or row["expires_at"] <= by.at:
            over = standing if standing != "waiting" else f"older than {VALID_HOURS} hours"
            raise NotDecided(f"Request {request_id} is {over}. Nothing was changed.")
        if approve and row["requested_by"] == name:
            raise NotDecided(f"Request {request_id} is your own, and nobody approves what they asked for. Nothing was changed.")
        column = "approved" if approve else "refused"
        await connection.execute(
            f"UPDATE administration_requests SET {column}_by = $2, {column}_at = $3, decision_reason = $4 WHERE request_id = $1",  # noqa: S608 — literals
            request_id,
            name,
            by.at,
            by.reason,
        )
        wanted = Wanted(row["command"], row["target_id"], row["what"])
        event_type = EventType.APPROVAL_GIVEN if approve else EventType.APPROVAL_REFUSED
        trail.append(name, None, event_type, {**by.facts(), **_told(request_id, wanted)})
        await store_events(connection, trail, by.at)
    return wanted


def standing_of(approved: bool, refused: bool, used: bool) -> str:
    """Where a request stands, in one word; whether it is too old is another matter."""
    return "used" if used else "refused" if refused else "approved" if approved else "waiting"


def _told(request_id: str, wanted: Wanted) -> dict[str, Value]:
    return {"request_id": request_id, "command": wanted.command, "target_id": wanted.target_id, "reason": wanted.what}
