"""What operators change: users, second factors, exchange keys and limits.

Invariants:
1. A change is one database transaction under the user's lock (`lock_chains`), with its audit event in the user's chain: the next record
   that a worker decides sees all of it. So a key that was revoked is not used for an order that is accepted afterwards.
2. What is so already is no change: it writes nothing, and no event. Doing a command again is safe.
3. Secrets come in and go out as ciphertext alone; no sentence and no event holds one.

Start with `set_user_status`. Re-encryption under a new master key is `infra.postgres.rotation`.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, Literal

from infra.postgres.accounts import store_events
from infra.postgres.step import Connection, Database, lock_chains
from pipeline.audit import AuditRow, AuditTrail
from schemas.audit import EventType
from schemas.decimals import format_decimal

Role = Literal["trader", "operator"]
Permission = Literal["trade", "withdraw"]

# The chain of what concerns no single user. No user id begins so.
ADMINISTRATION: Final = "@administration"
# How far back unpublished events are looked for; an account's newest ones, whatever their kind.
_REPUBLISHED_MAX: Final = 10_000


def administration_event_types() -> tuple[str, ...]:
    """The types of the events about users, keys and limits."""
    return tuple(kind.value for kind in EventType if kind.value.startswith(("USER_", "KEY_", "LIMIT_")))


class NotDone(Exception):
    """What was asked for does not fit the state of things; nothing was changed. The text says why, and what can be done instead."""


@dataclass(frozen=True, slots=True)
class By:
    """Who changes something, when (UTC), and why, in the operator's words."""

    operator: str
    at: datetime
    reason: str | None = None


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


@dataclass(frozen=True, slots=True)
class NewKey:
    """An exchange key to store. `expires_at` None means never."""

    user_id: str
    api_key_id: str
    exchange: str
    permissions: frozenset[Permission]
    expires_at: datetime | None
    encryption_key_id: str
    ciphertext: bytes


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An exchange key as it is stored."""

    user_id: str
    api_key_id: str
    exchange: str
    status: str
    permissions: frozenset[str]
    expires_at: datetime | None
    encryption_key_id: str
    ciphertext: bytes


class _Change:
    """An open transaction that holds a user's lock."""

    def __init__(self, connection: Connection, user_id: str, status: str, trail: AuditTrail, by: By) -> None:
        self.connection = connection
        self.user_id = user_id
        self.status = status
        self._trail = trail
        self._by = by

    def record(self, event_type: EventType, what: str, exchange: str | None = None) -> None:
        """The event of what this transaction changes; `what` and the operator's reason make its reason."""
        reason = what if self._by.reason is None else f"{what}: {self._by.reason}"
        self._trail.append(
            self.user_id,
            None,
            event_type,
            {"actor": self._by.operator, "ts_event": self._by.at, "user_id": self.user_id, "exchange": exchange, "reason": reason},
        )

    async def note_credentials(self) -> None:
        """Withdrawals and trades right after a change of credentials are looked at closely (pipeline/gate/suspicion)."""
        await self.connection.execute("UPDATE users SET credentials_changed_at = $2 WHERE user_id = $1", self.user_id, self._by.at)


@asynccontextmanager
async def _changing(database: Database, user_id: str, by: By) -> AsyncIterator[_Change]:
    """Locks the user, and stores the event with what the block writes. Raises NotDone for an unknown user."""
    async with database.connection() as connection, connection.transaction():
        heads = await lock_chains(connection, [user_id])
        status = await connection.fetchval("SELECT status FROM users WHERE user_id = $1", user_id)
        if status is None:
            raise NotDone(f"There is no user {user_id}. Nothing was changed. `orchestrator users list` shows all.")
        trail = AuditTrail(heads, by.at)
        yield _Change(connection, user_id, status, trail, by)
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
        change = _Change(connection, user_id, status, trail := AuditTrail(heads, by.at), by)
        state = "waits for verification" if pending else "is verified"
        change.record(EventType.USER_ADDED, f"added as {role}, {state}")
        await store_events(connection, trail, by.at)
    after = "real-money orders are refused as USER_UNVERIFIED until `orchestrator users verify`" if pending else "may trade"
    return Done(f"User {user_id} ({role}) is added and {after}.")


async def set_user_status(database: Database, user_id: str, change: StatusChange, by: By) -> Done:
    """Verifies, freezes, unfreezes or closes a user. Raises NotDone where the user's status does not allow it."""
    move = _MOVES[change]
    async with _changing(database, user_id, by) as changing:
        if changing.status not in move.origins:
            instead = _INSTEAD.get((change, changing.status))
            if instead is not None:
                raise NotDone(f"User {user_id} {instead}. Nothing was changed.")
            if changing.status == "closed" and change is not StatusChange.CLOSE:
                raise NotDone(f"User {user_id} is closed for good. Nothing was changed; add a new user instead.")
            return Done(f"User {user_id} {move.already}; nothing was changed.", changed=False)
        if change is StatusChange.CLOSE:
            await _require_no_orders(changing)
        await changing.connection.execute("UPDATE users SET status = $2 WHERE user_id = $1", user_id, move.target)
        changing.record(move.event_type, f"{changing.status} → {move.target}")
    return Done(f"User {user_id} {move.done}.")


