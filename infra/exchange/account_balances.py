"""What a venue shows of an account's balances. The part of the gateway that reads them.

Invariant: an answer is whole or it is a `LookUpFailed`: a row that cannot be read, an asset that is there twice, or an account without the
id that its venue gives makes it unreadable. What it does not show counts as zero elsewhere.

Start with `BalanceCalls.account_balances`.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from infra.exchange.account_calls import AccountCalls
from infra.exchange.books import UnreadableBooks, amount
from infra.exchange.transport import Call
from infra.exchange.venue_names import VenueAccount
from pipeline.venue import AccountBalances, LookUpFailed, Refused


class BalanceCalls(AccountCalls):
    """What `CcxtGateway` has for balances."""

    async def account_balances(self, user_id: str, api_key_id: str) -> AccountBalances | LookUpFailed:
        account = await self._account(user_id, api_key_id)
        if isinstance(account, Refused):
            return LookUpFailed(account.detail)
        credentials, exchange = account
        names = self._venue.account
        call = Call()
        async with self._calling(call):
            try:
                answer = await getattr(exchange, names.call)(dict(names.parameters))
                return read_balances(answer, names, exchange.safe_currency_code)
            except UnreadableBooks as error:
                return LookUpFailed(self._clean(f"{self.exchange} answered, but {error}", credentials))
            except Exception as error:  # noqa: BLE001  whatever broke the reading, the question is not answered
                return LookUpFailed(self._describe(call, error, credentials))


def read_balances(answer: Any, names: VenueAccount, code_of: Callable[[str], str]) -> AccountBalances:
    """A venue's answer as amounts by asset, those of zero left out. `code_of` makes the codes that symbols have of the venue's own names.

    Raises UnreadableBooks.
    """
    rows = answer.get(names.balances) if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise UnreadableBooks("without a list of balances")
    account_id = None
    if names.account_id is not None:
        account_id = str(answer.get(names.account_id) or "")
        if not account_id:
            raise UnreadableBooks("without the id of the account")
    totals: dict[str, Decimal] = {}
    locked: dict[str, Decimal] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get(names.asset), str) or not row[names.asset]:
            raise UnreadableBooks("with a balance of no asset")
        asset = code_of(row[names.asset])
        free, held = amount(row.get(names.free), f"free {asset}"), amount(row.get(names.locked), f"locked {asset}")
        if asset in totals:
            raise UnreadableBooks(f"with two balances of {asset}")
        totals[asset] = free + held
        if held:
            locked[asset] = held
    return AccountBalances(account_id, {asset: total for asset, total in totals.items() if total}, locked)
