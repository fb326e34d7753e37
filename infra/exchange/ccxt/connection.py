"""One venue's connection: its HTTP session, clock difference, market table and accounts.

Invariants:
1. One HTTP session, one market table, one rate limiter and one clock difference per venue, because the venue counts requests per address.
   Keys are never shared: every account is an instance of its own.
2. Nothing is ordered before the markets and the clock are known.
3. A load that failed is not tried again within a second: a venue that is down costs its queue no time-out per order.
4. The venue's time is what it said plus what has passed since by the monotonic clock; after a minute, or once the wall clock was set or
   the machine slept meanwhile, it is not known until it is asked for again.

Start with `VenueConnection.ready`.
"""

import asyncio
import copy
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlparse

import aiohttp
import ccxt
import structlog

from infra.exchange.ccxt.transport import Pause, ReportingConnector, venue_class
from infra.exchange.gateway import Credentials, VenueUnavailable
from infra.exchange.venues.reading import milliseconds, moment, note_unreadable
from infra.exchange.venues.venue import Venue

_log: Final = structlog.get_logger(__name__)

_ACCOUNTS_MAX: Final = 1_024
_PAUSE_SECONDS: Final = 1.0
_RULES_TOLD_MAX: Final = 20
_DAY_MS: Final = 86_400_000
# Idle connections are given up before a venue's load balancer closes them: a request on a closing connection ends in doubt.
_KEEP_ALIVE_SECONDS: Final = 10.0
_CLOCK_SECONDS_MAX: Final = 60.0
# So far the wall clock and the monotonic clock may go apart between two measurements.
_CLOCK_STEP_SECONDS: Final = 1.0