async def _require_no_orders(changing: _Change) -> None:
    unfinished = await changing.connection.fetchval(
        "SELECT count(*) FROM orders WHERE user_id = $1 AND executed_at IS NULL", changing.user_id
    )
    if unfinished:
        raise NotDone(
            f"User {changing.user_id} has {unfinished} orders that are not over, and a closed user cannot cancel them. Nothing was "
            f"changed: freeze the user, have the orders canceled (`orchestrator orders --user {changing.user_id}`), then close it."
        )


async def enrol_second_factor(
    database: Database, user_id: str, encryption_key_id: str, ciphertext: bytes, *, replace: bool, by: By
) -> Done:
    """Stores a new second factor. With `replace` it takes the place of an older one, whose codes count no more, locked or not."""
    async with _changing(database, user_id, by) as changing:
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
            raise NotDone(f"The second factor of {user_id} was enrolled at {enrolled_at}, later than this machine's time. Mend its clock.")
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
    async with _changing(database, user_id, by) as changing:
        factor = await changing.connection.fetchrow("SELECT locked, wrong_at FROM second_factors WHERE user_id = $1", user_id)
        if factor is None:
            raise NotDone(f"User {user_id} has no second factor. Nothing was changed. `orchestrator users enrol-totp {user_id}` makes one.")
        if not factor["locked"] and not factor["wrong_at"]:
            return Done(f"The second factor of {user_id} is not locked; nothing was changed.", changed=False)
        await changing.connection.execute("UPDATE second_factors SET locked = false, wrong_at = '{}' WHERE user_id = $1", user_id)
        was = "locked" if factor["locked"] else f"{len(factor['wrong_at'])} wrong codes"
        changing.record(EventType.USER_UNLOCKED_TOTP, f"second factor unlocked, was {was}")
    return Done(f"The second factor of {user_id} is unlocked (it was: {was}).")


async def add_key(database: Database, key: NewKey, *, replace: bool, by: By) -> Done:
    """Stores an exchange key. One that may not be used any more is replaced as it is; an active one with `replace` only."""
    async with _changing(database, key.user_id, by) as changing:
        if changing.status == "closed":
            raise NotDone(f"User {key.user_id} is closed for good. Nothing was changed.")
        before = await changing.connection.fetchrow(
            "SELECT status, exchange FROM api_keys WHERE user_id = $1 AND api_key_id = $2", key.user_id, key.api_key_id
        )
        if before is not None and before["exchange"] != key.exchange:
            # Orders name the key alone: the old ones must not be looked up at another exchange.
            raise NotDone(
                f"Key {key.api_key_id} of {key.user_id} is one for {before['exchange']}. Nothing was changed. Use another key id for "
                f"{key.exchange}."
            )
        if before is not None and before["status"] == "active" and not replace:
            raise NotDone(
                f"Key {key.api_key_id} of {key.user_id} is there already, and active. Nothing was changed. `--replace` puts the new one in "
                "its place; orders on their way are then looked up and canceled with the new one."
            )
        await changing.connection.execute(
            """
            INSERT INTO api_keys (user_id, api_key_id, exchange, permissions, expires_at, encryption_key_id, ciphertext, status, created_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, 'active', $8)
            ON CONFLICT (user_id, api_key_id) DO UPDATE SET permissions = $4, expires_at = $5, encryption_key_id = $6, ciphertext = $7,
                status = 'active', status_reason = NULL, created_at = $8
            """,
            key.user_id,
            key.api_key_id,
            key.exchange,
            sorted(key.permissions),
            key.expires_at,
            key.encryption_key_id,
            key.ciphertext,
            by.at,
        )
        await changing.note_credentials()
        permissions = " and ".join(sorted(key.permissions))
        until = "" if key.expires_at is None else f", until {key.expires_at.isoformat(timespec='seconds')}"
        was = "" if before is None else f", in place of one that was {before['status']}"
        what = f"key {key.api_key_id} for {permissions}{until}{was}"
        changing.record(EventType.KEY_ADDED, what, key.exchange)
    return Done(f"User {key.user_id} has {what} at {key.exchange}. `orchestrator keys check` asks the exchange about it.")


