"""The ledger: every amount moves from one account to another, so that postings sum to zero per asset by construction.

An account is `owner` at an `exchange` in a `book` for an asset. Users' accounts have balances; the others (names that begin with `@`) are
the other side of a posting and are summed when asked.

Two-phase transfers: a `hold` reserves (pending); `post` moves held funds; `release` gives the rest back. Each is a row of its own, never
changed afterwards.

Invariants, each a rule of the database as well (docs/ledger.md):
1. A transfer has one debit and one credit account, of the same exchange, book and asset, and an amount: more than nothing, at most 20
   digits before the point and 18 after it.
2. For a user's account: `posted >= 0`, `pending >= 0`, `posted - pending >= 0`.
3. Transfer ids are derived from their cause. Applying one twice moves nothing and says so; the same id for another movement is a defect.
4. Σ holds − Σ posts from holds − Σ releases = what is pending, per order, and never less than nothing.
5. Each kind has its owners: an opening comes from `@opening`, a hold stays with its user, and one side of a post is the system's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple

from pipeline.model.invariants import InvariantViolation
from pipeline.model.money import is_amount
from schemas.orders import Mode

ZERO: Final = Decimal(0)
# The accounts that are no user's. The database has the same list.
SYSTEM_OWNERS: Final = frozenset({"@clearing", "@fees", "@opening", "@shortfall"})


class TransferKind(StrEnum):
    OPENING = "opening"
    HOLD = "hold"
    # From the held part of an account.
    POST_HELD = "post_held"
    # From or to the free part of an account.
    POST = "post"
    RELEASE = "release"


class Outcome(StrEnum):
    """What applying a transfer did."""

    APPLIED = "applied"
    # The same transfer was applied before: nothing was moved.
    ALREADY_APPLIED = "already_applied"


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


_EMPTY: Final = Balance()


def _is_user(account: AccountKey) -> bool:
    return account.owner[:1] != "@"


def same_again(before: Transfer, transfer: Transfer) -> Outcome:
    """What applying a transfer means whose id was applied before. Raises InvariantViolation when that was another movement."""
    if before != transfer:
        raise InvariantViolation(
            f"transfer {transfer.transfer_id} was applied as {_described(before)} and would now be {_described(transfer)}. "
            "Nothing was written. This is a defect: run `orchestrator verify` and report it with this line."
        )
    return Outcome.ALREADY_APPLIED


@dataclass(slots=True)
class Ledger:
    """The accounts of one batch: balances as loaded, transfers as decided. Nothing is stored until the batch is.

    `known` are transfers of earlier batches, by id, where a batch may meet one of them again; what is decided comes to them.
    """

    balances: dict[AccountKey, Balance]
    transfers: list[Transfer] = field(default_factory=list)
    # Accounts whose balance or cost has changed, and those of them whose cost has.
    changed: set[AccountKey] = field(default_factory=set)
    costs_changed: set[AccountKey] = field(default_factory=set)
    known: dict[str, Transfer] = field(default_factory=dict)
    # So many of `transfers` have an audit event that carries them.
    _told: int = 0

    def take_untold(self) -> list[Transfer]:
        """The transfers that no audit event carries yet, for the one that will."""
        untold, self._told = self.transfers[self._told :], len(self.transfers)
        return untold

    def balance(self, account: AccountKey) -> Balance:
        return self.balances.get(account, _EMPTY)

    def open(self, transfer_id: str, account: AccountKey, amount: Decimal) -> Outcome:
        """Takes in what an account owned before the ledger knew it."""
        source = opening(account.exchange, account.book, account.asset)
        return self._apply(Transfer(transfer_id, TransferKind.OPENING, None, source, account, amount))

    def hold(self, transfer_id: str, order_id: str, account: AccountKey, amount: Decimal) -> bool:
        """Reserves an amount; False, and nothing changed, when the available funds do not cover it. True as well when it is reserved
        under this id already."""
        if transfer_id not in self.known and self.balance(account).available < amount:
            return False
        self._apply(Transfer(transfer_id, TransferKind.HOLD, order_id, account, account, amount))
        return True

    def post_held(self, transfer_id: str, order_id: str, account: AccountKey, to: AccountKey, amount: Decimal) -> Outcome:
        """Moves held funds to another account."""
        return self._apply(Transfer(transfer_id, TransferKind.POST_HELD, order_id, account, to, amount))

    def post(self, transfer_id: str, order_id: str | None, debit: AccountKey, credit: AccountKey, amount: Decimal) -> Outcome:
        """Moves free funds from `debit` to `credit`."""
        return self._apply(Transfer(transfer_id, TransferKind.POST, order_id, debit, credit, amount))

    def charge(self, transfer_id: str, order_id: str | None, account: AccountKey, to: AccountKey, amount: Decimal) -> Outcome:
        """Takes an amount that was spent already: from the free funds, and what they lack from the house, so that nobody goes negative."""
        house = shortfall(account.exchange, account.book, account.asset)
        from_house = f"{transfer_id}:shortfall"
        before = [self.known[part] for part in (transfer_id, from_house) if part in self.known]
        if before:
            # Whichever parts it had when it was charged, by the funds of that time: all of them must be parts of this one.
            sides = {transfer_id: account, from_house: house}
            charged = sum((part.amount for part in before), ZERO)
            for part in before:
                again = Transfer(part.transfer_id, TransferKind.POST, order_id, sides[part.transfer_id], to, part.amount + amount - charged)
                same_again(part, again)
            return Outcome.ALREADY_APPLIED
        covered = min(amount, max(self.balance(account).available, ZERO))
        outcome = Outcome.APPLIED
        if covered > ZERO:
            outcome = self.post(transfer_id, order_id, account, to, covered)
        if amount > covered:
            outcome = self.post(from_house, order_id, house, to, amount - covered)
        return outcome

    def release(self, transfer_id: str, order_id: str, account: AccountKey, amount: Decimal) -> Outcome:
        """Gives held funds back to their own account."""
        return self._apply(Transfer(transfer_id, TransferKind.RELEASE, order_id, account, account, amount))

    def set_cost(self, account: AccountKey, quantity: Decimal, usd: Decimal) -> None:
        """Notes how much of an account's asset was bought here, and for how much."""
        self.balances[account] = replace(self.balance(account), cost_quantity=quantity, cost_usd=usd)
        self.changed.add(account)
        self.costs_changed.add(account)

    def _apply(self, transfer: Transfer) -> Outcome:
        before = self.known.get(transfer.transfer_id)
        if before is not None:
            return same_again(before, transfer)
        from_user, to_user = _is_user(transfer.debit), _is_user(transfer.credit)
        _require_sound(transfer, from_user, to_user)
        moved: dict[AccountKey, Balance] = {}
        for account, posted, pending in _effects(transfer, from_user, to_user):
            held = self.balance(account)
            after = Balance(held.posted + posted, held.pending + pending, held.cost_quantity, held.cost_usd)
            # What is held is no less than nothing, and what is owned no less than that.
            if not ZERO <= after.pending <= after.posted:
                raise InvariantViolation(
                    f"transfer {transfer.transfer_id} would leave {account} with {after.posted} owned and {after.pending} held. "
                    "Nothing was written. This is a defect: run `orchestrator verify` and report it with this line."
                )
            moved[account] = after
        self.balances.update(moved)
        self.changed.update(moved)
        self.transfers.append(transfer)
        self.known[transfer.transfer_id] = transfer
        return Outcome.APPLIED


