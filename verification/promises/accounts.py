"""Accounts: the ledger's balances, transfers and holds against one another.

Invariants that are checked:
1. All accounts of an asset at an exchange in a book (real, simulated) sum to zero: the users' balances as stored, and the system's
   accounts as the sum of their transfers.
2. A stored balance is the sum of its account's transfers, in `posted` and in `pending`.
3. What is pending is what unfinished orders and withdrawals hold, each for itself and per account.
4. Nothing is negative, and nothing held that is not owned.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal

from pipeline.books.ledger import AccountKey, Balance, TransferKind, book_of
from pipeline.model.order import Order
from pipeline.model.withdrawal import Withdrawal
from pipeline.withdrawals.acceptance import account_of
from verification.promises.finding import Check, Finding


@dataclass(frozen=True, slots=True)
class TransferTotal:
    """The sum of all transfers of one kind between the same two accounts."""

    kind: TransferKind
    debit: AccountKey
    credit: AccountKey
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Accounts:
    """`held` is per order what its transfers have reserved and not yet moved or given back; `advanced` per user and asset what the house
    has paid because an execution cost more than its user had free."""

    balances: Mapping[AccountKey, Balance]
    totals: Sequence[TransferTotal]
    held: Mapping[str, Decimal]
    advanced: Mapping[tuple[str, str], Decimal]


def _is_user(account: AccountKey) -> bool:
    return not account.owner.startswith("@")


def check_accounts(
    accounts: Accounts, orders: Iterable[Order], withdrawals: Iterable[Withdrawal] = (), deposit_ids: Set[str] = frozenset()
) -> list[Finding]:
    """Every finding about the ledger. The system must be at rest."""
    computed = _computed(accounts.totals)
    return [
        _sums_to_zero(accounts, computed),
        _balances_match(accounts, computed),
        _holds_match(accounts, list(orders), list(withdrawals), deposit_ids),
        _nothing_negative(accounts),
    ]


def _computed(totals: Iterable[TransferTotal]) -> dict[AccountKey, Balance]:
    """Every account as its transfers make it; a system account may be negative, it is the other side of somebody's money."""
    posted: defaultdict[AccountKey, Decimal] = defaultdict(Decimal)
    pending: defaultdict[AccountKey, Decimal] = defaultdict(Decimal)
    for total in totals:
        match total.kind:
            case TransferKind.HOLD:
                pending[total.debit] += total.amount
            case TransferKind.RELEASE:
                pending[total.debit] -= total.amount
            case _:
                posted[total.debit] -= total.amount
                posted[total.credit] += total.amount
                if total.kind is TransferKind.POST_HELD:
                    pending[total.debit] -= total.amount
    return {account: Balance(posted[account], pending[account]) for account in posted.keys() | pending.keys()}


def _sums_to_zero(accounts: Accounts, computed: Mapping[AccountKey, Balance]) -> Finding:
    claim = "the ledger's accounts sum to zero for every asset at every exchange, real and simulated money apart"
    check = Check("ledger_sums_to_zero", claim)
    sums: defaultdict[tuple[str, str, str], Decimal] = defaultdict(Decimal)
    for account, balance in accounts.balances.items():
        sums[account.exchange, account.book, account.asset] += balance.posted
    for account, balance in computed.items():
        if not _is_user(account):
            sums[account.exchange, account.book, account.asset] += balance.posted
    for (exchange, book, asset), amount in sorted(sums.items()):
        check.checked += 1
        if amount:
            check.breach(f"{asset} at {exchange} ({book}): all accounts together are {amount.normalize():f}")
    return check.finding()


def _balances_match(accounts: Accounts, computed: Mapping[AccountKey, Balance]) -> Finding:
    check = Check("balances_match_transfers", "each balance is the sum of its transfers")
    for account in sorted(accounts.balances.keys() | {account for account in computed if _is_user(account)}):
        check.checked += 1
        stored, summed = accounts.balances.get(account, Balance()), computed.get(account, Balance())
        if stored != summed:
            check.breach(f"{account}: stored {_text(stored)}, its transfers make {_text(summed)}")
    return check.finding()


def _holds_match(accounts: Accounts, orders: Sequence[Order], withdrawals: Sequence[Withdrawal], deposit_ids: Set[str]) -> Finding:
    claim = "what is held is what unfinished orders and withdrawals hold"
    check = Check("holds_match_orders", claim, len(orders) + len(withdrawals))
    held: defaultdict[AccountKey, Decimal] = defaultdict(Decimal)
    for order in orders:
        held[AccountKey(order.user_id, order.exchange, book_of(order.mode), order.hold_asset)] += order.hold_amount
        by_transfers = accounts.held.get(order.order_id, Decimal(0))
        if by_transfers != order.hold_amount:
            ours, theirs = f"{order.hold_amount.normalize():f}", f"{by_transfers.normalize():f}"
            check.breach(f"order {order.order_id} ({order.status}) holds {ours}, its transfers make {theirs}")
    for withdrawal in withdrawals:
        held[account_of(withdrawal)] += withdrawal.hold_amount
        by_transfers = accounts.held.get(withdrawal.withdrawal_id, Decimal(0))
        if by_transfers != withdrawal.hold_amount:
            ours, theirs = f"{withdrawal.hold_amount.normalize():f}", f"{by_transfers.normalize():f}"
            check.breach(f"withdrawal {withdrawal.withdrawal_id} ({withdrawal.status}) holds {ours}, its transfers make {theirs}")
    known = {order.order_id for order in orders} | {withdrawal.withdrawal_id for withdrawal in withdrawals}
    # Deposits move what is free, and hold nothing.
    known |= {deposit_id for deposit_id in deposit_ids if not accounts.held.get(deposit_id)}
    for order_id in accounts.held.keys() - known:
        check.breach(f"transfers hold {accounts.held[order_id].normalize():f} for {order_id}, which does not exist")
    for account in sorted(accounts.balances.keys() | held.keys()):
        pending = accounts.balances.get(account, Balance()).pending
        if pending != held[account]:
            check.breach(f"{account}: {pending.normalize():f} is pending, its orders and withdrawals hold {held[account].normalize():f}")
    return check.finding()


def _nothing_negative(accounts: Accounts) -> Finding:
    check = Check("nothing_negative", "no balance is negative and nothing is held that is not owned", len(accounts.balances))
    for account, balance in sorted(accounts.balances.items()):
        if balance.posted < 0 or balance.pending < 0 or balance.available < 0:
            check.breach(f"{account}: {_text(balance)}")
    return check.finding()


def _text(balance: Balance) -> str:
    return f"{balance.posted.normalize():f} owned, {balance.pending.normalize():f} held"


def owned_at_exchange(accounts: Accounts) -> dict[tuple[str, str], Decimal]:
    """Per user and asset what should lie at the exchange: what the user owns in real money, less what the house advanced."""
    owned: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for account, balance in accounts.balances.items():
        if account.book == "live":
            owned[account.owner, account.asset] += balance.posted
    for user_asset, amount in accounts.advanced.items():
        owned[user_asset] -= amount
    return dict(owned)
