"""Work that waits for its exchange: what is due, when nothing is, and that each piece is queued once."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from agents.watches.retry_queue import RetryQueue
from agents.watches.watch import WatchContext
from infra.postgres.unfinished import due_work
from schemas.routing import Action, RoutedOrder
from schemas.times import EARLIEST
from tests.integration.step_database import open_database, plain_connection
from tests.unit.builders import NOW, RULES, TOPICS

SECOND = timedelta(seconds=1)
_ORDER = """
    INSERT INTO orders (order_id, client_order_id, user_id, idempotency_key, request_id, source_topic, source_partition, source_offset,
        mode, exchange, api_key_id, symbol, side, order_type, quantity, status, cum_quantity, cum_quote, fee, hold_asset, hold_amount,
        attempt, fencing_epoch, work_partition, submitting_at, expires_at, requested_at, decided_at, updated_at, retry_at)
    VALUES ($1, $1, 'alice', $1, $1, $1, 0, 1, 'live', 'binance', 'k1', 'BTC/USDT', 'sell', 'market', 1, $2, 0, 0, 0, 'BTC', 0, 2, 1, $3,
        $4, $5, $4, $4, $4, $6)
"""


async def _waiting(
    connection: asyncpg.Connection,
    order_id: str,
    *,
    retry_in: float | None = -1,
    failed: float = -5,
    expires: float = 3_600,
    partition: int = 0,
) -> None:
    """One order whose second attempt reached nothing; times in seconds from now."""
    failed_at, expires_at = NOW + failed * SECOND, NOW + expires * SECOND
    retry_at = None if retry_in is None else NOW + retry_in * SECOND
    await connection.execute(_ORDER, order_id, "accepted", partition, failed_at, expires_at, retry_at)


async def _due(database: Any, since: datetime | None, *, partitions: tuple[int, ...] = (0, 1), limit: int = 100) -> list[str]:
    return [work.routed.order_id for work in await due_work(database, "binance", partitions, NOW, since, limit)]


async def test_what_is_due_depends_on_time_deadline_and_whether_the_exchange_answers(database_url: str) -> None:
    """Nothing but what is over while the exchange is silent; afterwards all that failed before, and what a clock set back would hide."""
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        await _waiting(connection, "due", retry_in=-2)
        await _waiting(connection, "later", retry_in=20)
        await _waiting(connection, "over", retry_in=-1, expires=-1)
        await _waiting(connection, "queued", retry_in=None)
        await _waiting(connection, "ahead", retry_in=7_200, failed=7_100, expires=9_000)
        await _waiting(connection, "elsewhere", partition=7)
        assert await _due(database, EARLIEST) == ["due", "over", "ahead"]
        assert await _due(database, None) == ["over"]
        # It answers again since three seconds ago: what failed before that waits no longer.
        assert await _due(database, NOW - 3 * SECOND) == ["due", "over", "later", "ahead"]
        assert await _due(database, EARLIEST, limit=1) == ["due"]
        assert await _due(database, EARLIEST, partitions=(7,)) == ["elsewhere"]
        # Its owner does not take it up: that worker is of a release that does not know of it.
        await _waiting(connection, "overdue", retry_in=-61, partition=7)
        assert await _due(database, EARLIEST) == ["overdue", "due", "over", "ahead"]


async def test_order_that_moves_on_waits_no_more_whoever_moves_it(database_url: str) -> None:
    """Also a worker of the release before, which does not know the column; and nothing waits that is not accepted."""
    async with open_database(database_url), plain_connection(database_url) as connection:
        await _waiting(connection, "a")
        await connection.execute("UPDATE orders SET status = 'submitting', attempt = 3, submitting_at = $1", NOW)
        assert await connection.fetchval("SELECT retry_at FROM orders") is None
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("UPDATE orders SET retry_at = $1", NOW)


@dataclass
class _Feed:
    """Stands in for the market data, of which this needs two words."""

    answering: bool = True
    answers_again_since: datetime | None = None


class _Producer:
    """Stands in for a producer: what counts is what would be sent, and where."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, int]] = []

    async def send(self, topic: str, value: bytes, key: bytes, partition: int) -> "asyncio.Future[None]":
        routed = RoutedOrder.model_validate_json(value)
        assert (routed.action, routed.attempt, key) == (Action.SUBMIT, 3, b"alice")
        self.sent.append((topic, routed.order_id, partition))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


async def test_piece_of_work_is_queued_once_beside_its_other_records(database_url: str) -> None:
    """In the partition it was sent from before; again only where nothing came of it for half a minute."""
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        await _waiting(connection, "a", partition=1)
        feed, producer, passed = _Feed(answering=False), _Producer(), [0.0]
        context = WatchContext(database, cast("AIOKafkaProducer", producer), lambda _: [0, 1], TOPICS, RULES, lambda: NOW)
        queue = RetryQueue(context, "binance", feed, monotonic_clock=lambda: passed[0])
        await queue.round()
        assert not producer.sent
        feed.answering = True
        await queue.round()
        await queue.round()
        assert producer.sent == [(TOPICS.orders("binance"), "a", 1)]
        passed[0] = 31.0
        await queue.round()
        assert len(producer.sent) == 2
