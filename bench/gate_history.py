"""A database with users who have traded for two months: what the gate of an installation that has been in use looks at.

Invariants:
1. The same users, money, keys and limits whatever the number of orders, so that only the history differs.
2. A page of the table has orders that came one after another, so that a user's are spread over all of it.
3. The newest day was written after the last vacuum, as on a system in use: its index entries cannot be answered from the index alone.
4. Each request that `bench/gate` sends passes every check: no order of the history is opposite to one of them.

Start with `build`.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

import asyncpg

from infra.keyring import Keyring
from infra.postgres.database import Connection
from infra.postgres.migrate import migrate

EXCHANGE: Final = "binance"
API_KEY_ID: Final = "main"
HISTORY_DAYS: Final = 60
# Users who trade by program, and how many orders of theirs the newest day has.
HOT_USERS: Final = 20
HOT_ORDERS: Final = 2_000
# Spreads neighbours in activity over the alphabet; a prime, so that it does so for every number of users.
_SPREAD: Final = 1_000_003
_STATEMENT_SECONDS_MAX: Final = 3_600
_WRITERS: Final = 2
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is: `orders` are those of all users together; the hot users' come on top."""

    users: int
    orders: int


def user_id_of(rank: int, users: int) -> str:
    """The id of the user who is the `rank`-th in activity; the first `HOT_USERS` are the hot ones."""
    return f"user-{rank * _SPREAD % users:07}"


