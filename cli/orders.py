"""`orders`, `balances`: the state as the database has it. Reads only.

Start with `show_orders`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from cli.installation import Installation, without_password
from cli.output import Cell, CommandFailed, Exit, print_table, reason_of, to_text
from infra.postgres.migrate import engine_url
from schemas.orders import OrderStatus

Row = dict[str, Cell]

# Connecting plus the longest of these queries; a command that reads must not hang.
_CONNECT_SECONDS: Final = 8
_QUERY_SECONDS: Final = 20

_LISTED: Final = (
    "order_id", "user_id", "mode", "symbol", "side", "order_type", "quantity", "quote_quantity", "price", "status", "cum_quantity",
    "reason_code", "requested_at",
)  # fmt: skip

_ORDERS: Final = text("""
    SELECT order_id, client_order_id, exchange_order_id, user_id, idempotency_key, request_id, mode, exchange, api_key_id, symbol, side,
           order_type, time_in_force, quantity, quote_quantity, price, status, reason_code, reason, cum_quantity, cum_quote,
           fee, fee_asset, hold_asset, hold_amount, expires_at, requested_at, decided_at, updated_at, executed_at
    FROM orders
    WHERE (CAST(:user_id AS text) IS NULL OR user_id = :user_id) AND (CAST(:status AS text) IS NULL OR status = :status)
    ORDER BY requested_at DESC, order_id LIMIT :limit
""")
_USER: Final = text("SELECT 1 FROM users WHERE user_id = :user_id")
_BALANCES: Final = text("""
    SELECT user_id, exchange, book, asset, posted, pending, posted - pending AS available
    FROM balances WHERE CAST(:user_id AS text) IS NULL OR user_id = :user_id
    ORDER BY user_id, exchange, book, asset
""")


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


async def _rows(connection: AsyncConnection, statement: Any, **parameters: object) -> list[Row]:
    return [dict(row) for row in (await connection.execute(statement, parameters)).mappings()]


def unknown_user(user_id: str) -> CommandFailed:
    """The error for a user who is not there."""
    return CommandFailed(f"There is no user {to_text(user_id)}. Nothing was changed. `orchestrator users list` shows all.", Exit.NOT_SO)


async def require_user(connection: AsyncConnection, user_id: str | None) -> None:
    """Raises CommandFailed for a user who is not there: an empty listing would say that a misspelt one has nothing."""
    if user_id is not None and not await _rows(connection, _USER, user_id=user_id):
        raise unknown_user(user_id)


async def show_orders(installation: Installation, *, user_id: str | None, status: OrderStatus | None, limit: int, as_json: bool) -> None:
    """Prints the newest orders first. Raises CommandFailed for an unknown user or when the database is out of reach."""
    async with reading(installation) as connection:
        await require_user(connection, user_id)
        rows = await _rows(connection, _ORDERS, user_id=user_id, status=status.value if status else None, limit=limit)
    print_table(rows, _LISTED, as_json=as_json, nothing="No order fits.")


async def show_balances(installation: Installation, *, user_id: str | None, as_json: bool) -> None:
    """Prints what each account has posted, what orders hold of it (pending), and the rest. Amounts in units of the asset."""
    async with reading(installation) as connection:
        await require_user(connection, user_id)
        rows = await _rows(connection, _BALANCES, user_id=user_id)
    columns = ("user_id", "exchange", "book", "asset", "posted", "pending", "available")
    print_table(rows, columns, as_json=as_json, nothing="There are no accounts.")
