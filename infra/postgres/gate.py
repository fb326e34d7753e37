"""What the gate looks at, read for the users of one batch: one statement per family of checks, whatever the batch's size.

Call it inside a step, behind the users' locks: what is read is then the newest, and nobody changes it before the step commits.

Only real orders count. Of simulated ones those that are open are read too, and kept apart.

Every statement finds its rows through an index that begins with the user, and reads a bounded part of the user's history: a day of orders
at most, and a month of daily sums, however long the user has traded.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from infra.postgres.database import Connection, Database
from infra.postgres.rows import columns_of
from pipeline.books.changes import SetHalt
from pipeline.gate.context import AccountState, OpenOrder, RecentOrder, Usage
from pipeline.gate.limits import Limits
from pipeline.model.api_key import ApiKeyState
from pipeline.model.conduct import Conduct
from pipeline.model.halts import Halt, HaltBook
from pipeline.model.second_factor import SecondFactor
from schemas.commands import HaltLevel, HaltScope
from schemas.orders import Mode, OrderStatus, OrderType, Side

DAY: Final = timedelta(hours=24)
HOUR: Final = timedelta(hours=1)
RECENT: Final = timedelta(minutes=10)
MEAN_DAYS: Final = 30
# Pattern rules look at this many of a user's newest orders at most.
_RECENT_MAX: Final = 200

Unsealed = Callable[[str, str, bytes], str]

# A look-up takes a tenth of the time of making a member from its value.
_SIDES: Final = {side.value: side for side in Side}
_ORDER_TYPES: Final = {order_type.value: order_type for order_type in OrderType}
_STATUSES: Final = {status.value: status for status in OrderStatus}
_LIVE: Final = Mode.LIVE.value
# The columns of `_ACCOUNTS` for a user who does not exist.
_NOBODY: Final = (None, None, "trader", None, 0)

_ACCOUNTS: Final = """
    SELECT users.user_id, users.status, users.role, users.credentials_changed_at, users.session_generation,
        factor.encryption_key_id, factor.ciphertext, factor.last_step, factor.wrong_at, factor.locked
    FROM users LEFT JOIN second_factors AS factor USING (user_id) WHERE users.user_id = ANY($1::text[])
"""
_LIMITS: Final = "SELECT user_id, name, amount FROM user_limits WHERE user_id = ANY($1::text[])"
_KEYS: Final = """
    SELECT user_id, api_key_id, exchange, status, permissions, expires_at FROM api_keys WHERE user_id = ANY($1::text[])
"""
# A subquery per user keeps each to its own part of the index, however the planner estimates. Of the last 24 hours only those before today
# are summed order by order; today's orders, of this day in UTC or (by another worker's clock) a later one, stand in `user_days` already.
_USAGE: Final = """
    SELECT wanted.user_id, before_today.volume + days.today AS volume, hour.trades, days.month AS month_volume, loss.usd AS realised
    FROM unnest($1::text[]) AS wanted (user_id)
    CROSS JOIN LATERAL (
        SELECT COALESCE(sum(usd_value), 0) AS volume FROM orders
        WHERE orders.user_id = wanted.user_id AND mode = 'live'
            AND decided_at > $2 AND decided_at < $4::date::timestamp AT TIME ZONE 'UTC'
    ) AS before_today
    CROSS JOIN LATERAL (
        SELECT COALESCE(sum(volume_usd) FILTER (WHERE day >= $4), 0) AS today, COALESCE(sum(volume_usd) FILTER (WHERE day < $4), 0) AS month
        FROM user_days WHERE user_days.user_id = wanted.user_id AND day >= $4::date - $5::integer
    ) AS days
    CROSS JOIN LATERAL (
        SELECT count(*) AS trades FROM orders WHERE orders.user_id = wanted.user_id AND mode = 'live' AND decided_at > $3
    ) AS hour
    CROSS JOIN LATERAL (
        SELECT COALESCE(sum(usd), 0) AS usd FROM realised_results
        WHERE realised_results.user_id = wanted.user_id AND recorded_at > $2
    ) AS loss
"""
_OPEN: Final = """
    SELECT user_id, mode, order_id, exchange, symbol, side, order_type, price, quantity - cum_quantity AS leaves_quantity, usd_value, status
    FROM orders WHERE user_id = ANY($1::text[]) AND executed_at IS NULL
"""
_RECENT: Final = """
    SELECT wanted.user_id, newest.* FROM unnest($1::text[]) AS wanted (user_id)
    CROSS JOIN LATERAL (
        SELECT exchange, symbol, side, order_type, quantity, quote_quantity, price, usd_value, requested_at, decided_at FROM orders
        WHERE orders.user_id = wanted.user_id AND mode = 'live' AND decided_at > $2 ORDER BY decided_at DESC LIMIT $3
    ) AS newest
"""
_SYMBOLS: Final = """
    SELECT user_id, symbol FROM unnest($1::text[], $2::text[]) AS wanted (user_id, symbol) JOIN user_symbols USING (user_id, symbol)
"""
_HALTS: Final = "SELECT scope, target, level, reason, set_by, command_id, set_at, cancel_open FROM halts"
# What `pipeline.orders.execution.is_stopped` says of an order, in SQL.
_RESTING: Final = """
    SELECT order_id, user_id, attempt, work_partition FROM orders
    WHERE exchange = $1 AND work_partition = ANY($2::integer[]) AND executed_at IS NULL AND status IN ('new', 'partially_filled')
      AND order_id > $3 AND EXISTS (
        SELECT FROM halts WHERE cancel_open
          AND (scope, target) IN (('all', ''), ('exchange', orders.exchange), ('symbol', orders.symbol), ('user', orders.user_id))
          AND (level = 'halt' OR orders.side <> 'sell' OR split_part(orders.symbol, '/', 2) <> ALL($4::text[]))
      )
    ORDER BY order_id LIMIT $5
