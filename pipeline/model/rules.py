"""The numbers that decisions depend on, as one value (defaults: infra/settings.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Final

READ_LAG_UNKNOWN: Final = timedelta(seconds=120)


@dataclass(frozen=True, slots=True)
class ConfirmationRules:
    """What may stand for a code of its own: the most that a session may confirm, and for how long (`session_time` 0: there are none); what
    the issuer's word on a second factor must name (`amr_confirming` empty: it is not taken), how old it may be, and how far the issuer's
    clock may be off."""

    session_time: timedelta = timedelta(hours=8)
    session_orders_max: int = 1_000
    session_amount_usd_max: Decimal = Decimal(1_000_000)
    amr_confirming: frozenset[str] = frozenset()
    auth_age_max: timedelta = timedelta(minutes=15)
    token_leeway: timedelta = timedelta(seconds=30)


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
    # A cancel is answered when so many calls were sent and the exchange confirmed none, or after this time.
    cancel_attempts_max: int
    cancel_time_max: timedelta = timedelta(minutes=10)
    # A withdrawal worth more waits for an operator, this long at most.
    withdrawal_approval_usd: Decimal = Decimal(10_000)
    withdrawal_approval_time: timedelta = timedelta(hours=24)
    # A new address, and every address after a change of the user's credentials, waits so long.
    address_wait: timedelta = timedelta(hours=24)
    # A fee that was asked for longer ago than this is not known.
    network_age_max: timedelta = timedelta(hours=1)
    # How long after the acceptance horizon an exchange's withdrawal history may still lack what it accepted.
    withdrawal_history_lag: timedelta = timedelta(seconds=60)
    # An account whose balances differ from the ledger's by more than this, for so long, is halted.
    balance_drift_halt_usd: Decimal = Decimal(100)
    balance_drift_age: timedelta = timedelta(seconds=600)
    # How long an announced deposit is waited for, and how many of a user at once.
    announcement_time: timedelta = timedelta(days=7)
    announcements_max: int = 100
    # An announcement may come so long after its deposit was credited.
    announcement_delay: timedelta = timedelta(hours=1)
    confirmation: ConfirmationRules = ConfirmationRules()
    # How long an exchange's books may not show what it has accepted, by exchange; where nothing is said, as long as the slowest known.
    read_lags: Mapping[str, timedelta] = field(default_factory=dict)
    # An order or withdrawal in doubt that is worth more is resolved by two operators.
    doubt_four_eyes_usd: Decimal = Decimal(1_000)
    # An order or a withdrawal that counts as not executed is looked up for so long all the same.
    watch_time: timedelta = timedelta(hours=24)

    def read_lag(self, exchange: str) -> timedelta:
        """How long the books of an exchange may not show what it has accepted."""
        return self.read_lags.get(exchange, READ_LAG_UNKNOWN)
