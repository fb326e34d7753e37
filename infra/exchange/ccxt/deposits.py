"""Deposits at a venue: the history of an account's, read.

Invariants:
1. A list that is not whole is a `LookUpFailed`. What it does not show proves nothing all the same: a venue may list a deposit late.
2. An entry that cannot be read is told as such and never guessed at; the others count.

Start with `DepositCalls.deposit_history`.
"""

from datetime import datetime, timedelta

from infra.exchange.ccxt.account_calls import AccountCalls
from infra.exchange.ccxt.transport import Call
from infra.exchange.venues.reading import UnreadableBooks, milliseconds, reading
from infra.exchange.venues.venue import Row
from infra.metrics import ANSWERS_UNREADABLE
from pipeline.model.deposit import VenueDeposit, VenueDeposits
from pipeline.model.venue import LookUpFailed, Refused


class DepositCalls(AccountCalls):
    """What `CcxtGateway` has for deposits."""

    async def deposit_history(self, user_id: str, api_key_id: str, since: datetime, until: datetime) -> VenueDeposits | LookUpFailed:
        deposits = self._venue.deposits
        if deposits is None:
            return LookUpFailed(f"{self.exchange} has no history of deposits here")
        account = await self._account(user_id, api_key_id)
        if isinstance(account, Refused):
            return LookUpFailed(account.detail)
        credentials, exchange = account
        difference = timedelta(milliseconds=self._connection.clock_difference_ms)

        async def ask() -> list[Row]:
            return await deposits.history(exchange, milliseconds(since + difference), milliseconds(until + difference))

        rows = await self._answer_to("deposits", Call(), credentials, ask)
        if isinstance(rows, LookUpFailed):
            return rows
        found: list[VenueDeposit] = []
        unreadable: list[str] = []
        for row in rows:
            try:
                with reading("a deposit"):
                    deposit = deposits.read(row, difference)
            except UnreadableBooks as error:
                ANSWERS_UNREADABLE.labels(self.exchange, "deposits").inc()
                unreadable.append(str(error))
                continue
            if deposit is not None:
                found.append(deposit)
        return VenueDeposits(found, unreadable)
