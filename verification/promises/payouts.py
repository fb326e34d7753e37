"""Payouts: our withdrawals and results against what the exchange says that it accepted and paid, in both directions.

Invariants that are checked:
1. One execution: no client withdrawal id and no `(user, key)` has two accepted withdrawals.
2. What a withdrawal and its result say happened is what the exchange's books say.
3. Every withdrawal in the exchange's books is one of ours, to the address and of the amount that its user asked for.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Final

from pipeline.model.withdrawal import Withdrawal
from schemas.decimals import format_decimal
from schemas.orders import RequestType, WithdrawalStatus
from schemas.results import Result, ResultStatus
from verification.promises.answers import KEY_LIFETIME, Answers
from verification.promises.finding import Check, Finding, skipped

_S = WithdrawalStatus
# Nothing of these was ever taken by the exchange.
_NOT_TAKEN: Final = frozenset({_S.PENDING_APPROVAL, _S.ACCEPTED, _S.REJECTED})
_TAKEN: Final = frozenset({_S.PROCESSING, _S.COMPLETED, _S.FAILED})
# The exchange may have taken them, and takes the funds at once; our ledger lets them go when they are paid.
IN_FLIGHT: Final = frozenset({_S.SUBMITTING, _S.IN_DOUBT, _S.PROCESSING})

_CLAIMS: Final = {
    "paid_out_twice": "no withdrawal was accepted twice by the exchange, and no key has two withdrawals there",
    "paid_out_unasked": "every withdrawal in the exchange's books is one of ours, to the address and of the amount asked for",
    "payouts_match_exchange": "what withdrawals and their results say was paid or not is what the exchange's books say",
}


@dataclass(slots=True)
class BookedPayout:
    """One withdrawal as the exchange's own log has it. `amount` left the account, `fee` of it was kept; `paid` None while it is under
    way, False where it was given back."""

    exchange_withdrawal_id: str
    client_withdrawal_id: str
    user_id: str
    asset: str
    network: str
    address: str
    address_tag: str
    amount: Decimal
    fee: Decimal
    paid: bool | None = None
    transaction_id: str = ""


def payouts_missing(why: str) -> list[Finding]:
    """The findings of this module where the exchange's own log cannot be read."""
    return [skipped(name, claim, why) for name, claim in _CLAIMS.items()]


def in_flight_users(withdrawals: Iterable[Withdrawal]) -> Set[str]:
    """Whose funds ledger and exchange need not have alike now."""
    return {withdrawal.user_id for withdrawal in withdrawals if withdrawal.status in IN_FLIGHT}


def check_payouts(booked: Iterable[BookedPayout], withdrawals: Mapping[str, Withdrawal], answers: Answers) -> list[Finding]:
    """Every finding about what was paid out."""
    by_client_id: dict[str, list[BookedPayout]] = defaultdict(list)
    for row in booked:
        by_client_id[row.client_withdrawal_id].append(row)
    told = [
        result
        for results in answers.finals.values()
        for result in results
        if result.type is RequestType.WITHDRAWAL and result.client_order_id is not None and result.status is not ResultStatus.DUPLICATE
    ]
    return [
        _paid_twice(by_client_id, withdrawals),
        _unasked(by_client_id, withdrawals),
        _match(by_client_id, withdrawals, told),
    ]


def _paid_twice(booked: Mapping[str, list[BookedPayout]], withdrawals: Mapping[str, Withdrawal]) -> Finding:
    check = Check("paid_out_twice", _CLAIMS["paid_out_twice"], len(booked))
    for client_id, rows in booked.items():
        if len(rows) > 1:
            ids = ", ".join(row.exchange_withdrawal_id for row in rows)
            check.breach(f"client withdrawal id {client_id} (user {rows[0].user_id}) was accepted {len(rows)} times: {ids}")
    of_key: dict[tuple[str, str], list[Withdrawal]] = defaultdict(list)
    for withdrawal in withdrawals.values():
        if withdrawal.client_withdrawal_id in booked:
            of_key[withdrawal.user_id, withdrawal.idempotency_key].append(withdrawal)
    for (user_id, key), sent in of_key.items():
        for before, after in pairwise(sorted(sent, key=lambda one: one.decided_at)):
            if after.decided_at - before.decided_at < KEY_LIFETIME:
                check.breach(f"user {user_id}, key {key!r}: the exchange accepted both {before.withdrawal_id} and {after.withdrawal_id}")
    return check.finding()


