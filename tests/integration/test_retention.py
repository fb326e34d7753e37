"""What is over is removed in bounded parts, what counts stays, and verification knows the difference.

GROWTH_ROWS says how many orders grow old: a few thousand here, 1,000,000 in `make deep`, which prints what that took.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from time import monotonic
from typing import Final

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from agents.watches.retention import Retention, Retentions
from agents.watches.watch import WatchContext
from infra.kafka.connection import client_options, report_producer_of
from infra.kafka.topics import ensure_topics
from infra.postgres.database import Database
from infra.postgres.retention import PART, next_ended, note_removed, purge
from infra.postgres.rows import order_of
from infra.settings import Settings
from pipeline.books.order_words import state_of
from pipeline.model.order import Order
from schemas.state import ORDER_STATE
from schemas.topics import Topics
from tests.integration.step_database import open_database, plain_connection
from tests.unit.builders import NOW, RULES
from verification.evidence.topics import TopicReader, read_topics
from verification.promises.snapshots import check_state

ROWS: Final = int(os.environ.get("GROWTH_ROWS", "3000"))
EXCHANGE: Final = "binance"
KEPT: Final = Retentions(state=timedelta(days=30), records=timedelta(days=90))
DAY: Final = timedelta(days=1)
# Orders that were over so long ago; the last ones still run.
_ORDERS: Final = """
    INSERT INTO orders (order_id, client_order_id, user_id, idempotency_key, request_id, source_topic, source_partition, source_offset,
        mode, exchange, api_key_id, symbol, side, order_type, quantity, status, cum_quantity, cum_quote, fee, hold_asset, hold_amount,
        attempt, fencing_epoch, work_partition, submitting_at, expires_at, requested_at, decided_at, updated_at, executed_at)
    SELECT $1 || n, $1 || n, 'alice', $1 || n, $1 || n, $1, 0, n, 'live', 'binance', 'k1', 'BTC/USDT', 'sell', 'market', 1,
        CASE WHEN $3 THEN 'filled' ELSE 'new' END, CASE WHEN $3 THEN 1 ELSE 0 END, 0, 0, 'BTC', 0, 1, 1, 0, $4, $4, $4, $4, $4,
        CASE WHEN $3 THEN $4::timestamptz + n * interval '1 millisecond' END
    FROM generate_series(1, $2) AS n
"""
_CANCELS: Final = """
    INSERT INTO cancels (source_topic, source_partition, source_offset, requested_at, order_id, idempotency_key, request_id, decided_at,
        attempt, ended, user_id)
    SELECT $1, 0, n, $3, $1 || n, 'c', 'c', $3, 1, $4, 'alice' FROM generate_series(1, $2) AS n
"""
_RESULTS: Final = """
    INSERT INTO realised_results (order_id, cum_quantity, fee_usd, user_id, usd, recorded_at)
    SELECT $1 || n, 1, 0, 'alice', 1, $3 FROM generate_series(1, $2) AS n
"""
_QUARANTINE: Final = """
    INSERT INTO quarantine (quarantine_id, source_topic, source_partition, source_offset, appended_at, value_bytes, record_headers, stage,
        error, place, what, user_id, subject, sparing, state, set_aside_at, last_at, moved_at, moved_by)
    SELECT $1 || n, $1, 0, n, $3, 1, '', 'decide', 'E', 'p', 'w', 'alice', 's', false, CASE WHEN $4 THEN 'dropped' ELSE 'open' END, $3, $3,
        CASE WHEN $4 THEN $3::timestamptz END, CASE WHEN $4 THEN 'olga' END
    FROM generate_series(1, $2) AS n
