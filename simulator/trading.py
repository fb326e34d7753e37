"""The signed trading endpoints: new order, cancel, look-ups, trades and the account. One function per endpoint.

Source: https://developers.binance.com/docs/binance-spot-api-docs/rest-api/trading-endpoints and .../account-endpoints.
Start at `new_order`.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable
from decimal import Decimal
from typing import Final, TypeVar

from simulator import refusals
from simulator.calls import Call
from simulator.exchange import LIMIT_TYPES
from simulator.orders import Order, OrderRequest, acknowledgement, cancel_row, full, result, status_row, trade_row
from simulator.records import Filled
from simulator.symbols import ORDER_TYPES

_CLIENT_ID_LEGAL: Final = "^[a-zA-Z0-9-_]{1,36}$"
_CLIENT_ID: Final = re.compile(r"[a-zA-Z0-9\-_]{1,36}")
_SHAPES: Final = {"ACK": acknowledgement, "RESULT": result, "FULL": full}
Row = TypeVar("Row", Order, Filled)
_TIMES_IN_FORCE: Final = frozenset({"GTC", "IOC", "FOK"})


def _client_id(call: Call, name: str, default: str) -> str:
    value = call.parameters.get(name)
    if value is None:
        return default
    if _CLIENT_ID.fullmatch(value) is None:
        raise refusals.illegal_characters(name, _CLIENT_ID_LEGAL)
    return value


def _limit_terms(call: Call, order_type: str) -> tuple[Decimal, Decimal, str]:
    """Price, quantity and time in force of a limit order."""
    if "quoteOrderQty" in call.parameters:
        raise refusals.not_required("quoteOrderQty")
    time_in_force = call.parameters.get("timeInForce")
    if order_type == "LIMIT_MAKER":
        if time_in_force is not None:
            raise refusals.not_required("timeInForce")
        time_in_force = "GTC"
    if not time_in_force:
        raise refusals.missing("timeInForce")
    if time_in_force not in _TIMES_IN_FORCE:
        raise refusals.Refusal(-1115, "Invalid timeInForce.")
    quantity = call.amount("quantity")
    if quantity is None:
        raise refusals.missing("quantity")
    price = call.amount("price")
    if price is None:
        raise refusals.missing("price")
    return price, quantity, time_in_force


def _market_terms(call: Call) -> tuple[Decimal | None, Decimal | None]:
    """Quantity or quote quantity of a market order."""
    for name in ("price", "timeInForce"):
        if name in call.parameters:
            raise refusals.not_required(name)
    quantity = call.amount("quantity")
    quote_quantity = call.amount("quoteOrderQty")
    if quantity is not None and quote_quantity is not None:
        raise refusals.Refusal(-1128, "Combination of optional parameters invalid.")
    if quantity is None and quote_quantity is None:
        raise refusals.missing("quantity")
    return quantity, quote_quantity


def new_order(call: Call) -> object:
    """POST /api/v3/order."""
    symbol = call.symbol()
    side = call.require("side")
    if side not in {"BUY", "SELL"}:
        raise refusals.Refusal(-1117, "Invalid side.")
    order_type = call.require("type")
    if order_type not in ORDER_TYPES:
        raise refusals.Refusal(-1116, "Invalid orderType.")
    # Like Binance, an order without an id of the client's gets one of ours.
    client_order_id = _client_id(call, "newClientOrderId", f"sim{call.now_us:x}{len(call.exchange.orders):x}")
    shape = _SHAPES.get(call.parameters.get("newOrderRespType", "ACK" if order_type == "LIMIT_MAKER" else "FULL"))
    if shape is None:
        raise refusals.Refusal(-1151, "Invalid newOrderRespType.")
    price: Decimal | None = None
    quote_quantity: Decimal | None = None
    time_in_force = "GTC"
    quantity: Decimal | None
    if order_type in LIMIT_TYPES:
        price, quantity, time_in_force = _limit_terms(call, order_type)
    else:
        quantity, quote_quantity = _market_terms(call)
    request = OrderRequest(
        symbol.name, side, order_type, time_in_force, quantity, quote_quantity, price, client_order_id, call.horizon
    )
    order = call.exchange.place(call.owner, request, call.now_us, call.partial)
    call.partial_applied = call.partial and order.accepted.fill_steps > 1
    order.shown_from_us = order.accepted.time_us + call.hidden_us
    call.hidden_applied = call.hidden_us > 0
    return shape(order)


def _find(call: Call) -> Order | None:
    """The order that `orderId` or `origClientOrderId` names, `orderId` first; of an id used more than once the newest order."""
    symbol = call.symbol()
    order_id = call.integer("orderId")
    client_order_id = call.parameters.get("origClientOrderId")
    if order_id is None and not client_order_id:
        raise refusals.Refusal(-1102, "Param 'origClientOrderId' or 'orderId' must be sent, but both were empty/null!")
    if order_id is None:
        return call.owner.by_client_id.get((symbol.name, client_order_id or ""))
    order = call.owner.orders.get(order_id)
    if order is None or order.accepted.symbol != symbol.name:
        return None
    return order if client_order_id in (None, order.accepted.client_order_id) else None


def query_order(call: Call) -> object:
    """GET /api/v3/order."""
    order = _find(call)
    if order is None or not _is_shown(call, order):
        raise refusals.no_such_order()
    return status_row(order)


def _is_shown(call: Call, order: Order) -> bool:
    return call.now_us >= order.shown_from_us


def cancel_order(call: Call) -> object:
    """DELETE /api/v3/order."""
    order = _find(call)
    if order is None:
        raise refusals.unknown_order()
    cancel_id = _client_id(call, "newClientOrderId", f"cancel{order.accepted.order_id}")
    return cancel_row(call.exchange.cancel(call.owner, order, call.now_us), cancel_id)


def cancel_open_orders(call: Call) -> object:
    """DELETE /api/v3/openOrders: all of one symbol."""
    name = call.symbol().name
    found = [order for order in call.owner.open_orders.values() if order.accepted.symbol == name]
    if not found:
        raise refusals.unknown_order()
    return [cancel_row(call.exchange.cancel(call.owner, order, call.now_us), f"cancel{order.accepted.order_id}") for order in found]


def open_orders(call: Call) -> object:
    """GET /api/v3/openOrders, of one symbol or of all."""
    name = call.symbol().name if "symbol" in call.parameters else None
    orders = [order for order in call.owner.open_orders.values() if name in (None, order.accepted.symbol)]
    return [status_row(order) for order in orders if _is_shown(call, order)]


def all_orders(call: Call) -> object:
    """GET /api/v3/allOrders: from `orderId` on, or within the times, else the newest ones; oldest first."""
    orders = [order for order in call.owner.by_symbol.get(call.symbol().name, []) if _is_shown(call, order)]
    page = _page(call, orders, "orderId", lambda order: order.accepted.order_id, lambda order: order.accepted.time_us)
    return [status_row(order) for order in page]


def my_trades(call: Call) -> object:
    """GET /api/v3/myTrades: of one order, from a trade id on, or within the times, else the newest ones; oldest first."""
    name = call.symbol().name
    order_id = call.integer("orderId")
    fills: list[Filled]
    if order_id is None:
        fills = call.owner.fills.get(name, [])
    else:
        order = call.owner.orders.get(order_id)
        fills = order.fills if order is not None and order.accepted.symbol == name else []
    fills = [fill for fill in fills if _is_shown(call, call.owner.orders[fill.order_id])]
    page = _page(call, fills, "fromId", lambda fill: fill.trade_id, lambda fill: fill.time_us)
    return [trade_row(fill) for fill in page]


def _page(
    call: Call, rows: list[Row], id_name: str, row_id: Callable[[Row], int], time_us: Callable[[Row], int]
) -> list[Row]:
    """One page of rows whose ids and times both rise: forward from an id or a start time, else the newest up to an end time."""
    from_id, begin_ms, end_ms = call.integer(id_name), call.integer("startTime"), call.integer("endTime")
    limit = call.limit()
    first = 0 if from_id is None else bisect_left(rows, from_id, key=row_id)
    if begin_ms is not None:
        first = max(first, bisect_left(rows, begin_ms * 1000, key=time_us))
    end = len(rows) if end_ms is None else bisect_left(rows, (end_ms + 1) * 1000, key=time_us)
    if from_id is None and begin_ms is None:
        first = max(first, end - limit)
    return rows[first : min(end, first + limit)]


def _uid(api_key: str) -> int:
    """A number that names an account, by its first key; the same in every run."""
    return int.from_bytes(hashlib.sha256(api_key.encode()).digest()[:5])


def account(call: Call) -> object:
    """GET /api/v3/account."""
    holding = call.owner.holding
    omits_zero = call.parameters.get("omitZeroBalances") == "true"
    rows = [
        {"asset": asset, "free": f"{holding.free[asset]:.8f}", "locked": f"{holding.locked[asset]:.8f}"}
        for asset in sorted(holding.free.keys() | holding.locked.keys())
        if not omits_zero or holding.free[asset] or holding.locked[asset]
    ]
    return {
        "makerCommission": 10,
        "takerCommission": 10,
        "buyerCommission": 0,
        "sellerCommission": 0,
        "commissionRates": {"maker": "0.00100000", "taker": "0.00100000", "buyer": "0.00000000", "seller": "0.00000000"},
        "canTrade": True,
        "canWithdraw": True,
        "canDeposit": True,
        "brokered": False,
        "requireSelfTradePrevention": False,
        "preventSor": False,
        "updateTime": call.now_us // 1000,
        "accountType": "SPOT",
        "balances": rows,
        "permissions": ["SPOT"],
        "uid": _uid(call.owner.api_key),
    }


def commission(call: Call) -> object:
    """GET /api/v3/account/commission."""
    rates = {"maker": "0.00100000", "taker": "0.00100000", "buyer": "0.00000000", "seller": "0.00000000"}
    none = {"maker": "0.00000000", "taker": "0.00000000", "buyer": "0.00000000", "seller": "0.00000000"}
    return {"symbol": call.symbol().name, "standardCommission": rates, "specialCommission": none, "taxCommission": none}


def trade_fee(call: Call) -> object:
    """GET /sapi/v1/asset/tradeFee."""
    names = [call.symbol().name] if "symbol" in call.parameters else list(call.exchange.rules.symbols)
    return [{"symbol": name, "makerCommission": "0.001", "takerCommission": "0.001"} for name in names]
