"""How a ccxt call reaches the network, and what is known of it afterwards.

Invariants:
1. One account call hands at most one order request to the network: a second one inside the same call is refused before it is handed over,
   redirects are not followed, and aiohttp's repeat on a lost keep-alive connection is switched off.
2. `Call` records what is proven: whether a request was handed over at all, whether a connection ever stood, and the whole answer.
3. What leaves is what was recorded: every request that moves money is compared whole with its record before it is handed over
   (venues/wire.py).
4. A request that moves money is never handed over once its receive window is over, which ends at its deadline: looked at behind every
   queue, and once more when the connection stands and the first byte is next.
5. A venue that asks for a pause (HTTP 429 and 418) gets it: an order waits for its end where its receive window allows, else it is refused
   unsent; a ban follows for clients that go on.
6. No URL with a query (Binance signs in the query) and no header gets into an error or a log line.

ccxt's own `fetch` is replaced as a whole: it follows redirects, puts the signed URL into its errors and logs headers at debug level.
Start with `Call` and `venue_class`.
"""

import asyncio
import functools
import importlib
import json
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import yarl
from ccxt.base.errors import BadResponse, ExchangeError, ExchangeNotAvailable, RateLimitExceeded, RequestTimeout

from infra.exchange.venues.reading import UnreadableBooks, reading, shown
from infra.exchange.venues.registry import venue
from infra.exchange.venues.venue import Evidence, Venue
from infra.exchange.venues.wire import NotHandedOver, WireForm, check_request
from pipeline.model.venue import Refused
from schemas.reasons import ReasonCode

_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_TEXT_MAX: Final = 300
# Where the answer has no Retry-After header. 418 is a ban of 2 minutes to 3 days (Binance, "IP Limits").
_PAUSE_SECONDS: Final = {429: 1.0, 418: 120.0}
_PAUSE_SECONDS_MAX: Final = 300.0
_UNESCAPED: Final = re.compile(r"[A-Za-z0-9_.~-]*").fullmatch


class ConnectionLost(aiohttp.ClientError):
    """The connection broke after it stood. Not a ClientOSError, because aiohttp repeats DELETE and GET requests after those."""


@dataclass(slots=True)
class Call:
    """One account call: what it may do, and what is known of it.

    `order` calls hand over one request at most. `signed_ms` is the timestamp to sign, by the venue's clock, and `not_after_ms` the end of
    its receive window by this machine's, both in ms since 1970; a call may wait for the venue until then. `deadline_ms` is when it must not
    be handed over any more, by this machine's clock. `pre_send_check` may stop an order behind all queues; what it raises is kept in
    `look_failure`. `form` is what the request must say, whole.
    """

    order: bool = False
    signed_ms: int | None = None
    not_after_ms: int | None = None
    deadline_ms: int | None = None
    form: WireForm | None = None
    pre_send_check: Callable[[], Awaitable[Refused | None]] | None = None
    look_failure: Exception | None = None
    handed_over: bool = False
    connected: bool = False
    unconnected: bool = False
    http_status: int | None = None
    answer: Any = None
    text: str = ""

    def is_over(self, now_ms: int) -> bool:
        """Whether it must not be handed over any more."""
        ends = [end for end in (self.not_after_ms, self.deadline_ms) if end is not None]
        return bool(ends) and now_ms > min(ends)

    def evidence(self, of: Venue) -> Evidence:
        """What a rule of the venue's white list is held against. An error that cannot be read proves nothing."""
        code = message = ""
        with suppress(UnreadableBooks), reading("the error"):
            code, message = of.error_of(self.answer)
        return Evidence(self.handed_over, self.unconnected, self.http_status, code, message)


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


