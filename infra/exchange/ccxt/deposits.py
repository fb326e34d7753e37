"""Deposits at a venue: the history of an account's, read.

Invariants:
1. A list that is not whole is a `LookUpFailed`. What it does not show proves nothing all the same: a venue may list a deposit late.
2. An entry that cannot be read is told as such and never guessed at; the others count.

Start with `DepositCalls.deposit_history`.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from infra.exchange.ccxt.account_calls import AccountCalls, whole_list
from infra.exchange.ccxt.reading import UnreadableBooks, amount, milliseconds, moment, reading, shown, text
from infra.exchange.ccxt.transport import Call
from infra.exchange.venues.venue import VenueDepositList
from infra.metrics import ANSWERS_UNREADABLE
from pipeline.model.deposit import VenueDeposit, VenueDeposits
from pipeline.model.venue import LookUpFailed, Refused
from schemas.orders import DepositStatus
from schemas.times import OutOfBounds, bounded


class DepositCalls(AccountCalls):
    """What `CcxtGateway` has for deposits."""

    async def deposit_history(self, user_id: str, api_key_id: str, since: datetime, until: datetime) -> VenueDeposits | LookUpFailed:
        names = self._venue.deposits
        if names is None:
            return LookUpFailed(f"{self.exchange} has no history of deposits here")
        account = await self._account(user_id, api_key_id)
        if isinstance(account, Refused):
            return LookUpFailed(account.detail)
        credentials, exchange = account
        difference = timedelta(milliseconds=self._connection.clock_difference_ms)
        window = {"startTime": milliseconds(since + difference), "endTime": milliseconds(until + difference)}

        async def ask() -> list[dict[str, Any]]:
            return await whole_list(getattr(exchange, names.history_call), window, names.history_page, "deposits")

        rows = await self._answer_to("deposits", Call(), credentials, ask)
        if isinstance(rows, LookUpFailed):
            return rows
        found: list[VenueDeposit] = []
        unreadable: list[str] = []
        for row in rows:
            try:
                with reading("it"):
                    deposit = _read_row(row, names, difference)
            except UnreadableBooks as error:
                ANSWERS_UNREADABLE.labels(self.exchange, "deposits").inc()
                unreadable.append(f"deposit {shown(row.get('id'))}: {error}")
                continue
            if deposit is not None:
                found.append(deposit)
        return VenueDeposits(found, unreadable)


def _read_row(row: Mapping[str, Any], names: VenueDepositList, difference: timedelta) -> VenueDeposit | None:
    """One entry of the history; None for one on its way that has no transaction yet. Raises UnreadableBooks."""
    status = names.statuses.get(str(row.get("status")))
    if status is None:
        raise UnreadableBooks(f"its status is {shown(row.get('status'))}")
    transaction_id = text(row.get(names.transaction_id), f"its {names.transaction_id}")
    if not transaction_id and status in {DepositStatus.DETECTED, DepositStatus.CONFIRMING}:
        return None
    for name in (names.entry_id, names.transaction_id, names.asset):
        if not text(row.get(name), f"its {name}"):
            raise UnreadableBooks(f"it has no {name}")
    arrived_at, completed_at = _ours(row.get(names.arrived), difference), _ours(row.get(names.completed), difference)
    if arrived_at is None:
        raise UnreadableBooks("it does not say when it came")
    deposited = amount(row.get(names.amount), "the amount")
    if deposited <= 0:
        raise UnreadableBooks("its amount is not above zero")
    return VenueDeposit(
        exchange_deposit_id=text(row.get(names.entry_id), f"its {names.entry_id}"),
        transaction_id=transaction_id,
        asset=text(row.get(names.asset), f"its {names.asset}"),
        network=text(row.get(names.network), f"its {names.network}"),
        address=text(row.get(names.address), f"its {names.address}"),
        address_tag=text(row.get(names.address_tag), f"its {names.address_tag}") or None,
        amount=deposited,
        status=status,
        arrived_at=arrived_at,
        completed_at=completed_at,
    )


def _ours(timestamp_ms: object, difference: timedelta) -> datetime | None:
    """A moment of the venue's clock by ours; None where it gave none, or none that every store can carry."""
    told = moment(timestamp_ms)
    with suppress(OutOfBounds):
        return None if told is None else bounded(told - difference)
    return None
