"""A venue's books, read: ccxt's unified orders, trades and markets as the values of pipeline/model/venue, and the search for one order.

Invariants:
1. Nothing is guessed: an order without an id, with a status or an amount that cannot be read, or whose trades do not add up to its executed
   quantity raises UnreadableBooks.
2. Amounts are read from strings and integers only; a float raises UnreadableBooks.
3. `search` never picks one of several orders that carry the same client order id, and never says "absent" beside a canceled order that
   may be the one: some venues put another client order id on an order when it is canceled. What differs in side, type, quantity or price
   cannot be.

Start with `read_order`, then `search`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from infra.exchange.venues.reading import UnreadableBooks, amount, moment, reading, shown, text
from infra.exchange.venues.venue import Order, Venue, canceled_id
from pipeline.model.venue import Fee, Market, OrderReference, OrderTerms, VenueOrder
from schemas.orders import OrderStatus, OrderType

# What this system's own client order ids look like (pipeline.model.identifiers), with the mark of its own cancel.
_OUR_CLIENT_ORDER_ID: Final = re.compile(r"co[0-9a-f]{28}(-c)?")
_STRANGERS_MAX: Final = 20
ID_MAX: Final = 128
_ASSET_MAX: Final = 64

_STATUS: Final[Mapping[str, OrderStatus]] = {
    "open": OrderStatus.NEW,
    "canceling": OrderStatus.NEW,
    "closed": OrderStatus.FILLED,
    "canceled": OrderStatus.CANCELED,
    "expired": OrderStatus.EXPIRED,
    "rejected": OrderStatus.REJECTED,
}


def _total_fees(trades: Iterable[Mapping[str, Any]]) -> tuple[Fee, ...]:
    totals: dict[str, Decimal] = {}
    for trade in trades:
        fee = trade.get("fee") or {}
        asset = text(fee.get("currency"), "the asset of a fee", _ASSET_MAX)
        if not asset:
            raise UnreadableBooks(f"trade {shown(trade.get('id'))} has no fee")
        # The sum, too, must be an amount of ours.
        totals[asset] = amount(format(totals.get(asset, Decimal(0)) + amount(fee.get("cost"), "fee"), "f"), "the sum of its fees")
    return tuple(Fee(asset, total) for asset, total in sorted(totals.items()) if total != 0)


def with_fees(order: VenueOrder, trades: Sequence[Mapping[str, Any]]) -> VenueOrder:
    """The order with its fees, one entry per asset. Raises UnreadableBooks unless the trades cover its executed quantity exactly."""
    with reading("its trades"):
        covered = sum((amount(trade.get("amount"), "trade quantity") for trade in trades), Decimal(0))
        if covered != order.cum_quantity:
            raise UnreadableBooks(f"its trades add up to {covered}, not to the {order.cum_quantity} executed")
        return replace(order, fees=_total_fees(trades))


def read_order(order: Mapping[str, Any], answered_at: datetime) -> VenueOrder:
    """A ccxt order without its fees. `answered_at` stands in as `updated_at` where the venue gives no time of its own.

    Raises UnreadableBooks.
    """
    with reading("the order"):
        return _order(order, answered_at)


def _order(order: Mapping[str, Any], answered_at: datetime) -> VenueOrder:
    exchange_order_id = text(order.get("id"), "its order id", ID_MAX)
    if not exchange_order_id:
        raise UnreadableBooks("it has no order id")
    status = _STATUS.get(str(order.get("status")))
    if status is None:
        raise UnreadableBooks(f"its status is {shown(order.get('status'))}")
    executed = amount(order.get("filled"), "executed quantity")
    paid = amount(order.get("cost"), "executed value") if executed else Decimal(0)
    if executed < 0 or paid < 0:
        raise UnreadableBooks("its executed quantity or value is negative")
    if status is OrderStatus.FILLED and not executed:
        raise UnreadableBooks("it is filled and nothing of it was executed")
    if status is OrderStatus.NEW and executed:
        status = OrderStatus.PARTIALLY_FILLED
    told_at = moment(order.get("lastUpdateTimestamp")) or moment(order.get("lastTradeTimestamp")) or moment(order.get("timestamp"))
    return VenueOrder(
        client_order_id=text(order.get("clientOrderId"), "its client order id", ID_MAX),
        exchange_order_id=exchange_order_id,
        order_status=status,
        cum_quantity=executed,
        cum_quote=paid,
        fees=(),
        updated_at=told_at or answered_at,
    )


def read_markets(venue: Venue, markets: Mapping[str, Mapping[str, Any]]) -> dict[str, Market]:
    """The spot markets of a ccxt market table. One whose rules cannot be read, or have figures of too many digits, is left out: no amount
    for it could be checked. It costs no other market anything."""
    found: dict[str, Market] = {}
    for symbol, row in markets.items():
        with suppress(UnreadableBooks), reading("the market"):
            if row.get("spot"):
                found[symbol] = venue.market(symbol, row)
    return found


async def search(exchange: Any, venue: Venue, reference: OrderReference, window_ms: tuple[int, int] | None) -> dict[str, Any] | None:
    """Looks for a client order id in the order list and behind the trade list; None where neither knows it.

    `window_ms` is the time in which the venue can have accepted the order, by its clock; without one the newest page of each list is read.
    Raises UnreadableBooks where the lists prove nothing: several orders match (a client order id is unique among open orders only), a list
    is longer than what is read of it, a trade's order is not shown, or an order with the same terms stands there that somebody canceled
    elsewhere and that may have lost our client order id by it.
    """
    orders = await venue.orders(exchange, reference.symbol, window_ms)
    trades = await venue.trades(exchange, reference.symbol, window_ms)
    listed = {str(order.get("id")) for order in orders}
    strangers = sorted({str(trade.get("order")) for trade in trades} - listed)
    if len(strangers) > _STRANGERS_MAX:
        raise UnreadableBooks(f"{len(strangers)} orders have trades and are not listed")
    for exchange_order_id in strangers:
        order = await venue.order(exchange, replace(reference, exchange_order_id=exchange_order_id))
        if order is None:
            raise UnreadableBooks(f"order {exchange_order_id} has trades and is not shown")
        orders.append(order)
    ours = [order for order in orders if order.get("clientOrderId") in {reference.client_order_id, canceled_id(reference.client_order_id)}]
    if len(ours) > 1:
        raise UnreadableBooks(f"orders {_ids(ours)} carry client order id {reference.client_order_id}; an operator must say which counts")
    if ours:
        return ours[0]
    if venue.replaces_canceled_id:
        renamed = [order for order in orders if _may_be_renamed(order) and _may_be(order, venue, reference.terms, window_ms)]
        if renamed:
            raise UnreadableBooks(f"orders {_ids(renamed)} were canceled elsewhere and may be the one; an operator must say")
    return None


def _may_be(order: Order, venue: Venue, terms: OrderTerms | None, window_ms: tuple[int, int] | None) -> bool:
    """Whether an order may be the one that was asked for: nothing that must be equal is told and differs."""
    if terms is None:
        return True
    created = order.get("timestamp")
    if window_ms is not None and isinstance(created, int) and not window_ms[0] <= created <= window_ms[1]:
        return False
    kind = {OrderType.LIMIT_MAKER: "limit"}.get(terms.order_type, terms.order_type.value)
    words = ((order.get("side"), terms.side.value), (order.get("type"), kind))
    if any(told is not None and str(told).lower() != asked for told, asked in words):
        return False
    quote = venue.quote_quantity_of(order)
    # Of an order by value the list shows what was bought as its quantity, and a price only where one was asked for.
    pairs = ((order.get("amount"), terms.quantity), (order.get("price"), terms.price), (quote, terms.quote_quantity))
    return not any(asked is not None and _differs(told, asked) for told, asked in pairs)


def _differs(told: object, asked: Decimal) -> bool:
    """What cannot be read, or is not told, may be equal."""
    try:
        return amount(told, "amount") != asked
    except UnreadableBooks:
        return False


def _ids(orders: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(str(order.get("id")) for order in orders)


def _may_be_renamed(order: Mapping[str, Any]) -> bool:
    """Canceled, and under a client order id that this system did not give."""
    return order.get("status") == "canceled" and not _OUR_CLIENT_ORDER_ID.fullmatch(str(order.get("clientOrderId")))
