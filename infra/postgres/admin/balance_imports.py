"""Opening balances: what an exchange account holds becomes the user's, once.

Invariants:
1. One exchange account is imported once, whoever asks, with whichever of its keys: its row is the exchange's own id of the account, and the
   transfers carry that id in theirs. Two that ask at once queue up behind the row.
2. It is booked only onto nothing: the user's real balances at the exchange are zero, nothing of it is under way, and the user's audit chain
   has not moved since before the exchange was asked. So what the exchange showed is all there is, and none of it is in the ledger already.
3. Nothing at the exchange is locked: orders that this system did not make could change the balances behind the ledger's back.

Start with `import_balances`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

import orjson

from infra.postgres.admin.administration import NotDone, UserChange, changing_user
from infra.postgres.admin.operators import By
from infra.postgres.database import Database
from infra.postgres.transfers import apply_transfers
from pipeline.books.ledger import AccountKey, Transfer, TransferKind, book_of, opening
from pipeline.model.venue import AccountBalances
from schemas.audit import EventType
from schemas.decimals import format_decimal
from schemas.orders import Mode
from schemas.wire import format_time

_BOOK: Final = book_of(Mode.LIVE)
_UNDER_WAY: Final = """
    SELECT (SELECT count(*) FROM orders WHERE user_id = $1 AND exchange = $2 AND mode = 'live' AND executed_at IS NULL) AS orders,
        (SELECT count(*) FROM withdrawals WHERE user_id = $1 AND exchange = $2 AND executed_at IS NULL) AS withdrawals
"""
_POSTED: Final = "SELECT asset, posted FROM balances WHERE user_id = $1 AND exchange = $2 AND book = $3 AND posted > 0 ORDER BY asset"


@dataclass(frozen=True, slots=True)
class AskedAccount:
    """Whose account it is and with which key the exchange was asked. `seq` was the newest event of the user's chain before that."""

    user_id: str
    exchange: str
    api_key_id: str
    seq: int
    looked_up_at: datetime


@dataclass(frozen=True, slots=True)
class Imported:
    """What was booked, by asset."""

    account_id: str
    amounts: Mapping[str, Decimal]


async def chain_seq(database: Database, user_id: str) -> int:
    """The number of the newest event in the user's audit chain, 0 without any."""
    async with database.connection() as connection:
        return int(await connection.fetchval("SELECT seq FROM audit_chains WHERE account = $1", user_id) or 0)


async def import_balances(database: Database, asked: AskedAccount, shown: AccountBalances, by: By) -> Imported:
    """Books what the exchange has shown of an account, as of `by.at`, which is to be when it answered. Raises NotDone where it was imported
    before, or where the figure could be wrong."""
    account_id = shown.account_id
    if account_id is None:
        raise NotDone(
            f"{asked.exchange} does not tell which account a key belongs to, so nothing would keep the same money from being imported "
            "twice. Nothing was changed."
        )
    amounts = {asset: amount for asset, amount in sorted(shown.totals.items()) if amount > 0}
    async with changing_user(database, asked.user_id, by) as changing:
        await _require_new(changing, asked, account_id)
        await _require_idle(changing, asked)
        if shown.locked:
            raise NotDone(
                f"At {asked.exchange} {listed(shown.locked)} are locked by orders that this system did not make: they could change the "
                "balances behind its back. Nothing was changed. Cancel them at the exchange and import again."
            )
        await changing.require_approval("balances import", f"what account {account_id} at {asked.exchange} holds")
        if not await _claim(changing, asked, account_id, amounts, by):
            # Somebody else has just done it, for another user.
            await _require_new(changing, asked, account_id)
        transfers = [_transfer(asked, account_id, asset, amount) for asset, amount in amounts.items()]
        await apply_transfers(changing.connection, transfers, by.at)
        what = f"{listed(amounts)} of account {account_id}, asked with key {asked.api_key_id}"
        changing.record(EventType.BALANCES_IMPORTED, what, asked.exchange, transfers, more={"target_id": account_id})
    return Imported(account_id, amounts)


def listed(amounts: Mapping[str, Decimal]) -> str:
    """Amounts by asset in one line."""
    return ", ".join(f"{format_decimal(amount)} {asset}" for asset, amount in amounts.items()) or "nothing"


async def _require_new(changing: UserChange, asked: AskedAccount, account_id: str) -> None:
    known = await changing.connection.fetchrow(
        "SELECT * FROM balance_imports WHERE exchange = $1 AND account_id = $2", asked.exchange, account_id
    )
    if known is not None:
        before = {asset: Decimal(amount) for asset, amount in orjson.loads(known["amounts"]).items()}
        raise NotDone(
            f"Account {account_id} at {asked.exchange} was imported already, for {known['user_id']} at {format_time(known['imported_at'])} "
            f"by {known['imported_by']}: {listed(before)}. An account is imported once; nothing was changed. `orchestrator verify "
            "balances` compares what it holds now with the ledger."
        )


async def _require_idle(changing: UserChange, asked: AskedAccount) -> None:
    if changing.status == "closed":
        raise NotDone(f"User {asked.user_id} is closed for good. Nothing was changed.")
    row = await changing.connection.fetchrow(_UNDER_WAY, asked.user_id, asked.exchange)
    if row is not None and (row["orders"] or row["withdrawals"]):
        raise NotDone(
            f"{row['orders']} orders and {row['withdrawals']} withdrawals of {asked.user_id} at {asked.exchange} are not over, so what the "
            "exchange shows is not what there will be. Nothing was changed. Wait for them or cancel them, and import again."
        )
    posted = await changing.connection.fetch(_POSTED, asked.user_id, asked.exchange, _BOOK)
    if posted:
        have = listed({row["asset"]: row["posted"] for row in posted})
        raise NotDone(
            f"User {asked.user_id} has real balances at {asked.exchange} already: {have}. What the exchange shows may contain them, so it "
            "cannot be booked on top. Nothing was changed. `orchestrator verify balances` shows where the two differ."
        )
    if changing.seq != asked.seq:
        raise NotDone(
            f"Something happened to {asked.user_id} while {asked.exchange} was asked, so its answer may be old. Nothing was changed; "
            "import again."
        )


async def _claim(changing: UserChange, asked: AskedAccount, account_id: str, amounts: Mapping[str, Decimal], by: By) -> bool:
    """Takes the account's row, for good; False where somebody has it."""
    taken = await changing.connection.fetchval(
        """
        INSERT INTO balance_imports (exchange, account_id, user_id, api_key_id, amounts, looked_up_at, imported_at, imported_by)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (exchange, account_id) DO NOTHING RETURNING account_id
        """,
        asked.exchange,
        account_id,
        asked.user_id,
        asked.api_key_id,
        orjson.dumps({asset: format_decimal(amount) for asset, amount in amounts.items()}).decode(),
        asked.looked_up_at,
        by.at,
        by.name,
    )
    return taken is not None


def _transfer(asked: AskedAccount, account_id: str, asset: str, amount: Decimal) -> Transfer:
    account = AccountKey(asked.user_id, asked.exchange, _BOOK, asset)
    transfer_id = f"import:{asked.exchange}:{account_id}:{asset}"
    return Transfer(transfer_id, TransferKind.OPENING, None, opening(asked.exchange, _BOOK, asset), account, amount)