class ReportingConnector(aiohttp.TCPConnector):
    """Tells the current call whether a connection stood: without one, nothing can have been sent.

    `unconnected` needs a failure inside `connect` and no success before it, so a version of aiohttp that no longer calls `connect` leaves
    calls in doubt, not refused.

    A connection may stand late: what must not be taken any more is stopped here, where no byte of it has left. `wall_clock_ms` is this
    machine's clock, in ms since 1970.
    """

    def __init__(self, *, wall_clock_ms: Callable[[], int], limit: int, keepalive_timeout: float) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout)
        self._wall_clock_ms = wall_clock_ms

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:  # noqa: ASYNC109  aiohttp's own signature
        call = current_call.get()
        try:
            connection = await super().connect(req, traces, timeout)
        except BaseException:
            if call is not None:
                call.unconnected = not call.connected
            raise
        if call is not None and call.is_over(self._wall_clock_ms()):
            connection.close()
            call.handed_over = False
            raise NotHandedOver(ReasonCode.REQUEST_EXPIRED, "its time was over when the connection stood")
        if call is not None:
            call.connected = True
            call.unconnected = False
        return connection


class Pause:
    """The pause that a venue asked for, shared by all its accounts: the limit is per address."""

    def __init__(self) -> None:
        self._until = 0.0

    def asked(self, status: int, retry_after: str | None) -> None:
        """Notes the pause of a 429 or 418 answer; other statuses ask for none. The header's seconds count up to five minutes."""
        seconds = _PAUSE_SECONDS.get(status)
        if seconds is None:
            return
        if retry_after is not None and retry_after.isdecimal():
            seconds = min(float(retry_after), _PAUSE_SECONDS_MAX)
        self._until = max(self._until, time.monotonic() + seconds)

    def seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """aiohttp repeats idempotent methods once after ClientOSError and ServerDisconnectedError; a canceled order's DELETE is not one."""
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectionLost(f"the connection broke before the answer ({type(error).__name__})") from error


async def _read(response: aiohttp.ClientResponse) -> str:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > _ANSWER_BYTES_MAX:
            raise aiohttp.ClientPayloadError(f"the answer is larger than {_ANSWER_BYTES_MAX} bytes")
        chunks.append(chunk)
    return b"".join(chunks).decode("utf-8", "replace").strip()


def _readable(status: int, text: str, url: str) -> Any:
    """The JSON of an answer, None where it is none. Numbers stay text until Decimal reads them."""
    if text[:1] in {"{", "["}:
        try:
            return json.loads(text, parse_float=str)
        except ValueError as error:
            if status < 400:
                raise BadResponse(f"the answer of {url} is not whole JSON") from error
    elif status < 400:
        raise BadResponse(f"the answer of {url} is not JSON")
    return None


async def _admit(exchange: Any, call: Call | None) -> None:
    """The last gate before the network. Raises NotHandedOver for an order, ccxt's RateLimitExceeded for a question."""
    if call is not None and call.order and call.handed_over:
        raise NotHandedOver(ReasonCode.EXCHANGE_REFUSED, "a second request inside one order call")
    wait_seconds = exchange.pause.seconds_left()
    not_after_ms = None if call is None else call.not_after_ms
    if wait_seconds and not_after_ms is not None and exchange.wall_clock_ms() + wait_seconds * 1_000 < not_after_ms:
        await asyncio.sleep(wait_seconds)
    elif wait_seconds:
        text = f"the venue asked for a pause, {wait_seconds:.0f} s of it are left"
        raise NotHandedOver(ReasonCode.EXCHANGE_UNAVAILABLE, text) if call is not None and call.order else RateLimitExceeded(text)
    if call is not None and call.pre_send_check is not None:
        await _look(call, call.pre_send_check)
    if call is not None and call.is_over(exchange.wall_clock_ms()):
        raise NotHandedOver(ReasonCode.REQUEST_EXPIRED, "its time was over before it could be sent")


async def _look(call: Call, pre_send_check: Callable[[], Awaitable[Refused | None]]) -> None:
    """Asks whether the order may still go. Raises NotHandedOver where it may not, and where nobody can say."""
    try:
        refusal = await pre_send_check()
    except Exception as error:
        # ccxt lies between here and the caller, who must see the failure itself.
        call.look_failure = error
        raise NotHandedOver(ReasonCode.EXCHANGE_UNAVAILABLE, "whether it may be sent is not known") from error
    if refusal is not None:
        raise NotHandedOver(refusal.reason_code, refusal.detail)


