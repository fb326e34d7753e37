"""Average cost: what an account has paid for what it bought here, and what each sale gains or loses against it.

The average-cost method (IAS 2, paragraph 25): every unit of an account's asset that was bought through this system has the same cost, and a
sale takes its share of it.

Invariants:
1. Only what was bought here has a cost. What an account held before, or got otherwise, is sold without a result: nobody knows what it cost.
2. A result is stated once per word of the exchange about an order, and counts against the loss limit of its user.
3. Dollars are those of the moment when the order was accepted (`usd_rate`).
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from pipeline.ledger import AccountKey, Ledger, book_of
from pipeline.money import round_down, round_up
from pipeline.order import Order
from pipeline.venue import VenueOrder
from schemas.orders import Side

_ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class RealisedResult:
    """What a part of a sale brought, in US dollars, negative for a loss. `cum_quantity` is the order's total after that part."""

    order_id: str
    cum_quantity: Decimal
    user_id: str
    usd: Decimal


def apply_cost(order: Order, told: VenueOrder, ledger: Ledger) -> RealisedResult | None:
    """Moves the cost of the order's base asset on by what was filled since `order`; the result when it was a sale of what has a cost."""
    quantity, quote = told.cum_quantity - order.cum_quantity, told.cum_quote - order.cum_quote
    if quantity <= 0:
        return None
    account = AccountKey(order.user_id, order.exchange, book_of(order.mode), order.base)
    before = ledger.balance(account)
    usd = quote * order.usd_rate
    if order.side is Side.BUY:
        ledger.set_cost(account, before.cost_quantity + quantity, round_up(before.cost_usd + usd))
        return None
    sold = min(quantity, before.cost_quantity)
    if sold == 0:
        return None
    cost = before.cost_usd if sold == before.cost_quantity else round_up(before.cost_usd * sold / before.cost_quantity)
    # Rounded against the user: a loss is never stated smaller than it is.
    result = round_down(usd * sold / quantity - cost) if usd * sold / quantity >= cost else -round_up(cost - usd * sold / quantity)
    ledger.set_cost(account, before.cost_quantity - sold, max(_ZERO, before.cost_usd - cost))
    return RealisedResult(order.order_id, told.cum_quantity, order.user_id, result)
