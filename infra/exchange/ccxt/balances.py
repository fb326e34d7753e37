"""What a venue shows of an account's balances. The part of the gateway that reads them.

Invariant: an answer is whole or it is a `LookUpFailed`: a row that cannot be read, an asset that is there twice, or an account without the
id that its venue gives makes it unreadable. What it does not show counts as zero elsewhere.

Start with `BalanceCalls.account_balances`.
"""

from dataclasses import replace

from infra.exchange.ccxt.account_calls import AccountCalls
from infra.exchange.ccxt.transport import Call
from pipeline.model.venue import AccountBalances, LookUpFailed, Refused


class BalanceCalls(AccountCalls):
    """What `CcxtGateway` has for balances."""

    async def account_balances(self, user_id: str, api_key_id: str) -> AccountBalances | LookUpFailed:
        account = await self._account(user_id, api_key_id)
        if isinstance(account, Refused):
            return LookUpFailed(account.detail)
        credentials, exchange = account

        async def ask() -> AccountBalances:
            return replace(await self._venue.balances(exchange), key_version=credentials.version)

        return await self._answer_to("balances", Call(), credentials, ask)
