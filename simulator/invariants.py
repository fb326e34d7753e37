"""Checks of the exchange's books: of a running exchange's state, and of a log alone.

`violations` compares the state with a second count that does not use the ledger's own movements; `log_violations` needs no exchange.
Both return one sentence per broken invariant, an empty list where all hold.
"""

from collections import defaultdict
from decimal import Decimal
from pathlib import Path

from simulator.exchange import Account, Exchange
from simulator.funding import Funding
from simulator.ledger import ZERO
from simulator.records import (
    AccountOpened,
    DepositCredited,
    DepositSeen,
    DepositTakenBack,
    Filled,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    WithdrawalAccepted,
    WithdrawalEnded,
    read_log,
)
from simulator.symbols import Symbol


def _traded(symbols: dict[str, Symbol], fills: list[Filled], into: defaultdict[str, Decimal]) -> None:
    for fill in fills:
        symbol = symbols[fill.symbol]
        sign = 1 if fill.side == "BUY" else -1
        into[symbol.base] += sign * fill.quantity
        into[symbol.quote] -= sign * fill.quote_quantity
        into[fill.commission_asset] -= fill.commission


def _paid(funding: Funding, api_key: str, into: defaultdict[str, Decimal]) -> None:
    for withdrawal in funding.withdrawals.values():
        is_paid_back = withdrawal.ended is not None and not withdrawal.ended.completed
        if withdrawal.accepted.api_key == api_key and not is_paid_back:
            into[withdrawal.accepted.asset] -= withdrawal.accepted.amount
    for deposit in funding.deposits.values():
        is_there = deposit.credited is not None and deposit.taken_back is None
        if deposit.seen.api_key == api_key and is_there:
            into[deposit.seen.asset] += deposit.seen.amount


def _owed(funding: Funding, api_key: str) -> defaultdict[str, Decimal]:
    """What was taken back of each asset: so far an account's free amount may be below zero."""
    owed: defaultdict[str, Decimal] = defaultdict(lambda: ZERO)
    for deposit in funding.deposits.values():
        if deposit.seen.api_key == api_key and deposit.taken_back is not None:
            owed[deposit.seen.asset] += deposit.seen.amount
    return owed


def _account_violations(exchange: Exchange, account: Account) -> list[str]:
    found: list[str] = []
    expected: defaultdict[str, Decimal] = defaultdict(lambda: ZERO)
    locked: defaultdict[str, Decimal] = defaultdict(lambda: ZERO)
    symbols = dict(exchange.rules.symbols)
    for asset, amount in account.opening.items():
        expected[asset] += amount
    for order in account.orders.values():
        _traded(symbols, order.fills, expected)
        if order.cum_quantity != sum((fill.quantity for fill in order.fills), ZERO):
            found.append(f"order {order.accepted.order_id}: the executed quantity is not the sum of its fills")
        if order.is_open:
            symbol = symbols[order.accepted.symbol]
            locked[symbol.quote if order.accepted.side == "BUY" else symbol.base] += order.locked
        elif order.locked:
            found.append(f"order {order.accepted.order_id} is {order.status} and still locks {order.locked}")
    _paid(exchange.funding, account.api_key, expected)
    holding, owed = account.holding, _owed(exchange.funding, account.api_key)
    for asset in expected.keys() | holding.free.keys() | holding.locked.keys():
        free, held = holding.free[asset], holding.locked[asset]
        if free < -owed[asset] or held < 0:
            found.append(f"account {account.label}: {asset} is negative (free {free}, locked {held})")
        if free + held != expected[asset]:
            found.append(f"account {account.label}: {asset} is {free + held}, its orders and payments make {expected[asset]}")
        if held != locked[asset]:
            found.append(f"account {account.label}: {asset} locked is {held}, its open orders lock {locked[asset]}")
    return found


def violations(exchange: Exchange) -> list[str]:
    """What is wrong in a running exchange's books."""
    found = [f"{asset}: the sum over all holders is {total}, not zero" for asset, total in exchange.ledger.sums().items() if total]
    found += [f"fees: {asset} is negative" for asset, amount in exchange.ledger.fees.items() if amount < 0]
    for account in exchange.accounts.values():
        found += _account_violations(exchange, account)
    return found


