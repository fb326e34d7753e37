"""An order and its fills as the exchange holds them, and as Binance's answers show them."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from simulator.horizon import Horizon
from simulator.ledger import ZERO
from simulator.records import Filled, OrderAccepted

OPEN_STATUSES: Final = frozenset({"NEW", "PARTIALLY_FILLED"})


@dataclass(slots=True)
class Order:
    """`quantity` in base units; for a market order by quote quantity it is what was bought or sold. `locked` is what it still locks."""

    accepted: OrderAccepted
    quantity: Decimal
    status: str = "NEW"
    cum_quantity: Decimal = ZERO
    cum_quote: Decimal = ZERO
    locked: Decimal = ZERO
    fill_steps: int = 1
    updated_us: int = 0
    fills: list[Filled] = field(default_factory=list)
    # No question shows it before.
    shown_from_us: int = 0
    # The client order id that its cancel gave it, where somebody canceled it elsewhere.
    canceled_as: str | None = None

    @property
    def leaves_quantity(self) -> Decimal:
        return self.quantity - self.cum_quantity

    @property
    def is_open(self) -> bool:
        return self.status in OPEN_STATUSES


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """A well-formed order request. Prices and quantities in the symbol's units; exactly one quantity is set."""

    symbol: str
    side: str
    type: str
    time_in_force: str
    quantity: Decimal | None
    quote_quantity: Decimal | None
    price: Decimal | None
    client_order_id: str
    horizon: Horizon
    foreign: bool = False


def _eight(amount: Decimal | None) -> str:
    return "0.00000000" if not amount else f"{amount:.8f}"


def acknowledgement(order: Order) -> dict[str, object]:
    """The answer to a new order with newOrderRespType ACK."""
    accepted = order.accepted
    return {
        "symbol": accepted.symbol,
        "orderId": accepted.order_id,
        "orderListId": -1,
        "clientOrderId": accepted.client_order_id,
        "transactTime": order.updated_us // 1000,
    }


def _amounts(order: Order) -> dict[str, object]:
    accepted = order.accepted
    return {
        "price": _eight(accepted.price),
        "origQty": _eight(order.quantity),
        "executedQty": _eight(order.cum_quantity),
        "origQuoteOrderQty": _eight(accepted.quote_quantity),
        "cummulativeQuoteQty": _eight(order.cum_quote),
        "status": order.status,
        "timeInForce": accepted.time_in_force,
        "type": accepted.type,
        "side": accepted.side,
    }


def result(order: Order) -> dict[str, object]:
    """The answer to a new order with newOrderRespType RESULT."""
    row = acknowledgement(order) | _amounts(order)
    row["workingTime"] = order.accepted.time_us // 1000
    row["selfTradePreventionMode"] = "EXPIRE_MAKER"
    return row


def full(order: Order) -> dict[str, object]:
    """The answer to a new order with newOrderRespType FULL."""
    row = result(order)
    row["fills"] = [
        {
            "price": _eight(fill.price),
            "qty": _eight(fill.quantity),
            "commission": _eight(fill.commission),
            "commissionAsset": fill.commission_asset,
            "tradeId": fill.trade_id,
        }
        for fill in order.fills
    ]
    return row


def status_row(order: Order) -> dict[str, object]:
    """An order in GET /api/v3/order, openOrders and allOrders."""
    accepted = order.accepted
    row: dict[str, object] = {
        "symbol": accepted.symbol,
        "orderId": accepted.order_id,
        "orderListId": -1,
        "clientOrderId": order.canceled_as or accepted.client_order_id,
    }
    row |= _amounts(order)
    row["stopPrice"] = row["icebergQty"] = "0.00000000"
    row["time"] = row["workingTime"] = accepted.time_us // 1000
    row["updateTime"] = order.updated_us // 1000
    row["isWorking"] = True
    row["selfTradePreventionMode"] = "EXPIRE_MAKER"
    return row


def cancel_row(order: Order, cancel_id: str) -> dict[str, object]:
    """The answer to a cancel; `cancel_id` names the cancel itself."""
    accepted = order.accepted
    row: dict[str, object] = {
        "symbol": accepted.symbol,
        "origClientOrderId": accepted.client_order_id,
        "orderId": accepted.order_id,
        "orderListId": -1,
        "clientOrderId": cancel_id,
        "transactTime": order.updated_us // 1000,
    }
    row |= _amounts(order)
    row["selfTradePreventionMode"] = "EXPIRE_MAKER"
    return row


def trade_row(fill: Filled) -> dict[str, object]:
    """A fill in GET /api/v3/myTrades. As on Binance it has no client order id."""
    return {
        "symbol": fill.symbol,
        "id": fill.trade_id,
        "orderId": fill.order_id,
        "orderListId": -1,
        "price": _eight(fill.price),
        "qty": _eight(fill.quantity),
        "quoteQty": _eight(fill.quote_quantity),
        "commission": _eight(fill.commission),
        "commissionAsset": fill.commission_asset,
        "time": fill.time_us // 1000,
        "isBuyer": fill.side == "BUY",
        "isMaker": fill.maker,
        "isBestMatch": True,
    }
