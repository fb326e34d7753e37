"""Records between our own agents: `trade.orders.<exchange>` (work to do) and `trade.reports` (what a look-up proved).

They name an order; its fields are read from the database, so that a copy on a topic can never disagree with it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Discriminator, Tag, TypeAdapter

from schemas.balances import BalanceReport
from schemas.commands import HaltTrip
from schemas.decimals import DecimalString
from schemas.deposits import AnnouncementReport, DepositReport
from schemas.orders import OrderStatus
from schemas.wire import InternalModel, Timestamp
from schemas.withdrawals import WithdrawalReport


class Action(StrEnum):
    SUBMIT = "submit"
    CANCEL = "cancel"
    WITHDRAW = "withdraw"


class RoutedOrder(InternalModel):
    """One piece of work for an execution agent. `attempt` counts intents of the order from 1; an older one is ignored.

    With `withdraw` the order id is a withdrawal's.
    """

    schema_version: Literal[1]
    action: Action
    order_id: str
    user_id: str
    attempt: int


class ReportedFee(InternalModel):
    asset: str
    amount: DecimalString


class Report(InternalModel):
    """What a look-up at the exchange proved about one order, as of `looked_up_at` (when the look-up began).

    With `found` the other fields are the venue's own figures, totals since the order began; without it neither the orders nor the trades
    of the venue know the order, and `looked_up_at` is by the venue's clock.
    """

    schema_version: Literal[1]
    type: Literal["order"] = "order"
    order_id: str
    user_id: str
    attempt: int
    found: bool
    looked_up_at: Timestamp
    exchange_order_id: str | None = None
    order_status: OrderStatus | None = None
    cum_quantity: DecimalString | None = None
    cum_quote: DecimalString | None = None
    fees: tuple[ReportedFee, ...] = ()


# What stands on `trade.reports`. Each says its type.
OnReports = Report | HaltTrip | WithdrawalReport | DepositReport | AnnouncementReport | BalanceReport
# Records of releases that did not say it: each has a field of its own that it must have.
_TOLD_BY: Final = {
    "found": "order",
    "trip_id": "trip",
    "withdrawal_id": "withdrawal",
    "exchange_deposit_id": "deposit",
    "announcement_id": "announcement",
    "drifts": "balance",
}


def _type_of(record: object) -> object:
    if not isinstance(record, Mapping):
        return getattr(record, "type", None)
    if "type" in record:
        # A tag must be a text; what is none is no type.
        return str(record["type"])
    return next((name for field, name in _TOLD_BY.items() if field in record), None)


ON_REPORTS: Final[TypeAdapter[OnReports]] = TypeAdapter(
    Annotated[
        Annotated[Report, Tag("order")]
        | Annotated[HaltTrip, Tag("trip")]
        | Annotated[WithdrawalReport, Tag("withdrawal")]
        | Annotated[DepositReport, Tag("deposit")]
        | Annotated[AnnouncementReport, Tag("announcement")]
        | Annotated[BalanceReport, Tag("balance")],
        Discriminator(_type_of),
    ]
)
