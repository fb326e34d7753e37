"""`deposits`: what has arrived at the exchanges, what producers expect, and what a person must look at. Reads the database alone."""

from typing import Final

import orjson
from sqlalchemy import text

from cli.access.database import Row, reading, require_user, rows_of
from cli.access.installation import Installation
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import print_table, table_lines, to_json, to_text, write_line
from schemas.orders import AnnouncementStatus, DepositStatus

_LISTED: Final = ("deposit_id", "user_id", "exchange", "asset", "amount", "network", "status", "advanced", "transaction_id", "arrived_at")
_EXPECTED: Final = (
    "announcement_id", "user_id", "exchange", "asset", "amount", "network", "address", "status", "deposit_id", "expires_at",
)  # fmt: skip
_DISPUTED: Final = ("noted_at", "user_id", "deposit_id", "kind", "what")

_DEPOSITS: Final = text("""
    SELECT deposit_id, exchange_deposit_id, transaction_id, user_id, exchange, api_key_id, asset, network, address, address_tag, amount,
           status, advanced, arrived_at, detected_at, credited_at, reversed_at, updated_at
    FROM deposits
    WHERE (CAST(:user_id AS text) IS NULL OR user_id = :user_id) AND (CAST(:status AS text) IS NULL OR status = :status)
    ORDER BY arrived_at DESC, deposit_id LIMIT :limit
""")
_ANNOUNCEMENTS: Final = text("""
    SELECT announcement_id, user_id, idempotency_key, request_id, exchange, api_key_id, asset, amount, network, address, address_tag,
           status, reason_code, reason, deposit_id, exchange_deposit_id, expires_at, requested_at, decided_at, updated_at, executed_at
    FROM deposit_announcements
    WHERE (CAST(:user_id AS text) IS NULL OR user_id = :user_id) AND (CAST(:status AS text) IS NULL OR status = :status)
    ORDER BY requested_at DESC, announcement_id LIMIT :limit
""")
_DISPUTES: Final = text("""
    SELECT noted_at, user_id, deposit_id, kind, what FROM deposit_disputes
    WHERE CAST(:user_id AS text) IS NULL OR user_id = :user_id ORDER BY noted_at DESC, deposit_id LIMIT :limit
""")
_ONE: Final = text("SELECT * FROM deposits WHERE deposit_id = :id OR exchange_deposit_id = :id OR transaction_id = :id ORDER BY deposit_id")
_HISTORY: Final = text("SELECT hash, body FROM audit_events WHERE order_id = :id ORDER BY account, seq")
_TRANSFERS: Final = text("""
    SELECT transfer_id, kind, exchange, book, asset, debit_owner, credit_owner, amount, recorded_at
    FROM transfers WHERE order_id = :id ORDER BY recorded_at, transfer_id
""")


async def show_deposits(
    installation: Installation, *, user_id: str | None, status: DepositStatus | None, limit: int, as_json: bool
) -> None:
    """Prints the newest deposits first. Raises CommandFailed when the database is out of reach."""
    async with reading(installation) as connection:
        await require_user(connection, user_id)
        rows = await rows_of(connection, _DEPOSITS, user_id=user_id, status=status.value if status else None, limit=limit)
    print_table(rows, _LISTED, as_json=as_json, nothing="No matching deposits.")


async def show_announcements(
    installation: Installation, *, user_id: str | None, status: AnnouncementStatus | None, limit: int, as_json: bool
) -> None:
    """Prints what producers announced, the newest first. Raises CommandFailed when the database is out of reach."""
    async with reading(installation) as connection:
        await require_user(connection, user_id)
        rows = await rows_of(connection, _ANNOUNCEMENTS, user_id=user_id, status=status.value if status else None, limit=limit)
    print_table(rows, _EXPECTED, as_json=as_json, nothing="No matching announced deposits.")


async def show_disputes(installation: Installation, *, user_id: str | None, limit: int, as_json: bool) -> None:
    """Prints what was not credited because it does not fit, the newest first. Raises CommandFailed when the database is out of reach."""
    async with reading(installation) as connection:
        await require_user(connection, user_id)
        rows = await rows_of(connection, _DISPUTES, user_id=user_id, limit=limit)
    print_table(rows, _DISPUTED, as_json=as_json, nothing="Nothing is disputed.")


async def show_deposit(installation: Installation, name: str, *, as_json: bool) -> None:
    """Prints one deposit, found by its id, the exchange's id or its transaction, with its audit history and its ledger transfers.

    Raises CommandFailed where there is none, or where a transaction has several.
    """
    async with reading(installation) as connection:
        found = await rows_of(connection, _ONE, id=name)
        if len(found) != 1:
            raise _not_one(name, found)
        deposit = found[0]
        events = await rows_of(connection, _HISTORY, id=deposit["deposit_id"])
        transfers = await rows_of(connection, _TRANSFERS, id=deposit["deposit_id"])
    history: list[Row] = [{**orjson.loads(str(event["body"])), "hash": event["hash"]} for event in events]
    if as_json:
        write_line(to_json({"deposit": deposit, "history": history, "transfers": transfers}))
        return
    width = max(map(len, deposit))
    lines = [f"{field.replace('_', ' '):<{width}}  {to_text(value)}" for field, value in deposit.items() if value is not None]
    shown: list[Row] = [
        {
            "seq": event["seq"],
            "time": event["ts_event"],
            "event": event["event_type"],
            "status": event["status_after"],
            "what": event["reason"],
        }
        for event in history
    ]
    lines += ["", "== history", *table_lines(shown, ("seq", "time", "event", "status", "what"))]
    lines += ["", "== transfers", *table_lines(transfers, ("kind", "asset", "amount", "debit_owner", "credit_owner", "recorded_at"))]
    write_line("\n".join(lines))


def _not_one(name: str, found: list[Row]) -> CommandFailed:
    if found:
        ids = ", ".join(to_text(row["deposit_id"]) for row in found)
        return CommandFailed(f"Transaction {to_text(name)} has {len(found)} deposits; name one of them: {ids}.", Exit.USAGE)
    return CommandFailed(
        f"There is no deposit {to_text(name)}. `orchestrator deposits` lists them. One that the exchange shows is seen at the next look, "
        "unless it came before the window of the watch or was part of an opening balance.",
        Exit.NOT_SO,
    )