"""
_LOOKS: Final = "INSERT INTO doubt_looks SELECT $1 || n, 1, 'd', $3 FROM generate_series(1, $2) AS n"


async def _fill(connection: asyncpg.Connection) -> None:
    """ROWS orders that were over long ago with all that hangs on them, and a tenth of each that is younger or still runs."""
    for name, rows, over, at in (("old", ROWS, True, NOW - 100 * DAY), ("new", ROWS // 10, True, NOW - DAY)):
        await connection.execute(_ORDERS, name, rows, over, at, timeout=600)
        await connection.execute(_CANCELS, name, rows, at, True, timeout=600)
        await connection.execute(_RESULTS, name, rows, at, timeout=600)
        await connection.execute(_QUARANTINE, name, rows, at, True, timeout=600)
        await connection.execute(_LOOKS, name, rows, at, timeout=600)
    # As old as any, and not over.
    await connection.execute(_ORDERS, "runs", ROWS // 10, False, NOW - 100 * DAY, timeout=600)
    await connection.execute(_CANCELS, "runs", ROWS // 10, NOW - 100 * DAY, False, timeout=600)
    await connection.execute(_QUARANTINE, "runs", ROWS // 10, NOW - 100 * DAY, False, timeout=600)
    await connection.execute(_LOOKS, "runs", ROWS // 10, NOW - 100 * DAY, timeout=600)
    await connection.execute("VACUUM ANALYZE", timeout=600)


async def _left(connection: asyncpg.Connection, table: str) -> int:
    return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))  # noqa: S608 — literals of this test


@asynccontextmanager
async def _topics(kafka: str, prefix: str) -> AsyncIterator[tuple[Settings, AIOKafkaProducer]]:
    settings = Settings(topic_prefix=prefix, exchanges=(EXCHANGE,), kafka_partitions=2)
    await ensure_topics(settings, kafka)
    producer = report_producer_of(client_options(settings, kafka))
    await producer.start()
    try:
        yield settings, producer
    finally:
        await producer.stop()


def _retention(database: Database, producer: AIOKafkaProducer, settings: Settings, now: datetime = NOW) -> Retention:
    context = WatchContext(database, producer, lambda _: [0], Topics(settings.topic_prefix), RULES, lambda: now)
    return Retention(context, [EXCHANGE], KEPT)


async def _orders(connection: asyncpg.Connection) -> AsyncIterator[list[Order]]:
    """All orders, some at a time: a million of them at once would not fit."""
    after = ""
    while rows := await connection.fetch("SELECT * FROM orders WHERE order_id > $1 ORDER BY order_id LIMIT 2000", after):
        yield [order_of(row) for row in rows]
        after = rows[-1]["order_id"]


async def _publish_snapshots(connection: asyncpg.Connection, producer: AIOKafkaProducer, settings: Settings) -> None:
    topic = Topics(settings.topic_prefix).state
    async for orders in _orders(connection):
        values = [(order.order_id.encode(), ORDER_STATE.dump_json(state_of(order))) for order in orders]
        await asyncio.gather(*[await producer.send(topic, value, key) for key, value in values])


async def _snapshots(settings: Settings, kafka: str) -> dict[str, bytes]:
    topics = Topics(settings.topic_prefix)
    reader = TopicReader(topics)
    await read_topics(settings, kafka, {topics.state: reader.takes[topics.state]})
    return reader.snapshots


async def _breaches(connection: asyncpg.Connection, settings: Settings, kafka: str) -> list[str]:
    """What verification finds, which reads the snapshots first."""
    snapshots = await _snapshots(settings, kafka)
    removed = {
        (row["kind"], row["exchange"]): row["removing_until"] for row in await connection.fetch("SELECT * FROM state_retention")
    }
    found: list[str] = []
    async for orders in _orders(connection):
        of_these = {order.order_id: snapshots.pop(order.order_id) for order in orders if order.order_id in snapshots}
        found += check_state(of_these, orders, removed_until=removed).examples
    return found + list(check_state(snapshots, ()).examples)


@pytest.mark.timeout(6_000)
async def test_what_is_over_goes_in_bounded_parts_and_what_counts_stays(
    kafka: str, database_url: str, unique_prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cancels, results, closed quarantine entries, notes on look-ups and snapshots shrink to what is young or runs; the orders stay."""
    async with (
        open_database(database_url, timeout_seconds=60) as database,
        plain_connection(database_url) as connection,
        _topics(kafka, unique_prefix) as (settings, producer),
    ):
        await _fill(connection)
        await _publish_snapshots(connection, producer, settings)
        retention = _retention(database, producer, settings)
        last = await connection.fetchval("SELECT max(executed_at) FROM orders WHERE order_id LIKE 'old%'")
        looks: list[float] = []
        while (
            await _left(connection, "realised_results") > ROWS // 10
            or await connection.fetchval("SELECT max(removed_until) FROM state_retention") != last
        ):
            began = monotonic()
            await retention.look()
            looks.append(monotonic() - began)
            assert len(looks) < 500
        # Once more, with nothing to do.
        began = monotonic()
        await retention.look()
        idle = monotonic() - began
        tenth = ROWS // 10
        assert await _left(connection, "orders") == ROWS + 2 * tenth
        kept = {table: await _left(connection, table) for table in ("cancels", "realised_results", "quarantine", "doubt_looks")}
        assert kept == {"cancels": 2 * tenth, "realised_results": tenth, "quarantine": 2 * tenth, "doubt_looks": 2 * tenth}
        assert {key[:3] for key in await _snapshots(settings, kafka)} == {"new", "run"}
        assert await _breaches(connection, settings, kafka) == []
        # Each part has its limit in time, whatever there is to do.
        assert max(looks) < 60
        if ROWS >= 100_000:
            with capsys.disabled():
                print(f"\n{ROWS} rows of each kind: {len(looks)} looks, the longest {max(looks):.1f} s; an idle one {idle * 1000:.0f} ms")


