"""What one measured run happens on: topics, a database and a simulated exchange of its own, the same for every row.

Invariants:
1. Every run begins empty: fresh topics, a fresh database, a fresh exchange with the same users and the same money.
2. Every row reads the same requests: market orders of `USERS` in turn, each under a key of its own, keyed by the user.
3. All that a run made is removed when it ends, except what lies in the run's directory.

Start with `set_stage`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import aiohttp
import asyncpg
import orjson
from pydantic import SecretStr

from agents.process.app import utc_now
from embedded.services import Endpoints
from infra.kafka.topics import ensure_topics
from infra.keyring import StoredSecret, keyring_of, new_master_key
from infra.postgres.admin.accounts import NewUser, add_users
from infra.postgres.database import connect
from infra.postgres.migrate import migrate
from infra.settings import Settings
from pipeline.model.invariants import Retryable
from schemas.topics import Topics
from simulator.options import SimulatorOptions
from simulator.process import start

USERS: Final = tuple(f"trader-{number:02}" for number in range(50))
API_KEY_ID: Final = "main"
EXCHANGE: Final = "binance"
SYMBOL: Final = "BTC/USDT"
QUANTITY: Final = "0.001"
_OPENING: Final = {"USDT": Decimal(10_000_000), "BTC": Decimal(1_000)}
_TIMEOUT_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Stage:
    """`settings` name everything that a run needs; `directory` is for its files."""

    settings: Settings
    topics: Topics
    directory: Path

    @property
    def kafka(self) -> str:
        if self.settings.kafka_bootstrap_servers is None:
            raise ValueError("a stage has a broker")
        return self.settings.kafka_bootstrap_servers


def credentials_of(user_id: str) -> tuple[str, str]:
    """API key and secret of a user at the simulated exchange, which knows no other money than what it invents."""
    return f"key-{user_id}", f"secret-{user_id}"


def requests_of(name: str, count: int) -> Iterator[tuple[bytes, str, bytes]]:
    """(record key, idempotency key, record value) of `count` requests; `name` keeps their keys apart from those of other calls."""
    for number in range(count):
        user = USERS[number % len(USERS)]
        key = f"{name}-{number}"
        request = {
            "schema_version": 1,
            "type": "trade",
            "request_id": key,
            "idempotency_key": key,
            "user_id": user,
            "mode": "live",
            "exchange": EXCHANGE,
            "api_key_id": API_KEY_ID,
            "symbol": SYMBOL,
            # Each user buys and sells in turn, so that nobody runs out of money.
            "side": "buy" if number // len(USERS) % 2 else "sell",
            "order_type": "market",
            "quantity": QUANTITY,
            # A run that saturates makes requests wait longer than an order usually may.
            "expires_at": "2100-01-01T00:00:00Z",
        }
        yield user.encode(), key, orjson.dumps(request)


@asynccontextmanager
async def set_stage(endpoints: Endpoints, directory: Path, distance_ms: int = 0) -> AsyncIterator[Stage]:
    """Prepares one run, with an exchange as far away as `distance_ms`.

    Raises what the services raise: a benchmark without its services measures nothing.
    """
    name = f"bench_{uuid4().hex[:10]}"
    database_url = urlunsplit(urlsplit(endpoints.database_url)._replace(path=f"/{name}"))
    directory.mkdir(parents=True)
    exchange = await asyncio.to_thread(start, SimulatorOptions(data_dir=directory / "exchange", distance_ms=distance_ms))
    try:
        settings = Settings(
            kafka_bootstrap_servers=endpoints.kafka_bootstrap_servers,
            database_url=SecretStr(database_url),
            master_key=SecretStr(new_master_key()),
            topic_prefix=f"{name}.",
            consumer_group=f"{name}.workers",
            exchanges=(EXCHANGE,),
            exchange_urls={EXCHANGE: exchange.url},
            # The limits of the real exchange would be all that is measured.
            exchange_rate_limit=False,
            # On a busy machine a price may come late; the benchmark is about executions, not about that refusal.
            price_age_ms_max=120_000,
            kafka_partitions=4,
            **Settings.without_limits(),
        )
        await _execute(endpoints.database_url, f'CREATE DATABASE "{name}"')
        try:
            await migrate(database_url)
            await _make_topics(settings, endpoints.kafka_bootstrap_servers)
            await _open_accounts(settings, database_url, exchange.url)
            yield Stage(settings, Topics(settings.topic_prefix), directory)
        finally:
            await _execute(endpoints.database_url, f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await asyncio.to_thread(exchange.stop)


async def _make_topics(settings: Settings, kafka: str) -> None:
    """As a worker does it: again while a broker that has just made them does not tell their settings yet."""
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        while True:
            try:
                await ensure_topics(settings, kafka)
            except Retryable:
                await asyncio.sleep(0.2)
            else:
                return


async def _execute(database_url: str, statement: str) -> None:
    connection = await asyncpg.connect(database_url, timeout=_TIMEOUT_SECONDS, command_timeout=_TIMEOUT_SECONDS)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=_TIMEOUT_SECONDS)


async def _open_accounts(settings: Settings, database_url: str, exchange_url: str) -> None:
    """The same users with the same money in the ledger and at the exchange."""
    keyring = keyring_of(settings)
    users = []
    for user in USERS:
        ciphertext = keyring.encrypt(user, API_KEY_ID, StoredSecret(*credentials_of(user)))
        users.append(NewUser(user, EXCHANGE, API_KEY_ID, keyring.key_id, ciphertext, _OPENING))
    database = await connect(database_url, 2, _TIMEOUT_SECONDS)
    try:
        await add_users(database, users, utc_now(), "bench")
    finally:
        await database.close()
    accounts = []
    for user in USERS:
        api_key, secret = credentials_of(user)
        balances = {asset: str(amount) for asset, amount in _OPENING.items()}
        accounts.append({"label": user, "api_key": api_key, "secret": secret, "balances": balances})
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{exchange_url}/simulator/accounts", json=accounts) as response,
    ):
        response.raise_for_status()
