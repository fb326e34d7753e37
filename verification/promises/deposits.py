"""Deposits: what was credited and taken back against the ledger, and against what the exchange's own log says, in both directions.

Invariants that are checked:
1. A credited deposit has one transfer that credits its amount, a reversed one as much taken back, any other none.
2. Every deposit that the exchange's log shows as credited is credited, once and to its user; one that it took back is not, any more.
3. None is credited that the log does not show as credited.
4. An announcement is completed by a deposit that fits it, and a deposit completes one at most.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final

from pipeline.model.deposit import Announcement, Deposit
from pipeline.model.identifiers import deposit_id_of
from schemas.decimals import format_decimal
from schemas.orders import AnnouncementStatus, DepositStatus
from verification.promises.finding import Check, Finding, skipped

_S = DepositStatus
_CREDITED: Final = frozenset({_S.CREDITED, _S.REVERSED})

_CLAIMS: Final = {
    "deposits_credited": "every deposit that the exchange's log shows as credited is credited once, to its user; what it took back is not",
    "credited_unproven": "no deposit is credited that the exchange's log does not show as credited, with its amount, to its user",
}


class Booked(StrEnum):
    """Where a deposit stands in the exchange's own log."""

    UNDER_WAY = "under way"
    CREDITED = "credited"
    TAKEN_BACK = "taken back"


@dataclass(slots=True)
class BookedDeposit:
    """One deposit as the exchange's own log has it. `credited_at` is when it was, UTC."""

    exchange_deposit_id: str
    transaction_id: str
    user_id: str
    asset: str
    address: str
    amount: Decimal
    state: Booked = Booked.UNDER_WAY
    credited_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Movement:
    """The transfers of one deposit: how many credited something, what they credited, and what was taken back, in units of its asset."""

    credits: int
    credited: Decimal
    taken_back: Decimal


NOT_MOVED: Final = Movement(0, Decimal(0), Decimal(0))


@dataclass(frozen=True, slots=True)
class Deposited:
    """What the database says. `opened_at` is, by user and exchange, when the newest opening balance was taken over; `disputed` are ids of
    deposits that a person must look at."""

    deposits: Mapping[str, Deposit] = field(default_factory=dict)
    announcements: Mapping[str, Announcement] = field(default_factory=dict)
    movements: Mapping[str, Movement] = field(default_factory=dict)
    opened_at: Mapping[tuple[str, str], datetime] = field(default_factory=dict)
    disputed: Set[str] = frozenset()


def deposits_missing(why: str) -> list[Finding]:
    """The findings about the exchange's own log where it cannot be read."""
    return [skipped(name, claim, why) for name, claim in _CLAIMS.items()]


def check_deposits(deposited: Deposited) -> list[Finding]:
    """Every finding that needs the database alone."""
    return [_match_transfers(deposited), _announcements(deposited)]


def check_booked_deposits(booked: Iterable[BookedDeposit], deposited: Deposited, at_rest: bool) -> list[Finding]:
    """Every finding about the exchange's own log. Where the system is not said to be at rest, what is not seen yet is no breach."""
    rows = {row.exchange_deposit_id: row for row in booked}
    return [_credited(rows, deposited, at_rest), _unproven(rows, deposited)]


def lagging_users(booked: Iterable[BookedDeposit], deposited: Deposited) -> Set[str]:
    """Whose funds ledger and exchange need not have alike: something of theirs is not seen yet, or a person must look."""
    ours = {one.exchange_deposit_id: one for one in deposited.deposits.values()}
    return {row.user_id for row in booked if _lags(row, ours.get(row.exchange_deposit_id), deposited)}


def _match_transfers(deposited: Deposited) -> Finding:
    check = Check("deposits_match_transfers", "each deposit was credited once, and taken back once, if at all", len(deposited.deposits))
    for deposit in deposited.deposits.values():
        moved = deposited.movements.get(deposit.deposit_id, NOT_MOVED)
        expected = NOT_MOVED
        if deposit.status in _CREDITED:
            taken_back = deposit.amount if deposit.status is _S.REVERSED else Decimal(0)
            expected = Movement(1, deposit.amount, taken_back)
        if moved != expected:
            into, back = format_decimal(moved.credited), format_decimal(moved.taken_back)
            amounts = f"{into} credited in {moved.credits} transfers, {back} taken back"
            check.breach(f"deposit {deposit.deposit_id} of {format_decimal(deposit.amount)} is {deposit.status}: {amounts}")
    for deposit_id in deposited.movements.keys() - deposited.deposits.keys():
        check.breach(f"transfers credit deposit {deposit_id}, which does not exist")
    return check.finding()


