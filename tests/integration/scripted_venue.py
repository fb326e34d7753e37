"""A venue of a few lines with Binance's spot paths: it counts what arrives, and answers as a test tells it to.

Unlike the simulator it decides nothing. What arrived is what the tests are about.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import parse_qsl

from aiohttp import web

from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.gateway import Credentials
from pipeline.model.venue import OrderReference, Submission
from schemas.orders import Mode, OrderType, Side

API_KEY = "scripted-api-key-0123456789"
SECRET = "scripted-secret-9876543210"
ORDER = "/api/v3/order"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _symbol(base: str, quote: str) -> dict[str, object]:
    return {
        "symbol": base + quote, "status": "TRADING", "baseAsset": base, "quoteAsset": quote, "baseAssetPrecision": 8, "quotePrecision": 8,
        "quoteAssetPrecision": 8, "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"], "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False, "permissions": ["SPOT"], "permissionSets": [["SPOT"]],
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": "0.01000000", "maxPrice": "1000000.00000000", "tickSize": "0.01000000"},
            {"filterType": "LOT_SIZE", "minQty": "0.00001000", "maxQty": "9000.00000000", "stepSize": "0.00001000"},
            {"filterType": "NOTIONAL", "minNotional": "5.00000000", "maxNotional": "9000000.00000000"},
        ],
    }


EXCHANGE_INFO = {"timezone": "UTC", "serverTime": 0, "rateLimits": [], "symbols": [_symbol("BTC", "USDT"), _symbol("ETH", "USDT")]}


def order_row(
    client_order_id: object, *, status: str = "NEW", executed: str = "0", paid: str = "0", order_id: int = 77,
) -> dict[str, object]:
    """An order as Binance's GET shows it."""
    return {
        "symbol": "BTCUSDT", "orderId": order_id, "clientOrderId": client_order_id, "price": "50000.00", "origQty": "0.002",
        "executedQty": executed, "cummulativeQuoteQty": paid, "status": status, "timeInForce": "GTC", "type": "LIMIT", "side": "BUY",
        "time": 1_700_000_000_000, "updateTime": 1_700_000_000_500, "isWorking": True,
    }


def trade_row(
    *, order_id: int = 77, trade_id: int = 1, quantity: str = "0.001", fee: str = "0.000001", asset: str = "BTC",
) -> dict[str, object]:
    """A trade as Binance's myTrades shows it."""
    return {
        "symbol": "BTCUSDT", "id": trade_id, "orderId": order_id, "price": "50000.00", "qty": quantity,
        "quoteQty": str(Decimal(quantity) * 50_000), "commission": fee, "commissionAsset": asset, "time": 1_700_000_000_500,
        "isBuyer": True, "isMaker": False,
    }


@dataclass
class Arrival:
    method: str
    path: str
    query: dict[str, str]
    body: dict[str, str]
    headers: dict[str, str]


@dataclass
class ScriptedVenue:
    """`answers` maps (method, path) to what answers it; without an entry the path's plain answer is given."""

    port: int = 0
    clock_ahead: timedelta = timedelta(0)
    arrivals: list[Arrival] = field(default_factory=list)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    keep_alive: bool = True
    runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def orders_arrived(self, method: str = "POST") -> list[Arrival]:
        return [arrival for arrival in self.arrivals if arrival.method == method and arrival.path == ORDER]

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        # Its own access log would show signed URLs, and a test looks for those in the log.
        self.runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        self.arrivals.append(Arrival(request.method, request.path, dict(request.query), dict(parse_qsl(body)), dict(request.headers)))
        answer = self.answers.get((request.method, request.path))
        if answer is not None:
            return await answer(request)
        response = web.json_response(self._plain(request, dict(parse_qsl(body))))
        if not self.keep_alive:
            response.force_close()
        return response

    def _plain(self, request: web.Request, body: dict[str, str]) -> object:
        match (request.method, request.path):
            case ("GET", "/api/v3/time"):
                return {"serverTime": int((datetime.now(UTC) + self.clock_ahead).timestamp() * 1_000)}
            case ("GET", "/api/v3/exchangeInfo"):
                return EXCHANGE_INFO
            case ("GET", "/api/v3/ticker/price"):
                return [{"symbol": "BTCUSDT", "price": "50000.01000000"}, {"symbol": "ETHUSDT", "price": "2500.00000000"}]
            case ("POST", "/api/v3/order"):
                return {**order_row(body["newClientOrderId"]), "transactTime": 1_700_000_000_000, "fills": []}
            case ("GET", "/api/v3/order"):
                return order_row(request.query.get("origClientOrderId", "known-by-its-order-id"))
            case _:
                return []


