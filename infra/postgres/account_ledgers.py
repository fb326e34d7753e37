"""What the comparison with the exchanges' balances reads: which accounts there are, and one account at one moment.

Start with `read_account`.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final

from infra.postgres.database import Connection, Database
from infra.postgres.drifts import drifts_of_users
from infra.postgres.rows import order_of
from pipeline.reconciliation.balances import RESTING_MAX, AccountLedger, ExchangeAccount
from schemas.orders import OrderStatus

_KEYS_MAX: Final = 5

# An account is compared from its first balance or import on: before that nobody has said what it holds. Every worker asks the same server,
# so that all divide the accounts alike.
_ACCOUNTS: Final = f"""
    SELECT users.user_id, COALESCE(keys.ids, '{{}}') AS api_key_ids FROM users
    LEFT JOIN LATERAL (
        SELECT array_agg(newest.api_key_id) AS ids FROM (
            SELECT api_key_id FROM api_keys
            WHERE api_keys.user_id = users.user_id AND exchange = $1 AND status = 'active' AND (expires_at IS NULL OR expires_at > $2)
            ORDER BY created_at DESC, api_key_id LIMIT {_KEYS_MAX}
        ) AS newest
    ) AS keys ON true
    WHERE users.user_id > $3 AND ($4::text IS NULL OR users.user_id = $4)
      AND ($5::integer[] IS NULL OR (hashtext(users.user_id)::bigint & 2147483647) % $6 = ANY($5))
      AND (EXISTS (SELECT FROM balances WHERE balances.user_id = users.user_id AND exchange = $1 AND book = 'live')
           OR EXISTS (SELECT FROM balance_imports WHERE balance_imports.user_id = users.user_id AND exchange = $1))
    ORDER BY users.user_id LIMIT $7
"""  # noqa: S608 — a literal
_OWNED: Final = "SELECT asset, posted FROM balances WHERE user_id = $1 AND exchange = $2 AND book = 'live'"
# Rare, and read from an index that holds nothing else. Whose cause it was, its other transfers tell: each cause has some of its user's.
_ADVANCED: Final = """
    SELECT advanced.asset, sum(advanced.amount) AS amount FROM transfers AS advanced
    WHERE advanced.debit_owner = '@shortfall' AND advanced.exchange = $2 AND advanced.book = 'live'
      AND EXISTS (SELECT FROM transfers AS own WHERE own.order_id = advanced.order_id AND $1 IN (own.debit_owner, own.credit_owner))
    GROUP BY advanced.asset
"""
_LEAVING: Final = """
    SELECT asset, sum(amount + fee) AS amount FROM withdrawals
    WHERE user_id = $1 AND exchange = $2 AND executed_at IS NULL AND status IN ('submitting', 'in_doubt', 'processing') GROUP BY asset
"""
# Binance lets a deposit be used before it counts as confirmed.
_ARRIVING: Final = """
    SELECT asset, sum(amount) AS amount FROM deposits
    WHERE user_id = $1 AND exchange = $2 AND status IN ('detected', 'confirming') GROUP BY asset
"""
_RESTING: Final = """
    SELECT * FROM orders
    WHERE user_id = $1 AND exchange = $2 AND mode = 'live' AND executed_at IS NULL AND status = ANY($3::text[]) LIMIT $4
"""
_UNSETTLED: Final = """
    SELECT count(*) FROM orders
    WHERE user_id = $1 AND exchange = $2 AND mode = 'live' AND executed_at IS NULL AND status IN ('submitting', 'in_doubt')
"""
_RESTING_STATES: Final = [OrderStatus.NEW.value, OrderStatus.PARTIALLY_FILLED.value]


async def compared_accounts(
    database: Database,
    exchange: str,
    now: datetime,
    *,
    after_user_id: str = "",
    only_user_id: str | None = None,
    shares: tuple[Sequence[int], int] | None = None,
    limit: int,
) -> list[ExchangeAccount]:
    """Accounts at an exchange by user id, from one on, each with the keys to ask with; none of them where it cannot be asked.

    `shares`: only those of these shares, of so many. Raises Retryable when the database is out of reach.
    """
    owned, count = shares if shares is not None else (None, 1)
    async with database.connection() as connection:
        rows = await connection.fetch(_ACCOUNTS, exchange, now, after_user_id, only_user_id, owned, count, limit)
    return [ExchangeAccount(row["user_id"], exchange, tuple(row["api_key_ids"])) for row in rows]


async def read_account(database: Database, account: ExchangeAccount) -> AccountLedger:
    """An account at one moment: everything comes from one snapshot. Raises Retryable when the database is out of reach."""
    user_id, exchange, _ = account
    async with database.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        seq = await connection.fetchval("SELECT seq FROM audit_chains WHERE account = $1", user_id)
        owned = await _amounts(connection, _OWNED, user_id, exchange)
        for asset, advanced in (await _amounts(connection, _ADVANCED, user_id, exchange)).items():
            owned[asset] = owned.get(asset, Decimal(0)) - advanced
        drifts = await drifts_of_users(connection, [user_id])
        return AccountLedger(
            seq=seq or 0,
            owned=owned,
            arriving=await _amounts(connection, _ARRIVING, user_id, exchange),
            leaving=await _amounts(connection, _LEAVING, user_id, exchange),
            resting=tuple(
                order_of(row) for row in await connection.fetch(_RESTING, user_id, exchange, _RESTING_STATES, RESTING_MAX + 1)
            ),
            unsettled=await connection.fetchval(_UNSETTLED, user_id, exchange),
            drifts=drifts.get((user_id, exchange), {}),
        )


async def _amounts(connection: Connection, statement: str, user_id: str, exchange: str) -> dict[str, Decimal]:
    return {row[0]: row[1] for row in await connection.fetch(statement, user_id, exchange)}