def _described(transfer: Transfer) -> str:
    about = f" for {transfer.order_id}" if transfer.order_id else ""
    return f"{transfer.kind.value} of {transfer.amount.normalize():f} from {transfer.debit} to {transfer.credit}{about}"


def _require_sound(transfer: Transfer, from_user: bool, to_user: bool) -> None:
    """Raises InvariantViolation for what no transfer may be. `from_user` and `to_user`: whose its sides are."""
    debit, credit = transfer.debit, transfer.credit
    if not is_amount(transfer.amount):
        raise InvariantViolation(f"transfer {transfer.transfer_id} moves {transfer.amount}; nothing was written. This is a defect.")
    # All but the owner: exchange, book and asset.
    if debit[1:] != credit[1:]:
        raise InvariantViolation(f"transfer {transfer.transfer_id} would turn {debit} into {credit}; nothing was written.")
    if not _owners_fit(transfer, from_user, to_user):
        raise InvariantViolation(
            f"transfer {transfer.transfer_id} would be {_described(transfer)}, which no such transfer may be; nothing was written. "
            "This is a defect."
        )


def _owners_fit(transfer: Transfer, from_user: bool, to_user: bool) -> bool:
    """Whether the sides are those of the transfer's kind. The database's constraint `kind_fits_owners` says the same."""
    debit, credit = transfer.debit.owner, transfer.credit.owner
    if not (from_user or debit in SYSTEM_OWNERS) or not (to_user or credit in SYSTEM_OWNERS) or credit == "@opening":
        return False
    match transfer.kind:
        case TransferKind.OPENING:
            return debit == "@opening" and to_user and transfer.order_id is None
        case TransferKind.HOLD | TransferKind.RELEASE:
            return from_user and debit == credit and transfer.order_id is not None
        case TransferKind.POST_HELD:
            return from_user and not to_user and transfer.order_id is not None
        case TransferKind.POST:
            return debit not in (credit, "@opening") and not (from_user and to_user)


def _effects(transfer: Transfer, from_user: bool, to_user: bool) -> Iterable[tuple[AccountKey, Decimal, Decimal]]:
    """(account, change of posted, change of pending) for the users' accounts that a transfer touches."""
    amount = transfer.amount
    if transfer.kind is TransferKind.HOLD:
        return ((transfer.debit, ZERO, amount),)
    if transfer.kind is TransferKind.RELEASE:
        return ((transfer.debit, ZERO, -amount),)
    held = -amount if transfer.kind is TransferKind.POST_HELD else ZERO
    effects = []
    if from_user:
        effects.append((transfer.debit, -amount, held))
    if to_user:
        effects.append((transfer.credit, amount, ZERO))
    return effects


def book_of(mode: Mode) -> str:
    """Real and simulated money never share an account."""
    return mode.value
