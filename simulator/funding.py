"""Withdrawals and deposits: money that leaves for the outside world and comes from it.

A withdrawal leaves the free balance when it is accepted. It then completes, or fails and is paid back: an address that begins with
`FAIL`, or Ethereum's well-known `0x…dEaD`, always fails. As at Binance the fee is taken from the amount, and the same `withdrawOrderId` is
accepted again, as no uniqueness of it is documented: it is no idempotency key. A deposit is seen first and credited later; afterwards it
may be taken back, also from an account that has spent it. It can be listed late, and twice.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final

from simulator import refusals
from simulator.horizon import Horizon
from simulator.ledger import Holding, Ledger
from simulator.records import DepositCredited, DepositMarked, DepositSeen, DepositTakenBack, Record, WithdrawalAccepted, WithdrawalEnded

FAILING_ADDRESS: Final = "FAIL"
# A failing address for clients that look at its form first.
DEAD_ADDRESS: Final = "0x000000000000000000000000000000000000dEaD"

# Binance, "Deposit History": pending, credited but cannot withdraw, wrong deposit, waiting for the user, success, rejected.
PENDING: Final = 0
SUCCESS: Final = 1
LOST_STATUSES: Final = frozenset({2, 7})
OPEN_STATUSES: Final = frozenset({PENDING, 6, 8})


@dataclass(slots=True)
class Withdrawal:
    """`ended` is None while it is under way."""

    accepted: WithdrawalAccepted
    ended: WithdrawalEnded | None = None


@dataclass(slots=True)
class Deposit:
    """`shown` is the status in the history while it is neither credited nor taken back."""

    seen: DepositSeen
    shown: int = PENDING
    credited: DepositCredited | None = None
    taken_back: DepositTakenBack | None = None

    @property
    def status(self) -> int:
        """As Binance numbers it."""
        if self.taken_back is not None:
            return self.taken_back.status
        return self.shown if self.credited is None else SUCCESS


class Listing(StrEnum):
    """In which order the history of deposits is shown; Binance shows the newest first."""

    NEWEST_FIRST = "newest_first"
    OLDEST_FIRST = "oldest_first"
    SHUFFLED = "shuffled"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A deposit that somebody sends; `amount` in units of `asset`. `transaction_id` '' draws one. The rest as `DepositSeen` has it, with
    `listed_after_ms` counted from its arrival."""

    asset: str
    amount: Decimal
    address: str
    network: str
    address_tag: str = ""
    transaction_id: str = ""
    listed_after_ms: int = 0
    listings: int = 1
    held: bool = False


@dataclass(frozen=True, slots=True)
class WithdrawalRequest:
    """A well-formed withdrawal request; `amount` in units of `asset`."""

    asset: str
    amount: Decimal
    address: str
    address_tag: str
    network: str
    withdraw_order_id: str
    horizon: Horizon
    fee: Decimal = Decimal(0)


def _identifier(*parts: object) -> str:
    """An identifier that looks like the venue's and is the same in every run."""
    return hashlib.sha256(":".join(str(part) for part in parts).encode()).hexdigest()[:32]


