"""What the comparison of the ledger with an exchange's balances reports on `trade.reports`."""

from typing import Literal

from schemas.decimals import DecimalString, SignedDecimalString
from schemas.wire import InternalModel, Timestamp


class ReportedDrift(InternalModel):
    """One asset of which the exchange shows another amount than the ledger says, both in units of the asset.

    `ledger_amount` is the nearest amount that the ledger can explain; below zero where the house advanced more than the user has. `usd` is
    what the difference is worth in US dollars; None where no fresh price says so.
    """

    asset: str
    ledger_amount: SignedDecimalString
    exchange_amount: DecimalString
    usd: DecimalString | None


class BalanceReport(InternalModel):
    """What a user's account at an exchange showed as of `looked_up_at` (when the look began): `drifts` are all that there are."""

    schema_version: Literal[1]
    type: Literal["balance"] = "balance"
    user_id: str
    exchange: str
    looked_up_at: Timestamp
    drifts: tuple[ReportedDrift, ...]
