"""What operators change: users, second factors and limits here, exchange keys in `key_administration`, built on the same parts.

Invariants:
1. A change is one database transaction under the user's lock (`lock_chains`), with its audit event in the user's chain: the next record
   that a worker decides sees all of it. So a key that was revoked is not used for an order that is accepted afterwards.
2. What is so already is no change: it writes nothing, and no event. Doing a command again is safe.
3. Secrets come in and go out as ciphertext alone; no sentence and no event holds one.

Start with `set_user_status`. Re-encryption under a new master key is `infra.postgres.admin.rotation`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final, Literal

from infra.postgres.admin.accounts import store_events
from infra.postgres.admin.approvals import Approval, Wanted, require_approval
from infra.postgres.admin.operators import By
from infra.postgres.audit_outbox import audit_row
from infra.postgres.database import Connection, Database
from infra.postgres.step import lock_chains
from pipeline.books.audit import AuditRow, AuditTrail, Value
from pipeline.books.changes import transfer_entry
from pipeline.books.ledger import Transfer, book_of
from pipeline.gate.four_eyes import factor_needs_two
from schemas.audit import EventType
from schemas.decimals import format_decimal
from schemas.orders import Mode

Role = Literal["trader", "operator"]

# The chain of what concerns no single user. No user id begins so.
ADMINISTRATION: Final = "@administration"
# How far back events are looked for; an account's newest ones, whatever their kind.
_REPUBLISHED_MAX: Final = 10_000
_NAMED_MAX: Final = 5


def administration_event_types() -> tuple[str, ...]:
    """The types of the events about users, keys, limits, addresses, imported balances, simulated funds, ended sessions, approvals,
    losses of records, and what became of records set aside."""
    of_users = ("USER_", "KEY_", "LIMIT_", "ADDRESS_", "PAPER_", "BALANCES_", "SESSION_ENDED", "APPROVAL_")
    prefixes = (*of_users, "OFFSETS_", "RECORD_RETRIED", "RECORD_DROPPED")
    return tuple(kind.value for kind in EventType if kind.value.startswith(prefixes))


class NotDone(Exception):
    """What was asked for does not fit the state of things; nothing was changed. The text says why, and what can be done instead."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a change: one sentence for people, and whether anything is different now."""

    what: str
    changed: bool = True


class StatusChange(StrEnum):
    VERIFY = "verify"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class _Move:
    """A change of a user's status: from which, to which, and what each way out of it says."""

    origins: frozenset[str]
    target: str
    event_type: EventType
    done: str
    already: str


_MOVES: Final[dict[StatusChange, _Move]] = {
    StatusChange.VERIFY: _Move(
        frozenset({"pending"}), "active", EventType.USER_VERIFIED, "is verified and may trade with real money", "is verified already"
    ),
    # One that waits for verification cannot trade with real money; frozen, it would come out of it as if it had been verified.
    StatusChange.FREEZE: _Move(
        frozenset({"active"}),
        "frozen",
        EventType.USER_FROZEN,
        "is frozen: every new order is refused as USER_INACTIVE. Orders that rest at an exchange stay there until they are canceled",
        "is frozen already",
    ),
    StatusChange.UNFREEZE: _Move(frozenset({"frozen"}), "active", EventType.USER_UNFROZEN, "may trade again", "is not frozen"),
    StatusChange.CLOSE: _Move(
        frozenset({"pending", "active", "frozen"}), "closed", EventType.USER_CLOSED, "is closed for good", "is closed already"
    ),
}
_INSTEAD: Final[dict[tuple[StatusChange, str], str]] = {
    (StatusChange.VERIFY, "frozen"): "was verified before it was frozen: `orchestrator users unfreeze` lifts that",
    (StatusChange.FREEZE, "pending"): (
        "waits for verification, so real-money orders are refused as USER_UNVERIFIED already: leave it so, or close it"
    ),
    (StatusChange.UNFREEZE, "pending"): "is not frozen but waits for verification: `orchestrator users verify` ends that",
}


