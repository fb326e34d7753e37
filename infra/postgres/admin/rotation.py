"""Re-encryption of every stored secret under the newest master key.

Invariants:
1. One rotation at a time: it holds an advisory lock of its session.
2. A batch of users is one transaction under their locks, so a key or second factor that is stored meanwhile is not overwritten. A rotation
   that was cut off goes on where it stopped: what is under the newest key already is not touched again.
3. The last batch writes the one audit event, in the chain of administration.
4. What no master key decrypts is left as it is, and named.

Start with `rotate`.
"""

from dataclasses import dataclass, field
from typing import Final

from infra.keyring import Keyring, MasterKeyError
from infra.postgres.admin.accounts import store_events
from infra.postgres.admin.administration import ADMINISTRATION, NotDone
from infra.postgres.admin.operators import By
from infra.postgres.database import Connection, Database
from infra.postgres.rows import columns_of
from infra.postgres.step import lock_chains
from pipeline.books.audit import AuditTrail
from schemas.audit import EventType

# Any number will do, as long as it is always the same: the lock's name.
_LOCK: Final = 7_020_111
USERS_PER_BATCH: Final = 200

_DUE: Final = """
    SELECT user_id FROM (
        SELECT user_id FROM api_keys WHERE encryption_key_id <> $1 UNION SELECT user_id FROM second_factors WHERE encryption_key_id <> $1
    ) AS due WHERE user_id > $2 ORDER BY user_id LIMIT $3
"""
_UPDATE_KEYS: Final = """
    UPDATE api_keys SET ciphertext = given.ciphertext, encryption_key_id = $4
    FROM unnest($1::text[], $2::text[], $3::bytea[]) AS given (user_id, api_key_id, ciphertext)
    WHERE api_keys.user_id = given.user_id AND api_keys.api_key_id = given.api_key_id
"""
_UPDATE_FACTORS: Final = """
    UPDATE second_factors SET ciphertext = given.ciphertext, encryption_key_id = $3
    FROM unnest($1::text[], $2::bytea[]) AS given (user_id, ciphertext) WHERE second_factors.user_id = given.user_id
"""
_TOTALS: Final = """
    SELECT (SELECT count(*) FROM api_keys WHERE encryption_key_id = $1) AS keys,
        (SELECT count(*) FROM second_factors WHERE encryption_key_id = $1) AS factors
"""


@dataclass(slots=True)
class Rotation:
    """How many secrets were re-encrypted, and those that could not be, as `user/key` or `user (second factor)`."""

    key_id: str
    keys: int = 0
    factors: int = 0
    unreadable: list[str] = field(default_factory=list)


async def rotate(database: Database, keyring: Keyring, by: By, users_per_batch: int = USERS_PER_BATCH) -> Rotation:
    """Re-encrypts what is not under the keyring's newest key. Raises NotDone while another rotation runs."""
    async with database.connection() as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            raise NotDone("Another `orchestrator keys rotate` is running. This one changed nothing; wait for that one to end.")
        try:
            return await _rotate(connection, keyring, by, users_per_batch)
        finally:
            if not connection.is_closed():
                await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


async def _rotate(connection: Connection, keyring: Keyring, by: By, users_per_batch: int) -> Rotation:
    rotation = Rotation(keyring.key_id)
    after = ""
    while True:
        # One more than the batch has, to know whether it is the last.
        rows = await connection.fetch(_DUE, keyring.key_id, after, users_per_batch + 1)
        users = [row["user_id"] for row in rows[:users_per_batch]]
        if not users:
            return rotation
        await _rotate_batch(connection, keyring, by, users, rotation, last=len(rows) <= users_per_batch)
        after = users[-1]


async def _rotate_batch(connection: Connection, keyring: Keyring, by: By, users: list[str], rotation: Rotation, *, last: bool) -> None:
    async with connection.transaction():
        heads = await lock_chains(connection, [ADMINISTRATION, *users] if last else users)
        keys = await _renewed_keys(connection, keyring, users, rotation.unreadable)
        factors = await _renewed_factors(connection, keyring, users, rotation.unreadable)
        await connection.execute(_UPDATE_KEYS, *columns_of(keys, 3), keyring.key_id)
        await connection.execute(_UPDATE_FACTORS, *columns_of(factors, 2), keyring.key_id)
        rotation.keys += len(keys)
        rotation.factors += len(factors)
        if last and (rotation.keys or rotation.factors):
            await _record(connection, AuditTrail({ADMINISTRATION: heads[ADMINISTRATION]}, by.at), rotation, by)


async def _renewed_keys(connection: Connection, keyring: Keyring, users: list[str], unreadable: list[str]) -> list[tuple[str, str, bytes]]:
    rows = await connection.fetch(
        """
        SELECT user_id, api_key_id, encryption_key_id, ciphertext FROM api_keys
        WHERE user_id = ANY($1::text[]) AND encryption_key_id <> $2 ORDER BY user_id, api_key_id
        """,
        users,
        keyring.key_id,
    )
    renewed = []
    for user_id, api_key_id, encryption_key_id, ciphertext in rows:
        try:
            renewed.append((user_id, api_key_id, keyring.renewed(user_id, api_key_id, ciphertext, encryption_key_id)))
        except MasterKeyError:
            unreadable.append(f"{user_id}/{api_key_id}")
    return renewed


async def _renewed_factors(connection: Connection, keyring: Keyring, users: list[str], unreadable: list[str]) -> list[tuple[str, bytes]]:
    rows = await connection.fetch(
        """
        SELECT user_id, encryption_key_id, ciphertext FROM second_factors
        WHERE user_id = ANY($1::text[]) AND encryption_key_id <> $2 ORDER BY user_id
        """,
        users,
        keyring.key_id,
    )
    renewed = []
    for user_id, encryption_key_id, ciphertext in rows:
        try:
            renewed.append((user_id, keyring.renewed_second_factor(user_id, ciphertext, encryption_key_id)))
        except MasterKeyError:
            unreadable.append(f"{user_id} (second factor)")
    return renewed


async def _record(connection: Connection, trail: AuditTrail, rotation: Rotation, by: By) -> None:
    totals = await connection.fetchrow(_TOTALS, rotation.key_id)
    keys, factors = (totals["keys"], totals["factors"]) if totals is not None else (0, 0)
    reason = f"{keys} API keys and {factors} second factors are encrypted under master key {rotation.key_id} now"
    if rotation.unreadable:
        reason += f"; {len(rotation.unreadable)} could not be decrypted and are as they were"
    trail.append(ADMINISTRATION, None, EventType.KEY_ROTATED, {**by.facts(), "reason": reason})
    await store_events(connection, trail, by.at)
