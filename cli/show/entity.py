"""One way to list orders, withdrawals, deposits and what else has a user and a state, and one way to show one with its books.

Start with `list_rows` and `show_one`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import TextClause

from cli.access.database import Row, reading, require_user, rows_of
from cli.access.installation import Installation
from cli.terminal.output import Cell, print_table, table_lines, to_json, to_text, write_line

_HISTORY: Final = text("SELECT account, seq, event_id, hash, body FROM audit_events WHERE order_id = :id ORDER BY account, seq")
_TRANSFERS: Final = text("""
    SELECT transfer_id, kind, exchange, book, asset, debit_owner, credit_owner, amount, recorded_at
    FROM transfers WHERE order_id = :id ORDER BY recorded_at, transfer_id
""")
_HISTORY_COLUMNS: Final = ("seq", "time", "event", "status", "what", "actor")
_TRANSFER_COLUMNS: Final = ("kind", "asset", "amount", "debit_owner", "credit_owner", "recorded_at")


@dataclass(frozen=True, slots=True)
class Listing:
    """A listing: a statement with `user_id`, `status` and `limit`, the columns that fit a terminal, and what to say of none."""

    statement: TextClause
    columns: Sequence[str]
    nothing: str


async def list_rows(
    installation: Installation, listing: Listing, *, user_id: str | None, limit: int, as_json: bool, **parameters: str | None
) -> None:
    """Prints a listing. Raises CommandFailed for an unknown user or when the database is out of reach."""
    async with reading(installation) as connection:
        await require_user(connection, user_id)
        rows = await rows_of(connection, listing.statement, user_id=user_id, limit=limit, **parameters)
    print_table(rows, listing.columns, as_json=as_json, nothing=listing.nothing)


@dataclass(frozen=True, slots=True)
class Books:
    """What is written of one order, withdrawal or deposit: its audit events, oldest first, and its ledger transfers."""

    history: list[Row]
    transfers: list[Row]


async def books_of(connection: AsyncConnection, entity_id: Cell) -> Books:
    """What is written under this id."""
    events = await rows_of(connection, _HISTORY, id=entity_id)
    return Books([event_of(event) for event in events], await rows_of(connection, _TRANSFERS, id=entity_id))


def event_of(row: Row) -> Row:
    """An audit event with its hash, from its row."""
    return {**orjson.loads(str(row["body"])), "hash": row["hash"]}


def show_one(
    kind: str, row: Row, books: Books, *, as_json: bool, more: Mapping[str, tuple[list[Row], Sequence[str]]] | None = None
) -> None:
    """Prints one row under the name of its kind with its books; `more` are further lists with their columns, shown where they have any."""
    besides = more or {}
    if as_json:
        lists = {name: rows for name, (rows, _) in besides.items()}
        write_line(to_json({kind: row, "history": books.history, "transfers": books.transfers, **lists}))
        return
    lines = [*field_lines(row), "", *history_lines(books.history), "", *section("transfers", books.transfers, _TRANSFER_COLUMNS)]
    for name, (rows, columns) in besides.items():
        lines += ["", *section(name, rows, columns)] if rows else []
    write_line("\n".join(lines))


def field_lines(row: Mapping[str, Cell]) -> list[str]:
    """A row's fields, one a line; those that say nothing are left out."""
    width = max(map(len, row))
    return [f"{name.replace('_', ' '):<{width}}  {to_text(value)}" for name, value in row.items() if value is not None]


def history_lines(history: Sequence[Mapping[str, Cell]]) -> list[str]:
    """Audit events for people."""
    return section("history", [_event_row(event) for event in history], _HISTORY_COLUMNS)


def section(title: str, rows: list[Row], columns: Sequence[str]) -> list[str]:
    """A titled table."""
    return [f"== {title}", *(table_lines(rows, columns) if rows else ["none"])]


def _event_row(event: Mapping[str, Cell]) -> Row:
    before, after = event.get("status_before"), event.get("status_after")
    parts: list[Cell] = [event.get("reason_code"), event.get("reason"), event.get("warning")]
    if event.get("filled_quantity") not in (None, "0"):
        parts.append(f"filled {event['filled_quantity']}")
    return {
        "seq": event.get("seq"),
        "time": event.get("ts_event"),
        "event": event.get("event_type"),
        "status": after if before is None or before == after else f"{before} → {after}",
        "what": " · ".join(str(part) for part in parts if part) or None,
        "actor": event.get("actor"),
    }