class UserChange:
    """An open transaction that holds a user's lock."""

    def __init__(self, connection: Connection, user_id: str, status: str, trail: AuditTrail, by: By) -> None:
        self.connection = connection
        self.user_id = user_id
        self.status = status
        self._trail = trail
        self._by = by
        self._approval: Approval | None = None

    @property
    def seq(self) -> int:
        """The number of the newest event in the user's chain."""
        return self._trail.heads[self.user_id].seq

    async def require_approval(self, command: str, what: str, *, alone_allowed: bool = False) -> None:
        """Takes the approval of a second operator, or raises NeedsApproval. `what` says, without secrets, what is done under it."""
        wanted = Wanted(command, self.user_id, what)
        self._approval = await require_approval(self.connection, wanted, self._by, alone_allowed=alone_allowed)

    def record(
        self,
        event_type: EventType,
        what: str,
        exchange: str | None = None,
        transfers: Sequence[Transfer] = (),
        more: Mapping[str, Value] | None = None,
    ) -> None:
        """The event of what this transaction changes; `what` and the operator's reason make its reason. `more` are further fields of it,
        such as `target_id`: what of the user's it is about, where that is not the user."""
        reason = what if self._by.reason is None else f"{what}: {self._by.reason}"
        fields: dict[str, Value] = {**self._by.facts(), "user_id": self.user_id, "target_id": self.user_id, "exchange": exchange}
        fields |= {**(self._approval.facts() if self._approval is not None else {}), **(more or {})}
        fields["reason"] = reason
        fields["transfers"] = [transfer_entry(transfer) for transfer in transfers]
        self._trail.append(self.user_id, None, event_type, fields)

    async def note_credentials(self) -> None:
        """Withdrawals and trades right after a change of credentials are looked at closely (pipeline/gate/surveillance)."""
        await self.connection.execute("UPDATE users SET credentials_changed_at = $2 WHERE user_id = $1", self.user_id, self._by.at)


@asynccontextmanager
async def changing_user(database: Database, user_id: str, by: By) -> AsyncIterator[UserChange]:
    """Locks the user, and stores the event with what the block writes. Raises NotDone for an unknown user."""
    async with database.connection() as connection, connection.transaction():
        heads = await lock_chains(connection, [user_id])
        status = await connection.fetchval("SELECT status FROM users WHERE user_id = $1", user_id)
        if status is None:
            raise NotDone(f"There is no user {user_id}. Nothing was changed. `orchestrator users list` shows all.")
        trail = AuditTrail(heads, by.at)
        yield UserChange(connection, user_id, status, trail, by)
        if trail.rows:
            await store_events(connection, trail, by.at)


async def add_user(database: Database, user_id: str, role: Role, *, pending: bool, by: By) -> Done:
    """Adds a user without keys and money. Raises NotDone for one who is there already."""
    status = "pending" if pending else "active"
    async with database.connection() as connection, connection.transaction():
        # Somebody who is no user yet may have a chain, of refused requests.
        heads = await lock_chains(connection, [user_id])
        added = await connection.fetchval(
            "INSERT INTO users (user_id, status, role, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING user_id",
            user_id,
            status,
            role,
            by.at,
        )
        if added is None:
            raise NotDone(f"There is a user {user_id} already. Nothing was changed. `orchestrator users show {user_id}` shows it.")
        change = UserChange(connection, user_id, status, trail := AuditTrail(heads, by.at), by)
        if role == "operator":
            await change.require_approval("users add", "a new operator", alone_allowed=True)
        state = "waits for verification" if pending else "is verified"
        change.record(EventType.USER_ADDED, f"added as {role}, {state}")
        await store_events(connection, trail, by.at)
    after = "; real-money orders are refused as USER_UNVERIFIED until `orchestrator users verify`" if pending else " and may trade"
    return Done(f"User {user_id} ({role}) is added{after}.")


async def set_user_status(database: Database, user_id: str, change: StatusChange, by: By) -> Done:
    """Verifies, freezes, unfreezes or closes a user. Raises NotDone where the user's status does not allow it."""
    move = _MOVES[change]
    async with changing_user(database, user_id, by) as changing:
        if changing.status not in move.origins:
            instead = _INSTEAD.get((change, changing.status))
            if instead is not None:
                raise NotDone(f"User {user_id} {instead}. Nothing was changed.")
            if changing.status == "closed" and change is not StatusChange.CLOSE:
                raise NotDone(f"User {user_id} is closed for good. Nothing was changed; add a new user instead.")
            return Done(f"User {user_id} {move.already}; nothing was changed.", changed=False)
        if change is StatusChange.CLOSE:
            await _require_nothing_left(changing)
        await changing.connection.execute("UPDATE users SET status = $2 WHERE user_id = $1", user_id, move.target)
        changing.record(move.event_type, f"{changing.status} → {move.target}")
    return Done(f"User {user_id} {move.done}.")


