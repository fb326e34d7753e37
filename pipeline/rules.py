"""The numbers that decisions depend on, as one value (defaults: infra/settings.py)."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Rules:
    """`slippage_allowance` is a fraction of the price (0.05 = 5 %). What a user may do is in `Limits` (pipeline/gate/context)."""

    exchanges: frozenset[str]
    slippage_allowance: Decimal
    usd_assets: frozenset[str]
    price_age_max: timedelta
    submission_deadline: timedelta
    key_lifetime: timedelta
    receive_window: timedelta
    venue_timeout: timedelta
    cancel_attempts_max: int