def _unasked(booked: Mapping[str, list[BookedPayout]], withdrawals: Mapping[str, Withdrawal]) -> Finding:
    check = Check("paid_out_unasked", _CLAIMS["paid_out_unasked"])
    ours = {withdrawal.client_withdrawal_id: withdrawal for withdrawal in withdrawals.values()}
    for client_id, rows in booked.items():
        withdrawal = ours.get(client_id)
        for row in rows:
            check.checked += 1
            if withdrawal is None:
                check.breach(f"the exchange has {_describe(row)}; it is not ours")
            elif _as_booked(row) != _as_asked(withdrawal):
                check.breach(f"withdrawal {withdrawal.withdrawal_id} was asked for otherwise than the exchange has it: {_describe(row)}")
    return check.finding()


def _as_booked(row: BookedPayout) -> tuple[object, ...]:
    return row.user_id, row.asset, row.network, row.address, row.address_tag, row.amount


def _as_asked(one: Withdrawal) -> tuple[object, ...]:
    return one.user_id, one.asset, one.network, one.address, one.address_tag or "", one.total


def _match(booked: Mapping[str, list[BookedPayout]], withdrawals: Mapping[str, Withdrawal], told: Iterable[Result]) -> Finding:
    check = Check("payouts_match_exchange", _CLAIMS["payouts_match_exchange"])
    for withdrawal in withdrawals.values():
        rows = booked.get(withdrawal.client_withdrawal_id, [])
        # Twice accepted is a breach of its own; which of the two it should equal is not defined.
        if withdrawal.status not in _NOT_TAKEN | _TAKEN or len(rows) > 1:
            continue
        check.checked += 1
        problem = _problem(withdrawal, rows[0] if rows else None)
        if problem is not None:
            check.breach(f"withdrawal {withdrawal.withdrawal_id} is {withdrawal.status}, {problem}")
    for result in told:
        rows = booked.get(result.client_order_id or "", [])
        withdrawal_told = withdrawals.get(result.order_id or "")
        # An answer that was corrected since is known to be wrong; the withdrawal itself is compared above.
        if len(rows) > 1 or (withdrawal_told is not None and withdrawal_told.corrected_at is not None):
            continue
        check.checked += 1
        paid = rows[0].amount - rows[0].fee if rows and rows[0].paid else Decimal(0)
        if (result.filled_quantity or Decimal(0)) != paid or (result.status is ResultStatus.COMPLETED) != (paid > 0):
            said = f"{result.status} with {format_decimal(result.filled_quantity or Decimal(0))} paid"
            check.breach(f"record {result.source} was told {said}, the exchange has paid {format_decimal(paid)}")
    return check.finding()


def _problem(withdrawal: Withdrawal, row: BookedPayout | None) -> str | None:
    """What does not fit between a withdrawal and the exchange's books; None when it fits."""
    if withdrawal.status in _NOT_TAKEN:
        return None if row is None else f"the exchange has {_describe(row)}"
    if row is None:
        return "the exchange knows no such withdrawal"
    if withdrawal.exchange_withdrawal_id != row.exchange_withdrawal_id:
        return f"under another id than the exchange's {row.exchange_withdrawal_id}"
    if withdrawal.status is _S.PROCESSING:
        return None
    if (withdrawal.status is _S.COMPLETED) != (row.paid is True) or (withdrawal.status is _S.FAILED) != (row.paid is False):
        return f"the exchange has {_describe(row)}"
    if withdrawal.status is _S.COMPLETED:
        ours = withdrawal.total, withdrawal.fee, withdrawal.transaction_id or ""
        if ours != (row.amount, row.fee, row.transaction_id):
            return f"with {format_decimal(withdrawal.fee)} of {format_decimal(withdrawal.total)} as fee, the exchange has {_describe(row)}"
    return None


def _describe(row: BookedPayout) -> str:
    word = {None: "under way", True: "paid", False: "given back"}[row.paid]
    what = f"{format_decimal(row.amount)} {row.asset} to {row.address} on {row.network}, fee {format_decimal(row.fee)}"
    return f"withdrawal {row.exchange_withdrawal_id} of {row.user_id} ({what}), {word}"