def _announcements(deposited: Deposited) -> Finding:
    claim = "each completed announcement names one credited deposit that fits it, and no deposit completes two"
    check = Check("announcements_match_deposits", claim, len(deposited.announcements))
    taken: dict[str, str] = {}
    for one in deposited.announcements.values():
        if one.status is not AnnouncementStatus.COMPLETED:
            continue
        deposit = deposited.deposits.get(one.deposit_id or "")
        if deposit is None or deposit.credited_at is None or not one.fits(deposit):
            check.breach(f"announcement {one.announcement_id} is completed by {one.deposit_id}, which is not credited or does not fit")
        elif deposit.deposit_id in taken:
            check.breach(f"deposit {deposit.deposit_id} completes {taken[deposit.deposit_id]} and {one.announcement_id}")
        else:
            taken[deposit.deposit_id] = one.announcement_id
    return check.finding()


def _credited(booked: Mapping[str, BookedDeposit], deposited: Deposited, at_rest: bool) -> Finding:
    check = Check("deposits_credited", _CLAIMS["deposits_credited"], len(booked))
    ours = {one.exchange_deposit_id: one for one in deposited.deposits.values()}
    for row in booked.values():
        deposit = ours.get(row.exchange_deposit_id)
        if at_rest and _lags(row, deposit, deposited) and not _disputed(row, deposited):
            how = "not known" if deposit is None else str(deposit.status)
            check.breach(f"the exchange has {_describe(row)}; in our books it is {how}")
    return check.finding()


def _lags(row: BookedDeposit, deposit: Deposit | None, deposited: Deposited) -> bool:
    """Whether our books have not followed the exchange's."""
    if deposit is None:
        return row.state is Booked.CREDITED and not _is_part_of_opening(row, deposited)
    if row.state is Booked.CREDITED:
        return deposit.status is not _S.CREDITED
    return row.state is Booked.TAKEN_BACK and deposit.status not in {_S.REVERSED, _S.REJECTED}


def _is_part_of_opening(row: BookedDeposit, deposited: Deposited) -> bool:
    """Whether it was there when the opening balance was taken over, or its user is none of ours."""
    opened = [at for (user_id, _), at in deposited.opened_at.items() if user_id == row.user_id]
    return not opened or (row.credited_at is not None and row.credited_at <= max(opened))


def _disputed(row: BookedDeposit, deposited: Deposited) -> bool:
    exchanges = {exchange for user_id, exchange in deposited.opened_at if user_id == row.user_id}
    parts = row.transaction_id, row.asset, row.address, row.exchange_deposit_id
    return any(deposit_id_of(exchange, *parts) in deposited.disputed for exchange in exchanges)


def _unproven(booked: Mapping[str, BookedDeposit], deposited: Deposited) -> Finding:
    check = Check("credited_unproven", _CLAIMS["credited_unproven"])
    for deposit in deposited.deposits.values():
        if deposit.status not in _CREDITED and deposit.deposit_id not in deposited.movements:
            continue
        check.checked += 1
        row = booked.get(deposit.exchange_deposit_id)
        name = f"deposit {deposit.deposit_id} ({format_decimal(deposit.amount)} {deposit.asset} of {deposit.user_id})"
        if row is None or row.state is Booked.UNDER_WAY:
            check.breach(f"{name} is {deposit.status}, the exchange has {'none' if row is None else _describe(row)}")
        elif (row.user_id, row.asset, row.amount, row.transaction_id, row.address) != (
            deposit.user_id, deposit.asset, deposit.amount, deposit.transaction_id, deposit.address
        ):  # fmt: skip
            check.breach(f"{name} is another than the exchange's: {_describe(row)}")
    return check.finding()


def _describe(row: BookedDeposit) -> str:
    return f"deposit {row.exchange_deposit_id} of {row.user_id} ({format_decimal(row.amount)} {row.asset}), {row.state}"
