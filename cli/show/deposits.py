"""`deposits`: what has arrived at the exchanges, what producers expect, and what a person must look at. Reads the database alone."""

from typing import Final

from sqlalchemy import text

from cli.access.database import Row, reading, rows_of
from cli.access.installation import Installation
from cli.show.entity import Listing, books_of, list_rows, show_one
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import to_text
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


async def show_deposits(
    installation: Installation, *, user_id: str | None, status: DepositStatus | None, limit: int, as_json: bool
) -> None:
    """Prints the newest deposits first. Raises CommandFailed when the database is out of reach."""
    listing = Listing(_DEPOSITS, _LISTED, "No matching deposits.")
    await list_rows(installation, listing, user_id=user_id, status=status.value if status else None, limit=limit, as_json=as_json)


async def show_announcements(
    installation: Installation, *, user_id: str | None, status: AnnouncementStatus | None, limit: int, as_json: bool
) -> None:
    """Prints what producers announced, the newest first. Raises CommandFailed when the database is out of reach."""
    listing = Listing(_ANNOUNCEMENTS, _EXPECTED, "No matching announced deposits.")
    await list_rows(installation, listing, user_id=user_id, status=status.value if status else None, limit=limit, as_json=as_json)


async def show_disputes(installation: Installation, *, user_id: str | None, limit: int, as_json: bool) -> None:
    """Prints what was not credited because it does not fit, the newest first. Raises CommandFailed when the database is out of reach."""
    await list_rows(installation, Listing(_DISPUTES, _DISPUTED, "Nothing is disputed."), user_id=user_id, limit=limit, as_json=as_json)


async def show_deposit(installation: Installation, name: str, *, as_json: bool) -> None:
    """Prints one deposit, found by its id, the exchange's id or its transaction, with its audit history and its ledger transfers.

    Raises CommandFailed where there is none, or where a transaction has several.
    """
    async with reading(installation) as connection:
        found = await rows_of(connection, _ONE, id=name)
        if len(found) != 1:
            raise _not_one(name, found)
        deposit = found[0]
        books = await books_of(connection, deposit["deposit_id"])
    show_one("deposit", deposit, books, as_json=as_json)


def _not_one(name: str, found: list[Row]) -> CommandFailed:
    if found:
        ids = ", ".join(to_text(row["deposit_id"]) for row in found)
        return CommandFailed(f"Transaction {to_text(name)} has {len(found)} deposits; name one of them: {ids}.", Exit.USAGE)
    return CommandFailed(
        f"There is no deposit {to_text(name)}. `orchestrator deposits` lists them. One that the exchange shows is seen at the next look, "
        "unless it came before the window of the watch or was part of an opening balance.",
        Exit.NOT_SO,
    )
