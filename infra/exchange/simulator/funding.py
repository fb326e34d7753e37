"""Withdrawals and deposits: money that leaves for the outside world and comes from it.

A withdrawal leaves the free balance when it is accepted. It then completes, or fails and is paid back: an address that begins with
`FAIL`, or Ethereum's well-known `0x…dEaD`, always fails. As at Binance the fee is taken from the amount, and the same `withdrawOrderId` is
accepted again, as no uniqueness of it is documented: it is no idempotency key. A deposit is seen first and credited later.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from infra.exchange.simulator import refusals
from infra.exchange.simulator.horizon import Horizon
from infra.exchange.simulator.ledger import Holding, Ledger
from infra.exchange.simulator.records import DepositCredited, DepositSeen, Record, WithdrawalAccepted, WithdrawalEnded

FAILING_ADDRESS: Final = "FAIL"
# A failing address for clients that look at its form first.
DEAD_ADDRESS: Final = "0x000000000000000000000000000000000000dEaD"


@dataclass(slots=True)
class Withdrawal:
    """`ended` is None while it is under way."""

    accepted: WithdrawalAccepted
    ended: WithdrawalEnded | None = None


@dataclass(slots=True)
class Deposit:
    seen: DepositSeen
    credited: DepositCredited | None = None


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

    def announce(
        self, api_key: str, label: str, asset: str, amount: Decimal, *, address: str, network: str, now_us: int
    ) -> Deposit:
        """A deposit that somebody sent to the account."""
        seq, time_us = self._stamp(now_us)
        deposit_id = _identifier("deposit", seq, api_key)
        transaction_id = _identifier("transaction", seq, api_key) * 2
        self._emit(DepositSeen(seq, time_us, api_key, label, deposit_id, asset, amount, address, network, transaction_id))
        return self.deposits[deposit_id]

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
            self._emit(DepositCredited(*self._stamp(now_us), deposit.seen.api_key, deposit.seen.deposit_id))

    def apply_withdrawal(self, record: WithdrawalAccepted) -> None:
        self._ledger.pay_out(self.holdings[record.api_key], record.asset, record.amount)
        self.withdrawals[record.withdrawal_id] = self._open_withdrawals[record.withdrawal_id] = Withdrawal(record)

    def apply_withdrawal_end(self, record: WithdrawalEnded) -> None:
        withdrawal = self._open_withdrawals.pop(record.withdrawal_id)
        withdrawal.ended = record
        if not record.completed:
            self._ledger.pay_in(self.holdings[record.api_key], withdrawal.accepted.asset, withdrawal.accepted.amount)

    def apply_deposit(self, record: DepositSeen) -> None:
        self.deposits[record.deposit_id] = self._open_deposits[record.deposit_id] = Deposit(record)

    def apply_deposit_credit(self, record: DepositCredited) -> None:
        deposit = self._open_deposits.pop(record.deposit_id)
        deposit.credited = record
        self._ledger.pay_in(self.holdings[record.api_key], deposit.seen.asset, deposit.seen.amount)
