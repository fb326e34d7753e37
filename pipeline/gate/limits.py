"""How much one user may do: the limits, their defaults, and what they may be set to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

# The longest time and the largest count that a limit may be set to: sums with them stay within what can be counted.
DURATION_MAX: Final = timedelta(days=3_650)


COUNT_MAX: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one user may do. The defaults are those of the contract (docs/checks.md); the others are chosen so that a user who keeps
    the contract's limits seldom meets them:

    - `position_usd_max`, `open_orders_usd_max`, `exchange_open_usd_max`: 5,000,000, half of a day's volume, so that one mistake cannot tie
      up a whole day's trading in one asset, in the order books, or at one exchange.
    - `open_orders_max`: 200, what Binance allows per symbol (filter MAX_NUM_ORDERS), so that we refuse before the exchange does.
    - `daily_loss_usd_max`: 250,000, a quarter of the largest order: a strategy that has lost as much in 24 hours waits for its operator.
    - `messages_per_second_max` 20 with a burst of 100: Binance takes 100 orders in 10 s per account (ORDERS rate limit); a quick
      strategy may use twice that for a moment, not for long.
    - `duplicate_window`: 2 s, longer than a client's quick repeat, shorter than a person's second decision.
    - `suspicion_flag` 50 and `suspicion_block` 100: no rule's score alone blocks, and few alone flag (see `suspicion`).

    A cooldown begins with the failure that makes `cooldown_failures` in a row. `price_band` is a fraction of the market's price to either
    side. `duplicate_window` of 0 switches that check off.
    """

    trade_usd_min: Decimal = Decimal("0.01")
    trade_usd_max: Decimal = Decimal(1_000_000)
    daily_volume_usd_max: Decimal = Decimal(10_000_000)
    hourly_trades_max: int = 100
    cooldown_failures: int = 3
    cooldown: timedelta = timedelta(minutes=5)
    daily_withdrawal_usd_max: Decimal = Decimal(500_000)
    price_band: Decimal = Decimal("0.10")
    position_usd_max: Decimal = Decimal(5_000_000)
    open_orders_max: int = 200
    open_orders_usd_max: Decimal = Decimal(5_000_000)
    exchange_open_usd_max: Decimal = Decimal(5_000_000)
    daily_loss_usd_max: Decimal = Decimal(250_000)
    messages_per_second_max: int = 20
    messages_burst_max: int = 100
    duplicate_window: timedelta = timedelta(seconds=2)
    suspicion_flag: int = 50
    suspicion_block: int = 100

    def with_overrides(self, overrides: Mapping[str, Decimal]) -> Limits:
        """These limits with some replaced: by field name; durations in seconds (ten years at most), counts as whole numbers (1,000,000,000
        at most).

        Raises ValueError for a name that is no limit and a value that the limit cannot have: ask before you store one.
        """
        if not overrides:
            return self
        # Any: each value has its own field's type, which `_as_limit` sees to.
        changed: dict[str, Any] = {name: _as_limit(name, value) for name, value in overrides.items()}
        return replace(self, **changed)


DEFAULT_LIMITS: Final = Limits()


_LIMIT_TYPES: Final[Mapping[str, type]] = {item.name: type(getattr(DEFAULT_LIMITS, item.name)) for item in fields(Limits)}


def _as_limit(name: str, value: Decimal) -> Decimal | int | timedelta:
    kind = _LIMIT_TYPES.get(name)
    if kind is None:
        raise ValueError(f"{name} is no limit; the limits are: {', '.join(_LIMIT_TYPES)}")
    if not value.is_finite() or value < 0:
        raise ValueError(f"{name} must be 0 or more; 0 allows nothing, and no limit is a very large number")
    if kind is Decimal:
        return value
    if kind is timedelta:
        if value > int(DURATION_MAX.total_seconds()):
            raise ValueError(f"{name} is a time in seconds, {int(DURATION_MAX.total_seconds())} at most")
        return timedelta(microseconds=int(value * 1_000_000))
    if value > COUNT_MAX or value % 1 != 0:
        raise ValueError(f"{name} must be a whole number, {COUNT_MAX} at most")
    return int(value)
