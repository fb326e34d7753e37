"""The simulated exchange's own log as books: counted anew from its records, not with the exchange's code."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

from schemas.orders import OrderStatus, OrderType, Side
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
from simulator.symbols import make_symbols
from verification.promises.books import BookedOrder, ExchangeBooks
from verification.promises.deposits import Booked, BookedDeposit
from verification.promises.payouts import BookedPayout

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SYMBOLS: Final = make_symbols(Decimal(0))


class _Books:
    """What the log has said so far."""

    def __init__(self) -> None:
        self.orders: dict[int, BookedOrder] = {}
        self.balances: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self._users: dict[str, str] = {}
        self.payouts: dict[str, BookedPayout] = {}
        self.deposits: dict[str, BookedDeposit] = {}

    def open(self, record: AccountOpened) -> None:
        self._users[record.api_key] = record.label
        for asset, amount in record.balances.items():
            self.balances[record.label, asset] += amount

    def accept(self, record: OrderAccepted) -> None:
        symbol = _SYMBOLS[record.symbol]
        self.orders[record.order_id] = BookedOrder(
            exchange_order_id=str(record.order_id),
            client_order_id=record.client_order_id,
            user_id=record.label,
            symbol=f"{symbol.base}/{symbol.quote}",
            side=Side(record.side.lower()),
            order_type=OrderType(record.type.lower()),
            quantity=record.quantity,
            quote_quantity=record.quote_quantity,
            price=record.price,
            foreign=record.foreign,
        )

    def fill(self, record: Filled) -> None:
        order, symbol = self.orders[record.order_id], _SYMBOLS[record.symbol]
        order.cum_quantity += record.quantity
        order.cum_quote += record.quote_quantity
        if record.commission:
            order.fees[record.commission_asset] = order.fees.get(record.commission_asset, Decimal(0)) + record.commission
        # An order for a quote amount is filled by what it got at once.
        whole = order.quantity is None or order.cum_quantity == order.quantity
        order.status = OrderStatus.FILLED if whole else OrderStatus.PARTIALLY_FILLED
        sign = 1 if order.side is Side.BUY else -1
        self.balances[order.user_id, symbol.base] += sign * record.quantity
        self.balances[order.user_id, symbol.quote] -= sign * record.quote_quantity
        self.balances[order.user_id, record.commission_asset] -= record.commission

    def end(self, record: OrderCanceled | OrderExpired) -> None:
        status = OrderStatus.CANCELED if isinstance(record, OrderCanceled) else OrderStatus.EXPIRED
        self.orders[record.order_id].status = status

    def withdraw(self, record: WithdrawalAccepted) -> None:
        self.payouts[record.withdrawal_id] = BookedPayout(
            exchange_withdrawal_id=record.withdrawal_id,
            client_withdrawal_id=record.withdraw_order_id,
            user_id=record.label,
            asset=record.asset,
            network=record.network,
            address=record.address,
            address_tag=record.address_tag,
            amount=record.amount,
            fee=record.fee,
        )
        self.balances[record.label, record.asset] -= record.amount

    def end_withdrawal(self, record: WithdrawalEnded) -> None:
        payout = self.payouts[record.withdrawal_id]
        payout.paid, payout.transaction_id = record.completed, record.transaction_id
        if not record.completed:
            self.balances[payout.user_id, payout.asset] += payout.amount

    def see_deposit(self, record: DepositSeen) -> None:
        self.deposits[record.deposit_id] = BookedDeposit(
            exchange_deposit_id=record.deposit_id,
            transaction_id=record.transaction_id,
            user_id=record.label,
            asset=record.asset,
            address=record.address,
            amount=record.amount,
        )

    def credit_deposit(self, record: DepositCredited) -> None:
        deposit = self.deposits[record.deposit_id]
        deposit.state, deposit.credited_at = Booked.CREDITED, _EPOCH + timedelta(microseconds=record.time_us)
        self.balances[deposit.user_id, deposit.asset] += deposit.amount

    def take_deposit_back(self, record: DepositTakenBack) -> None:
        deposit = self.deposits[record.deposit_id]
        deposit.state = Booked.TAKEN_BACK
        self.balances[deposit.user_id, deposit.asset] -= deposit.amount


def read_books(path: Path) -> ExchangeBooks:
    """The books of an exchange log. Raises LogDamaged and FileNotFoundError as `read_log` does."""
    books = _Books()
    for record in read_log(path):
        match record:
            case AccountOpened():
                books.open(record)
            case OrderAccepted():
                books.accept(record)
            case Filled():
                books.fill(record)
            case OrderCanceled() | OrderExpired():
                books.end(record)
            case WithdrawalAccepted():
                books.withdraw(record)
            case WithdrawalEnded():
                books.end_withdrawal(record)
            case DepositSeen():
                books.see_deposit(record)
            case DepositCredited():
                books.credit_deposit(record)
            case DepositTakenBack():
                books.take_deposit_back(record)
            case _:
                # Prices, and what is shown of a deposit, move nobody's money.
                continue
    return ExchangeBooks(
        list(books.orders.values()), dict(books.balances), list(books.payouts.values()), list(books.deposits.values())
    )