async def revoke_key(database: Database, user_id: str, api_key_id: str, by: By) -> Done:
    """Revokes a key, for good: no order that is decided after this uses it."""
    async with _changing(database, user_id, by) as changing:
        row = await changing.connection.fetchrow(
            "SELECT status, exchange FROM api_keys WHERE user_id = $1 AND api_key_id = $2", user_id, api_key_id
        )
        if row is None:
            raise _no_key(user_id, api_key_id)
        if row["status"] == "revoked":
            return Done(f"Key {api_key_id} of {user_id} is revoked already; nothing was changed.", changed=False)
        await changing.connection.execute(
            "UPDATE api_keys SET status = 'revoked', status_reason = $3 WHERE user_id = $1 AND api_key_id = $2",
            user_id,
            api_key_id,
            by.reason,
        )
        unfinished = await changing.connection.fetchval(
            "SELECT count(*) FROM orders WHERE user_id = $1 AND api_key_id = $2 AND executed_at IS NULL", user_id, api_key_id
        )
        changing.record(EventType.KEY_REVOKED, f"key {api_key_id} revoked, was {row['status']}", row["exchange"])
    stuck = (
        f" {unfinished} orders with it are not over: workers cannot look them up or cancel them any more. Cancel them at {row['exchange']} "
        "itself, or store a key under this id again."
    )
    return Done(
        f"Key {api_key_id} of {user_id} is revoked: new orders with it are refused from now on. Delete it at {row['exchange']} too."
        + (stuck if unfinished else "")
    )


def _no_key(user_id: str, api_key_id: str) -> NotDone:
    return NotDone(f"User {user_id} has no key {api_key_id}. Nothing was changed. `orchestrator keys list --user {user_id}` shows all.")


async def stored_key(database: Database, user_id: str, api_key_id: str) -> StoredKey:
    """A key whatever its status. Raises NotDone where there is none."""
    async with database.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM api_keys WHERE user_id = $1 AND api_key_id = $2", user_id, api_key_id)
    if row is None:
        raise _no_key(user_id, api_key_id)
    return StoredKey(
        user_id,
        api_key_id,
        row["exchange"],
        row["status"],
        frozenset(row["permissions"]),
        row["expires_at"],
        row["encryption_key_id"],
        row["ciphertext"],
    )


async def record_check(database: Database, key: StoredKey, refused: str | None, by: By) -> Done:
    """Notes what the exchange said about a key. `refused` is why it may not be used; None: it may, and is active again if it was refused.

    Raises NotDone when the key is not the one that was asked about any more.
    """
    async with _changing(database, key.user_id, by) as changing:
        row = await changing.connection.fetchrow(
            "SELECT status, ciphertext FROM api_keys WHERE user_id = $1 AND api_key_id = $2", key.user_id, key.api_key_id
        )
        if row is None or row["ciphertext"] != key.ciphertext or row["status"] != key.status:
            raise NotDone(
                f"Key {key.api_key_id} of {key.user_id} was changed by others while the exchange was asked. Nothing was noted; check again."
            )
        await changing.connection.execute(
            "UPDATE api_keys SET status = $3, status_reason = $4 WHERE user_id = $1 AND api_key_id = $2",
            key.user_id,
            key.api_key_id,
            "active" if refused is None else "refused",
            refused,
        )
        if refused is None:
            again = ", which refused it before" if key.status == "refused" else ""
            changing.record(EventType.KEY_CHECKED, f"key {key.api_key_id} is accepted by {key.exchange}{again}", key.exchange)
            return Done(f"{key.exchange} accepts key {key.api_key_id} of {key.user_id}{again}.", changed=key.status == "refused")
        changing.record(EventType.KEY_REFUSED, f"key {key.api_key_id} is refused by {key.exchange}: {refused}", key.exchange)
    return Done(
        f"{key.exchange} refuses key {key.api_key_id} of {key.user_id}: {refused}. New orders with it are refused here until a check finds "
        "it accepted, or another key is stored in its place."
    )


async def set_limit(database: Database, user_id: str, name: str, amount: Decimal | None, by: By) -> Done:
    """Overrides a limit for one user; None gives the default back. The caller has checked name and amount (`Limits.with_overrides`)."""
    async with _changing(database, user_id, by) as changing:
        before = await changing.connection.fetchval("SELECT amount FROM user_limits WHERE user_id = $1 AND name = $2", user_id, name)
        if before == amount:
            state = "has no limit of its own of this name" if amount is None else f"has {name} {format_decimal(amount)} already"
            return Done(f"User {user_id} {state}; nothing was changed.", changed=False)
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
                by.operator,
            )
        was = "the default" if before is None else format_decimal(before)
        what = f"{name} {was} → {'the default' if amount is None else format_decimal(amount)}"
        changing.record(EventType.LIMIT_CHANGED, what)
    return Done(f"Limit of {user_id}: {what}, from the next request on.")


async def administration_events(database: Database, accounts: Sequence[str]) -> list[AuditRow]:
    """The events of administration among the newest 10,000 of each account, in the order of its chain: what is to be on `trade.audit`.

    They are published again with every change, under the same keys and with the same bytes, so that one that was stored by a command that
    ended before it could publish gets there too.
    """
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
    return [AuditRow(row["account"], row["seq"], row["event_id"], row["order_id"], row["hash"], row["body"].encode()) for row in rows]
