"""What `lag` says of the database: all that waits, how old the oldest is, and who holds it up."""

from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from cli.show.waiting import unpublished_rows, waiting_rows
from infra.postgres.migrate import engine_url
from tests.integration.step_database import open_database
from tests.unit.builders import NOW

_ORDER = text("""
    INSERT INTO orders (order_id, client_order_id, user_id, idempotency_key, request_id, source_topic, source_partition, source_offset,
        mode, exchange, api_key_id, symbol, side, order_type, quantity, status, cum_quantity, cum_quote, fee, hold_asset, hold_amount,
        attempt, fencing_epoch, work_partition, submitting_at, expires_at, requested_at, decided_at, updated_at)
    VALUES (:id, :id, 'alice', :id, :id, 't', 0, :number, 'live', :exchange, 'k1', 'BTC/USDT', 'buy', 'market', 1, :status, 0, 0, 0, 'USDT',
        0, 1, 1, 0, :at, :at, :at, :at, :at)
""")
_CANCEL = text("""
    INSERT INTO cancels (source_topic, source_partition, source_offset, requested_at, order_id, idempotency_key, request_id, decided_at,
        attempt, ended, user_id)
    VALUES ('t', 0, :number, :at, :order_id, 'c', 'c', :at, 1, :ended, 'alice')
""")
_PARTITION = text("""
    INSERT INTO input_partitions (consumer_group, topic, partition, fencing_epoch, base_offset, next_offset, updated_at)
    VALUES ('group', 'requests', :partition, 1, 3, 5, :at)
""")


async def _fill(connection: AsyncConnection) -> None:
    orders = [("a", "binance", "accepted"), ("b", "binanceus", "accepted"), ("c", "binance", "in_doubt"), ("d", "binance", "in_doubt")]
    orders += [("e", "binance", "submitting"), ("rests", "binance", "new"), ("f", "binanceus", "accepted")]
    for number, (name, exchange, status) in enumerate(orders):
        at = NOW - timedelta(seconds=100 + number)
        await connection.execute(_ORDER, {"id": name, "number": number, "exchange": exchange, "status": status, "at": at})
    await connection.execute(text("UPDATE orders SET retry_at = updated_at WHERE order_id = 'f'"))
    for number, ended in enumerate((False, True)):
        values = {"number": number, "at": NOW - timedelta(seconds=7), "order_id": "rests", "ended": ended}
        await connection.execute(_CANCEL, values)
    await connection.execute(
        text("""INSERT INTO halts (scope, target, level, cancel_open, set_by, set_at, reason, command_id)
                VALUES ('exchange', 'binance', 'halt', false, 'olga', :at, 'why', 'x')"""),
        {"at": NOW},
    )


async def test_lag_tells_everything_that_waits_and_who_holds_it_up(database_url: str) -> None:
    """Orders by state, the cancel that has not ended, the age of the oldest; an order that rests waits for nobody."""
    async with open_database(database_url):
        engine = create_async_engine(engine_url(database_url))
        try:
            async with engine.connect() as connection:
                await _fill(connection)
                rows = await waiting_rows(connection, NOW)
        finally:
            await engine.dispose()
    found = [(row["what"], row["exchange"], row["status"], row["count"], row["age_seconds"], row["held_by"]) for row in rows]
    assert found == [
        ("cancel", "binance", "pending", 1, 7, "the exchange's answer"),
        ("order", "binance", "accepted", 1, 100, "a halt"),
        ("order", "binance", "in_doubt", 2, 103, "the exchange's proof"),
        ("order", "binance", "submitting", 1, 104, "the exchange's answer"),
        ("order", "binanceus", "accepted", 1, 101, "a worker"),
        ("order", "binanceus", "accepted", 1, 106, "the exchange, which takes nothing"),
    ]


async def test_lag_tells_a_batch_that_is_stored_and_not_published(database_url: str) -> None:
    """Where Kafka stands at the batch's begin for longer than publishing takes; not where it stands at its end."""
    async with open_database(database_url):
        engine = create_async_engine(engine_url(database_url))
        try:
            async with engine.connect() as connection:
                for partition, seconds in ((0, 30), (1, 30), (2, 0)):
                    await connection.execute(_PARTITION, {"partition": partition, "at": NOW - timedelta(seconds=seconds)})
                committed = {("requests", 0): 3, ("requests", 1): 5, ("requests", 2): 3}
                rows = await unpublished_rows(connection, "group", committed, NOW)
        finally:
            await engine.dispose()
    assert [(row["status"], row["count"], row["age_seconds"]) for row in rows] == [("stored, not published: requests/0", 2, 30)]
