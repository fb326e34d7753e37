"""Withdrawals: the newest snapshot on `trade.state`, and what the watch of the exchanges' histories reports on `trade.reports`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter

from schemas.decimals import DecimalString
from schemas.orders import Mode, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.wire import InternalModel, Timestamp


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawalState:
    """The newest full snapshot of a withdrawal, under the key `withdrawal_id`. Amounts in units of `asset`."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    schema_version: int
    withdrawal_id: str
    client_withdrawal_id: str
    exchange_withdrawal_id: str | None
    user_id: str
    request_id: str
    idempotency_key: str
    mode: Mode
    exchange: str
    asset: str
    network: str
    address: str
    address_tag: str | None
    amount: DecimalString
    fee: DecimalString
    withdrawal_status: WithdrawalStatus
    transaction_id: str | None
    reason_code: ReasonCode | None
    requested_at: Timestamp
    updated_at: Timestamp


WITHDRAWAL_STATE: Final[TypeAdapter[WithdrawalState]] = TypeAdapter(WithdrawalState)


class WithdrawalFinding(StrEnum):
    """`found` and `absent` are about the exchange's history; `unapproved`: its time for approval is over."""

    FOUND = "found"
    ABSENT = "absent"
    UNAPPROVED = "unapproved"


class WithdrawalReport(InternalModel):
    """What is proven of one withdrawal, as of `looked_up_at` (when the question was asked).

    With `found` the other fields are the exchange's own: `amount` is what it pays out and `fee` what it keeps, in units of the asset.
    """

    schema_version: Literal[1]
    type: Literal["withdrawal"] = "withdrawal"
    withdrawal_id: str
    user_id: str
    attempt: int
    finding: WithdrawalFinding
    looked_up_at: Timestamp
    exchange_withdrawal_id: str | None = None
    withdrawal_status: WithdrawalStatus | None = None
    amount: DecimalString | None = None
    fee: DecimalString | None = None
    transaction_id: str | None = None
    detail: str | None = None