def hot_users(users: int) -> int:
    """How many of so many users are hot."""
    return min(HOT_USERS, users // 10)


# Half of the orders come from a quarter of the users: where `r` is even, its square prefers the low ranks.
_RANK: Final = "{hot} + floor(power((hashint8extended(number, 1) & 1048575) / 1048576.0, 2) * ({users} - {hot}))::bigint"
_USER: Final = "'user-' || lpad(((rank) * {spread} % {users})::text, 7, '0')"

_USERS: Final = (
    """
    INSERT INTO users (user_id, status, created_at, credentials_changed_at)
    SELECT 'user-' || lpad(number::text, 7, '0'), 'active', $1::timestamptz - interval '90 days', $1::timestamptz - interval '80 days'
    FROM generate_series(0, $2::integer - 1) AS number
    """,
    """
    INSERT INTO api_keys (user_id, api_key_id, exchange, encryption_key_id, ciphertext, status, created_at)
    SELECT user_id, 'main', 'binance', '1', '\\x00', 'active', created_at FROM users
    """,
    "INSERT INTO audit_chains (account, seq, hash) SELECT user_id, 40, repeat('a', 64) FROM users",
    """
    INSERT INTO balances (user_id, exchange, book, asset, posted, pending, cost_quantity, cost_usd)
    SELECT user_id, 'binance', 'live', asset, posted, 0, posted / 2, posted / 2 * price
    FROM users, (VALUES ('USDT', 1000000.12345678, 1), ('BTC', 12.34567891, 49000), ('ETH', 123.45678912, 2900))
        AS given (asset, posted, price)
    """,
    # One user in twenty has limits of its own.
    """
    INSERT INTO user_limits (user_id, name, amount, changed_at, changed_by)
    SELECT user_id, name, amount, created_at, 'bench'
    FROM users, (VALUES ('daily_volume_usd_max', 20000000), ('trade_usd_max', 2000000)) AS given (name, amount)
    WHERE hashtext(user_id) % 20 = 0
    """,
    """
    INSERT INTO user_symbols (user_id, symbol, first_at)
    SELECT user_id, symbol, created_at FROM users, (VALUES ('BTC/USDT'), ('ETH/USDT')) AS given (symbol)
    """,
)

# `number` is the order's number in time, `mark` a random one. A fifth of the orders are purchases of ETH; of those of the newest three days
# a quarter rest.
_ORDERS: Final = """
    INSERT INTO orders (
        order_id, client_order_id, exchange_order_id, user_id, idempotency_key, request_id, source_topic, source_partition, source_offset,
        mode, exchange, api_key_id, symbol, side, order_type, time_in_force, quantity, price, status, cum_quantity, cum_quote, fee,
        fee_asset, fees, hold_asset, hold_amount, attempt, fencing_epoch, work_partition, submitting_at, expires_at, requested_at,
        decided_at, updated_at, executed_at, usd_value, usd_rate
    )
    SELECT 'o' || digest, 'co' || substr(digest, 1, 28), (40000000000 + number)::text, user_id, 'key-' || number, 'request-' || number,
        'trade.requests', number % 16, number,
        'live', 'binance', 'main', CASE WHEN ether THEN 'ETH/USDT' ELSE 'BTC/USDT' END, side, kind,
        CASE kind WHEN 'limit' THEN 'GTC' END, quantity, CASE kind WHEN 'limit' THEN price END,
        CASE WHEN rests THEN 'new' ELSE 'filled' END, CASE WHEN rests THEN 0 ELSE quantity END,
        CASE WHEN rests THEN 0 ELSE quantity * price END, CASE WHEN rests THEN 0 ELSE quantity / 1000 END,
        CASE WHEN rests THEN NULL WHEN side = 'sell' THEN 'USDT' ELSE 'BTC' END, '[]', CASE side WHEN 'sell' THEN 'BTC' ELSE 'USDT' END,
        CASE WHEN rests THEN quantity * price ELSE 0 END, 1, 1, number % 16, at, at + interval '30 seconds', at - interval '20 ms',
        at, at + interval '80 ms', CASE WHEN rests THEN NULL ELSE at + interval '80 ms' END, quantity * price, 1
    FROM (
        SELECT *, md5(number::text) AS digest, {user} AS user_id,
            CASE WHEN mark % 2 = 0 OR ether THEN 'buy' ELSE 'sell' END AS side,
            CASE WHEN mark % 3 = 0 OR ether THEN 'limit' ELSE 'market' END AS kind,
            CASE WHEN ether THEN 2800 + mark % 97 ELSE 48000 + mark % 997 END::numeric AS price,
            ((mark % 89 + 1) * 0.00013) AS quantity,
            ether AND mark % 4 = 0 AND at > $1::timestamptz - interval '3 days' AS rests
        FROM (
            SELECT number, mark, mark % 5 = 0 AS ether, {rank} AS rank, {at} AS at
            FROM (
                SELECT number, hashint8extended(number, 2) & 1048575 AS mark FROM generate_series($2::bigint, $3::bigint) AS number
            ) AS numbered
        ) AS drawn
    ) AS made
"""
_SPREAD_OVER_DAYS: Final = "$1::timestamptz - interval '60 days' + interval '60 days' * (number::float8 / $4::float8)"
# One after another, so that in every minute the hot users send alike.
_SPREAD_OVER_A_DAY: Final = "$1::timestamptz - interval '24 hours' + interval '24 hours' * ((number - $2::bigint + 1)::float8 / $4::float8)"

# What is derived of the orders since `$1`, as the agents store it with each.
_DAYS: Final = """
    INSERT INTO user_days AS known (user_id, day, trades, volume_usd)
    SELECT user_id, (decided_at AT TIME ZONE 'UTC')::date, count(*), sum(usd_value) FROM orders WHERE decided_at > $1 GROUP BY 1, 2
"""
_DAYS_AGAIN: Final = """
    ON CONFLICT (user_id, day) DO UPDATE SET trades = known.trades + EXCLUDED.trades, volume_usd = known.volume_usd + EXCLUDED.volume_usd
"""
_RESULTS: Final = """
    INSERT INTO realised_results (order_id, cum_quantity, user_id, usd, recorded_at)
    SELECT order_id, cum_quantity, user_id, cum_quote * (source_offset % 7 - 3) / 1000, updated_at FROM orders
    WHERE side = 'sell' AND status = 'filled' AND decided_at > $1
"""
_FILLED: Final = ("orders", "realised_results", "user_days")
_INDEXES: Final = """
    SELECT indexes.indexname, indexes.indexdef, own.conname, pg_get_constraintdef(own.oid) AS condition
    FROM pg_indexes AS indexes LEFT JOIN pg_constraint AS own
        ON own.conindid = indexes.indexname::regclass AND own.conrelid = indexes.tablename::regclass AND own.contype IN ('p', 'u')
    WHERE indexes.tablename = $1 ORDER BY indexes.indexname
"""
_REFERENCES: Final = """
    SELECT conrelid::regclass::text AS referring, conname, pg_get_constraintdef(oid) AS condition FROM pg_constraint
    WHERE confrelid = $1::text::regclass AND contype = 'f'
"""


async def build(database_url: str, size: Size, now: datetime, keyring: Keyring, secrets: Iterable[tuple[str, str]]) -> None:
    """Migrates an empty database and fills it with what happened until `now`. `secrets` are (user id, second factor's secret)."""
    await migrate(database_url)
    async with asyncpg.create_pool(
        database_url, min_size=1, max_size=_WRITERS, command_timeout=_STATEMENT_SECONDS_MAX, init=_without_triggers
    ) as pool:
        async with pool.acquire() as connection:
            await _add_users(connection, size.users, now, keyring, secrets)
        await _add_orders(pool, size, now)


async def _without_triggers(connection: asyncpg.Connection) -> None:
    # As nothing here is written by the system itself, nothing here need be checked by triggers.
    settings = {"session_replication_role": "replica", "synchronous_commit": "off", "maintenance_work_mem": "512MB", "work_mem": "512MB"}
    await connection.execute("; ".join(f"SET {name} = '{value}'" for name, value in settings.items()))


async def _add_users(
    connection: Connection, users: int, now: datetime, keyring: Keyring, secrets: Iterable[tuple[str, str]]
) -> None:
    await connection.execute(_USERS[0], now, users)
    for statement in _USERS[1:]:
        await connection.execute(statement)
    factors = [(user_id, keyring.key_id, keyring.encrypt_second_factor(user_id, secret), now) for user_id, secret in secrets]
    columns = ("user_id", "encryption_key_id", "ciphertext", "enrolled_at")
    await connection.copy_records_to_table("second_factors", records=factors, columns=columns)
    for table in ("users", "api_keys", "audit_chains", "balances", "user_limits", "user_symbols", "second_factors"):
        await connection.execute(f"VACUUM (ANALYZE) {table}")


async def _add_orders(pool: asyncpg.Pool, size: Size, now: datetime) -> None:
    hot, users = hot_users(size.users), size.users
    names = {"user": _USER.format(spread=_SPREAD, users=users)}
    drawn = _ORDERS.format(rank=_RANK.format(hot=hot, users=users), at=_SPREAD_OVER_DAYS, **names)
    of_hot = _ORDERS.format(rank=f"number % {hot}", at=_SPREAD_OVER_A_DAY, **names)
    older = size.orders * (HISTORY_DAYS - 1) // HISTORY_DAYS
    # Indexes are built once, on what is there already: quicker by far than one entry at a time.
    again = {table: await _without_indexes(pool, table) for table in _FILLED}
    parts = [older * part // _WRITERS for part in range(_WRITERS + 1)]
    await asyncio.gather(*(pool.execute(drawn, now, begin + 1, end, size.orders) for begin, end in pairwise(parts)))
    await asyncio.gather(*(pool.execute(statement, _EPOCH) for statement in (_DAYS, _RESULTS)))
    for table in _FILLED:
        for statement in again[table]:
            await pool.execute(statement)
        await pool.execute(f"VACUUM (ANALYZE) {table}")
    newest = await pool.fetchval("SELECT max(decided_at) FROM orders")
    await pool.execute(drawn, now, older + 1, size.orders, size.orders)
    await pool.execute(of_hot, now, size.orders + 1, size.orders + hot * HOT_ORDERS, hot * HOT_ORDERS)
    for statement in (_DAYS + _DAYS_AGAIN, _RESULTS):
        await pool.execute(statement, newest)
    for table in _FILLED:
        await pool.execute(f"ANALYZE {table}")
    # What was written lately is in the log and in memory: what is measured must not pay for putting it into the tables.
    await pool.execute("CHECKPOINT")


async def _without_indexes(pool: asyncpg.Pool, table: str) -> list[str]:
    """Drops a table's indexes, with what refers to it; returns the statements that make them again."""
    again = []
    references = await pool.fetch(_REFERENCES, table)
    for name, definition, constraint, condition in await pool.fetch(_INDEXES, table):
        if constraint is None:
            await pool.execute(f"DROP INDEX {name}")
            again.append(definition)
        else:
            await pool.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint} CASCADE")
            again.append(f"ALTER TABLE {table} ADD CONSTRAINT {constraint} {condition}")
    # Made above, so it need not be looked through once more.
    return again + [f"ALTER TABLE {table} ADD CONSTRAINT {name} {condition} NOT VALID" for table, name, condition in references]
