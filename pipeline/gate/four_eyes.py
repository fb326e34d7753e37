"""Which changes of administration need two operators: those that widen what a user, or an operator, may do beyond what holds for everybody.

Narrowing, stopping and what is bounded by the settings need one. Start with `widens_limit`.
"""

from collections.abc import Collection
from datetime import timedelta
from decimal import Decimal
from typing import Final

from pipeline.gate.limits import Limits

# The smallest trade, and windows of time in which something is refused: the smaller, the more is allowed.
_NARROWER_WHEN_LARGER: Final = frozenset({"trade_usd_min", "cooldown", "duplicate_window"})


def widens_limit(name: str, amount: Decimal, defaults: Limits) -> bool:
    """Whether a limit of a user's own would allow more than the settings allow everybody. Windows of time are in seconds."""
    value: Decimal | int | timedelta = getattr(defaults, name)
    everybody = Decimal(value // timedelta(microseconds=1)) / 1_000_000 if isinstance(value, timedelta) else Decimal(value)
    return amount < everybody if name in _NARROWER_WHEN_LARGER else amount > everybody


def key_needs_two(permissions: Collection[str]) -> bool:
    """Whether a key could move money out."""
    return "withdraw" in permissions


def address_needs_two(wait_hours: int) -> bool:
    """Whether an address could be used at once: no time is left for its user to notice."""
    return wait_hours == 0


def factor_needs_two(role: str, *, replaces: bool) -> bool:
    """Whether a second factor makes an operator, or takes somebody's place."""
    return role == "operator" or replaces
