"""Deposits at a venue: the history of an account's, read.

Invariants:
1. A list that is not whole is a `LookUpFailed`. What it does not show proves nothing all the same: a venue may list a deposit late.
2. An entry that cannot be read is told as such and never guessed at; the others count.

Start with `DepositCalls.deposit_history`.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

from infra.exchange.account_calls import AccountCalls, whole_list
from infra.exchange.books import UnreadableBooks, amount, milliseconds, moment
from infra.exchange.transport import Call
from infra.exchange.venue_names import VenueDepositList
from pipeline.booking import storable
from pipeline.deposit import VenueDeposit, VenueDeposits
from pipeline.venue import LookUpFailed, Refused
from schemas.orders import DepositStatus
from schemas.times import OutOfBounds, bounded

# Longer than any transaction id or address; what is longer is none.
_TEXT_MAX: Final = 512


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
        call = Call()
        async with self._calling(call):
            try:
                rows = await whole_list(getattr(exchange, names.history_call), window, names.history_page, "deposits")
            except UnreadableBooks as error:
                return LookUpFailed(self._clean(f"{self.exchange} answered, but {error}", credentials))
            except Exception as error:  # noqa: BLE001  whatever broke the reading, the question is not answered
                return LookUpFailed(self._describe(call, error, credentials))
        found: list[VenueDeposit] = []
        unreadable: list[str] = []
        for row in rows:
            try:
                deposit = _read_row(row, names, difference)
            except UnreadableBooks as error:
                unreadable.append(f"deposit {str(row.get('id'))[:64]!r}: {error}")
                continue
            if deposit is not None:
                found.append(deposit)
        return VenueDeposits(found, unreadable)


def _read_row(row: Mapping[str, Any], names: VenueDepositList, difference: timedelta) -> VenueDeposit | None:
    """One entry of the history; None for one on its way that has no transaction yet. Raises UnreadableBooks."""
    status = names.statuses.get(str(row.get("status")))
    if status is None:
        raise UnreadableBooks(f"its status is {row.get('status')!r}")
    transaction_id = _text(row, names.transaction_id)
    if not transaction_id and status in {DepositStatus.DETECTED, DepositStatus.CONFIRMING}:
        return None
    for name in (names.entry_id, names.transaction_id, names.asset):
        if not _text(row, name):
            raise UnreadableBooks(f"it has no {name}")
    arrived_at, completed_at = _ours(row.get(names.arrived), difference), _ours(row.get(names.completed), difference)
    if arrived_at is None:
        raise UnreadableBooks("it does not say when it came")
    deposited = amount(row.get(names.amount), "the amount")
    if deposited <= 0:
        raise UnreadableBooks("its amount is not above zero")
    return VenueDeposit(
        exchange_deposit_id=_text(row, names.entry_id),
        transaction_id=transaction_id,
        asset=_text(row, names.asset),
        network=_text(row, names.network),
        address=_text(row, names.address),
        address_tag=_text(row, names.address_tag) or None,
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


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    text = "" if value is None else storable(str(value))
    if len(text) > _TEXT_MAX:
        raise UnreadableBooks(f"its {name} has {len(text)} characters")
    return text