async def _exchange_fetch(self: Any, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
    """Replaces ccxt's `fetch`: one HTTP request, no redirect, no repeat. Raises ccxt's exceptions, without query or headers in them."""
    call = current_call.get()
    bare_url = url.split("?", 1)[0]
    await _admit(self, call)
    if call is not None and call.form is not None:
        check_request(call.form, method, url, headers or {}, body)
    if call is not None:
        call.handed_over, call.http_status, call.answer, call.text = True, None, None, ""
    request_headers = dict(headers or {})
    request_headers["Accept-Encoding"] = "gzip, deflate"
    try:
        async with self.http.request(
            method,
            yarl.URL(url, encoded=True),
            data=body.encode() if body else None,
            headers=request_headers,
            allow_redirects=False,
            middlewares=() if call is None else (_send_once,),
        ) as response:
            text = await _read(response)
            status = response.status
    except TimeoutError as error:
        raise RequestTimeout(f"{method} {bare_url} timed out") from error
    except aiohttp.ClientConnectionError as error:
        raise ExchangeNotAvailable(f"{method} {bare_url}: {type(error).__name__}") from error
    except aiohttp.ClientError as error:
        raise ExchangeError(f"{method} {bare_url}: {type(error).__name__}") from error
    self.pause.asked(status, response.headers.get("Retry-After"))
    if call is not None:
        call.http_status, call.text = status, text[:_TEXT_MAX]
    answer = _readable(status, text, bare_url)
    if call is not None:
        call.answer = answer
    self.handle_errors(status, response.reason or "", bare_url, method, dict(response.headers), text, answer, request_headers, body)
    self.handle_http_status_code(status, response.reason or "", bare_url, method, text)
    if status >= 300:
        raise BadResponse(f"{method} {bare_url} was answered with HTTP {status}")
    return answer


def _plain_order(self: Any, order: dict[str, Any], market: Any = None) -> dict[str, Any]:
    """ccxt's `safe_order` calculates what a venue left out, such as the value from the limit price. Here a gap stays a gap."""
    order["trades"] = [trade if "info" in trade else self.parse_trade(trade, market) for trade in order.get("trades") or ()]
    return order


def _plain_trade(_self: Any, trade: dict[str, Any], _market: Any = None) -> dict[str, Any]:
    """As `_plain_order`, for one trade."""
    return trade


def _parse_market_alone(base: Any) -> Callable[[Any, Any], Any]:
    """ccxt's `parse_market`, where a row that it fails over is left out and noted: one market's nonsense must not hide all others."""

    def parse_market(self: Any, market: Any) -> Any:
        try:
            with reading("the market"):
                return base.parse_market(self, market)
        except UnreadableBooks:
            self.rows_unreadable.append(shown(market.get("symbol")) if isinstance(market, dict) else shown(market))
            return None

    return parse_market


@functools.cache
def venue_class(exchange_id: str) -> Callable[[dict[str, Any]], Any]:
    """ccxt's class for a venue, with the transport above. Cached, because ccxt decorates each new class when it is first used."""
    base: Any = importlib.import_module(f"ccxt.async_support.{exchange_id}").__dict__[exchange_id]

    def milliseconds(self: Any) -> int:
        """The signature's clock: the recorded intent inside an order call, else this machine's. ccxt subtracts the time difference."""
        call = current_call.get()
        if call is not None and call.signed_ms is not None:
            return call.signed_ms + int(self.options["timeDifference"])
        return int(self.wall_clock_ms())

    def urlencode(params: dict[str, Any], *rest: Any) -> str:
        """ccxt's own result, in a fifth of its time where no character needs an escape."""
        pairs: list[str] = []
        for name, value in params.items():
            text = str(value) if type(value) is int else value
            if type(text) is not str or not _UNESCAPED(name) or not _UNESCAPED(text):
                return str(base.urlencode(params, *rest))
            pairs.append(f"{name}={text}")
        return "&".join(pairs)

    return type(base.__name__, (base,), {
        **venue(exchange_id).replaced(base),
        # Amounts stay the strings that the venue sent. On the class, because ccxt reads its fee table before its configuration.
        "number": str,
        "fetch": _exchange_fetch,
        "milliseconds": milliseconds,
        "urlencode": staticmethod(urlencode),
        "safe_order": _plain_order,
        "safe_trade": _plain_trade,
        "parse_market": _parse_market_alone(base),
    })
