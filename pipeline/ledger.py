"""The ledger: every amount moves from one account to another, so that postings sum to zero per asset by construction.

An account is `owner` at an `exchange` in a `book` for an asset. Users' accounts have balances; the others (names that begin with `@`) are
the other side of a posting and are summed when asked.

Two-phase transfers: a `hold` reserves (pending); `post` moves held funds; `release` gives the rest back. Each is a row of its own, never
changed afterwards.

Invariants:
1. A transfer has one debit and one credit account, of the same exchange, book and asset, and a positive amount.
2. For a user's account: `posted >= 0`, `pending >= 0`, `posted - pending >= 0`. SQL checks the same.
3. Transfer ids are derived from their cause, so that applying one twice is a conflict, not a second movement.
4. Σ holds − Σ posts from holds − Σ releases = what is pending, per order.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple

from pipeline.invariants import InvariantViolation
from schemas.orders import Mode

ZERO: Final = Decimal(0)


class TransferKind(StrEnum):
    OPENING = "opening"
    HOLD = "hold"
    # From the held part of an account.
    POST_HELD = "post_held"
    # From or to the free part of an account.
    POST = "post"
    RELEASE = "release"


class AccountKey(NamedTuple):
    """`owner` is a user id or a system account's name; `asset` a currency code."""

    owner: str
    exchange: str
    book: str
    asset: str

    def __str__(self) -> str:
        return f"{self.owner}:{self.exchange}:{self.book}:{self.asset}"


def clearing(exchange: str, book: str, asset: str) -> AccountKey:
    """Where what the exchange takes goes and what it gives comes from."""
    return AccountKey("@clearing", exchange, book, asset)


def fees(exchange: str, book: str, asset: str) -> AccountKey:
    """Where what the exchange keeps for its service goes."""
    return AccountKey("@fees", exchange, book, asset)


def opening(exchange: str, book: str, asset: str) -> AccountKey:
    """The other side of balances that existed before the ledger did."""
    return AccountKey("@opening", exchange, book, asset)


def shortfall(exchange: str, book: str, asset: str) -> AccountKey:
    """What the house advanced because an execution cost more than its user had (a price that jumped past the slippage allowance)."""
    return AccountKey("@shortfall", exchange, book, asset)


@dataclass(frozen=True, slots=True)
class Transfer:
    """`amount` in units of the accounts' asset. A hold and a release have the same account on both sides: they move nothing."""

    transfer_id: str
    kind: TransferKind
    order_id: str | None
    debit: AccountKey
    credit: AccountKey
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Balance:
    """`posted` is owned, `pending` the part of it that is held; both in units of the account's asset.

    `cost_quantity` of it was bought through this system, for `cost_usd` US dollars in all: what sales are measured against.
    """

    posted: Decimal = ZERO
    pending: Decimal = ZERO
    cost_quantity: Decimal = ZERO
    cost_usd: Decimal = ZERO

    @property
    def available(self) -> Decimal:
        return self.posted - self.pending


def _is_user(account: AccountKey) -> bool:
    return not account.owner.startswith("@")


@dataclass(slots=True)
class Ledger:
    """The accounts of one batch: balances as loaded, transfers as decided. Nothing is stored until the batch is."""

    balances: dict[AccountKey, Balance]
    transfers: list[Transfer] = field(default_factory=list)
    changed: set[AccountKey] = field(default_factory=set)

    def balance(self, account: AccountKey) -> Balance:
        return self.balances.get(account, Balance())

    def hold(self, transfer_id: str, order_id: str, account: AccountKey, amount: Decimal) -> bool:
        """Reserves an amount; False, and nothing changed, when the available funds do not cover it."""
        before = self.balance(account)
        if before.available < amount:
            return False
        self._apply(Transfer(transfer_id, TransferKind.HOLD, order_id, account, account, amount))
        return True

    def post_held(self, transfer_id: str, order_id: str, account: AccountKey, to: AccountKey, amount: Decimal) -> None:
        """Moves held funds to another account."""
        self._apply(Transfer(transfer_id, TransferKind.POST_HELD, order_id, account, to, amount))

    def post(self, transfer_id: str, order_id: str | None, debit: AccountKey, credit: AccountKey, amount: Decimal) -> None:
        """Moves free funds from `debit` to `credit`."""
        self._apply(Transfer(transfer_id, TransferKind.POST, order_id, debit, credit, amount))

    def charge(self, transfer_id: str, order_id: str, account: AccountKey, to: AccountKey, amount: Decimal) -> None:
        """Takes an amount that was spent already: from the free funds, and what they lack from the house, so that nobody goes negative."""
        covered = min(amount, max(self.balance(account).available, ZERO))
        if covered > ZERO:
            self.post(transfer_id, order_id, account, to, covered)
        if amount > covered:
            house = shortfall(account.exchange, account.book, account.asset)
            self.post(f"{transfer_id}:shortfall", order_id, house, to, amount - covered)

    def release(self, transfer_id: str, order_id: str, account: AccountKey, amount: Decimal) -> None:
        """Gives held funds back to their own account."""
        self._apply(Transfer(transfer_id, TransferKind.RELEASE, order_id, account, account, amount))

    def set_cost(self, account: AccountKey, quantity: Decimal, usd: Decimal) -> None:
        """Notes how much of an account's asset was bought here, and for how much."""
        self.balances[account] = replace(self.balance(account), cost_quantity=quantity, cost_usd=usd)
        self.changed.add(account)

    def _apply(self, transfer: Transfer) -> None:
        if transfer.amount <= ZERO:
            raise InvariantViolation(f"transfer {transfer.transfer_id} moves {transfer.amount}; nothing was written. This is a defect.")
        debit, credit = transfer.debit, transfer.credit
        if (debit.exchange, debit.book, debit.asset) != (credit.exchange, credit.book, credit.asset):
            raise InvariantViolation(f"transfer {transfer.transfer_id} would turn {debit} into {credit}; nothing was written.")
        for account, posted, pending in _effects(transfer):
            before = self.balance(account)
            after = replace(before, posted=before.posted + posted, pending=before.pending + pending)
            if after.posted < ZERO or after.pending < ZERO or after.available < ZERO:
                raise InvariantViolation(
                    f"transfer {transfer.transfer_id} would leave {account} with {after.posted} owned and {after.pending} held. "
                    "Nothing was written. This is a defect: run `orchestrator verify` and report it with this line."
                )
            self.balances[account] = after
            self.changed.add(account)
        self.transfers.append(transfer)


def _effects(transfer: Transfer) -> Iterable[tuple[AccountKey, Decimal, Decimal]]:
    """(account, change of posted, change of pending) for the users' accounts that a transfer touches."""
    amount = transfer.amount
    if transfer.kind is TransferKind.HOLD:
        return ((transfer.debit, ZERO, amount),)
    if transfer.kind is TransferKind.RELEASE:
        return ((transfer.debit, ZERO, -amount),)
    held = -amount if transfer.kind is TransferKind.POST_HELD else ZERO
    effects = []
    if _is_user(transfer.debit):
        effects.append((transfer.debit, -amount, held))
    if _is_user(transfer.credit):
        effects.append((transfer.credit, amount, ZERO))
    return effects


def book_of(mode: Mode) -> str:
    """Real and simulated money never share an account."""
    return mode.value
