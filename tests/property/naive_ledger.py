"""The ledger once more, naively: who owns what and what is held for which cause, in plain dictionaries. And operations to try both with.

An operation is drawn from what the naive ledger knows, applied to it at once, and carries what the real one must do (`Act`).
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from random import Random

from pipeline.books.changes import Changes
from pipeline.books.ledger import AccountKey, Ledger, Outcome, clearing, fees, opening, shortfall
from pipeline.model.invariants import InvariantViolation
from pipeline.model.venue import Fee, VenueOrder
from pipeline.orders.settlement import apply_venue_order
from pipeline.withdrawals.settlement import apply_withdrawal_report
from schemas.orders import Mode, OrderStatus, Side, WithdrawalStatus
from schemas.wire import SourceOffset
from tests.unit.builders import NOW, RULES, TOPICS, order_of
from tests.unit.withdrawal_builders import report, withdrawal_of

Act = Callable[[Changes], None]
ASSETS = ("BTC", "ETH", "USDT", "BNB")
SYMBOLS = ("BTC/USDT", "ETH/BTC", "ETH/USDT")
NOTHING = Decimal(0)
LARGE = Decimal(10) ** 9


@dataclass(slots=True)
class OpenOrder:
    """`paid` and `received` so far, in their accounts' assets; `charged` per fee asset."""

    side: Side
    pays: AccountKey
    receives: AccountKey
    paid: Decimal = NOTHING
    received: Decimal = NOTHING
    charged: dict[str, Decimal] = field(default_factory=dict)


