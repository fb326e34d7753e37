"""What is in doubt: operators' first words that wait for a second, and what the look-ups saw that proved nothing."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from infra.postgres.database import Connection, Database
from infra.postgres.rows import columns_of
from pipeline.books.changes import Proposal


async def proposals(connection: Connection, target_ids: Sequence[str]) -> dict[str, Proposal]:
    """The words that wait for a second operator, by the id of what they are about."""
    rows = await connection.fetch(
        "SELECT target_id, operator, command_id, figures, proposed_at FROM doubt_proposals WHERE target_id = ANY($1::text[])", target_ids
    )
    return {row["target_id"]: Proposal(*tuple(row)) for row in rows}


async def note_looks(database: Database, looks: Mapping[str, str], now: datetime) -> None:
    """Counts looks that proved nothing, by the id of the order or withdrawal, and keeps why. An observation, not a state: nothing is
    decided by it."""
    if not looks:
        return
    async with database.connection() as connection:
        await connection.execute(
            """
            INSERT INTO doubt_looks AS known (order_id, looks, detail, looked_at)
            SELECT order_id, 1, detail, $3 FROM unnest($1::text[], $2::text[]) AS given (order_id, detail)
            ON CONFLICT (order_id) DO UPDATE SET looks = known.looks + 1, detail = EXCLUDED.detail, looked_at = EXCLUDED.looked_at
            """,
            *columns_of(sorted(looks.items()), 2),
            now,
        )
