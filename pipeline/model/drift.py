"""A difference between the ledger and an exchange's balances, as it is stored (pipeline/reconciliation/balances decides)."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class StoredDrift:
    """Amounts in units of the asset, times UTC.

    `usd` is what the difference is worth, None where nothing says so. It was first and last seen by the looks that began then. `found_at`:
    when it had been there for the minimum age, and was audited. `above_since`: since when its account has been above the threshold.
    """

    user_id: str
    exchange: str
    asset: str
    ledger_amount: Decimal
    exchange_amount: Decimal
    usd: Decimal | None
    first_seen_at: datetime
    last_seen_at: datetime
    found_at: datetime | None
    above_since: datetime | None

    @property
    def difference(self) -> Decimal:
        return self.exchange_amount - self.ledger_amount
