"""The filters of a symbol: which orders the exchange takes at all, as `exchangeInfo` publishes them.

Source: https://developers.binance.com/docs/binance-spot-api-docs/filters. All averages are over 0 minutes here: the last price is used.
Start with `check`.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from simulator import refusals
from simulator.ledger import ZERO
from simulator.orders import Order, OrderRequest
from simulator.symbols import Symbol

_RESTS_NOT: Final = frozenset({"IOC", "FOK"})


def check(symbol: Symbol, request: OrderRequest, last_price: Decimal, open_orders: Iterable[Order], owned: Decimal) -> None:
    """Raises Refusal for the first filter that an order fails. `open_orders` are the account's, `owned` what it has of the base asset, free
    and locked."""
    is_buy = request.side == "BUY"
    if request.price is not None:
        _check_price(symbol, request.price, last_price, is_buy=is_buy)
    quantity = request.quantity
    if quantity is None:
        # What the quote quantity is worth, in whole steps.
        quantity = symbol.floor_to_step((request.quote_quantity or ZERO) / last_price)
    _check_lots(symbol, quantity, is_market=request.price is None)
    notional = request.quote_quantity if request.quantity is None else quantity * (last_price if request.price is None else request.price)
    if notional is None or notional < symbol.notional_min or (request.price is not None and notional > symbol.notional_max):
        raise refusals.filter_failure("NOTIONAL")
    same_symbol = [order for order in open_orders if order.accepted.symbol == symbol.name]
    can_rest = request.price is not None and request.time_in_force not in _RESTS_NOT
    if can_rest and len(same_symbol) >= symbol.open_orders_max:
        raise refusals.filter_failure("MAX_NUM_ORDERS")
    if is_buy and symbol.position_max:
        bought = sum((order.leaves_quantity for order in same_symbol if order.accepted.side == "BUY"), ZERO)
        if owned + bought + quantity > symbol.position_max:
            raise refusals.filter_failure("MAX_POSITION")


def _check_price(symbol: Symbol, price: Decimal, last_price: Decimal, *, is_buy: bool) -> None:
    if price < symbol.tick or price > symbol.price_max or not symbol.is_on_tick(price):
        raise refusals.filter_failure("PRICE_FILTER")
    down, up = symbol.bid_multipliers if is_buy else symbol.ask_multipliers
    if not last_price * down <= price <= last_price * up:
        raise refusals.filter_failure("PERCENT_PRICE_BY_SIDE")


def _check_lots(symbol: Symbol, quantity: Decimal, *, is_market: bool) -> None:
    if quantity < symbol.step or quantity > symbol.quantity_max or not symbol.is_on_step(quantity):
        raise refusals.filter_failure("LOT_SIZE")
    if is_market and not symbol.market_quantity_min <= quantity <= symbol.market_quantity_max:
        raise refusals.filter_failure("MARKET_LOT_SIZE")