# What is the user's and would have nobody to ask for it any more. Simulated money is nobody's.
_LEFT: Final = """
    SELECT 'order' AS kind, order_id || ' (' || symbol || ' at ' || exchange || ', ' || status || ')' AS name
    FROM orders WHERE user_id = $1 AND executed_at IS NULL
    UNION ALL SELECT 'withdrawal', withdrawal_id || ' (' || asset || ' at ' || exchange || ', ' || status || ')'
    FROM withdrawals WHERE user_id = $1 AND executed_at IS NULL
    UNION ALL SELECT 'deposit', exchange_deposit_id || ' (' || asset || ' at ' || exchange || ', ' || status || ')'
    FROM deposits WHERE user_id = $1 AND status IN ('detected', 'confirming')
    UNION ALL SELECT 'balance', trim_scale(posted)::text || ' ' || asset || ' at ' || exchange
    FROM balances WHERE user_id = $1 AND book = $2 AND (posted <> 0 OR pending <> 0)
    UNION ALL SELECT 'key', api_key_id || ' (' || exchange || ', ' || status || ')'
    FROM api_keys WHERE user_id = $1 AND status IN ('active', 'refused')
    ORDER BY 1, 2
"""
_INSTEAD_OF_LEAVING: Final = {
    "order": "have them canceled, and wait until they are over",
    "withdrawal": "wait for them, or refuse those that wait for approval",
    "deposit": "wait until they are credited",
    "balance": "have the money withdrawn",
    "key": "revoke them",
}


async def _require_nothing_left(changing: UserChange) -> None:
    """A closed user can cancel, withdraw and trade nothing: raises NotDone naming what there still is."""
    left: dict[str, list[str]] = {}
    for row in await changing.connection.fetch(_LEFT, changing.user_id, book_of(Mode.LIVE)):
        left.setdefault(row["kind"], []).append(row["name"])
    if not left:
        return
    told = [
        f"{len(names)} {kind}{'s' if len(names) > 1 else ''}: {', '.join(names[:_NAMED_MAX])}{' …' if len(names) > _NAMED_MAX else ''} "
        f"({_INSTEAD_OF_LEAVING[kind]})"
        for kind, names in left.items()
    ]
    raise NotDone(
        f"User {changing.user_id} has something left that nobody could reach once it is closed: {'; '.join(told)}. Nothing was changed. "
        f"Freeze the user meanwhile, if nothing new may be done."
    )


async def enrol_second_factor(
    database: Database, user_id: str, encryption_key_id: str, ciphertext: bytes, *, replace: bool, by: By
) -> Done:
    """Stores a new second factor. With `replace` it takes the place of an older one, whose codes count no more, locked or not."""
    async with changing_user(database, user_id, by) as changing:
        if changing.status == "closed":
            raise NotDone(f"User {user_id} is closed for good. Nothing was changed.")
        enrolled_at = await changing.connection.fetchval("SELECT enrolled_at FROM second_factors WHERE user_id = $1", user_id)
        if enrolled_at is not None and not replace:
            raise NotDone(
                f"User {user_id} has a second factor already. Nothing was changed, its codes stay good. `--replace` makes a new one, "
                "and the old one's codes are refused from then on."
            )
        if enrolled_at is not None and enrolled_at >= by.at:
            # Steps may begin anew with a new time of enrolment only.
            raise NotDone(f"The second factor of {user_id} was enrolled at {enrolled_at}, later than this machine's time. Fix its clock.")
        role = await changing.connection.fetchval("SELECT role FROM users WHERE user_id = $1", user_id)
        if factor_needs_two(role, replaces=enrolled_at is not None):
            what = f"a second factor for the {role}" if enrolled_at is None else f"another second factor for the {role}"
            await changing.require_approval("users enrol-totp", what, alone_allowed=role == "operator")
        # Steps of the old secret say nothing about those of the new one.
        await changing.connection.execute(
            """
            INSERT INTO second_factors (user_id, encryption_key_id, ciphertext, enrolled_at) VALUES ($1, $2, $3, $4)
            ON CONFLICT (user_id) DO UPDATE SET encryption_key_id = $2, ciphertext = $3, enrolled_at = $4, last_step = -1, wrong_at = '{}',
                locked = false
            """,
            user_id,
            encryption_key_id,
            ciphertext,
            by.at,
        )
        await changing.note_credentials()
        changing.record(EventType.USER_ENROLLED_TOTP, "second factor replaced" if enrolled_at is not None else "second factor enrolled")
    return Done(f"User {user_id} has a {'new ' if enrolled_at is not None else ''}second factor.")


