"""`orders`, `balances`: the state as the database has it. Reads only.

Start with `show_orders`.
"""

from typing import Final

from sqlalchemy import text

from cli.access.database import reading, require_user, rows_of
from cli.access.installation import Installation
from cli.show.entity import Listing, list_rows
from cli.terminal.output import print_table
from schemas.orders import OrderStatus

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
_BALANCES: Final = text("""
    SELECT user_id, exchange, book, asset, posted, pending, posted - pending AS available
    FROM balances WHERE CAST(:user_id AS text) IS NULL OR user_id = :user_id
    ORDER BY user_id, exchange, book, asset
""")


async def show_orders(installation: Installation, *, user_id: str | None, status: OrderStatus | None, limit: int, as_json: bool) -> None:
    """Prints the newest orders first. Raises CommandFailed for an unknown user or when the database is out of reach."""
    listing = Listing(_ORDERS, _LISTED, "No matching orders.")
    await list_rows(installation, listing, user_id=user_id, status=status.value if status else None, limit=limit, as_json=as_json)


async def show_balances(installation: Installation, *, user_id: str | None, as_json: bool) -> None:
    """Prints what each account has posted, what orders hold of it (pending), and the rest. Amounts in units of the asset."""
    async with reading(installation) as connection:
        await require_user(connection, user_id)
        rows = await rows_of(connection, _BALANCES, user_id=user_id)
    columns = ("user_id", "exchange", "book", "asset", "posted", "pending", "available")
    print_table(rows, columns, as_json=as_json, nothing="There are no accounts.")
