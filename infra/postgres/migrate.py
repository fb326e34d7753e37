"""Brings a database to the newest schema. Workers that start at once queue up on an advisory lock; the first one migrates."""

import asyncio
from pathlib import Path
from typing import Final

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from infra.postgres.schema import DatabaseUnfit
from infra.postgres.sqlstates import outside_a_step
from pipeline.model.invariants import Retryable

# Any number will do, as long as it is always the same: the lock's name.
_LOCK: Final = 7_020_110
_CONNECT_SECONDS_MAX: Final = 10
# With the wait for another worker's migration.
_MIGRATION_SECONDS_MAX: Final = 600


def engine_url(database_url: str) -> str:
    """SQLAlchemy's form of a `postgresql://` or `postgres://` URL, for its asyncpg dialect.

    The dialect hands the query to asyncpg as arguments, where libpq's `sslmode` is called `ssl`. Raises ArgumentError for what is no URL.
    """
    url = make_url(database_url)
    if "sslmode" in url.query:
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": url.query["sslmode"]})
    return url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


async def migrate(database_url: str, revision: str = "head") -> None:
    """Applies every migration that is missing, up to a revision.

    Raises Retryable when the database is out of reach, DatabaseUnfit when it refuses us or was made by a newer version.
    """
    try:
        engine = create_async_engine(engine_url(database_url), poolclass=NullPool, connect_args={"timeout": _CONNECT_SECONDS_MAX})
    except (ArgumentError, ValueError) as error:
        # Without the text, and without the error behind it: they may show the address with its password.
        raise DatabaseUnfit(
            f"ORCHESTRATOR_DATABASE_URL is not an address that can be used ({type(error).__name__}). Nothing was read or sent. "
            "It looks like this: postgresql://user:password@host:5432/name"
        ) from None
    try:
        async with asyncio.timeout(_MIGRATION_SECONDS_MAX):
            await _migrate(engine, revision)
    except (OSError, TimeoutError) as error:
        raise Retryable(f"the database is out of reach ({type(error).__name__}: {error})") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise outside_a_step(error) or error from error
    except DBAPIError as error:
        # SQLAlchemy wraps the driver's error in one of its own, and that in this one.
        cause = error.orig.__cause__ if error.orig is not None else None
        raise (outside_a_step(cause) if cause is not None else None) or error from error
    except CommandError as error:
        raise DatabaseUnfit(
            f"the database's schema is not one that this version knows ({error}). Nothing was changed: all orders and balances are still "
            "in it. Start the version that made it, or a newer one."
        ) from error


async def _migrate(engine: AsyncEngine, revision: str) -> None:
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            await connection.run_sync(_upgrade, revision)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
