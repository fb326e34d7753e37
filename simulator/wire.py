"""HTTP: each request's way from the socket to the exchange and back, with the faults in between.

Order of a request: arrival time → route → parameters → signature → fault before acceptance → the exchange → durable → fault after
acceptance → answer.

Invariants:
1. Every answer, refusals and look-ups among them, waits until the journal has everything that was appended before.
2. The clock is read again right before the exchange is asked; nothing is awaited in between.
3. A request that hangs holds only its own connection, and ends when the client leaves or the simulator stops.

Start at `Wire.answer`.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import web

from simulator import capital, market, refusals, trading
from simulator.admin import PREFIX, Admin
from simulator.calls import Call
from simulator.exchange import Exchange
from simulator.faults import ACCEPTING, ActiveRule, FaultKind, Faults
from simulator.horizon import Horizon
from simulator.journal import Journal
from simulator.signing import KeyStore, Signed, parse_parameters, verify

JSON: Final = {"Content-Type": "application/json;charset=UTF-8"}
HTML: Final = {"Content-Type": "text/html"}
HTML_BODY: Final = b"<html><head><title>Just a moment...</title></head><body>Checking your browser.</body></html>"
UNKNOWN_ERROR: Final = refusals.Refusal(-1000, "Unknown error, please check your request or try again later.", 503)
# How often a request that hangs looks whether its client has left.
HANG_POLL_SECONDS: Final = 0.2

Handler = Callable[[Call], object]


@dataclass(frozen=True, slots=True)
class Route:
    """`changes`: the request may change the books."""

    handler: Handler
    is_signed: bool
    changes: bool


ROUTES: Final[dict[tuple[str, str], Route]] = {
    ("POST", "/api/v3/order"): Route(trading.new_order, True, True),
    ("GET", "/api/v3/order"): Route(trading.query_order, True, False),
    ("DELETE", "/api/v3/order"): Route(trading.cancel_order, True, True),
    ("GET", "/api/v3/openOrders"): Route(trading.open_orders, True, False),
    ("DELETE", "/api/v3/openOrders"): Route(trading.cancel_open_orders, True, True),
    ("GET", "/api/v3/allOrders"): Route(trading.all_orders, True, False),
    ("GET", "/api/v3/myTrades"): Route(trading.my_trades, True, False),
    ("GET", "/api/v3/account"): Route(trading.account, True, False),
    ("GET", "/api/v3/account/commission"): Route(trading.commission, True, False),
    ("GET", "/sapi/v1/account/apiRestrictions"): Route(capital.key_permissions, True, False),
    ("GET", "/sapi/v1/asset/tradeFee"): Route(trading.trade_fee, True, False),
    ("GET", "/sapi/v1/capital/config/getall"): Route(capital.coins, True, False),
    ("POST", "/sapi/v1/capital/withdraw/apply"): Route(capital.withdraw, True, True),
    ("GET", "/sapi/v1/capital/withdraw/history"): Route(capital.withdrawal_history, True, False),
    ("GET", "/sapi/v1/capital/deposit/hisrec"): Route(capital.deposit_history, True, False),
    ("GET", "/api/v3/ping"): Route(market.ping, False, False),
    ("GET", "/api/v3/time"): Route(market.time, False, False),
    ("GET", "/api/v3/exchangeInfo"): Route(market.exchange_info, False, False),
    ("GET", "/api/v3/ticker/price"): Route(market.ticker_price, False, False),
    ("GET", "/api/v3/ticker/24hr"): Route(market.ticker_24hr, False, False),
    ("GET", "/api/v3/ticker/bookTicker"): Route(market.book_ticker, False, False),
    ("GET", "/api/v3/depth"): Route(market.depth, False, False),
}

_INTERNAL_ERROR: Final = b'{"code":-1001,"msg":"Internal error; unable to process your request. Please try again."}'
# Answers that replace the true one: status, body, headers.
_REPLACEMENTS: Final[dict[FaultKind, tuple[int, bytes, dict[str, str]]]] = {
    FaultKind.HTTP_500_BEFORE_ACCEPT: (500, _INTERNAL_ERROR, JSON),
    FaultKind.HTTP_502_BEFORE_ACCEPT: (502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", HTML),
    FaultKind.HTTP_503_UNAVAILABLE: (503, b'{"code":-1000,"msg":"Service Unavailable."}', JSON),
    FaultKind.HTML_200: (200, HTML_BODY, HTML),
    FaultKind.EMPTY_JSON_200: (200, b"{}", JSON),
}


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def refusal_body(refusal: refusals.Refusal) -> bytes:
    return orjson.dumps({"code": refusal.code, "msg": refusal.message})


def _refused(refusal: refusals.Refusal) -> web.Response:
    headers = JSON | {"Retry-After": "1"} if refusal.status == 429 else JSON
    return web.Response(status=refusal.status, body=refusal_body(refusal), headers=headers)


def _replacement(kind: FaultKind) -> web.Response | None:
    """The answer that stands for a kind, the same before and after acceptance; None for kinds that do not replace the answer."""
    if kind in (FaultKind.HTTP_503_BEFORE_ACCEPT, FaultKind.HTTP_503_AFTER_ACCEPT):
        return _refused(UNKNOWN_ERROR)
    if kind in (FaultKind.HTTP_504_BEFORE_ACCEPT, FaultKind.HTTP_504_AFTER_ACCEPT):
        return _refused(refusals.backend_timeout())
    if kind is FaultKind.DUPLICATE:
        return _refused(refusals.duplicate_order())
    if kind is FaultKind.RATE_LIMIT:
        return _refused(refusals.rate_limited())
    same = {
        FaultKind.HTTP_500_AFTER_ACCEPT: FaultKind.HTTP_500_BEFORE_ACCEPT,
        FaultKind.HTTP_502_AFTER_ACCEPT: FaultKind.HTTP_502_BEFORE_ACCEPT,
    }.get(kind, kind)
    found = _REPLACEMENTS.get(same)
    return None if found is None else web.Response(status=found[0], body=found[1], headers=found[2])


class Wire:
    """The request handler. `stopping` wakes the requests that hang."""

    def __init__(
        self,
        exchange: Exchange,
        keys: KeyStore,
        faults: Faults,
        journal: Journal,
        *,
        receive_window_ms_max: int,
        stopping: asyncio.Event,
        distance_ms: int = 0,
    ) -> None:
        self._exchange = exchange
        self._keys = keys
        self._faults = faults
        self._journal = journal
        self._receive_window_ms_max = receive_window_ms_max
        self._stopping = stopping
        self._one_way_seconds = distance_ms / 2000
        self._admin = Admin(exchange, keys, faults, journal, now_us)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request. It arrives half the distance later than it came, and its answer leaves as much earlier than it arrives."""
        if self._one_way_seconds == 0 or request.raw_path.startswith(PREFIX):
            return await self._answer(request)
        await asyncio.sleep(self._one_way_seconds)
        answer = await self._answer(request)
        await asyncio.sleep(self._one_way_seconds)
        return answer

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        arrived_us = now_us()
        method = request.method
        path, _, query = request.raw_path.partition("?")
        body = await request.read() if request.body_exists else b""
        try:
            if path.startswith(PREFIX):
                return await self._answer_admin(request, method, path, body)
            route = ROUTES.get((method, path))
            if route is None:
                return web.Response(status=404, body=b"<html><body><h2>404 Not found</h2></body></html>", headers=HTML)
            call = self._call(route, request, query, body, arrived_us)
            name = call.parameters
            client_order_id = name.get("newClientOrderId") or name.get("origClientOrderId") or name.get("withdrawOrderId")
            rule = self._faults.choose(method, path, client_order_id)
            with self._hiding(method, path, call, client_order_id):
                if rule is not None:
                    return await self._answer_faulty(request, route, call, rule, client_order_id)
                payload = self._carry_out(route, call)
        except refusals.Refusal as refusal:
            await self._journal.durable()
            return _refused(refusal)
        await self._journal.durable()
        return web.Response(body=payload, headers=JSON)

    async def _answer_admin(self, request: web.BaseRequest, method: str, path: str, body: bytes) -> web.Response:
        if request.remote not in ("127.0.0.1", "::1"):
            return _refused(refusals.Refusal(-2015, "The simulator's own endpoints answer to this machine only.", 403))
        return web.Response(body=await self._admin.answer(method, path, body), headers=JSON)

    def _call(self, route: Route, request: web.BaseRequest, query: str, body: bytes, arrived_us: int) -> Call:
        try:
            text = body.decode("ascii")
        except UnicodeDecodeError as error:
            raise refusals.illegal_characters("body", "ASCII, percent-encoded") from error
        parameters = parse_parameters(query, text)
        if not route.is_signed:
            return Call(self._exchange, parameters, None, Horizon(0, 0, arrived_us), arrived_us)
        api_key = request.headers.get("X-MBX-APIKEY")
        window_ms_max = self._receive_window_ms_max
        signed: Signed = verify(self._keys, api_key, query, text, parameters, now_us=arrived_us, receive_window_ms_max=window_ms_max)
        account = self._exchange.account_of(signed.api_key)
        if account is None:
            raise refusals.unknown_key()
        horizon = Horizon(signed.timestamp_ms, signed.receive_window_ms, arrived_us)
        return Call(self._exchange, parameters, account, horizon, arrived_us)

    @staticmethod
    def _carry_out(route: Route, call: Call) -> bytes:
        call.now_us = now_us()
        return orjson.dumps(route.handler(call))

    @contextmanager
    def _hiding(self, method: str, path: str, call: Call, client_order_id: str | None) -> Iterator[None]:
        """Has an order that is accepted meanwhile hidden for a while, where a rule says so; used up only where one was."""
        lag = self._faults.choose_lag(method, path, client_order_id)
        if lag is not None:
            call.hidden_us = lag.rule.delay_ms * 1000
        try:
            yield
        finally:
            if lag is not None and call.hidden_applied:
                label = None if call.account is None else call.account.label
                self._faults.injected(lag.rule, label=label, client_order_id=client_order_id, accepted=True, now_us=now_us())
            elif lag is not None:
                self._faults.give_back(lag)

    async def _answer_faulty(
        self, request: web.BaseRequest, route: Route, call: Call, rule: ActiveRule, client_order_id: str | None
    ) -> web.StreamResponse:
        kind = rule.rule.kind
        label = None if call.account is None else call.account.label

        def log(accepted: bool) -> None:
            self._faults.injected(rule.rule, label=label, client_order_id=client_order_id, accepted=accepted, now_us=now_us())

        if kind is FaultKind.SLOW:
            return await self._answer_late(route, call, rule, log)
        if kind not in ACCEPTING:
            log(False)
            return await self._mangle(request, kind, b"")
        call.partial = kind is FaultKind.PARTIAL_FILL
        try:
            payload = self._carry_out(route, call)
        except refusals.Refusal:
            self._faults.give_back(rule)
            raise
        await self._journal.durable()
        if call.partial and not call.partial_applied:
            self._faults.give_back(rule)
            return web.Response(body=payload, headers=JSON)
        log(route.changes)
        return await self._mangle(request, kind, payload)

    async def _answer_late(self, route: Route, call: Call, rule: ActiveRule, log: Callable[[bool], None]) -> web.Response:
        timeout_ms = self._exchange.rules.venue_timeout_ms
        await asyncio.sleep(min(rule.rule.delay_ms, timeout_ms) / 1000)
        try:
            if rule.rule.delay_ms > timeout_ms:
                raise refusals.backend_timeout()
            payload = self._carry_out(route, call)
        except refusals.Refusal:
            log(False)
            raise
        await self._journal.durable()
        log(route.changes)
        return web.Response(body=payload, headers=JSON)

    async def _mangle(self, request: web.BaseRequest, kind: FaultKind, payload: bytes) -> web.StreamResponse:
        """Answers in the fault's way; what `payload` says is the true answer."""
        transport = request.transport
        if kind in (FaultKind.HANG_BEFORE_ACCEPT, FaultKind.HANG_AFTER_ACCEPT):
            await self._hang(request)
        elif kind is FaultKind.TRUNCATED_BODY and transport is not None:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json;charset=UTF-8\r\nContent-Length: {len(payload)}\r\n\r\n"
            transport.write(head.encode() + payload[: len(payload) // 2])
        elif kind is FaultKind.CUT_JSON:
            return web.Response(body=payload[: len(payload) // 2], headers=JSON)
        elif kind is FaultKind.PARTIAL_FILL:
            return web.Response(body=payload, headers=JSON)
        else:
            answer = _replacement(kind)
            if answer is not None:
                return answer
        # What remains has no answer of its own: the connection closes after what was written.
        if request.transport is not None:
            request.transport.close()
        return web.Response(status=500)

    async def _hang(self, request: web.BaseRequest) -> None:
        while request.transport is not None and not request.transport.is_closing() and not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), HANG_POLL_SECONDS)
            except TimeoutError:
                continue
