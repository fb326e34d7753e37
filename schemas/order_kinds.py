"""What each order type is, in one table: what its request carries, how it is priced, and whether this version executes it.

Everything that depends on the type of an order asks here, or matches all of `Pricing` (mypy then names what a new member leaves open). So a
type that is added to the table is nowhere half known: it is refused until it is offered, and offered only where each part can execute it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from schemas.orders import OrderType, TimeInForce


class Pricing(StrEnum):
    """`market`: trades at once, at the market's price. `limit`: no worse than its own price, and may rest. `maker`: as limit, but only if
    it rests. `trigger`: waits for a price of its own before it is any of the others."""

    MARKET = "market"
    LIMIT = "limit"
    MAKER = "maker"
    TRIGGER = "trigger"


@dataclass(frozen=True, slots=True)
class OrderKind:
    """`prices` must be given and no others. `offered`: this version executes it, for real and simulated."""

    pricing: Pricing
    prices: frozenset[str] = frozenset()
    takes_quote_quantity: bool = False
    takes_time_in_force: bool = True
    offered: bool = False

    def may_rest(self, time_in_force: TimeInForce | None) -> bool:
        """Whether such an order can stay in an exchange's book."""
        return self.pricing is not Pricing.MARKET and time_in_force not in {TimeInForce.IOC, TimeInForce.FOK}


PRICE_FIELDS: Final = ("price", "stop_price", "trailing_delta")
ORDER_KINDS: Final[Mapping[OrderType, OrderKind]] = {
    OrderType.MARKET: OrderKind(Pricing.MARKET, takes_quote_quantity=True, takes_time_in_force=False, offered=True),
    OrderType.LIMIT: OrderKind(Pricing.LIMIT, frozenset({"price"}), offered=True),
    OrderType.LIMIT_MAKER: OrderKind(Pricing.MAKER, frozenset({"price"})),
    OrderType.STOP_LOSS: OrderKind(Pricing.TRIGGER, frozenset({"stop_price"})),
    OrderType.TAKE_PROFIT: OrderKind(Pricing.TRIGGER, frozenset({"stop_price"})),
    OrderType.STOP_LOSS_LIMIT: OrderKind(Pricing.TRIGGER, frozenset({"price", "stop_price"})),
    OrderType.TAKE_PROFIT_LIMIT: OrderKind(Pricing.TRIGGER, frozenset({"price", "stop_price"})),
    OrderType.TRAILING_STOP: OrderKind(Pricing.TRIGGER, frozenset({"trailing_delta"})),
}
OFFERED: Final = frozenset(order_type for order_type, kind in ORDER_KINDS.items() if kind.offered)