def answers(status: int, body: object, content_type: str = "application/json", **headers: str) -> Answer:
    """A whole answer; `body` is JSON unless it is a string."""
    async def answer(_request: web.Request) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text, content_type=content_type, headers=headers)
    return answer


def in_turn(*steps: Answer) -> Answer:
    """The n-th request gets the n-th answer, the last one all that follow."""
    seen = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal seen
        step = steps[min(seen, len(steps) - 1)]
        seen += 1
        return await step(request)
    return answer


def error(status: int, code: int, message: str) -> Answer:
    """Binance's error body."""
    return answers(status, {"code": code, "msg": message})


async def hang(request: web.Request) -> web.StreamResponse:
    """Never answers; ends when the client gives up."""
    await asyncio.Event().wait()
    raise AssertionError(request)


async def drop(request: web.Request) -> web.StreamResponse:
    """Closes the connection after the request was read whole."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def truncate(request: web.Request) -> web.StreamResponse:
    """Half of an answer, then the connection closes."""
    response = web.StreamResponse(headers={"Content-Length": "500", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"symbol": "BTCUSDT", "orderId": 77, "clientOrder')
    assert request.transport is not None
    request.transport.close()
    return response


async def stall(request: web.Request) -> web.StreamResponse:
    """Half of an answer, then nothing, the connection open."""
    response = web.StreamResponse(headers={"Content-Length": "500", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"symbol": "BTCUSDT", "orderId": 77, "clientOrder')
    await asyncio.Event().wait()
    return response


@asynccontextmanager
async def running_venue(**fields: object) -> AsyncIterator[ScriptedVenue]:
    venue = ScriptedVenue(**fields)  # type: ignore[arg-type]  # the fields are the dataclass's own
    await venue.start()
    try:
        yield venue
    finally:
        await venue.stop()


@asynccontextmanager
async def gateway_to(venue: ScriptedVenue, exchange_id: str = "binance", **settings: object) -> AsyncIterator[CcxtGateway]:
    """A gateway that knows the venue's markets and clock already, so that only account calls arrive from here on."""
    async def credentials(_user_id: str, api_key_id: str) -> Credentials | None:
        return Credentials(API_KEY, SECRET) if api_key_id == "key-1" else None

    defaults: dict[str, object] = {"base_url": venue.url, "timeout_ms": 1_000, "rate_limit": False}
    gateway = CcxtGateway(exchange_id, credentials, **{**defaults, **settings})  # type: ignore[arg-type]  # settings are the constructor's
    try:
        await gateway.markets()
        venue.arrivals.clear()
        yield gateway
    finally:
        await gateway.close()


_numbers: dict[str, int] = defaultdict(int)


def submission(**changes: object) -> Submission:
    """A limit order to buy 0.002 BTC at 50,000 USDT."""
    _numbers["order"] += 1
    fields: dict[str, object] = {
        "mode": Mode.LIVE,
        "order_id": f"order-{_numbers['order']}", "client_order_id": f"co-{_numbers['order']}", "exchange": "binance", "user_id": "alice",
        "api_key_id": "key-1", "symbol": "BTC/USDT", "side": Side.BUY, "order_type": OrderType.LIMIT, "quantity": Decimal("0.002"),
        "quote_quantity": None, "price": Decimal("50000.00"), "time_in_force": None, "submitting_at": datetime.now(UTC),
    }
    fields["expires_at"] = changes.get("submitting_at", fields["submitting_at"]) + timedelta(seconds=30)  # type: ignore[operator]
    return Submission(**{**fields, **changes})  # type: ignore[arg-type]  # the fields are the dataclass's own


def reference(**changes: object) -> OrderReference:
    fields: dict[str, object] = {
        "mode": Mode.LIVE,
        "order_id": "order-1", "client_order_id": "co-1", "exchange_order_id": None, "exchange": "binance", "user_id": "alice",
        "api_key_id": "key-1", "symbol": "BTC/USDT",
    }
    return OrderReference(**{**fields, **changes})  # type: ignore[arg-type]  # the fields are the dataclass's own
