"""Average cost: what an account has paid for what it bought here, and what each sale gains or loses against it.

The average-cost method (IAS 2, paragraphs 10 and 25): every unit of an account's asset that was bought through this system has the same
cost, its fee is part of it, and a sale takes its share.

Invariants:
1. Only what was bought here has a cost. What an account held before, or got otherwise, is sold without a result: nobody knows what it cost.
2. A result is stated once per word of the exchange about an order, and counts against the loss limit of its user.
3. Dollars are those of the moment when the order was accepted (`usd_rate`).
4. What cannot be told exactly counts against the user: results are rounded down; what an exchange tells later than the quantity of a sale
   is no gain if it is value, and a loss in full if it is a fee.
5. A fee in an asset that is neither side of the order has no price here, and does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from pipeline.books.ledger import AccountKey, Ledger, book_of
from pipeline.model.money import round_result, round_up
from pipeline.model.order import Order
from pipeline.model.venue import Fee, VenueOrder
from schemas.orders import Side

_ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class RealisedResult:
    """What a part of a sale brought, in US dollars, negative for a loss.

    `cum_quantity` and `fee_usd` are the order's totals after that part; the fee is that in its quote asset.
    """

    order_id: str
    cum_quantity: Decimal
    fee_usd: Decimal
    user_id: str
    usd: Decimal


@dataclass(frozen=True, slots=True)
class _Growth:
    """What an order has grown by since the last word, and its fees, which an exchange may tell later."""

    quantity: Decimal
    quote: Decimal
    fee_base: Decimal
    fee_quote: Decimal


def _fee_in(asset: str, fees: Sequence[Fee]) -> Decimal:
    return sum([fee.amount for fee in fees if fee.asset == asset], _ZERO)


def apply_cost(order: Order, told: VenueOrder, fees: Sequence[Fee], ledger: Ledger) -> RealisedResult | None:
    """Moves the cost of the order's base asset on by what was filled and charged since `order`, whose word is the one before.

    `fees` are the totals known now. Returns the result where it was a sale of what has a cost.
    """
    growth = _Growth(
        told.cum_quantity - order.cum_quantity,
        told.cum_quote - order.cum_quote,
        _fee_in(order.base, fees) - _fee_in(order.base, order.fees),
        _fee_in(order.quote, fees) - _fee_in(order.quote, order.fees),
    )
    account = AccountKey(order.user_id, order.exchange, book_of(order.mode), order.base)
    if order.side is Side.BUY:
        _buy(account, growth, order.usd_rate, ledger)
        return None
    fee_usd, fee_before = (round_up(_fee_in(order.quote, known) * order.usd_rate) for known in (fees, order.fees))
    if growth.quantity == 0:
        usd = fee_before - fee_usd if fee_usd > fee_before else None
    else:
        usd = _sell(account, growth, order.usd_rate, ledger)
    return None if usd is None else RealisedResult(order.order_id, told.cum_quantity, fee_usd, order.user_id, usd)


def _buy(account: AccountKey, growth: _Growth, rate: Decimal, ledger: Ledger) -> None:
    paid = growth.quote + growth.fee_quote
    if growth.quantity == growth.fee_base == paid == 0:
        return
    before = ledger.balance(account)
    quantity = max(_ZERO, before.cost_quantity + growth.quantity - growth.fee_base)
    # A fee or a value that is told when all was sold already has nothing left to be the cost of.
    ledger.set_cost(account, quantity, round_up(before.cost_usd + paid * rate) if quantity else _ZERO)


def _sell(account: AccountKey, growth: _Growth, rate: Decimal, ledger: Ledger) -> Decimal | None:
    gone = growth.quantity + growth.fee_base
    before = ledger.balance(account)
    sold = min(gone, before.cost_quantity)
    if sold == 0:
        return None
    cost = before.cost_usd
    if sold < before.cost_quantity:
        cost = min(cost, round_up(cost * sold / before.cost_quantity))
    ledger.set_cost(account, before.cost_quantity - sold, before.cost_usd - cost)
    return round_result((growth.quote - growth.fee_quote) * rate * sold / gone - cost)


def trim_cost(account: AccountKey, ledger: Ledger) -> None:
    """What is gone has no cost any more: no more of an asset counts as bought here than there is, at the average cost that it had."""
    balance = ledger.balance(account)
    if balance.cost_quantity > balance.posted:
        usd = round_up(balance.cost_usd * balance.posted / balance.cost_quantity) if balance.posted > 0 else _ZERO
        ledger.set_cost(account, balance.posted, usd)
