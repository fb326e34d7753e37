"""What tests of the database step share: a database with two funded users, and steps that decide a batch as the agents do."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Final

import asyncpg

from infra.postgres.admin.accounts import NewUser, add_users
from infra.postgres.database import Database, InputPartition, connect
from infra.postgres.gate import accounts, api_keys
from infra.postgres.step import StepTransaction, open_step, take_partition
from pipeline.books.audit import AuditTrail
from pipeline.books.changes import Changes, OutputRecord
from pipeline.books.ledger import Ledger
from pipeline.intake import decide
from pipeline.requests.record import Arrival
from schemas.requests import CancelRequest, TradeRequest
from tests.unit.builders import EXCHANGE, NOW, RULES, TOPICS, WIDE_LIMITS, intake_state, market_data

USERS: Final = ("alice", "bob")
GROUP: Final = "group"
TIMEOUT_SECONDS: Final = 5.0


@asynccontextmanager
async def open_database(url: str, *, users: Iterable[str] = USERS, timeout_seconds: float = TIMEOUT_SECONDS) -> AsyncIterator[Database]:
    """A pool on the test's database, with these users owning 100,000 USDT and 10 BTC each."""
    database = await connect(url, 8, timeout_seconds)
    try:
        funds = {"USDT": Decimal(100_000), "BTC": Decimal(10)}
        new = [NewUser(user, EXCHANGE, "k1", "key", b"ciphertext", funds) for user in users]
        await add_users(database, new, NOW, "test")
        yield database
    finally:
        await database.close()


async def taken(database: Database, partition: int = 0, topic: str = TOPICS.requests) -> InputPartition:
    """The partition, owned by the caller from now on."""
    owned, _ = await take_partition(database, GROUP, topic, partition, NOW)
    return owned


async def changes_in(step: StepTransaction, users: Iterable[str], *, now: datetime = NOW, orders: Iterable[str] = ()) -> Changes:
    """A batch with everything loaded that a step about these users and orders needs."""
    user_ids, order_ids = sorted(set(users)), sorted(orders)
    locked = await step.lock_accounts(user_ids)
    return Changes(
        topics=TOPICS,
        now=now,
        actor="test",
        trail=AuditTrail(locked.heads, now),
        ledger=Ledger(await step.balances(user_ids)),
        orders=await step.orders(order_ids),
        cancels=await step.pending_cancels(order_ids),
        conduct=locked.conduct,
    )


async def decide_in(step: StepTransaction, arrivals: Iterable[Arrival], *, now: datetime = NOW) -> Changes:
    """Decides records of the request topic and stores them; the caller finishes the step."""
    batch = list(arrivals)
    keys = {key for record in batch if (key := record.claim_key) is not None}
    targets = {(word.user_id, word.target_idempotency_key) for record in batch if isinstance(word := record.decoded, CancelRequest)}
    users = {user for user, _ in keys}
    symbols = {(word.user_id, word.symbol) for record in batch if isinstance(word := record.decoded, TradeRequest)}
    changes = await changes_in(step, users, now=now)
    changes.claims = await step.claims(keys | targets)
    order_ids = sorted({order_id for key in targets if key in changes.claims and (order_id := changes.claims[key].order_id) is not None})
    changes.orders, changes.cancels = await step.orders(order_ids), await step.pending_cancels(order_ids)
    state = intake_state(
        accounts=await accounts(step.connection, sorted(users), symbols, changes.conduct, WIDE_LIMITS, lambda user, key, text: "", now),
        api_keys=await api_keys(step.connection, sorted(users)),
        market_data={EXCHANGE: market_data(observed_at=now)},
    )
    decide(batch, state, changes)
    await step.store(changes, now - RULES.key_lifetime)
    return changes


async def take_in(
    database: Database, owned: InputPartition, arrivals: Iterable[Arrival], next_offset: int, *, now: datetime = NOW
) -> tuple[Changes, tuple[OutputRecord, ...]]:
    """One whole step of the intake agent."""
    async with open_step(database, owned) as step:
        changes = await decide_in(step, arrivals, now=now)
        outputs = await step.finish(next_offset, changes.outputs, now)
    return changes, outputs


@asynccontextmanager
async def plain_connection(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection beside the pool, for looking and for breaking things."""
    connection = await asyncpg.connect(url, timeout=10, command_timeout=20)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


async def counts(url: str, *tables: str) -> dict[str, int]:
    """How many rows the tables have."""
    async with plain_connection(url) as connection:
        return {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in tables}  # noqa: S608 — literals of tests
