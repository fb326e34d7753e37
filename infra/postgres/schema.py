"""Whether a database has the newest schema: one question, so that a worker that starts again need not load what makes one."""

import asyncio
from pathlib import Path
from typing import Final

import asyncpg

from pipeline.model.invariants import Retryable

_VERSIONS: Final = Path(__file__).parent / "migrations" / "versions"
_SECONDS_MAX: Final = 10


class DatabaseUnfit(Exception):
    """The database cannot be used as it is. A person must decide; nothing is changed."""


def newest_revision() -> str:
    """The revision of the newest migration: the number that its file's name begins with."""
    return max(path.name.partition("_")[0] for path in _VERSIONS.glob("[0-9]*.py"))


async def is_newest(database_url: str) -> bool:
    """Whether every migration is applied. False as well where the database refuses the question: who migrates it is told why.

    Raises Retryable when it is out of reach.
    """
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            connection = await asyncpg.connect(database_url, command_timeout=_SECONDS_MAX)
            try:
                return bool(await connection.fetchval("SELECT version_num FROM alembic_version") == newest_revision())
            finally:
                await connection.close(timeout=_SECONDS_MAX)
    except (OSError, TimeoutError) as error:
        raise Retryable(f"the database is out of reach ({type(error).__name__}: {error})") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError):
        return False