async def unlock_second_factor(database: Database, user_id: str, by: By) -> Done:
    """Lets a locked second factor be used again, and forgets the wrong codes. The secret and the steps taken stay."""
    async with changing_user(database, user_id, by) as changing:
        factor = await changing.connection.fetchrow("SELECT locked, wrong_at FROM second_factors WHERE user_id = $1", user_id)
        if factor is None:
            raise NotDone(f"User {user_id} has no second factor. Nothing was changed. `orchestrator users enrol-totp {user_id}` makes one.")
        if not factor["locked"] and not factor["wrong_at"]:
            return Done(f"The second factor of {user_id} is not locked; nothing was changed.", changed=False)
        await changing.connection.execute("UPDATE second_factors SET locked = false, wrong_at = '{}' WHERE user_id = $1", user_id)
        was = "locked" if factor["locked"] else f"{len(factor['wrong_at'])} wrong codes"
        changing.record(EventType.USER_UNLOCKED_TOTP, f"second factor unlocked, was {was}")
    return Done(f"The second factor of {user_id} is unlocked (it was: {was}).")


async def clear_cooldown(database: Database, user_id: str, by: By) -> Done:
    """Forgets a user's failures in a row, and with them the cooldown that they began."""
    async with changing_user(database, user_id, by) as changing:
        failures = await changing.connection.fetchval("SELECT failures_in_row FROM audit_chains WHERE account = $1", user_id)
        if not failures:
            return Done(f"User {user_id} has no failures in a row, so no cooldown runs; nothing was changed.", changed=False)
        await changing.connection.execute("UPDATE audit_chains SET failures_in_row = 0 WHERE account = $1", user_id)
        changing.record(EventType.USER_CLEARED_COOLDOWN, f"{failures} failures in a row forgotten")
    return Done(f"The {failures} failures in a row of {user_id} are forgotten: no cooldown runs.")


async def set_limit(database: Database, user_id: str, name: str, amount: Decimal | None, by: By, *, widens: bool = False) -> Done:
    """Overrides a limit for one user; None gives the default back. The caller has checked name and amount (`Limits.with_overrides`),
    and says whether it widens what the settings allow everybody (`pipeline.gate.four_eyes.widens_limit`): that needs a second operator."""
    async with changing_user(database, user_id, by) as changing:
        before = await changing.connection.fetchval("SELECT amount FROM user_limits WHERE user_id = $1 AND name = $2", user_id, name)
        if before == amount:
            state = "has no limit of its own of this name" if amount is None else f"has {name} {format_decimal(amount)} already"
            return Done(f"User {user_id} {state}; nothing was changed.", changed=False)
        if widens and amount is not None:
            await changing.require_approval("limits set", f"{name} {format_decimal(amount)}")
        if amount is None:
            await changing.connection.execute("DELETE FROM user_limits WHERE user_id = $1 AND name = $2", user_id, name)
        else:
            await changing.connection.execute(
                """
                INSERT INTO user_limits (user_id, name, amount, changed_at, changed_by) VALUES ($1, $2, $3, $4, $5)
                ON CONFLICT (user_id, name) DO UPDATE SET amount = $3, changed_at = $4, changed_by = $5
                """,
                user_id,
                name,
                amount,
                by.at,
                by.name,
            )
        was = "the default" if before is None else format_decimal(before)
        what = f"{name} {was} → {'the default' if amount is None else format_decimal(amount)}"
        changing.record(EventType.LIMIT_CHANGED, what, more={"target_id": name})
    return Done(f"Limit of {user_id}: {what}, from the next request on.")


async def administration_events(database: Database, accounts: Sequence[str]) -> list[AuditRow]:
    """The events of administration among the newest 10,000 of each account, in the order of its chain: what is to be on `trade.audit`."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            """
            SELECT newest.* FROM unnest($1::text[]) AS wanted (account)
            CROSS JOIN LATERAL (
                SELECT account, seq, event_id, order_id, hash, body FROM audit_events
                WHERE audit_events.account = wanted.account ORDER BY seq DESC LIMIT $2
            ) AS newest
            WHERE newest.order_id IS NULL AND newest.body::jsonb ->> 'event_type' = ANY($3::text[])
            ORDER BY newest.account, newest.seq
            """,
            accounts,
            _REPUBLISHED_MAX,
            administration_event_types(),
        )
    return [audit_row(row) for row in rows]
