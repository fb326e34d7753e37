"""Brings a database to the newest schema. Workers that start at once queue up on an advisory lock; the first one migrates."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

# Any number will do, as long as it is always the same: the lock's name.
_LOCK: Final = 7_020_110


def engine_url(database_url: str) -> str:
    """SQLAlchemy's form of a `postgresql://` URL, for its asyncpg dialect."""
    return database_url.replace("postgresql://", "postgresql+asyncpg://", 1)


async def migrate(database_url: str) -> None:
    """Applies every migration that is missing. Raises what asyncpg raises when the database is out of reach."""
    engine = create_async_engine(engine_url(database_url), poolclass=NullPool, connect_args={"timeout": 10})
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
