"""What a venue shows of an account's balances. The part of the gateway that reads them.

Invariant: an answer is whole or it is a `LookUpFailed`: a row that cannot be read, an asset that is there twice, or an account without the
id that its venue gives makes it unreadable. What it does not show counts as zero elsewhere.

Start with `BalanceCalls.account_balances`.
"""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

from infra.exchange.ccxt.account_calls import AccountCalls
from infra.exchange.ccxt.reading import UnreadableBooks, amount, reading, text
from infra.exchange.ccxt.transport import Call
from infra.exchange.venues.venue import VenueAccount
from pipeline.model.venue import AccountBalances, LookUpFailed, Refused

_ASSET_MAX: Final = 64


class BalanceCalls(AccountCalls):
    """What `CcxtGateway` has for balances."""

    async def account_balances(self, user_id: str, api_key_id: str) -> AccountBalances | LookUpFailed:
        account = await self._account(user_id, api_key_id)
        if isinstance(account, Refused):
            return LookUpFailed(account.detail)
        credentials, exchange = account
        names = self._venue.account

        async def ask() -> AccountBalances:
            answer = await getattr(exchange, names.call)(dict(names.parameters))
            return replace(read_balances(answer, names, exchange.safe_currency_code), key_version=credentials.version)

        return await self._answer_to("balances", Call(), credentials, ask)


def read_balances(answer: Any, names: VenueAccount, code_of: Callable[[str], str]) -> AccountBalances:
    """A venue's answer as amounts by asset, those of zero left out. `code_of` makes the codes that symbols have of the venue's own names.

    Raises UnreadableBooks.
    """
    with reading("the account"):
        return _balances(answer, names, code_of)


def _balances(answer: Any, names: VenueAccount, code_of: Callable[[str], str]) -> AccountBalances:
    rows = answer.get(names.balances) if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise UnreadableBooks("without a list of balances")
    account_id = None
    if names.account_id is not None:
        account_id = text(answer.get(names.account_id), "the id of the account")
        if not account_id:
            raise UnreadableBooks("without the id of the account")
    totals: dict[str, Decimal] = {}
    locked: dict[str, Decimal] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get(names.asset), str) or not row[names.asset]:
            raise UnreadableBooks("with a balance of no asset")
        asset = text(code_of(row[names.asset]), "an asset", _ASSET_MAX)
        free, held = amount(row.get(names.free), f"free {asset}"), amount(row.get(names.locked), f"locked {asset}")
        if asset in totals:
            raise UnreadableBooks(f"with two balances of {asset}")
        totals[asset] = amount(format(free + held, "f"), f"all of {asset}")
        if held:
            locked[asset] = held
    return AccountBalances(account_id, {asset: total for asset, total in totals.items() if total}, locked)
