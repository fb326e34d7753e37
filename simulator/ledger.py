"""The exchange's money: free and locked amounts of each account, the fees, the market maker and the outside world.

Invariants:
1. Every movement takes from one holder what it gives to another, so each asset sums to zero over all holders. The outside world (where
   deposits come from) and the market maker (who takes the other side of every trade) may be negative; fees never, and an account's free
   amount only by a deposit that was taken back.
2. An account's locked amount of an asset is the sum of what its open orders have locked (checked by `Exchange.violations`).

Amounts are Decimal with at most 8 places, as Binance books them.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Final

ZERO: Final = Decimal(0)
UNIT: Final = Decimal("0.00000001")
FEE_RATE: Final = Decimal("0.001")


class InvariantViolation(Exception):
    """The exchange's own books would be wrong: a defect of the simulator, never an answer to a client."""


def floor8(amount: Decimal) -> Decimal:
    """Rounded down to 8 places: what is traded or taken as a fee."""
    return amount.quantize(UNIT, ROUND_FLOOR)


def ceil8(amount: Decimal) -> Decimal:
    """Rounded up to 8 places: what is locked, so that no fill can cost more."""
    return amount.quantize(UNIT, ROUND_CEILING)


def _amounts() -> defaultdict[str, Decimal]:
    return defaultdict(lambda: ZERO)


@dataclass(slots=True)
class Holding:
    """One account's amounts by asset."""

    free: defaultdict[str, Decimal] = field(default_factory=_amounts)
    locked: defaultdict[str, Decimal] = field(default_factory=_amounts)

    def take_back(self, asset: str, amount: Decimal) -> None:
        """Takes what the account may not have any more: it owes the exchange then."""
        self.free[asset] -= amount

    def take_free(self, asset: str, amount: Decimal) -> None:
        left = self.free[asset] - amount
        if left < 0:
            raise InvariantViolation(f"the free {asset} of an account would be {left}")
        self.free[asset] = left

    def lock(self, asset: str, amount: Decimal) -> None:
        self.take_free(asset, amount)
        self.locked[asset] += amount

    def unlock(self, asset: str, amount: Decimal) -> None:
        left = self.locked[asset] - amount
        if left < 0:
            raise InvariantViolation(f"the locked {asset} of an account would be {left}")
        self.locked[asset] = left
        self.free[asset] += amount


class Ledger:
    """All holders. Methods are the only movements there are."""

    def __init__(self) -> None:
        self.holdings: dict[str, Holding] = {}
        self.fees = _amounts()
        self.market_maker = _amounts()
        self.outside = _amounts()

    def open(self, api_key: str, balances: dict[str, Decimal]) -> Holding:
        holding = self.holdings[api_key] = Holding()
        for asset, amount in balances.items():
            self.pay_in(holding, asset, amount)
        return holding

    def pay_in(self, holding: Holding, asset: str, amount: Decimal) -> None:
        self.outside[asset] -= amount
        holding.free[asset] += amount

    def pay_out(self, holding: Holding, asset: str, amount: Decimal) -> None:
        holding.take_free(asset, amount)
        self.outside[asset] += amount

    def take_back(self, holding: Holding, asset: str, amount: Decimal) -> None:
        """A deposit goes back to where it came from."""
        holding.take_back(asset, amount)
        self.outside[asset] += amount

    def trade(self, holding: Holding, *, paid: str, cost: Decimal, received: str, amount: Decimal, commission: Decimal) -> None:
        """The account gives `cost` of `paid` to the market maker, who gives `amount` of `received`, of which `commission` is the fee."""
        holding.take_free(paid, cost)
        self.market_maker[paid] += cost
        self.market_maker[received] -= amount
        holding.free[received] += amount - commission
        self.fees[received] += commission

    def sums(self) -> dict[str, Decimal]:
        """Per asset the sum over all holders: zero, or the books are wrong."""
        total = _amounts()
        for holder in (self.fees, self.market_maker, self.outside):
            for asset, amount in holder.items():
                total[asset] += amount
        for holding in self.holdings.values():
            for side in (holding.free, holding.locked):
                for asset, amount in side.items():
                    total[asset] += amount
        return dict(total)
