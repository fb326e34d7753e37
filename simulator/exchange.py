"""The exchange's state and decisions, synchronous and without I/O: the clock is passed in, records go out through `sink`.

Invariants:
1. A decision first checks everything, then emits records; `apply` is the only code that changes state, live and on restart alike.
2. `place` checks the acceptance horizon itself, last of all: nothing is awaited between that check and the acceptance.
3. A client order id is refused only while an open order of the same account and symbol has it.

Start at `place`.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from simulator import filters, refusals
from simulator.funding import Funding
from simulator.ledger import FEE_RATE, ZERO, Holding, InvariantViolation, Ledger, ceil8, floor8
from simulator.matching import Offer, crosses, first_half, offers_for_quantity, offers_for_quote
from simulator.orders import Order, OrderRequest
from simulator.prices import Tape, TapeMode
from simulator.records import (
    AccountOpened,
    DepositCredited,
    DepositMarked,
    DepositSeen,
    DepositTakenBack,
    Filled,
    KeyAdded,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    PriceSet,
    Record,
    WithdrawalAccepted,
    WithdrawalEnded,
)
from simulator.symbols import Symbol

LIMIT_TYPES: Final = frozenset({"LIMIT", "LIMIT_MAKER"})
PARTIAL_FILL_STEPS: Final = 3


@dataclass(slots=True)
class Account:
    """An account, by its first API key. `by_symbol` and `fills` by symbol, oldest first; `by_client_id` has the newest order of each id."""

    api_key: str
    label: str
    opening: Mapping[str, Decimal]
    holding: Holding
    orders: dict[int, Order] = field(default_factory=dict)
    open_orders: dict[int, Order] = field(default_factory=dict)
    by_client_id: dict[tuple[str, str], Order] = field(default_factory=dict)
    by_symbol: dict[str, list[Order]] = field(default_factory=dict)
    fills: dict[str, list[Filled]] = field(default_factory=dict)


class RestingOrders:
    """One symbol's resting orders in price-time priority. Closed orders are dropped when they come up."""

    def __init__(self) -> None:
        self._buys: list[tuple[Decimal, int, Order]] = []
        self._sells: list[tuple[Decimal, int, Order]] = []

    def add(self, order: Order) -> None:
        accepted = order.accepted
        if accepted.price is None:
            raise InvariantViolation(f"order {accepted.order_id} rests without a price")
        if accepted.side == "BUY":
            heapq.heappush(self._buys, (-accepted.price, accepted.order_id, order))
        else:
            heapq.heappush(self._sells, (accepted.price, accepted.order_id, order))

    def pop_crossed(self, price: Decimal) -> Order | None:
        """Takes out the first open order that trades at `price`."""
        for heap, sign in ((self._buys, -1), (self._sells, 1)):
            while heap and (not heap[0][2].is_open or crosses(heap[0][2].accepted.side, heap[0][0] * sign, price)):
                order = heapq.heappop(heap)[2]
                if order.is_open:
                    return order
        return None


@dataclass(frozen=True, slots=True)
class Rules:
    """What an exchange is made with. `fill_steps`: in how many steps resting orders fill when the price crosses them."""

    symbols: Mapping[str, Symbol]
    venue_timeout_ms: int
    fill_steps: int = 1
    tape: Tape | None = None
    tape_mode: TapeMode = TapeMode.PER_ORDER
    withdrawal_fee: Decimal = ZERO


def _can_rest(order_type: str, time_in_force: str) -> bool:
    return order_type in LIMIT_TYPES and time_in_force == "GTC"


