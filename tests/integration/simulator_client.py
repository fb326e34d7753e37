"""A plain HTTP client for the simulated exchange: signs as Binance asks, and returns what came back without judging it."""

import asyncio
import hmac
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import aiohttp
import orjson
from yarl import URL

ORDER = "/api/v3/order"
_numbers = itertools.count(1)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def new_id(prefix: str = "c") -> str:
    return f"{prefix}{next(_numbers)}-{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    headers: dict[str, str]

    @property
    def code(self) -> int | None:
        """Binance's error code, None where the answer is no refusal."""
        return self.body.get("code") if isinstance(self.body, dict) else None


class SimulatorClient:
    """One account's view of one simulated exchange."""

    def __init__(self, session: aiohttp.ClientSession, url: str, api_key: str, secret: str) -> None:
        self.session = session
        self.url = url
        self.api_key = api_key
        self.secret = secret

    async def raw(self, method: str, path: str, query: str = "", body: str = "", headers: dict[str, str] | None = None) -> Answer:
        """Sends exactly these bytes."""
        target = URL(self.url + path + (f"?{query}" if query else ""), encoded=True)
        kwargs: dict[str, Any] = {"headers": headers or {}}
        if body:
            kwargs["data"] = body.encode()
        async with self.session.request(method, target, **kwargs) as response:
            data = await response.read()
            try:
                parsed = orjson.loads(data)
            except orjson.JSONDecodeError:
                parsed = data
            return Answer(response.status, parsed, dict(response.headers))

    def sign(self, parameters: dict[str, Any]) -> str:
        parameters = {"timestamp": now_ms(), "recvWindow": 10_000} | parameters
        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        return f"{query}&signature={hmac.digest(self.secret.encode(), query.encode(), 'sha256').hex()}"

    async def signed(self, method: str, path: str, **parameters: Any) -> Answer:
        """A signed request; POST in the body, else in the query. A parameter that is None is left out."""
        text = self.sign(parameters)
        headers = {"X-MBX-APIKEY": self.api_key}
        if method == "POST":
            return await self.raw(method, path, body=text, headers=headers | {"Content-Type": "application/x-www-form-urlencoded"})
        return await self.raw(method, path, query=text, headers=headers)

    async def order(self, side: str = "BUY", quantity: str | None = "0.001", **parameters: Any) -> Answer:
        """A market order of BTCUSDT unless told otherwise."""
        given = {"symbol": "BTCUSDT", "side": side, "type": "MARKET", "quantity": quantity} | parameters
        given.setdefault("newClientOrderId", new_id())
        return await self.signed("POST", ORDER, **given)

    async def limit(self, price: str, side: str = "BUY", quantity: str = "0.001", tif: str = "GTC", **parameters: Any) -> Answer:
        return await self.order(side, quantity, type="LIMIT", price=price, timeInForce=tif, **parameters)

    async def look_up(self, client_order_id: str, symbol: str = "BTCUSDT") -> Answer:
        return await self.signed("GET", ORDER, symbol=symbol, origClientOrderId=client_order_id)

    async def balances(self) -> dict[str, tuple[Decimal, Decimal]]:
        """Free and locked by asset."""
        answer = await self.signed("GET", "/api/v3/account")
        return {row["asset"]: (Decimal(row["free"]), Decimal(row["locked"])) for row in answer.body["balances"]}

    async def admin(self, method: str, path: str, value: Any = None) -> Any:
        """A request to the simulator's own endpoints, which must succeed."""
        answer = await self.raw(method, f"/simulator/{path}", body="" if value is None else orjson.dumps(value).decode())
        assert answer.status == 200, answer
        return answer.body

    async def faults(self, *rules: dict[str, Any]) -> None:
        await self.admin("POST", "faults", list(rules))

    async def pin(self, price: str | None, symbol: str = "BTCUSDT") -> None:
        await self.admin("POST", "price", {"symbol": symbol, "price": price})

    async def assert_books_hold(self) -> None:
        assert (await self.admin("GET", "invariants"))["violations"] == []


@asynccontextmanager
async def client_of(url: str, balances: dict[str, str] | None = None, api_key: str | None = None) -> AsyncIterator[SimulatorClient]:
    """A client with an account of its own: 100,000 USDT and 10 BTC unless told otherwise."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session:
        client = SimulatorClient(session, url, api_key or new_id("key"), "secret-of-the-account")
        amounts = {"USDT": "100000", "BTC": "10"} if balances is None else balances
        spec = {"label": f"user-{client.api_key}", "api_key": client.api_key, "secret": client.secret, "balances": amounts}
        await client.admin("POST", "accounts", [spec])
        yield client


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Asks again until it holds; raises TimeoutError when the time is over."""
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.01)
