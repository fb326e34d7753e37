"""The public endpoints: time, markets, tickers and a book of one level each side."""

from decimal import Decimal
from typing import Any, Final

import orjson

from simulator import refusals
from simulator.calls import Call
from simulator.symbols import Symbol, exchange_info_row

_DAY_MS: Final = 86_400_000


def _selected(call: Call) -> tuple[list[Symbol], bool]:
    """The symbols that `symbol` or `symbols` (a JSON list) names, all without either; and whether the answer is one object."""
    known = call.exchange.rules.symbols
    if "symbol" in call.parameters:
        return [call.symbol()], True
    text = call.parameters.get("symbols")
    if text is None:
        return list(known.values()), False
    try:
        names: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise refusals.illegal_characters("symbols", '^\\["[A-Z0-9-_.]{1,20}"(,"[A-Z0-9-_.]{1,20}")*\\]$') from error
    if not isinstance(names, list) or not names or any(name not in known for name in names if isinstance(name, str)):
        raise refusals.invalid_symbol()
    if not all(isinstance(name, str) for name in names):
        raise refusals.invalid_symbol()
    return [known[name] for name in names], False


def _spread(call: Call, symbol: Symbol) -> tuple[Decimal, Decimal]:
    price = call.exchange.prices[symbol.name]
    return max(symbol.tick, price - symbol.tick), price + symbol.tick


def ping(_call: Call) -> object:
    """GET /api/v3/ping."""
    return {}


def time(call: Call) -> object:
    """GET /api/v3/time."""
    return {"serverTime": call.now_us // 1000}


def exchange_info(call: Call) -> object:
    """GET /api/v3/exchangeInfo."""
    symbols, _ = _selected(call)
    return {
        "timezone": "UTC",
        "serverTime": call.now_us // 1000,
        "rateLimits": [
            {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000},
            {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 100},
        ],
        "exchangeFilters": [],
        "symbols": [exchange_info_row(symbol) for symbol in symbols],
    }


def ticker_price(call: Call) -> object:
    """GET /api/v3/ticker/price."""
    symbols, is_single = _selected(call)
    rows = [{"symbol": symbol.name, "price": f"{call.exchange.prices[symbol.name]:.8f}"} for symbol in symbols]
    return rows[0] if is_single else rows


def book_ticker(call: Call) -> object:
    """GET /api/v3/ticker/bookTicker."""
    symbols, is_single = _selected(call)
    rows = []
    for symbol in symbols:
        bid, ask = _spread(call, symbol)
        size = f"{symbol.depth_quantity:.8f}"
        rows.append({"symbol": symbol.name, "bidPrice": f"{bid:.8f}", "bidQty": size, "askPrice": f"{ask:.8f}", "askQty": size})
    return rows[0] if is_single else rows


def ticker_24hr(call: Call) -> object:
    """GET /api/v3/ticker/24hr. The statistics compare with the start price; no volume is kept."""
    symbols, is_single = _selected(call)
    rows = [_day_row(call, symbol) for symbol in symbols]
    return rows[0] if is_single else rows


def _day_row(call: Call, symbol: Symbol) -> dict[str, object]:
    price = call.exchange.prices[symbol.name]
    start = symbol.start_price
    bid, ask = _spread(call, symbol)
    size = f"{symbol.depth_quantity:.8f}"
    now_ms = call.now_us // 1000
    return {
        "symbol": symbol.name,
        "priceChange": f"{price - start:.8f}",
        "priceChangePercent": f"{(price - start) / start * 100:.3f}",
        "weightedAvgPrice": f"{price:.8f}",
        "prevClosePrice": f"{start:.8f}",
        "lastPrice": f"{price:.8f}",
        "lastQty": f"{symbol.step:.8f}",
        "bidPrice": f"{bid:.8f}",
        "bidQty": size,
        "askPrice": f"{ask:.8f}",
        "askQty": size,
        "openPrice": f"{start:.8f}",
        "highPrice": f"{max(price, start):.8f}",
        "lowPrice": f"{min(price, start):.8f}",
        "volume": "0.00000000",
        "quoteVolume": "0.00000000",
        "openTime": now_ms - _DAY_MS,
        "closeTime": now_ms,
        "firstId": -1,
        "lastId": -1,
        "count": 0,
    }


def depth(call: Call) -> object:
    """GET /api/v3/depth."""
    symbol = call.symbol()
    bid, ask = _spread(call, symbol)
    size = f"{symbol.depth_quantity:.8f}"
    return {"lastUpdateId": call.now_us, "bids": [[f"{bid:.8f}", size]], "asks": [[f"{ask:.8f}", size]]}
