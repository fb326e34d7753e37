"""Funds to play with: what an operator gives a user in the book `paper`.

Invariants:
1. Nothing here touches the book `live`, nor tells an exchange: simulated money is made by saying so.
2. It is a transfer from `@opening` like any other opening balance, audited in the user's chain, so that the ledger sums to zero.
3. Each call gives funds anew: an operator who asks twice gives twice.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from infra.postgres.admin.administration import Done, NotDone, changing_user
from infra.postgres.admin.operators import By
from infra.postgres.database import Database
from infra.postgres.transfers import apply_transfers
from pipeline.books.ledger import AccountKey, Transfer, TransferKind, book_of, opening
from schemas.audit import EventType
from schemas.decimals import format_decimal
from schemas.orders import Mode

# Sums of it stay within what the contract can say (20 digits before the point).
FUNDS_MAX: Final = Decimal(10) ** 15


@dataclass(frozen=True, slots=True)
class PaperFunds:
    """`amount` in units of `asset`, to be simulated as lying at `exchange`."""

    exchange: str
    asset: str
    amount: Decimal


async def fund_paper(database: Database, user_id: str, funds: PaperFunds, by: By) -> Done:
    """Gives a user simulated funds. Raises NotDone for an unknown or closed user, and for more than a balance may come to."""
    account = AccountKey(user_id, funds.exchange, book_of(Mode.PAPER), funds.asset)
    async with changing_user(database, user_id, by) as changing:
        if changing.status == "closed":
            raise NotDone(f"User {user_id} is closed for good. Nothing was changed.")
        held = await changing.connection.fetchval(
            "SELECT posted FROM balances WHERE user_id = $1 AND exchange = $2 AND book = $3 AND asset = $4", *account
        )
        after = (held or Decimal(0)) + funds.amount
        if funds.amount <= 0 or after > FUNDS_MAX:
            raise NotDone(f"The simulated balance would be {format_decimal(after)}; above 0 and up to {FUNDS_MAX:f}. Nothing was changed.")
        # The number of the event that tells it: no other transfer of this account can have it.
        transfer_id = f"fund:{account}:{changing.seq + 1}"
        source = opening(funds.exchange, account.book, funds.asset)
        transfer = Transfer(transfer_id, TransferKind.OPENING, None, source, account, funds.amount)
        await apply_transfers(changing.connection, [transfer], by.at)
        what = f"{format_decimal(funds.amount)} {funds.asset} of simulated money at {funds.exchange}"
        changing.record(EventType.PAPER_FUNDED, what, funds.exchange, [transfer])
    return Done(f"User {user_id} has {what} more: {format_decimal(after)} {funds.asset} in the book paper. No real money was moved.")