"""


async def accounts(
    connection: Connection,
    user_ids: Sequence[str],
    symbols: Iterable[tuple[str, str]],
    conduct: Mapping[str, Conduct],
    defaults: Limits,
    unseal: Unsealed,
    now: datetime,
) -> dict[str, AccountState]:
    """The state of each user, also of those who do not exist. `symbols` are the (user, symbol) pairs that are asked for.

    `unseal` decrypts a second factor's secret: (user id, encryption key id, ciphertext).
    """
    overrides: dict[str, dict[str, Decimal]] = {}
    for user_id, name, amount in await connection.fetch(_LIMITS, user_ids):
        overrides.setdefault(user_id, {})[name] = amount
    users = {row["user_id"]: row for row in await connection.fetch(_ACCOUNTS, user_ids)}
    found: dict[str, AccountState] = {}
    for user_id, volume, trades, month_volume, realised in await connection.fetch(
        _USAGE, user_ids, now - DAY, now - HOUR, now.date(), MEAN_DAYS
    ):
        _, status, role, changed_at, generation, *factor = users.get(user_id, _NOBODY)
        own = overrides.get(user_id)
        found[user_id] = AccountState(
            user_id=user_id,
            status=status,
            role=role,
            limits=defaults.with_overrides(own) if own else defaults,
            factor=_factor_of(user_id, unseal, *factor) if factor else None,
            conduct=conduct[user_id],
            credentials_changed_at=changed_at,
            session_generation=generation,
            usage=Usage(volume, trades, month_volume / MEAN_DAYS, -realised),
        )
    for user_id, mode, order_id, exchange, symbol, side, order_type, price, leaves, usd_value, status in await connection.fetch(
        _OPEN, user_ids
    ):
        state = found[user_id]
        (state.open_orders if mode == _LIVE else state.open_paper_orders).append(
            OpenOrder(order_id, exchange, symbol, _SIDES[side], _ORDER_TYPES[order_type], price, leaves, usd_value, _STATUSES[status])
        )
    # From the oldest to the newest.
    for user_id, exchange, symbol, side, order_type, *amounts_and_times in reversed(
        await connection.fetch(_RECENT, user_ids, now - RECENT, _RECENT_MAX)
    ):
        found[user_id].recent.append(RecentOrder(exchange, symbol, _SIDES[side], _ORDER_TYPES[order_type], *amounts_and_times))
    # What is no symbol may hold anything, also a NUL, which PostgreSQL's text type does not take.
    wanted = sorted({(user_id, symbol) for user_id, symbol in symbols if symbol.isprintable()})
    for user_id, symbol in await connection.fetch(_SYMBOLS, *columns_of(wanted, 2)):
        found[user_id].known_symbols.add(symbol)
    return found


def _factor_of(
    user_id: str, unseal: Unsealed, key_id: str, ciphertext: bytes | None, last_step: int, wrong_at: list[datetime], locked: bool
) -> SecondFactor | None:
    """A user's second factor from its columns, which are all NULL where there is none."""
    return None if ciphertext is None else SecondFactor(unseal(user_id, key_id, ciphertext), last_step, tuple(wrong_at), locked)


async def api_keys(connection: Connection, user_ids: Sequence[str]) -> dict[tuple[str, str], ApiKeyState]:
    """The exchange keys of these users, by (user id, key id)."""
    return {
        (user_id, key_id): ApiKeyState(exchange, status, frozenset(permissions), expires_at)
        for user_id, key_id, exchange, status, permissions, expires_at in await connection.fetch(_KEYS, user_ids)
    }


async def halts(connection: Connection) -> dict[tuple[HaltScope, str], SetHalt]:
    """All stops in force, by scope and target."""
    found: dict[tuple[HaltScope, str], SetHalt] = {}
    for row in await connection.fetch(_HALTS):
        halt = Halt(HaltScope(row["scope"]), row["target"], HaltLevel(row["level"]))
        found[halt.scope, halt.target] = SetHalt(halt, *row[3:])
    return found


async def halt_book(connection: Connection) -> HaltBook:
    """The same, to be asked what holds for an order."""
    in_force = (await halts(connection)).values()
    return HaltBook(frozenset(found.halt for found in in_force), frozenset(found.halt for found in in_force if found.cancel_open))


async def read_halts(database: Database) -> HaltBook:
    """The same outside a step. Raises Retryable when the database is out of reach."""
    async with database.connection() as connection:
        return await halt_book(connection)


async def canceling_commands(database: Database) -> frozenset[str]:
    """The commands of those halts that cancel what rests. Raises Retryable when the database is out of reach."""
    async with database.connection() as connection:
        return frozenset(found.command_id for found in (await halts(connection)).values() if found.cancel_open)


@dataclass(frozen=True, slots=True)
class RestingOrder:
    """An order that stands at its exchange, as far as a cancel needs it."""

    order_id: str
    user_id: str
    attempt: int
    work_partition: int


async def orders_to_cancel(
    database: Database, exchange: str, work_partitions: Sequence[int], after_order_id: str, usd_assets: Collection[str], limit: int
) -> list[RestingOrder]:
    """Orders sent from these partitions of an exchange's queue that rest there and that a halt with cancels does not let pass, by order id
    from `after_order_id` on. Raises Retryable when the database is out of reach."""
    async with database.connection() as connection:
        rows = await connection.fetch(_RESTING, exchange, work_partitions, after_order_id, sorted(usd_assets), limit)
    return [RestingOrder(row["order_id"], row["user_id"], row["attempt"], row["work_partition"]) for row in rows]
