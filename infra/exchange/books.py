"""A venue's books, read: ccxt's unified orders, trades and markets as the values of pipeline/venue, and the search for one order.

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
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from pydantic_core import PydanticCustomError

from infra.exchange.venues import Venue, canceled_id
from pipeline.venue import Fee, Market, OrderReference, OrderTerms, VenueOrder
from schemas.decimals import format_decimal, parse_decimal
from schemas.orders import OrderStatus, OrderType
from schemas.times import EARLIEST, moment_of

# What this system's own client order ids look like (pipeline.identifiers), with the mark of its own cancel.
_OUR_CLIENT_ORDER_ID: Final = re.compile(r"co[0-9a-f]{28}(-c)?")
_PAGES_MAX: Final = 10
# Of the order and the trade list within the time in which an order can have been accepted.
_LIST_PAGES_MAX: Final = 10
_STRANGERS_MAX: Final = 20

_STATUS: Final[Mapping[str, OrderStatus]] = {
    "open": OrderStatus.NEW,
    "canceling": OrderStatus.NEW,
    "closed": OrderStatus.FILLED,
    "canceled": OrderStatus.CANCELED,
    "expired": OrderStatus.EXPIRED,
    "rejected": OrderStatus.REJECTED,
}


class UnreadableBooks(Exception):
    """The venue's answer does not add up, so it proves nothing. Its text says what is missing."""


class TooManyDigits(UnreadableBooks):
    """A number, but no amount of ours. A price or a market's rule of that kind concerns its market alone."""


def milliseconds(moment: datetime) -> int:
    """UTC time in whole ms since 1970, rounded down."""
    return (moment - EARLIEST) // timedelta(milliseconds=1)


def moment(timestamp_ms: object) -> datetime | None:
    """The UTC time of a timestamp in ms, None where the venue gave none that every store can carry (schemas.times)."""
    return moment_of(timestamp_ms, 1_000)


def amount(value: object, name: str) -> Decimal:
    """A venue's number.

    Raises UnreadableBooks for a float, for None, and for what no amount of ours can be: below zero, not finite, or with more digits than
    the contract has (schemas.decimals). A rebate is such a number: nothing of it is posted unseen.
    """
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise UnreadableBooks(f"{name} is {value!r}")
    try:
        number = Decimal(value)
    except InvalidOperation as error:
        raise UnreadableBooks(f"{name} is {value!r}") from error
    if not number.is_finite() or number < 0:
        raise UnreadableBooks(f"{name} is {value!r}")
    try:
        return parse_decimal(format_decimal(number))
    except PydanticCustomError as error:
        raise TooManyDigits(f"{name} is {value!r}") from error


def _total_fees(trades: Iterable[Mapping[str, Any]]) -> tuple[Fee, ...]:
    totals: dict[str, Decimal] = {}
    for trade in trades:
        fee = trade.get("fee") or {}
        if not fee.get("currency"):
            raise UnreadableBooks(f"trade {trade.get('id')} has no fee")
        asset = str(fee["currency"])
        totals[asset] = totals.get(asset, Decimal(0)) + amount(fee.get("cost"), "fee")
    return tuple(Fee(asset, total) for asset, total in sorted(totals.items()) if total != 0)


def with_fees(order: VenueOrder, trades: Sequence[Mapping[str, Any]]) -> VenueOrder:
    """The order with its fees, one entry per asset. Raises UnreadableBooks unless the trades cover its executed quantity exactly."""
    covered = sum((amount(trade.get("amount"), "trade quantity") for trade in trades), Decimal(0))
    if covered != order.cum_quantity:
        raise UnreadableBooks(f"its trades add up to {covered}, not to the {order.cum_quantity} executed")
    return replace(order, fees=_total_fees(trades))


def read_order(order: Mapping[str, Any], answered_at: datetime) -> VenueOrder:
    """A ccxt order without its fees. `answered_at` stands in as `updated_at` where the venue gives no time of its own.

    Raises UnreadableBooks.
    """
    exchange_order_id = order.get("id")
    if not exchange_order_id:
        raise UnreadableBooks("it has no order id")
    status = _STATUS.get(str(order.get("status")))
    if status is None:
        raise UnreadableBooks(f"its status is {order.get('status')!r}")
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
        client_order_id=str(order.get("clientOrderId") or ""),
        exchange_order_id=str(exchange_order_id),
        order_status=status,
        cum_quantity=executed,
        cum_quote=paid,
        fees=(),
        updated_at=told_at or answered_at,
    )


def read_markets(markets: Mapping[str, Mapping[str, Any]]) -> dict[str, Market]:
    """The spot markets of a ccxt market table whose steps are ticks (`precisionMode` TICK_SIZE). A market without a price tick or
    quantity step, or with a figure of too many digits, is left out: no amount for it could be checked. Raises UnreadableBooks."""
    found: dict[str, Market] = {}
    for symbol, row in markets.items():
        precision = row["precision"]
        if not row.get("spot") or precision.get("price") is None or precision.get("amount") is None:
            continue
        with suppress(TooManyDigits):
            found[symbol] = _market(symbol, row)
    return found