class Exchange:
    """See the module docstring. `sink` gets each new record, after it was applied."""

    def __init__(self, rules: Rules, sink: Callable[[Record], None]) -> None:
        self.rules = rules
        self._sink = sink
        self.ledger = Ledger()
        self.accounts: dict[str, Account] = {}
        # Further keys, and the first one of their account.
        self.other_keys: dict[str, str] = {}
        self.orders: dict[int, Order] = {}
        self.prices = {name: symbol.start_price for name, symbol in rules.symbols.items()}
        self.pinned: set[str] = set()
        self.tape_row = 0
        if rules.tape is not None:
            self.prices[rules.tape.symbol] = rules.tape.row(0).price
        self._resting = {name: RestingOrders() for name in rules.symbols}
        self._seq = 0
        self._last_us = 0
        self._order_id = 0
        self._trade_id = 0
        self.funding = Funding(self.ledger, rules.venue_timeout_ms, self._stamp, self.emit)
        self._appliers: dict[type[Record], Callable[..., None]] = {
            AccountOpened: self._apply_account,
            KeyAdded: self._apply_key,
            OrderAccepted: self._apply_order,
            Filled: self._apply_fill,
            OrderCanceled: self._apply_cancel,
            OrderExpired: self._apply_expiry,
            PriceSet: self._apply_price,
            WithdrawalAccepted: self.funding.apply_withdrawal,
            WithdrawalEnded: self.funding.apply_withdrawal_end,
            DepositSeen: self.funding.apply_deposit,
            DepositMarked: self.funding.apply_deposit_mark,
            DepositCredited: self.funding.apply_deposit_credit,
            DepositTakenBack: self.funding.apply_deposit_back,
        }

    # ---- records

    def _stamp(self, now_us: int) -> tuple[int, int]:
        """The next record's `seq` and `time_us`; time never runs backwards, whatever the wall clock does."""
        self._last_us = max(self._last_us, now_us)
        return self._seq + 1, self._last_us

    def emit(self, record: Record) -> None:
        self.apply(record)
        self._sink(record)

    def apply(self, record: Record) -> None:
        """Changes the state by one record; raises InvariantViolation where the books would be wrong."""
        self._seq = record.seq
        self._last_us = record.time_us
        self._appliers[type(record)](record)

    def recover(self, now_us: int) -> None:
        """After the log was read back: puts the resting orders into the book, and ends those that cannot rest but are open.

        The latter were cut off by a crash between their records. Nobody was told of them: no answer leaves before all are durable.
        """
        for order in list(self.orders.values()):
            if order.is_open and _can_rest(order.accepted.type, order.accepted.time_in_force):
                self._resting[order.accepted.symbol].add(order)
            elif order.is_open:
                self._expire(order, now_us)

    # ---- accounts

    def open_account(self, api_key: str, label: str, balances: dict[str, Decimal], now_us: int) -> Account:
        """Opens an account, or returns the one that has this key, with its balances as they are."""
        if api_key not in self.accounts:
            self.emit(AccountOpened(*self._stamp(now_us), api_key, label, balances))
        return self.accounts[api_key]

    def _apply_account(self, record: AccountOpened) -> None:
        holding = self.ledger.open(record.api_key, dict(record.balances))
        self.accounts[record.api_key] = Account(record.api_key, record.label, record.balances, holding)
        self.funding.holdings[record.api_key] = holding

    def add_key(self, api_key: str, account: Account, now_us: int) -> None:
        """Gives an account a further key; nothing happens where it has it. The key must not be another account's."""
        if self.account_of(api_key) is not account:
            self.emit(KeyAdded(*self._stamp(now_us), api_key, account.api_key))

    def _apply_key(self, record: KeyAdded) -> None:
        self.other_keys[record.api_key] = record.account

    def account_of(self, api_key: str) -> Account | None:
        """The account that a key, its first or a further one, belongs to."""
        return self.accounts.get(self.other_keys.get(api_key, api_key))

    # ---- orders

    def place(self, account: Account, request: OrderRequest, now_us: int, partial: bool = False) -> Order:
        """Accepts an order and trades what it can at once, or raises Refusal and changes nothing.

        `partial`: a market or IOC order trades half and expires; a resting one fills in several steps. It is not applied where half
        would be less than a step, or to FOK; the accepted record's `fill_steps` tells.
        """
        symbol = self.rules.symbols[request.symbol]
        duplicate = account.by_client_id.get((request.symbol, request.client_order_id))
        if duplicate is not None and duplicate.is_open:
            raise refusals.duplicate_order()
        reference, tape_row, trade_id, tape_price = self._reference(request.symbol)
        holding = account.holding
        owned = holding.free[symbol.base] + holding.locked[symbol.base]
        filters.check(symbol, request, reference, account.open_orders.values(), owned)
        offers = self._offers(symbol, request, reference, has_depth=tape_row is None)
        can_rest = _can_rest(request.type, request.time_in_force)
        fill_steps = self.rules.fill_steps if can_rest else 1
        if partial and request.time_in_force != "FOK":
            offers, fill_steps = self._cut(symbol, request, offers, fill_steps)
        self._check_funds(account, symbol, request, offers)
        horizon = request.horizon
        horizon.check(now_us, self.rules.venue_timeout_ms)
        seq, time_us = self._stamp(now_us)
        self.emit(
            OrderAccepted(
                seq, time_us, account.api_key, account.label, request.client_order_id, self._order_id + 1, request.symbol, request.side,
                request.type, request.time_in_force, request.quantity, request.quote_quantity, request.price, horizon.timestamp_ms,
                horizon.receive_window_ms, horizon.arrived_us, fill_steps, tape_row, trade_id, tape_price, request.foreign,
            )
        )  # fmt: skip
        order = self.orders[self._order_id]
        for offer in offers:
            self._fill(order, offer, maker=False, now_us=now_us)
        if order.is_open and can_rest:
            self._resting[request.symbol].add(order)
        elif order.is_open or (partial and fill_steps > 1 and request.type not in LIMIT_TYPES):
            self._expire(order, now_us)
        if tape_row is not None:
            self.sweep(request.symbol, now_us)
        return order

    def _reference(self, name: str) -> tuple[Decimal, int | None, str | None, Decimal | None]:
        """The price an order of this symbol meets, and the tape row it consumes if it is accepted."""
        tape = self.rules.tape
        if tape is None or tape.symbol != name or self.rules.tape_mode is not TapeMode.PER_ORDER or name in self.pinned:
            return self.prices[name], None, None, None
        row = tape.row(self.tape_row)
        return row.price, self.tape_row, row.trade_id, row.price

    @staticmethod
    def _offers(symbol: Symbol, request: OrderRequest, reference: Decimal, has_depth: bool) -> list[Offer]:
        if request.quote_quantity is not None:
            offers = offers_for_quote(symbol, request.side, request.quote_quantity, reference, has_depth)
            if not offers:
                raise refusals.filter_failure("LOT_SIZE")
            return offers
        if request.quantity is None:
            raise refusals.missing("quantity")
        offers = offers_for_quantity(symbol, request.side, request.quantity, limit=request.price, reference=reference, has_depth=has_depth)
        if request.type == "LIMIT_MAKER" and offers:
            raise refusals.would_match()
        if request.time_in_force == "FOK" and request.type == "LIMIT" and sum((o.quantity for o in offers), ZERO) < request.quantity:
            return []
        return offers

    @staticmethod
    def _cut(symbol: Symbol, request: OrderRequest, offers: list[Offer], fill_steps: int) -> tuple[list[Offer], int]:
        if offers:
            half = first_half(symbol, offers)
            return (half, PARTIAL_FILL_STEPS) if half else (offers, fill_steps)
        return offers, PARTIAL_FILL_STEPS if request.time_in_force == "GTC" else fill_steps

    def _check_funds(self, account: Account, symbol: Symbol, request: OrderRequest, offers: list[Offer]) -> None:
        if request.side == "SELL":
            asset = symbol.base
            needed = request.quantity if request.quantity is not None else sum((o.quantity for o in offers), ZERO)
        else:
            asset = symbol.quote
            if request.price is not None and request.quantity is not None:
                needed = ceil8(request.price * request.quantity)
            else:
                needed = sum((offer.quote_quantity for offer in offers), ZERO)
        if account.holding.free[asset] < needed:
            raise refusals.insufficient_balance()

    def _apply_order(self, record: OrderAccepted) -> None:
        account = self.accounts[record.api_key]
        order = Order(record, record.quantity or ZERO, fill_steps=record.fill_steps, updated_us=record.time_us)
        self._order_id = record.order_id
        self.orders[record.order_id] = account.orders[record.order_id] = account.open_orders[record.order_id] = order
        account.by_client_id[record.symbol, record.client_order_id] = order
        account.by_symbol.setdefault(record.symbol, []).append(order)
        if record.type in LIMIT_TYPES:
            order.locked = self._lock_needed(order)
            account.holding.lock(self._paid_asset(order), order.locked)
        if record.tape_row is not None and record.tape_price is not None:
            self.tape_row = record.tape_row + 1
            self.prices[record.symbol] = record.tape_price

    def _lock_needed(self, order: Order) -> Decimal:
        if order.accepted.side == "SELL" or order.accepted.price is None:
            return order.leaves_quantity
        return ceil8(order.accepted.price * order.leaves_quantity)

    def _paid_asset(self, order: Order) -> str:
        symbol = self.rules.symbols[order.accepted.symbol]
        return symbol.quote if order.accepted.side == "BUY" else symbol.base

    def _fill(self, order: Order, offer: Offer, maker: bool, now_us: int) -> None:
        accepted = order.accepted
        symbol = self.rules.symbols[accepted.symbol]
        is_buy = accepted.side == "BUY"
        quote_quantity = offer.quote_quantity
        commission = floor8((offer.quantity if is_buy else quote_quantity) * FEE_RATE)
        seq, time_us = self._stamp(now_us)
        self.emit(
            Filled(
                seq, time_us, accepted.order_id, accepted.client_order_id, accepted.api_key, accepted.symbol, accepted.side,
                self._trade_id + 1, offer.price, offer.quantity, quote_quantity, commission, symbol.base if is_buy else symbol.quote, maker,
            )
        )  # fmt: skip

    def _apply_fill(self, record: Filled) -> None:
        order = self.orders[record.order_id]
        account = self.accounts[record.api_key]
        symbol = self.rules.symbols[record.symbol]
        self._trade_id = record.trade_id
        order.fills.append(record)
        account.fills.setdefault(record.symbol, []).append(record)
        order.cum_quantity += record.quantity
        order.cum_quote += record.quote_quantity
        order.updated_us = record.time_us
        order.fill_steps = max(1, order.fill_steps - 1)
        if order.accepted.quantity is None:
            order.quantity = order.cum_quantity
        if order.leaves_quantity < 0:
            raise InvariantViolation(f"order {record.order_id} would be filled beyond its quantity")
        order.status = "FILLED" if order.leaves_quantity == 0 else "PARTIALLY_FILLED"
        if order.locked:
            self._unlock(order, self._lock_needed(order))
        base, quote = (symbol.base, record.quantity), (symbol.quote, record.quote_quantity)
        (paid, cost), (received, amount) = (quote, base) if record.side == "BUY" else (base, quote)
        self.ledger.trade(account.holding, paid=paid, cost=cost, received=received, amount=amount, commission=record.commission)
        if not order.is_open:
            account.open_orders.pop(record.order_id, None)

    def _unlock(self, order: Order, keep: Decimal) -> None:
        self.accounts[order.accepted.api_key].holding.unlock(self._paid_asset(order), order.locked - keep)
        order.locked = keep

    def cancel(self, account: Account, order: Order, now_us: int) -> Order:
        """Ends the rest of an open order, or raises Refusal."""
        if not order.is_open:
            raise refusals.unknown_order()
        accepted = order.accepted
        self.emit(OrderCanceled(*self._stamp(now_us), accepted.order_id, accepted.client_order_id, account.api_key))
        return order

    def _apply_cancel(self, record: OrderCanceled) -> None:
        self._end(record, "CANCELED")

    def _expire(self, order: Order, now_us: int) -> None:
        accepted = order.accepted
        self.emit(OrderExpired(*self._stamp(now_us), accepted.order_id, accepted.client_order_id, accepted.api_key))

    def _apply_expiry(self, record: OrderExpired) -> None:
        self._end(record, "EXPIRED")

    def _end(self, record: OrderCanceled | OrderExpired, status: str) -> None:
        order = self.orders[record.order_id]
        order.status = status
        order.updated_us = record.time_us
        if order.locked:
            self._unlock(order, ZERO)
        self.accounts[record.api_key].open_orders.pop(record.order_id, None)

    # ---- prices

    def move_price(self, name: str, price: Decimal, now_us: int) -> None:
        """A walk's or the clock tape's next price. It is not logged: fills carry their prices. Pinned prices stay."""
        if name not in self.pinned:
            self.prices[name] = price
            self.sweep(name, now_us)

    def set_price(self, name: str, price: Decimal, pinned: bool, tape_row: int | None, now_us: int) -> None:
        """A price set by hand; resting orders that it crosses fill."""
        self.emit(PriceSet(*self._stamp(now_us), name, price, pinned, tape_row))
        self.sweep(name, now_us)

    def _apply_price(self, record: PriceSet) -> None:
        self.prices[record.symbol] = record.price
        if record.tape_row is not None:
            self.tape_row = record.tape_row
        if record.pinned:
            self.pinned.add(record.symbol)
        else:
            self.pinned.discard(record.symbol)

    def sweep(self, name: str, now_us: int) -> None:
        """Fills the resting orders that the current price crosses, at their own prices; each at most one step."""
        resting = self._resting[name]
        price = self.prices[name]
        symbol = self.rules.symbols[name]
        unfinished: list[Order] = []
        while (order := resting.pop_crossed(price)) is not None:
            limit = order.accepted.price
            if limit is None:
                raise InvariantViolation(f"order {order.accepted.order_id} rests without a price")
            step = symbol.floor_to_step(order.leaves_quantity / order.fill_steps) or order.leaves_quantity
            self._fill(order, Offer(limit, step), maker=True, now_us=now_us)
            if order.is_open:
                unfinished.append(order)
        for order in unfinished:
            resting.add(order)
