"""What operators change about exchange keys: adding, revoking, and what the exchange said when it was asked.

The invariants are those of `administration`: one transaction under the user's lock, with its event, and no secret in any of it. Here too:
1. A key's exchange never changes: orders name the key alone, and old ones must not be looked up elsewhere.
2. What the exchange said counts only for the very key that it was asked about.
3. A key is replaced, while something stands at the exchange with it, only by one that is proven to be of the same account.

Start with `add_key`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from infra.postgres.admin.administration import Done, NotDone, UserChange, changing_user
from infra.postgres.admin.operators import By
from infra.postgres.database import Connection, Database
from pipeline.gate.four_eyes import key_needs_two
from schemas.audit import EventType

Permission = Literal["trade", "withdraw"]


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
    # The exchange's number of the account that it belongs to, of that of the key before it, and which that was; as far as they were asked.
    account_id: str | None = None
    account_before: str | None = None
    version_before: int | None = None


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
    version: int = 1
    account_id: str | None = None


_STANDING: Final = """
    SELECT order_id AS id, status FROM orders
    WHERE user_id = $1 AND api_key_id = $2 AND mode = 'live' AND executed_at IS NULL AND status <> 'accepted'
    UNION ALL SELECT withdrawal_id, status FROM withdrawals
    WHERE user_id = $1 AND api_key_id = $2 AND executed_at IS NULL AND status IN ('submitting', 'in_doubt', 'processing')
    ORDER BY id LIMIT $3
"""
_WATCHED: Final = """
    SELECT (SELECT count(*) FROM orders WHERE user_id = $1 AND api_key_id = $2 AND watched_until > coalesce($3, now()))
        + (SELECT count(*) FROM withdrawals WHERE user_id = $1 AND api_key_id = $2 AND watched_until > coalesce($3, now()))
"""
_NAMED_MAX: Final = 5


async def what_stands(connection: Connection, user_id: str, api_key_id: str) -> list[str]:
    """The orders and withdrawals, by id with their status, that stand at the exchange with a key or may do so; the first few."""
    rows = await connection.fetch(_STANDING, user_id, api_key_id, _NAMED_MAX + 1)
    return [f"{row['id']} ({row['status']})" for row in rows]


async def watched_with(connection: Connection, user_id: str, api_key_id: str, now: datetime | None = None) -> int:
    """How many orders and withdrawals count as not executed and are looked up with a key all the same."""
    return int(await connection.fetchval(_WATCHED, user_id, api_key_id, now))


async def _require_answerable(changing: UserChange, key: NewKey, now: datetime) -> str:
    """What was sent with a key is looked up and canceled with it: another account's books would seem to prove that it was never there.

    Returns what to tell of what counts as not executed and is only watched: it holds nothing up, as a key that somebody else may have must
    go at once.
    """
    standing = await what_stands(changing.connection, changing.user_id, key.api_key_id)
    before = await changing.connection.fetchval(
        "SELECT account_id FROM api_keys WHERE user_id = $1 AND api_key_id = $2", changing.user_id, key.api_key_id
    )
    known = before or key.account_before
    if key.account_id is not None and key.account_id == known:
        return ""
    if not standing:
        watched = await watched_with(changing.connection, changing.user_id, key.api_key_id, now)
        if not watched:
            return ""
        return (
            f" {watched} orders or withdrawals that counted as not executed are still watched, and the new key is not proven to be of "
            "their account: they are not found with it. Look at the exchange's own list for the 24 hours after their end."
        )
    named = ", ".join(standing[:_NAMED_MAX]) + (" and more" if len(standing) > _NAMED_MAX else "")
    why = "belongs to another account" if known and key.account_id else "is not proven to belong to the same account"
    raise NotDone(
        f"With key {key.api_key_id} of {changing.user_id} stand at {key.exchange}: {named}. The new key {why}, so it could not tell what "
        "became of them. Nothing was changed. Wait until they are over, or cancel them, or store the new key under another key id."
    )


async def _keep_account(changing: UserChange, key: NewKey) -> None:
    """Whose the key is, and so for what was sent with the one before it: it answers for that as well."""
    if key.account_id is None:
        return
    await changing.connection.execute(
        "UPDATE api_keys SET account_id = $3 WHERE user_id = $1 AND api_key_id = $2", changing.user_id, key.api_key_id, key.account_id
    )
    if key.account_id == key.account_before:
        for table in ("orders", "withdrawals"):
            await changing.connection.execute(
                f"UPDATE {table} SET account_id = $3 WHERE user_id = $1 AND api_key_id = $2 AND key_version = $4 "  # noqa: S608 — literals
                f"AND account_id IS NULL AND (executed_at IS NULL OR watched_until IS NOT NULL)",
                changing.user_id,
                key.api_key_id,
                key.account_id,
                key.version_before,
            )


async def add_key(database: Database, key: NewKey, *, replace: bool, by: By) -> Done:
    """Stores an exchange key. One that may not be used any more is replaced as it is; an active one with `replace` only."""
    async with changing_user(database, key.user_id, by) as changing:
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
                "its place; what stands at the exchange is then looked up and canceled with the new one, which must be of the same account."
            )
        permissions = " and ".join(sorted(key.permissions))
        until = "" if key.expires_at is None else f", until {key.expires_at.isoformat(timespec='seconds')}"
        if key_needs_two(key.permissions):
            await changing.require_approval("keys add", f"key {key.api_key_id} for {permissions} at {key.exchange}{until}")
        unanswered = "" if before is None else await _require_answerable(changing, key, by.at)
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
        await _keep_account(changing, key)
        await changing.note_credentials()
        was = "" if before is None else f", in place of one that was {before['status']}"
        what = f"key {key.api_key_id} for {permissions}{until}{was}"
        changing.record(EventType.KEY_ADDED, what, key.exchange, more={"target_id": key.api_key_id})
    return Done(f"User {key.user_id} has {what} at {key.exchange}. `orchestrator keys check` asks the exchange about it.{unanswered}")


async def revoke_key(database: Database, user_id: str, api_key_id: str, by: By) -> Done:
    """Revokes a key, for good: no order that is decided after this uses it."""
    async with changing_user(database, user_id, by) as changing:
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
        what = f"key {api_key_id} revoked, was {row['status']}"
        changing.record(EventType.KEY_REVOKED, what, row["exchange"], more={"target_id": api_key_id})
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
        row["version"],
        row["account_id"],
    )


async def record_check(database: Database, key: StoredKey, refused: str | None, by: By) -> Done:
    """Notes what the exchange said about a key. `refused` is why it may not be used; None: it may, and is active again if it was refused.

    Raises NotDone when the key is not the one that was asked about any more.
    """
    async with changing_user(database, key.user_id, by) as changing:
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
            accepted = f"key {key.api_key_id} is accepted by {key.exchange}{again}"
            changing.record(EventType.KEY_CHECKED, accepted, key.exchange, more={"target_id": key.api_key_id})
            return Done(f"{key.exchange} accepts key {key.api_key_id} of {key.user_id}{again}.", changed=key.status == "refused")
        what = f"key {key.api_key_id} is refused by {key.exchange}: {refused}"
        changing.record(EventType.KEY_REFUSED, what, key.exchange, more={"target_id": key.api_key_id})
    return Done(
        f"{key.exchange} refuses key {key.api_key_id} of {key.user_id}: {refused.rstrip('.')}. New orders with it are refused here until a "
        "check finds it accepted, or another key is stored in its place."
    )
