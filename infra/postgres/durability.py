"""Whether what the database has committed is on its disk: an order's intent must survive a power failure before the order is sent.

`synchronous_commit` is a matter of each session, so a worker's sessions raise it to `on` themselves, wherever somebody has set less, and
leave what is more (`remote_apply`). `fsync` and `full_page_writes` are the server's alone.
"""

from collections.abc import Mapping
from typing import Final

import asyncpg

from infra.postgres.database import Database
from infra.postgres.schema import DatabaseUnfit

SETTINGS: Final = ("fsync", "full_page_writes", "synchronous_commit")
_ASKED: Final = "SELECT name, setting FROM pg_settings WHERE name = ANY($1)"
_DURABLE: Final = frozenset({"on", "remote_apply"})


def durability_problems(settings: Mapping[str, str]) -> list[str]:
    """What would lose a commit, as `name is value`."""
    return [
        f"{name} is {settings.get(name)}"
        for name in SETTINGS
        if settings.get(name) not in _DURABLE
    ]


async def require_durable(database: Database) -> None:
    """Raises DatabaseUnfit where a power failure would lose what was committed, Retryable when the database is out of reach."""
    async with database.connection() as connection:
        rows: list[asyncpg.Record] = await connection.fetch(_ASKED, list(SETTINGS))
    problems = durability_problems({row["name"]: row["setting"] for row in rows})
    if problems:
        raise DatabaseUnfit(
            f"{', '.join(problems)}: a power failure would lose what was committed, and an order that was sent would not be known. Real "
            "money is refused with that; nothing was read or sent. Turn it on in postgresql.conf and reload."
        )
