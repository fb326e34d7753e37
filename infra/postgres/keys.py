"""Exchange keys as workers read them: ciphertext and version, never a secret."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from infra.postgres.database import Connection, Database
from infra.postgres.rows import columns_of
from pipeline.model.venue import KeyVersion


@dataclass(frozen=True, slots=True)
class SealedKey:
    """An exchange key as it is stored. `version` counts the keys under its id, `account_id` is the exchange's number of its account where
    that is known, `stored_at` when it was stored."""

    ciphertext: bytes
    version: int = 1
    account_id: str | None = None
    stored_at: datetime | None = None


async def key_versions(connection: Connection, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], KeyVersion]:
    """Which keys are stored now under these (user id, API key id)."""
    rows = await connection.fetch(
        """
        SELECT user_id, api_key_id, version, account_id FROM unnest($1::text[], $2::text[]) AS wanted (user_id, api_key_id)
        JOIN api_keys USING (user_id, api_key_id)
        """,
        *columns_of(sorted(set(wanted)), 2),
    )
    return {(row["user_id"], row["api_key_id"]): KeyVersion(row["version"], row["account_id"]) for row in rows}


async def note_account(database: Database, user_id: str, api_key_id: str, version: int, account_id: str) -> None:
    """Keeps the exchange's number of the account that a key belongs to, where it is not known yet; nothing for a key that was replaced."""
    async with database.connection() as connection:
        await connection.execute(
            """
            UPDATE api_keys SET account_id = $4
            WHERE user_id = $1 AND api_key_id = $2 AND version = $3 AND account_id IS NULL
            """,
            user_id,
            api_key_id,
            version,
            account_id,
        )


async def stored_keys(database: Database, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], SealedKey]:
    """Active keys by (user id, API key id); one that does not exist or may not be used is left out."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            """
            SELECT user_id, api_key_id, ciphertext, version, account_id, created_at
            FROM unnest($1::text[], $2::text[]) AS wanted (user_id, api_key_id)
            JOIN api_keys USING (user_id, api_key_id) WHERE status = 'active'
            """,
            *columns_of(sorted(set(wanted)), 2),
        )
    return {(row["user_id"], row["api_key_id"]): SealedKey(*tuple(row)[2:]) for row in rows}