def _market(symbol: str, row: Mapping[str, Any]) -> Market:
    precision, limits = row["precision"], row["limits"]
    quantity_max = limits["amount"].get("max")
    return Market(
        symbol=symbol,
        base=str(row["base"]),
        quote=str(row["quote"]),
        active=bool(row.get("active")),
        price_tick=amount(precision["price"], "price tick"),
        quantity_step=amount(precision["amount"], "quantity step"),
        quantity_min=amount(limits["amount"].get("min") or 0, "least quantity"),
        quantity_max=None if quantity_max is None else amount(quantity_max, "greatest quantity"),
        notional_min=amount(limits["cost"].get("min") or 0, "least value"),
        taker_fee_rate=amount(row.get("taker"), "taker fee"),
        market_id=str(row["id"]) if row.get("id") else None,
    )


def read_prices(answer: object, wanted: Mapping[str, str]) -> dict[str, Decimal]:
    """Prices in quote per base, by symbol, of the markets in `wanted` (the venue's market id → symbol). Raises UnreadableBooks."""
    if not isinstance(answer, list):
        raise UnreadableBooks("its prices are no list")
    prices: dict[str, Decimal] = {}
    for row in answer:
        symbol = wanted.get(str(row.get("symbol"))) if isinstance(row, dict) else None
        # One below zero, or with too many digits, is no price, and no reason to do without the others.
        if symbol is not None and not str(row.get("price")).startswith("-"):
            with suppress(TooManyDigits):
                price = amount(row.get("price"), "price")
                if price > 0:
                    prices[symbol] = price
    return prices


async def trades_of(exchange: Any, row: Venue, symbol: str, exchange_order_id: str) -> list[dict[str, Any]]:
    """Every trade of one order. Raises ccxt's errors, and UnreadableBooks for more pages than are read."""
    trades: list[dict[str, Any]] = []
    params: dict[str, object] = {"orderId": exchange_order_id}
    for _ in range(_PAGES_MAX):
        page = await exchange.fetch_my_trades(symbol, None, row.history_page, params)
        trades += [trade for trade in page if str(trade.get("order")) == exchange_order_id]
        if len(page) < row.history_page:
            return trades
        # The greatest, not the last: ccxt sorts trades of one millisecond by their ids as text.
        params = {"orderId": exchange_order_id, "fromId": max(int(trade["id"]) for trade in page) + 1}
    raise UnreadableBooks(f"it has more than {len(trades)} trades")


async def search(exchange: Any, row: Venue, reference: OrderReference, window_ms: tuple[int, int] | None) -> dict[str, Any] | None:
    """Looks for a client order id in the order list and behind the trade list; None where neither knows it.

    `window_ms` is the time in which the venue can have accepted the order, by its clock; without one the newest page of each list is read.
    Raises UnreadableBooks where the lists prove nothing: several orders match (a client order id is unique among open orders only), a list
    is longer than what is read of it, a trade's order is not shown, or an order with the same terms stands there that somebody canceled
    elsewhere and that may have lost our client order id by it.
    """
    orders = await _whole(exchange.fetch_orders, row, reference.symbol, window_ms, "orders")
    trades = await _whole(exchange.fetch_my_trades, row, reference.symbol, window_ms, "trades")
    listed = {str(order.get("id")) for order in orders}
    strangers = sorted({str(trade.get("order")) for trade in trades} - listed)
    if len(strangers) > _STRANGERS_MAX:
        raise UnreadableBooks(f"{len(strangers)} orders have trades and are not listed")
    for exchange_order_id in strangers:
        orders.append(await exchange.fetch_order(exchange_order_id, reference.symbol))
    ours = [order for order in orders if order.get("clientOrderId") in {reference.client_order_id, canceled_id(reference.client_order_id)}]
    if len(ours) > 1:
        raise UnreadableBooks(f"orders {_ids(ours)} carry client order id {reference.client_order_id}; an operator must say which counts")
    if ours:
        return ours[0]
    if row.cancel_id_parameter is not None:
        renamed = [order for order in orders if _may_be_renamed(order) and _may_be(order, row, reference.terms, window_ms)]
        if renamed:
            raise UnreadableBooks(f"orders {_ids(renamed)} were canceled elsewhere and may be the one; an operator must say")
    return None


async def _whole(
    fetch: Callable[..., Awaitable[list[dict[str, Any]]]], row: Venue, symbol: str, window_ms: tuple[int, int] | None, what: str
) -> list[dict[str, Any]]:
    """Every entry of a list within the window, page by page: each page begins with the time with which the one before ended.

    Raises UnreadableBooks for more pages than are read, and where one page holds entries of one time alone: there may be more.
    """
    if window_ms is None:
        return await fetch(symbol, None, row.history_page, {})
    since, until = window_ms
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_LIST_PAGES_MAX):
        page = await fetch(symbol, since, row.history_page, {"endTime": until})
        found |= {str(entry.get("id")): entry for entry in page}
        if len(page) < row.history_page:
            return list(found.values())
        newest = max((time for entry in page if isinstance(time := entry.get("timestamp"), int)), default=since)
        if newest <= since:
            raise UnreadableBooks(f"the venue's list of {what} cannot be read on after {len(found)}, so it may not show every one")
        since = newest
    raise UnreadableBooks(f"the venue's list has more than {len(found)} {what} in that time, so it may not show every one")


def _may_be(order: Mapping[str, Any], row: Venue, terms: OrderTerms | None, window_ms: tuple[int, int] | None) -> bool:
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
    info = order.get("info")
    quote = info.get(row.listed_quote_quantity) if isinstance(info, Mapping) else None
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
