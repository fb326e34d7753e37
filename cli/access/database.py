"""Reading the database from a command: one read-only connection with a time limit, and what to say when it fails."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from cli.access.installation import Installation, without_password
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import Cell, reason_of, to_text
from infra.postgres.migrate import engine_url

Row = dict[str, Cell]


# Connecting plus the longest of these queries; a command that reads must not hang.
_CONNECT_SECONDS: Final = 8


_QUERY_SECONDS: Final = 20


_USER: Final = text("SELECT 1 FROM users WHERE user_id = :user_id")


@asynccontextmanager
async def reading(installation: Installation) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction that can only read. Raises CommandFailed when the database is out of reach or has no tables."""
    url = installation.database_url
    arguments = {
        "timeout": _CONNECT_SECONDS,
        "command_timeout": _QUERY_SECONDS,
        "server_settings": {"default_transaction_read_only": "on", "application_name": "orchestrator-cli"},
    }
    engine = create_async_engine(engine_url(url), poolclass=NullPool, connect_args=arguments)
    try:
        async with engine.connect() as connection:
            yield connection
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, SQLAlchemyError) as error:
        raise database_failed(installation, error) from None
    finally:
        await engine.dispose()


def database_failed(installation: Installation, error: Exception) -> CommandFailed:
    """What to say about an error of the database: it has no tables yet, or it cannot be used."""
    cause: BaseException = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        # SQLAlchemy's adapter puts the driver's error behind one of its own.
        cause = error.orig.__cause__ or error.orig
    if isinstance(cause, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        return CommandFailed(
            "The database has no tables of this version yet: no worker has started with it. Nothing was read. Start one with "
            "`orchestrator worker` or `orchestrator up`, or check ORCHESTRATOR_DATABASE_URL.",
            Exit.OUT_OF_REACH,
        )
    # Its own words, for a wrong password or database too; they hold no secret.
    return installation.out_of_reach("database", without_password(installation.database_url), reason_of(cause))


def unknown_user(user_id: str) -> CommandFailed:
    """The error for a user who is not there."""
    return CommandFailed(f"There is no user {to_text(user_id)}. Nothing was changed. `orchestrator users list` shows all.", Exit.NOT_SO)


async def require_user(connection: AsyncConnection, user_id: str | None) -> None:
    """Raises CommandFailed for a user who is not there: an empty listing would say that a misspelt one has nothing."""
    if user_id is not None and not await rows_of(connection, _USER, user_id=user_id):
        raise unknown_user(user_id)


async def rows_of(connection: AsyncConnection, statement: TextClause, **parameters: object) -> list[Row]:
    """A statement's rows as a listing takes them."""
    return [dict(row) for row in (await connection.execute(statement, parameters)).mappings()]
