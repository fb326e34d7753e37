"""What an order would trade at once: pure arithmetic over a reference price and the depth behind it.

The book is deep at the reference price; behind it stand two more levels, each `slip_ticks` worse, the last one without end. So a market
order always fills, a large one in up to three fills, and a limit order only as far as its price reaches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from simulator.ledger import ZERO, floor8
from simulator.symbols import Symbol

LEVELS: Final = 3


@dataclass(frozen=True, slots=True)
class Offer:
    """Base `quantity` that can be traded at `price` (quote per base)."""

    price: Decimal
    quantity: Decimal

    @property
    def quote_quantity(self) -> Decimal:
        return floor8(self.price * self.quantity)


def _levels(symbol: Symbol, side: str, reference: Decimal, has_depth: bool) -> Iterator[tuple[Decimal, Decimal | None]]:
    """Price levels from the best, each with its size; None is without end."""
    if not has_depth:
        yield reference, None
        return
    slip = symbol.tick * symbol.slip_ticks * (1 if side == "BUY" else -1)
    for number in range(LEVELS):
        price = max(symbol.tick, reference + slip * number)
        yield price, symbol.depth_quantity if number < LEVELS - 1 else None


def crosses(side: str, limit: Decimal, price: Decimal) -> bool:
    """Whether an order with this limit trades at this price."""
    return price <= limit if side == "BUY" else price >= limit


def offers_for_quantity(
    symbol: Symbol, side: str, quantity: Decimal, *, limit: Decimal | None, reference: Decimal, has_depth: bool
) -> list[Offer]:
    """What an order of `quantity` base trades at once, no worse than `limit` (None: at any price)."""
    found: list[Offer] = []
    for price, size in _levels(symbol, side, reference, has_depth):
        if quantity <= 0 or (limit is not None and not crosses(side, limit, price)):
            break
        taken = quantity if size is None else min(size, quantity)
        found.append(Offer(price, taken))
        quantity -= taken
    return found


def offers_for_quote(symbol: Symbol, side: str, quote_quantity: Decimal, reference: Decimal, has_depth: bool) -> list[Offer]:
    """What a market order over `quote_quantity` trades: whole steps that together cost (or bring) no more than it."""
    found: list[Offer] = []
    left = quote_quantity
    for price, size in _levels(symbol, side, reference, has_depth):
        taken = symbol.floor_to_step(left / price)
        if size is not None:
            taken = min(size, taken)
        if taken <= 0:
            break
        found.append(Offer(price, taken))
        left -= taken * price
    return found


def first_half(symbol: Symbol, offers: list[Offer]) -> list[Offer]:
    """The offers cut to half their quantity in whole steps; empty where half is less than a step."""
    left = symbol.floor_to_step(sum((offer.quantity for offer in offers), ZERO) / 2)
    found: list[Offer] = []
    for offer in offers:
        taken = min(left, offer.quantity)
        if taken <= 0:
            break
        found.append(Offer(offer.price, taken))
        left -= taken
    return found