@dataclass(slots=True)
class NaiveLedger:
    """`held` is per order or withdrawal; `system` are the accounts that are no user's, which may be negative."""

    owned: dict[AccountKey, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    held: dict[str, tuple[AccountKey, Decimal]] = field(default_factory=dict)
    system: dict[AccountKey, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    orders: dict[str, OpenOrder] = field(default_factory=dict)
    withdrawals: dict[str, tuple[AccountKey, Decimal, Decimal]] = field(default_factory=dict)
    # What was applied of deposits and the like: by transfer id, as it was asked for.
    applied: dict[str, tuple[str, AccountKey, Decimal]] = field(default_factory=dict)

    def copy(self) -> "NaiveLedger":
        orders = {name: replace(order, charged=dict(order.charged)) for name, order in self.orders.items()}
        owned, system = self.owned.copy(), self.system.copy()
        return NaiveLedger(owned, dict(self.held), system, orders, dict(self.withdrawals), dict(self.applied))

    def pending(self, account: AccountKey) -> Decimal:
        return sum((amount for holder, amount in self.held.values() if holder == account), NOTHING)

    def free(self, account: AccountKey) -> Decimal:
        return self.owned[account] - self.pending(account)

    def receive(self, account: AccountKey, source: AccountKey, amount: Decimal) -> None:
        self.owned[account] += amount
        self.system[source] -= amount

    def charge(self, account: AccountKey, to: AccountKey, amount: Decimal) -> None:
        """What the user cannot pay, the house does."""
        paid = min(amount, self.free(account))
        self.owned[account] -= paid
        self.system[to] += amount
        self.system[shortfall(*account[1:])] -= amount - paid

    def pay_held(self, name: str, to: AccountKey, amount: Decimal) -> None:
        """From the hold as far as it goes, the rest like anything that was spent already."""
        account, held = self.held[name]
        from_hold = min(amount, held)
        self.held[name] = account, held - from_hold
        self.owned[account] -= from_hold
        self.system[to] += from_hold
        self.charge(account, to, amount - from_hold)


@dataclass(slots=True)
class Drawer:
    """Draws operations for some accounts. `number` counts them, so that each has ids of its own."""

    random: Random
    naive: NaiveLedger
    users: tuple[str, ...]
    exchanges: tuple[str, ...]
    number: int

    def draw(self) -> Act:
        self.number += 1
        draws = {
            self._open: 1, self._order: 6, self._fill: 9, self._cancel: 2, self._withdraw: 2, self._end_withdrawal: 2, self._deposit: 3,
            self._reverse: 1, self._again: 2, self._reuse: 1,
        }  # fmt: skip
        return self.random.choices(list(draws), list(draws.values()))[0]()

    def _account(self) -> AccountKey:
        pick = self.random.choice
        return AccountKey(pick(self.users), pick(self.exchanges), pick(("live", "paper")), pick(ASSETS))

    def _amount(self, most: Decimal = LARGE) -> Decimal:
        """Between one unit of the last place and `most`, with few digits or all of them."""
        places = self.random.choice((0, 2, 8, 18))
        return max(Decimal("1e-18"), (most * self.random.randrange(1, 1_000) / 1_000).quantize(Decimal(1).scaleb(-places)))

    def _once(self, word: str, name: str, account: AccountKey, amount: Decimal) -> Act:
        """Something that comes once for its cause: it must be applied where the cause is new."""
        known = self.naive.applied.get(name)
        if known is None:
            self.naive.applied[name] = word, account, amount
            self._apply_naively(word, account, amount)
        expected = Outcome.APPLIED if known is None else Outcome.ALREADY_APPLIED

        def act(changes: Changes) -> None:
            assert _really(word, name, account, amount, changes.ledger) is expected, (word, name)

        return act

    def _apply_naively(self, word: str, account: AccountKey, amount: Decimal) -> None:
        if word == "reverse":
            self.naive.charge(account, clearing(*account[1:]), amount)
        else:
            source = opening if word == "open" else clearing
            self.naive.receive(account, source(*account[1:]), amount)

    def _open(self) -> Act:
        return self._once("open", f"opening:{self.number}:{self.users[0]}", self._account(), self._amount())

    def _deposit(self) -> Act:
        return self._once("deposit", f"deposit:{self.number}:{self.users[0]}", self._account(), self._amount())

    def _reverse(self) -> Act:
        account = self._account()
        return self._once("reverse", f"reversal:{self.number}:{self.users[0]}", account, self._amount(self.naive.owned[account] * 2 + 1))

    def _again(self) -> Act:
        if not self.naive.applied:
            return self._open()
        name = self.random.choice(list(self.naive.applied))
        return self._once(self.naive.applied[name][0], name, *self.naive.applied[name][1:])

    def _reuse(self) -> Act:
        """An id that was applied, for another amount or account: refused by name, and nothing of it stays."""
        if not self.naive.applied:
            return self._open()
        name = self.random.choice(list(self.naive.applied))
        word, account, amount = self.naive.applied[name]
        if self.random.random() < 0.5:
            amount += Decimal("1e-18")
        else:
            account = account._replace(exchange=next(other for other in self.exchanges if other != account.exchange))

        def act(changes: Changes) -> None:
            before = dict(changes.ledger.balances), list(changes.ledger.transfers)
            try:
                _really(word, name, account, amount, changes.ledger)
            except InvariantViolation as refused:
                assert name in str(refused)
            else:
                raise AssertionError(f"{name} was applied for another movement")
            assert before == (changes.ledger.balances, changes.ledger.transfers)

        return act

    def _order(self) -> Act:
        user, exchange = self.random.choice(self.users), self.random.choice(self.exchanges)
        mode, side, symbol = self.random.choice(list(Mode)), self.random.choice(list(Side)), self.random.choice(SYMBOLS)
        base, quote = (AccountKey(user, exchange, mode.value, asset) for asset in symbol.split("/"))
        pays, receives = (quote, base) if side is Side.BUY else (base, quote)
        order_id = f"o{self.number}:{self.users[0]}"
        free = self.naive.free(pays)
        amount = self._amount(free * Decimal("1.3") + Decimal("0.1"))
        covered = amount <= free
        if covered:
            self.naive.held[order_id] = pays, amount
            self.naive.orders[order_id] = OpenOrder(side, pays, receives)
        order = order_of(
            order_id=order_id, client_order_id=order_id, exchange_order_id="x1", idempotency_key=order_id, user_id=user, exchange=exchange,
            mode=mode, side=side, symbol=symbol, quantity=LARGE * LARGE, status=OrderStatus.NEW, hold_asset=pays.asset, hold_amount=amount,
            source=SourceOffset(TOPICS.requests, 0, self.number), usd_rate=Decimal(1), usd_value=Decimal(1),
        )  # fmt: skip

        def act(changes: Changes) -> None:
            assert changes.ledger.hold(f"{order_id}:hold", order_id, pays, amount) is covered
            if covered:
                changes.orders.make(order_id, order)

        return act

    def _fill(self) -> Act:
        """A part of an order, or its end with one: paid from the hold and beyond it, fees in any asset, told late or with the fill."""
        if not self.naive.orders:
            return self._order()
        order_id = self.random.choice(list(self.naive.orders))
        order = self.naive.orders[order_id]
        if self.random.random() < 0.9:
            paid = self._amount(self.naive.held[order_id][1] * Decimal("1.1") + Decimal("0.01"))
            self.naive.pay_held(order_id, clearing(*order.pays[1:]), paid)
            received = self._amount(Decimal(1_000))
            self.naive.receive(order.receives, clearing(*order.receives[1:]), received)
            order.paid, order.received = order.paid + paid, order.received + received
        ended = self.random.random() < 0.3
        if ended:
            del self.naive.held[order_id], self.naive.orders[order_id]
        for asset in self.random.sample(ASSETS, self.random.choice((0, 0, 1, 1, 2))):
            amount = self._amount(Decimal(1))
            account = order.pays._replace(asset=asset)
            self.naive.charge(account, fees(*account[1:]), amount)
            order.charged[asset] = order.charged.get(asset, NOTHING) + amount
        return _told(order_id, order, self.random.choice((OrderStatus.FILLED, OrderStatus.CANCELED)) if ended else OrderStatus.NEW)

    def _cancel(self) -> Act:
        if not self.naive.orders:
            return self._order()
        order_id = self.random.choice(list(self.naive.orders))
        order = self.naive.orders.pop(order_id)
        del self.naive.held[order_id]
        return _told(order_id, order, OrderStatus.CANCELED)

    def _withdraw(self) -> Act:
        account = self._account()._replace(book="live")
        withdrawal_id = f"w{self.number}:{self.users[0]}"
        free = self.naive.free(account)
        amount, fee = self._amount(free + 1), self._amount(Decimal(1))
        covered = amount + fee <= free
        if covered:
            self.naive.held[withdrawal_id] = account, amount + fee
            self.naive.withdrawals[withdrawal_id] = account, amount, fee
        withdrawal = withdrawal_of(
            withdrawal_id=withdrawal_id, client_withdrawal_id=withdrawal_id, idempotency_key=withdrawal_id, user_id=account.owner,
            exchange=account.exchange, asset=account.asset, amount=amount, fee=fee, hold_amount=amount + fee,
            status=WithdrawalStatus.PROCESSING, source=SourceOffset(TOPICS.requests, 0, self.number),
        )  # fmt: skip

        def act(changes: Changes) -> None:
            assert changes.ledger.hold(f"{withdrawal_id}:hold", withdrawal_id, account, amount + fee) is covered
            if covered:
                changes.withdrawals.make(withdrawal_id, withdrawal)

        return act

    def _end_withdrawal(self) -> Act:
        """Completed, with the fee as agreed or raised, or failed."""
        if not self.naive.withdrawals:
            return self._withdraw()
        withdrawal_id = self.random.choice(list(self.naive.withdrawals))
        account, amount, fee = self.naive.withdrawals.pop(withdrawal_id)
        completed = self.random.random() < 0.7
        if completed:
            fee = self.random.choice((fee, fee * 2, NOTHING))
            self.naive.pay_held(withdrawal_id, clearing(*account[1:]), amount)
            self.naive.pay_held(withdrawal_id, fees(*account[1:]), fee)
        del self.naive.held[withdrawal_id]
        status = WithdrawalStatus.COMPLETED if completed else WithdrawalStatus.FAILED

        def act(changes: Changes) -> None:
            found = report(changes.withdrawals[withdrawal_id], withdrawal_status=status, amount=amount, fee=fee)
            apply_withdrawal_report(found, changes, RULES)

        return act


def _really(word: str, name: str, account: AccountKey, amount: Decimal, ledger: Ledger) -> Outcome:
    match word:
        case "open":
            return ledger.open(name, account, amount)
        case "deposit":
            return ledger.post(name, None, clearing(*account[1:]), account, amount)
        case _:
            return ledger.charge(name, None, account, clearing(*account[1:]), amount)


def _told(order_id: str, order: OpenOrder, status: OrderStatus) -> Act:
    quantity, quote = (order.received, order.paid) if order.side is Side.BUY else (order.paid, order.received)
    told = tuple(Fee(asset, amount) for asset, amount in order.charged.items())
    word = VenueOrder(order_id, "x1", status, quantity, quote, told, NOW)

    def act(changes: Changes) -> None:
        apply_venue_order(changes.orders[order_id], word, changes)

    return act