class VenueConnection:
    """`base_url` redirects every endpoint to a sandbox or the simulator, keeping its path. `timeout_ms` bounds each HTTP request."""

    def __init__(
        self,
        venue: Venue,
        *,
        base_url: str | None,
        timeout_ms: int,
        receive_window: timedelta,
        rate_limit: bool,
        connections_max: int,
        clock: Callable[[], datetime],
    ) -> None:
        self._venue = venue
        self._base_url = base_url
        self._timeout_ms = timeout_ms
        self._rate_limit = rate_limit
        self._connections_max = connections_max
        self._clock = clock
        self._http: aiohttp.ClientSession | None = None
        self._accounts: OrderedDict[Credentials, Any] = OrderedDict()
        self._loading: asyncio.Task[None] | None = None
        self._load_again_at = 0.0
        self._clock_known = False
        # The venue's time in ms since 1970, this machine's wall clock and its monotonic clock, all at the moment of the measurement.
        self._measured: tuple[int, datetime, float] | None = None
        self._closed = False
        self._rules_told: set[str] = set()
        self.receive_window_ms = receive_window // timedelta(milliseconds=1)
        self.clock_difference_ms = 0
        # ccxt's instance without keys, for public questions; None until the first load.
        self.public: Any = None

    async def ready(self) -> None:
        """Markets and clock are known when it returns. Raises VenueUnavailable."""
        if self.public is None or not self.public.markets:
            await self._load(markets=True)
        elif not self._clock_known or self._clock_was_set():
            await self._load(markets=False)

    async def reload(self) -> None:
        """Reads markets and clock afresh. Raises VenueUnavailable."""
        await self._load(markets=True)

    def doubt_clock(self) -> None:
        """The venue refused a timestamp: the clock difference is measured again before the next call."""
        self._clock_known = False

    async def venue_time(self) -> datetime | None:
        """The time by the venue's clock, UTC; None where it does not tell."""
        if not self._clock_known or self._measured is None or self._clock_was_set() or self._measured_seconds_ago() > _CLOCK_SECONDS_MAX:
            try:
                await self._load(markets=False)
            except VenueUnavailable:
                return None
        if self._measured is None:
            return None
        return moment(self._measured[0] + round(self._measured_seconds_ago() * 1_000))

    def _measured_seconds_ago(self) -> float:
        return 0.0 if self._measured is None else time.monotonic() - self._measured[2]

    def _clock_was_set(self) -> bool:
        if self._measured is None:
            return False
        apart = (self._clock() - self._measured[1]).total_seconds() - self._measured_seconds_ago()
        return abs(apart) > _CLOCK_STEP_SECONDS

    def account(self, credentials: Credentials) -> Any:
        """ccxt's instance for one key. A shallow copy, so that it shares markets, rate limiter, clock difference and session."""
        account = self._accounts.get(credentials)
        if account is not None:
            self._accounts.move_to_end(credentials)
            return account
        account = copy.copy(self.public)
        account.apiKey, account.secret, account.password = credentials.api_key, credentials.secret, credentials.password
        self._accounts[credentials] = account
        if len(self._accounts) > _ACCOUNTS_MAX:
            self._accounts.popitem(last=False)
        return account

    async def close(self) -> None:
        """For good: what is asked afterwards raises VenueUnavailable."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
            self._loading = None
        if self._http is not None:
            await self._http.close()
        self._http = self.public = None
        self._accounts.clear()

    async def _load(self, *, markets: bool) -> None:
        """Loads once for all who wait; a load under way is joined, whatever it loads."""
        if self._closed:
            raise VenueUnavailable(f"the connection to {self._venue.exchange_id} is closed")
        if self._loading is None or self._loading.done():
            if time.monotonic() < self._load_again_at:
                raise VenueUnavailable(f"{self._venue.exchange_id} did not tell its markets and clock a moment ago")
            self._loading = asyncio.create_task(self._ask(markets=markets))
        try:
            # One caller that is canceled must not end the load of the others.
            await asyncio.shield(self._loading)
        except Exception as error:  # noqa: BLE001  whatever ccxt makes of a venue's nonsense, the venue cannot be used now
            self._load_again_at = time.monotonic() + _PAUSE_SECONDS
            note_unreadable(self._venue.exchange_id, "markets and clock", error)
            # Without the chain: ccxt's text is not ours to show.
            raise VenueUnavailable(f"{self._venue.exchange_id} did not tell its markets and clock ({type(error).__name__})") from None

    async def _ask(self, *, markets: bool) -> None:
        if self.public is None:
            self.public = self._open()
        asked_ms, asked = milliseconds(self._clock()), time.monotonic()
        server_ms = await self.public.fetch_time()
        # A day on, so that what is reckoned from it can still be told.
        if moment(server_ms) is None or moment(server_ms + _DAY_MS) is None:
            raise ccxt.BadResponse("the venue told no time")
        round_trip_ms = round((time.monotonic() - asked) * 1_000)
        if round_trip_ms > self.receive_window_ms:
            raise ccxt.RequestTimeout("the answer about the clock took longer than the receive window, so it says nothing")
        self.clock_difference_ms = server_ms - (asked_ms + round_trip_ms // 2)
        self._measured = server_ms + round_trip_ms // 2, self._clock(), time.monotonic()
        self._clock_known = True
        if abs(self.clock_difference_ms) > self.receive_window_ms:
            _log.warning("clock_differs", exchange=self._venue.exchange_id, difference_ms=self.clock_difference_ms)
        self.public.options["timeDifference"] = -self.clock_difference_ms
        if markets or not self.public.markets:
            # Into a copy: where the venue's answer is nonsense, what was known before stays in use.
            fresh = copy.copy(self.public)
            fresh.rows_unreadable = []
            await fresh.load_markets(True)
            if not fresh.markets:
                raise ccxt.BadResponse("the venue told no market")
            unknown = self._venue.unknown_rules(fresh.markets.values())
            if unknown - self._rules_told:
                _log.warning("market_rules_unknown", exchange=self._venue.exchange_id, rules=sorted(unknown)[:_RULES_TOLD_MAX])
                self._rules_told |= unknown
            if fresh.rows_unreadable != self.public.rows_unreadable:
                _log.warning("markets_unreadable", exchange=self._venue.exchange_id, count=len(fresh.rows_unreadable))
            self.public = fresh
            self._accounts.clear()

    def _open(self) -> Any:
        total = self._timeout_ms / 1_000
        self._http = aiohttp.ClientSession(
            connector=ReportingConnector(
                wall_clock_ms=lambda: milliseconds(self._clock()), limit=self._connections_max, keepalive_timeout=_KEEP_ALIVE_SECONDS
            ),
            # Accounts share the connections; a cookie of one must not travel with another.
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=total, sock_connect=total, sock_read=total),
        )
        exchange = venue_class(self._venue.exchange_id)({
            "enableRateLimit": self._rate_limit,
            "timeout": self._timeout_ms,
            "asyncio_loop": asyncio.get_running_loop(),
            # ccxt would repeat a POST.
            "options": {**self._venue.options(self.receive_window_ms), "maxRetriesOnFailure": 0},
        })
        exchange.http = self._http
        exchange.pause = Pause()
        exchange.rows_unreadable = []
        exchange.wall_clock_ms = lambda: milliseconds(self._clock())
        if self._base_url is not None:
            exchange.urls = {**exchange.urls, "api": _redirected(exchange.urls["api"], self._base_url.rstrip("/"))}
        return exchange


def _redirected(urls: Any, base_url: str) -> Any:
    if isinstance(urls, dict):
        return {name: _redirected(value, base_url) for name, value in urls.items()}
    return base_url + urlparse(urls).path if isinstance(urls, str) else urls
