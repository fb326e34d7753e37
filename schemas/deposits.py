"""Deposits: the newest snapshot on `trade.state`, and what the watch of the exchanges' histories reports on `trade.reports`."""

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter

from schemas.decimals import DecimalString
from schemas.orders import DepositStatus
from schemas.wire import InternalModel, Timestamp


@dataclass(frozen=True, slots=True, kw_only=True)
class DepositState:
    """The newest full snapshot of a deposit, under the key `deposit_id`. `amount` in units of `asset`.

    `advanced` is what the house paid for the user when the exchange took the deposit back.
    """

    __pydantic_config__ = ConfigDict(extra="ignore")

    schema_version: int
    deposit_id: str
    exchange_deposit_id: str
    transaction_id: str
    user_id: str
    exchange: str
    asset: str
    network: str
    address: str
    address_tag: str | None
    amount: DecimalString
    deposit_status: DepositStatus
    advanced: DecimalString
    detected_at: Timestamp
    updated_at: Timestamp


DEPOSIT_STATE: Final[TypeAdapter[DepositState]] = TypeAdapter(DepositState)


class DepositReport(InternalModel):
    """What an exchange's history shows of one deposit, as of `looked_up_at` (when the question was asked).

    `deposit_status` is the exchange's word: detected, confirming, credited, rejected. `exchange_deposit_id` is its own id of the entry,
    `arrived_at` when it says that the deposit came, `completed_at` when it was credited there, where it says so.
    """

    schema_version: Literal[1]
    type: Literal["deposit"] = "deposit"
    exchange_deposit_id: str
    transaction_id: str
    user_id: str
    exchange: str
    api_key_id: str
    asset: str
    network: str
    address: str
    address_tag: str | None = None
    amount: DecimalString
    deposit_status: DepositStatus
    arrived_at: Timestamp
    completed_at: Timestamp | None = None
    looked_up_at: Timestamp


class AnnouncementReport(InternalModel):
    """The time of an announced deposit is over, and none has arrived that fits it."""

    schema_version: Literal[1]
    type: Literal["announcement"] = "announcement"
    announcement_id: str
    user_id: str
    looked_up_at: Timestamp
