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
from pipeline.invariants import Retryable

# Any number will do, as long as it is always the same: the lock's name.
_LOCK: Final = 7_020_110
_CONNECT_SECONDS_MAX: Final = 10
# With the wait for another worker's migration.
_MIGRATION_SECONDS_MAX: Final = 600
# SQLSTATE classes and codes (PostgreSQL manual, appendix A): who we are, where we want to, and what we may do.
_UNFIT: Final = ("28", "3D000", "42501", "3F000")
# Connection, resources (a full disk is one), somebody stopped the server, the system below it.
_PASSING: Final = ("08", "53", "57P", "58")


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
        raise _named(str(getattr(error, "sqlstate", None) or ""), str(error), error) from error
    except DBAPIError as error:
        raise _named(str(getattr(error.orig, "sqlstate", None) or ""), str(error.orig), error) from error
    except CommandError as error:
        raise DatabaseUnfit(
            f"the database's schema is not one that this version knows ({error}). Nothing was changed: all orders and balances are still "
            "in it. Start the version that made it, or a newer one."
        ) from error


def _named(sqlstate: str, text: str, error: Exception) -> Exception:
    """The exception that an error of the database calls for; a defect stays what it is."""
    if sqlstate.startswith(_UNFIT):
        return DatabaseUnfit(
            f"the database refuses: {text} (SQLSTATE {sqlstate}). Nothing was read or sent. Check ORCHESTRATOR_DATABASE_URL, and that its "
            "user may create tables."
        )
    if sqlstate.startswith(_PASSING) or isinstance(error, (asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
        return Retryable(f"the database cannot work now: {text} (SQLSTATE {sqlstate or 'none'})")
    return error


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
