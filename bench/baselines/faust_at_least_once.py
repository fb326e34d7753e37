"""A plain Faust agent: at least once, one message after another, with the same database and the same exchange.

It is what the documentation of Faust leads to: decode, insert, call the exchange, update, publish, and let Faust commit offsets now and
then. It makes fewer promises: a crash executes orders again, nothing holds funds, nothing keeps a trail. Where a choice is free it takes
the faster one: uvloop, one database connection without a pool, one insert before and one update after.

Run as a worker process: `python -m bench.baselines.faust_at_least_once`, with the settings in the environment.
"""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlparse

import aiohttp
import asyncpg
import ccxt.async_support
import faust
import uvloop

from bench.stage import EXCHANGE, USERS, credentials_of
from infra.settings import Settings
from schemas.topics import Topics

_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS baseline_orders (
        idempotency_key text PRIMARY KEY,
        user_id text NOT NULL,
        symbol text NOT NULL,
        side text NOT NULL,
        quantity numeric(38, 18) NOT NULL,
        status text NOT NULL,
        exchange_order_id text,
        filled_quantity numeric(38, 18),
        average_price numeric(38, 18),
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL
    )
"""
_INSERT: Final = """
    INSERT INTO baseline_orders (idempotency_key, user_id, symbol, side, quantity, status, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5::text::numeric, 'submitting', $6, $6) ON CONFLICT DO NOTHING
"""
_UPDATE: Final = """
    UPDATE baseline_orders SET status = $2, exchange_order_id = $3, filled_quantity = $4::text::numeric,
        average_price = $5::text::numeric, updated_at = $6
    WHERE idempotency_key = $1
"""


async def open_exchanges(base_url: str, session: aiohttp.ClientSession) -> dict[str, Any]:
    """ccxt's client for each user, as its documentation shows; one reads the markets and the others take them over."""
    exchanges: dict[str, Any] = {}
    first: Any = None
    for user in USERS:
        api_key, secret = credentials_of(user)
        options = {"defaultType": "spot", "fetchMarkets": {"types": ["spot"]}, "fetchMargins": False, "fetchCurrencies": False}
        exchange = getattr(ccxt.async_support, EXCHANGE)(
            {"apiKey": api_key, "secret": secret, "enableRateLimit": False, "session": session, "options": options}
        )
        exchange.urls["api"] = {
            name: base_url + urlparse(url).path if isinstance(url, str) else url for name, url in exchange.urls["api"].items()
        }
        if first is None:
            first = exchange
            await exchange.load_markets()
        else:
            exchange.set_markets_from_exchange(first)
        exchanges[user] = exchange
    return exchanges


def build_app(settings: Settings, database: asyncpg.Connection, exchanges: dict[str, Any], data_dir: str) -> faust.App:
    """The app with its one agent."""
    app = faust.App(
        settings.consumer_group,
        broker=f"kafka://{settings.kafka_bootstrap_servers}",
        store="memory://",
        datadir=data_dir,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        value_serializer="json",
        key_serializer="raw",
    )
    topics = Topics(settings.topic_prefix)
    results = app.topic(topics.results, key_type=bytes, key_serializer="raw", value_serializer="json")

    async def execute(stream: faust.StreamT) -> AsyncIterator[None]:
        async for request in stream:
            result = await _execute(request, database, exchanges[request["user_id"]])
            delivered = await results.send(key=result["request_id"].encode(), value=result)
            # At least once needs this: Faust may commit the request's offset at any time from here on.
            await delivered
            yield

    app.agent(app.topic(topics.requests, key_serializer="raw", value_serializer="json"))(execute)
    return app


async def _execute(request: dict[str, Any], database: asyncpg.Connection, exchange: Any) -> dict[str, Any]:
    key, user, symbol, side, quantity = (request[name] for name in ("idempotency_key", "user_id", "symbol", "side", "quantity"))
    await database.execute(_INSERT, key, user, symbol, side, quantity, datetime.now(UTC))
    order = await exchange.create_order(symbol, request["order_type"], side, quantity, None, {"newClientOrderId": key})
    status = "executed" if order["status"] == "closed" else "open"
    filled, price = str(order["filled"]), str(order["average"])
    executed_at = datetime.now(UTC)
    await database.execute(_UPDATE, key, status, order["id"], filled, price, executed_at)
    return {
        "schema_version": 1,
        "request_id": request["request_id"],
        "idempotency_key": key,
        "user_id": user,
        "type": "trade",
        "status": status,
        "exchange_order_id": order["id"],
        "filled_quantity": filled,
        "average_price": price,
        "final": True,
        "executed_at": executed_at.isoformat(),
    }


async def run(settings: Settings) -> None:
    """Runs the agent until SIGTERM. Raises ValueError for settings without addresses."""
    if settings.database_url is None or settings.kafka_bootstrap_servers is None:
        raise ValueError("the baseline needs a broker and a database")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with AsyncExitStack() as stack:
        database = await asyncpg.connect(settings.database_url.get_secret_value(), timeout=30, command_timeout=30)
        stack.push_async_callback(database.close)
        await database.execute(_TABLE)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        exchanges = await open_exchanges(settings.exchange_urls[EXCHANGE], session)
        app = build_app(settings, database, exchanges, stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-faust-")))
        await app.start()
        stack.push_async_callback(app.stop)
        crash = asyncio.create_task(app.wait_until_stopped())
        stop = asyncio.create_task(stopped.wait())
        await asyncio.wait({crash, stop}, return_when=asyncio.FIRST_COMPLETED)
        crash.cancel()
        stop.cancel()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(run(Settings()))
