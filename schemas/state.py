"""State: the newest full snapshot of an order on `trade.state` (key `order_id`, compacted). Dashboards read this.

Those of withdrawals are in schemas/withdrawals, those of deposits in schemas/deposits; the first letter of a key tells which it is: `o`,
`w` or `d`.
"""

from dataclasses import dataclass
from typing import Final

from pydantic import ConfigDict, TypeAdapter

from schemas.decimals import DecimalString
from schemas.orders import Mode, OrderStatus, OrderType, Side, TimeInForce
from schemas.reasons import ReasonCode
from schemas.wire import Timestamp


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderState:
    """Amounts: `quantity` and `cum_quantity` in base, `quote_quantity` and `cum_quote` in quote units, `price` in quote per base."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    schema_version: int
    order_id: str
    client_order_id: str
    exchange_order_id: str | None
    user_id: str
    request_id: str
    idempotency_key: str
    mode: Mode
    exchange: str
    symbol: str
    side: Side
    order_type: OrderType
    time_in_force: TimeInForce | None
    quantity: DecimalString | None
    quote_quantity: DecimalString | None
    price: DecimalString | None
    order_status: OrderStatus
    reason_code: ReasonCode | None
    cum_quantity: DecimalString
    cum_quote: DecimalString
    requested_at: Timestamp
    updated_at: Timestamp


ORDER_STATE: Final[TypeAdapter[OrderState]] = TypeAdapter(OrderState)