class _LogChecker:
    """What the log has said so far, and what is wrong with it."""

    def __init__(self, venue_timeout_ms: int) -> None:
        self.found: list[str] = []
        self._venue_timeout_us = venue_timeout_ms * 1000
        self._orders: dict[int, OrderAccepted] = {}
        self._filled: defaultdict[int, Decimal] = defaultdict(lambda: ZERO)
        self._ended: set[int] = set()
        self._open_ids: dict[tuple[str, str, str], int] = {}

    def order(self, record: OrderAccepted) -> None:
        name = f"order {record.order_id} ({record.client_order_id})"
        if record.time_us // 1000 - record.timestamp_ms > record.receive_window_ms:
            self.found.append(f"{name}: accepted outside its receive window")
        if record.time_us - record.arrived_us > self._venue_timeout_us:
            self.found.append(f"{name}: accepted after the venue's time-out")
        key = (record.api_key, record.symbol, record.client_order_id)
        if key in self._open_ids:
            self.found.append(f"{name}: accepted while order {self._open_ids[key]} with the same client order id was open")
        self._orders[record.order_id] = record
        self._open_ids[key] = record.order_id

    def _close(self, order_id: int) -> None:
        record = self._orders[order_id]
        self._ended.add(order_id)
        self._open_ids.pop((record.api_key, record.symbol, record.client_order_id), None)

    def fill(self, record: Filled) -> None:
        accepted = self._orders.get(record.order_id)
        name = f"fill {record.trade_id}"
        if accepted is None:
            self.found.append(f"{name}: of an order that was never accepted")
            return
        if record.order_id in self._ended and accepted.quantity is not None:
            self.found.append(f"{name}: of an order that had ended")
        self._filled[record.order_id] += record.quantity
        is_buy = accepted.side == "BUY"
        if accepted.price is not None and (record.price > accepted.price if is_buy else record.price < accepted.price):
            self.found.append(f"{name}: at {record.price}, worse than the limit {accepted.price}")
        if accepted.tape_price is not None and not record.maker and record.price != accepted.tape_price:
            self.found.append(f"{name}: at {record.price}, the tape's row says {accepted.tape_price}")
        if accepted.quantity is not None and self._filled[record.order_id] > accepted.quantity:
            self.found.append(f"{name}: order {record.order_id} is filled beyond its quantity")
        if accepted.quantity is None or self._filled[record.order_id] == accepted.quantity:
            self._close(record.order_id)

    def end(self, record: OrderCanceled | OrderExpired) -> None:
        accepted = self._orders.get(record.order_id)
        if accepted is None:
            self.found.append(f"order {record.order_id}: ended, but was never accepted")
            return
        if record.order_id in self._ended and accepted.quantity is not None:
            self.found.append(f"order {record.order_id}: ended twice")
        self._close(record.order_id)


def log_violations(path: Path, venue_timeout_ms: int) -> list[str]:
    """What is wrong in an exchange log: horizon, open client order ids, limits, overfills, tape prices, money.

    Raises LogDamaged or FileNotFoundError as `read_log` does.
    """
    checker = _LogChecker(venue_timeout_ms)
    money: dict[str, defaultdict[str, Decimal]] = {}
    withdrawals: dict[str, WithdrawalAccepted] = {}
    deposits: dict[str, DepositSeen] = {}
    owed: defaultdict[tuple[str, str], Decimal] = defaultdict(lambda: ZERO)
    quotes: dict[str, tuple[str, str]] = {}
    for record in read_log(path):
        match record:
            case AccountOpened():
                money[record.api_key] = defaultdict(lambda: ZERO, record.balances)
            case OrderAccepted():
                checker.order(record)
            case Filled():
                checker.fill(record)
                base, quote = quotes.setdefault(record.symbol, _assets(record.symbol))
                sign = 1 if record.side == "BUY" else -1
                account = money[record.api_key]
                account[base] += sign * record.quantity
                account[quote] -= sign * record.quote_quantity
                account[record.commission_asset] -= record.commission
            case OrderCanceled() | OrderExpired():
                checker.end(record)
            case WithdrawalAccepted():
                withdrawals[record.withdrawal_id] = record
                money[record.api_key][record.asset] -= record.amount
            case WithdrawalEnded(completed=False):
                accepted = withdrawals[record.withdrawal_id]
                money[record.api_key][accepted.asset] += accepted.amount
            case DepositSeen():
                deposits[record.deposit_id] = record
            case DepositCredited():
                seen = deposits[record.deposit_id]
                money[record.api_key][seen.asset] += seen.amount
            case DepositTakenBack():
                seen = deposits[record.deposit_id]
                money[record.api_key][seen.asset] -= seen.amount
                owed[record.api_key, seen.asset] += seen.amount
        if isinstance(record, Filled | WithdrawalAccepted):
            checker.found += [
                f"account {record.api_key}: {asset} is {amount} after seq {record.seq}"
                for asset, amount in money[record.api_key].items()
                if amount < -owed[record.api_key, asset]
            ]
    return checker.found


def _assets(symbol: str) -> tuple[str, str]:
    for quote in ("USDT", "BTC"):
        if symbol.endswith(quote):
            return symbol.removesuffix(quote), quote
    raise ValueError(f"{symbol}: its quote asset is not known")
