"""One look at one account: the ledger, the exchange's balances, its resting orders, the ledger again.

Why in this order, and what a look is worth, stands in pipeline/reconciliation/balances. It changes nothing, here or there.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime

from infra.exchange.gateway import AccountGateway
from infra.postgres.account_ledgers import read_account
from infra.postgres.database import Database
from infra.postgres.keys import note_account
from pipeline.model.rules import Rules
from pipeline.model.venue import AccountBalances, LookUpFailed, LookUpOutcome, MarketData
from pipeline.orders.execution import reference_of
from pipeline.reconciliation.balances import (
    AccountLedger,
    ExchangeAccount,
    Judged,
    Look,
    NotJudged,
    cannot_be_judged,
    judge,
    reported,
    value_of,
    whole_of,
)
from schemas.balances import BalanceReport


def questions_of(ledger: AccountLedger, account: ExchangeAccount) -> int:
    """How many questions to the exchange a look at this account takes."""
    return len(account.api_key_ids) + len(ledger.resting)


class BalanceLooks:
    """`gateways` by exchange. `asked` counts the questions that were put to exchanges."""

    def __init__(self, database: Database, gateways: Mapping[str, AccountGateway]) -> None:
        self._database = database
        self._gateways = gateways
        self.asked = 0

    async def look(self, account: ExchangeAccount) -> Look:
        """Looks once. Raises Retryable when the database is out of reach."""
        if not account.api_key_ids:
            return NotJudged("the user has no usable key there", unanswered=True)
        before = await read_account(self._database, account)
        early = cannot_be_judged(before)
        if early is not None:
            return early
        self.asked += questions_of(before, account)
        gateway = self._gateways[account.exchange]
        answers: list[AccountBalances] = []
        for api_key_id in account.api_key_ids:
            answer = await gateway.account_balances(account.user_id, api_key_id)
            if isinstance(answer, LookUpFailed):
                return NotJudged(answer.detail, unanswered=True)
            answers.append(answer)
            if answer.account_id is not None and answer.key_version is not None:
                # Known in time: when the key is replaced, the exchange may not take the old one any more.
                await note_account(self._database, account.user_id, api_key_id, answer.key_version, answer.account_id)
        # After the balances: what was filled before they were read is seen now.
        looked_up = await self._look_up(before, gateway)
        return judge(before, whole_of(answers), looked_up, await read_account(self._database, account))

    @staticmethod
    async def _look_up(ledger: AccountLedger, gateway: AccountGateway) -> dict[str, LookUpOutcome]:
        outcomes = await asyncio.gather(*(gateway.look_up(reference_of(order)) for order in ledger.resting))
        return {order.order_id: outcome for order, outcome in zip(ledger.resting, outcomes, strict=True)}


def report_of(
    account: ExchangeAccount, judged: Judged, market_data: MarketData | None, looked_up_at: datetime, rules: Rules
) -> BalanceReport:
    """What a look has shown, valued at the prices of the moment."""
    return BalanceReport(
        schema_version=1,
        user_id=account.user_id,
        exchange=account.exchange,
        looked_up_at=looked_up_at,
        drifts=tuple(reported(drift, value_of(drift, market_data, looked_up_at, rules)) for drift in judged.drifts),
    )