async def test_removal_that_was_interrupted_is_told_from_a_lost_snapshot(kafka: str, database_url: str, unique_prefix: str) -> None:
    """A worker that dies between the snapshots and the note leaves nothing broken, and the next removes the part again; a snapshot of what
    runs, or of what was over later, must be there."""
    async with (
        open_database(database_url) as database,
        plain_connection(database_url) as connection,
        _topics(kafka, unique_prefix) as (settings, producer),
    ):
        await connection.execute(_ORDERS, "old", 20, True, NOW - 100 * DAY)
        await connection.execute(_ORDERS, "new", 1, True, NOW - DAY)
        await connection.execute(_ORDERS, "runs", 1, False, NOW - 100 * DAY)
        await _publish_snapshots(connection, producer, settings)
        part = await next_ended(database, "order", EXCHANGE, NOW - 30 * DAY, 5)
        assert part is not None
        assert len(part.keys) == 5
        # As far as the dying worker came.
        await producer.send_and_wait(settings.topic_prefix + "trade.state", None, part.keys[0].encode())
        assert await _breaches(connection, settings, kafka) == []
        assert await next_ended(database, "order", EXCHANGE, NOW - 30 * DAY, 5) == part
        await note_removed(database, part)
        # A worker that was slower notes less: it moves nothing back.
        following = await next_ended(database, "order", EXCHANGE, NOW - 30 * DAY, 5)
        assert following is not None
        await note_removed(database, following)
        await note_removed(database, part)
        await _retention(database, producer, settings).look()
        assert {key[:3] for key in await _snapshots(settings, kafka)} == {"old", "new", "run"}
        # The first two parts were noted although four and five of their snapshots are still there; the rest is gone.
        assert len([key for key in await _snapshots(settings, kafka) if key.startswith("old")]) == 9
        assert await _breaches(connection, settings, kafka) == []
        for lost in ("new1", "runs1"):
            await producer.send_and_wait(settings.topic_prefix + "trade.state", None, lost.encode())
            assert any(lost in breach for breach in await _breaches(connection, settings, kafka))


async def test_results_that_still_count_are_never_removed(database_url: str) -> None:
    """Whatever somebody asks for: the limits on losses look back a day, and the database keeps seven."""
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        now = await connection.fetchval("SELECT now()")
        await connection.execute(_ORDERS, "a", 2, True, NOW - DAY)
        await connection.execute(_RESULTS, "a", 2, now - 6 * DAY)
        with pytest.raises(asyncpg.RestrictViolationError):
            await purge(database, "realised_results", now)
        for statement in ("UPDATE realised_results SET usd = 0", "TRUNCATE realised_results"):
            with pytest.raises(asyncpg.RestrictViolationError):
                await connection.execute(statement)
        assert await _left(connection, "realised_results") == 2


async def test_rows_that_another_worker_removes_are_passed_over(database_url: str) -> None:
    """Two workers look at the same time: neither waits for the other, and no statement deletes more than a part."""
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        await connection.execute(_ORDERS, "a", PART + 10, True, NOW - 100 * DAY)
        await connection.execute(_CANCELS, "a", PART + 10, NOW - 100 * DAY, True)
        async with connection.transaction():
            await connection.execute("SELECT FROM cancels WHERE source_offset <= 10 FOR UPDATE")
            assert await purge(database, "cancels", NOW) == PART
        assert await purge(database, "cancels", NOW) == 10
