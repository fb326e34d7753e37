"""Results: the answers on `trade.results`.

Invariants:
1. Every record on `trade.requests` has exactly one result with `final: true`, found by `source`. Where the exchange shows afterwards that
   it was wrong, results with `corrects: true` and `final: false` follow: the newest of them is what is true.
2. Per `(user_id, idempotency_key)` exactly one final result has `replayed: false`: the answer to the record that claimed the key.
"""

import operator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, TypeAdapter

from schemas.decimals import DecimalString
from schemas.orders import AnnouncementStatus, Mode, OrderStatus, RequestType, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.wire import SourceOffset, Timestamp


class ResultStatus(StrEnum):
    ACCEPTED = "accepted"
    EXECUTED = "executed"
    OPEN = "open"
    CANCELED = "canceled"
    REJECTED = "rejected"
    DUPLICATE = "duplicate"
    IN_DOUBT = "in_doubt"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One answer. Amounts in the units of the request; `average_price` in quote per base; `fee` in units of `fee_asset`.

    Of a withdrawal `order_id` is the withdrawal's id, `client_order_id` and `exchange_order_id` are the ids under which the exchange knows
    it, and `filled_quantity` is what was paid out. Of an announced deposit `order_id` is the announcement's id, `exchange_order_id` the
    exchange's id of the deposit that arrived, and `filled_quantity` what was credited. Of a session `order_id` is the session's id, and
    `reason` what it confirms.
    `mode` is null where the request could not be read, and absent from answers of versions that offered `live` alone.
    `corrects`: the final answer before it was wrong; absent where it is false.
    """

    __pydantic_config__ = ConfigDict(extra="ignore")

    schema_version: int
    request_id: str
    idempotency_key: str | None
    user_id: str | None
    type: RequestType | None
    status: ResultStatus
    reason_code: ReasonCode | None
    reason: str | None
    order_id: str | None
    client_order_id: str | None
    exchange_order_id: str | None
    order_status: OrderStatus | WithdrawalStatus | AnnouncementStatus | None
    filled_quantity: DecimalString | None
    average_price: DecimalString | None
    fee: DecimalString | None
    fee_asset: str | None
    remaining_quantity: DecimalString | None
    final: bool
    replayed: bool
    duplicate_of: str | None
    requested_at: Timestamp
    decided_at: Timestamp
    executed_at: Timestamp | None
    source: SourceOffset
    mode: Mode | None = None
    corrects: Annotated[bool, Field(exclude_if=operator.not_)] = False


# A plain dataclass is made ten times faster than a pydantic model; reading and writing it is pydantic's either way.
RESULT: Final[TypeAdapter[Result]] = TypeAdapter(Result)