class Funding:
    """All withdrawals and deposits by their ids, oldest first."""

    def __init__(
        self, ledger: Ledger, venue_timeout_ms: int, stamp: Callable[[int], tuple[int, int]], emit: Callable[[Record], None]
    ) -> None:
        self._ledger = ledger
        self._venue_timeout_ms = venue_timeout_ms
        self._stamp = stamp
        self._emit = emit
        self.holdings: dict[str, Holding] = {}
        self.withdrawals: dict[str, Withdrawal] = {}
        self.deposits: dict[str, Deposit] = {}
        # How it lists, not what is in its books: a restart forgets it.
        self.listing = Listing.NEWEST_FIRST
        self._open_withdrawals: dict[str, Withdrawal] = {}
        self._open_deposits: dict[str, Deposit] = {}

    def withdraw(self, api_key: str, label: str, request: WithdrawalRequest, now_us: int) -> Withdrawal:
        """Accepts a withdrawal, or raises Refusal and changes nothing. The horizon is checked as for an order."""
        if self.holdings[api_key].free[request.asset] < request.amount:
            raise refusals.Refusal(-4026, "User has insufficient balance")
        horizon = request.horizon
        horizon.check(now_us, self._venue_timeout_ms)
        seq, time_us = self._stamp(now_us)
        withdrawal_id = _identifier("withdrawal", seq, api_key)
        self._emit(
            WithdrawalAccepted(
                seq, time_us, api_key, label, withdrawal_id, request.withdraw_order_id, request.asset, request.amount, request.address,
                request.address_tag, request.network, horizon.timestamp_ms, horizon.receive_window_ms, horizon.arrived_us, request.fee,
            )
        )  # fmt: skip
        return self.withdrawals[withdrawal_id]

    def arrive(self, api_key: str, label: str, arrival: Arrival, now_us: int) -> Deposit:
        """A deposit that somebody sent to the account."""
        seq, time_us = self._stamp(now_us)
        deposit_id = _identifier("deposit", seq, api_key)
        transaction_id = arrival.transaction_id or _identifier("transaction", seq, api_key) * 2
        listed_from_us = time_us + arrival.listed_after_ms * 1000
        self._emit(
            DepositSeen(
                seq, time_us, api_key, label, deposit_id, arrival.asset, arrival.amount, arrival.address, arrival.network, transaction_id,
                arrival.address_tag, listed_from_us, arrival.listings, arrival.held,
            )
        )  # fmt: skip
        return self.deposits[deposit_id]

    def credit(self, deposit: Deposit, now_us: int) -> None:
        """Credits a deposit that is on its way; nothing happens to another."""
        if deposit.credited is None:
            self._emit(DepositCredited(*self._stamp(now_us), deposit.seen.api_key, deposit.seen.deposit_id))

    def mark(self, deposit: Deposit, status: int, now_us: int) -> None:
        """Shows another status of a deposit. One that was credited is taken back by a status that says that it is lost; nothing else
        happens to it."""
        seen = deposit.seen
        if deposit.credited is None:
            self._emit(DepositMarked(*self._stamp(now_us), seen.api_key, seen.deposit_id, status))
        elif deposit.taken_back is None and status in LOST_STATUSES:
            self._emit(DepositTakenBack(*self._stamp(now_us), seen.api_key, seen.deposit_id, status))

    def advance(self, now_us: int, withdrawal_ms: int, deposit_ms: int) -> None:
        """Ends the withdrawals and credits the deposits whose time has come."""
        for withdrawal in list(self._open_withdrawals.values()):
            accepted = withdrawal.accepted
            if now_us - accepted.time_us < withdrawal_ms * 1000:
                break
            completed = not accepted.address.startswith((FAILING_ADDRESS, DEAD_ADDRESS))
            seq, time_us = self._stamp(now_us)
            transaction_id = _identifier("transaction", seq, accepted.api_key) * 2 if completed else ""
            self._emit(WithdrawalEnded(seq, time_us, accepted.api_key, accepted.withdrawal_id, completed, transaction_id))
        for deposit in list(self._open_deposits.values()):
            if now_us - deposit.seen.time_us < deposit_ms * 1000:
                break
            self.credit(deposit, now_us)

    def apply_withdrawal(self, record: WithdrawalAccepted) -> None:
        self._ledger.pay_out(self.holdings[record.api_key], record.asset, record.amount)
        self.withdrawals[record.withdrawal_id] = self._open_withdrawals[record.withdrawal_id] = Withdrawal(record)

    def apply_withdrawal_end(self, record: WithdrawalEnded) -> None:
        withdrawal = self._open_withdrawals.pop(record.withdrawal_id)
        withdrawal.ended = record
        if not record.completed:
            self._ledger.pay_in(self.holdings[record.api_key], withdrawal.accepted.asset, withdrawal.accepted.amount)

    def apply_deposit(self, record: DepositSeen) -> None:
        deposit = self.deposits[record.deposit_id] = Deposit(record)
        if not record.held:
            self._open_deposits[record.deposit_id] = deposit

    def apply_deposit_mark(self, record: DepositMarked) -> None:
        # What was marked by hand goes on by hand.
        self._open_deposits.pop(record.deposit_id, None)
        self.deposits[record.deposit_id].shown = record.status

    def apply_deposit_credit(self, record: DepositCredited) -> None:
        self._open_deposits.pop(record.deposit_id, None)
        deposit = self.deposits[record.deposit_id]
        deposit.credited = record
        self._ledger.pay_in(self.holdings[record.api_key], deposit.seen.asset, deposit.seen.amount)

    def apply_deposit_back(self, record: DepositTakenBack) -> None:
        deposit = self.deposits[record.deposit_id]
        deposit.taken_back = record
        self._ledger.take_back(self.holdings[record.api_key], deposit.seen.asset, deposit.seen.amount)
