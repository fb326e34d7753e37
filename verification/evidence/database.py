"""Reads the database for verification: one read-only snapshot (REPEATABLE READ), through SQLAlchemy's asynchronous engine."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final, cast

from asyncpg import Record
from sqlalchemy import RowMapping, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from infra.postgres.deposits import announcement_of, deposit_of
from infra.postgres.migrate import engine_url
from infra.postgres.rows import order_of, source_of
from infra.postgres.withdrawals import withdrawal_of
from pipeline.books.ledger import AccountKey, Balance, TransferKind
from pipeline.model.invariants import Retryable
from pipeline.model.order import Order
from pipeline.model.withdrawal import Withdrawal
from schemas.wire import SourceOffset
from verification.promises.accounts import Accounts, TransferTotal
from verification.promises.answers import Key
from verification.promises.deposits import Deposited, Movement
from verification.promises.progress import PartitionProgress
from verification.promises.sessions import SessionCount
from verification.promises.trail import DatabaseTrail

_CONNECT_SECONDS: Final = 10
# One statement reads a whole table; on a large installation that takes its time.
_STATEMENT_SECONDS: Final = 600

# The names in the account columns of a transfer, whichever side.
_TOTALS: Final = """
    SELECT kind, exchange, book, asset, debit_owner, credit_owner, SUM(amount) AS amount
    FROM transfers GROUP BY kind, exchange, book, asset, debit_owner, credit_owner
"""
_HELD: Final = """
    SELECT order_id, SUM(CASE WHEN kind = 'hold' THEN amount WHEN kind IN ('release', 'post_held') THEN -amount ELSE 0 END) AS held
    FROM transfers WHERE order_id IS NOT NULL GROUP BY order_id
"""
_ADVANCED: Final = """
    SELECT owned.user_id, transfers.asset, SUM(transfers.amount) AS amount
    FROM transfers
    JOIN (
        SELECT order_id, user_id FROM orders UNION ALL SELECT withdrawal_id, user_id FROM withdrawals
        UNION ALL SELECT deposit_id, user_id FROM deposits
    ) AS owned USING (order_id)
    WHERE transfers.debit_owner = '@shortfall' AND transfers.book = 'live' GROUP BY owned.user_id, transfers.asset
"""
# What was credited comes from, and what was taken back goes to, the other side of the exchange.
_MOVED: Final = """
    SELECT order_id, count(*) FILTER (WHERE debit_owner = '@clearing') AS credits,
           coalesce(sum(amount) FILTER (WHERE debit_owner = '@clearing'), 0) AS credited,
           coalesce(sum(amount) FILTER (WHERE credit_owner = '@clearing'), 0) AS taken_back
    FROM transfers WHERE left(order_id, 1) = 'd' GROUP BY order_id
"""
_OPENED: Final = """
    SELECT users.user_id, keys.exchange, greatest(users.created_at, keys.stored_at, (
        SELECT max(recorded_at) FROM transfers
        WHERE credit_owner = users.user_id AND transfers.exchange = keys.exchange AND kind = 'opening' AND book = 'live'
    ), (
        SELECT max(imported_at) FROM balance_imports
        WHERE balance_imports.user_id = users.user_id AND balance_imports.exchange = keys.exchange
    )) AS opened_at
    FROM users JOIN (SELECT user_id, exchange, min(created_at) AS stored_at FROM api_keys GROUP BY user_id, exchange) AS keys
        USING (user_id)
"""


@dataclass(slots=True)
class DatabaseEvidence:
    """What the database says; see verification/promises for the meaning of each part."""

    orders: dict[str, Order]
    withdrawals: dict[str, Withdrawal]
    pending_cancels: set[SourceOffset]
    answers: dict[Key, bytes]
    running: set[Key]
    accounts: Accounts
    trail: DatabaseTrail
    positions: dict[tuple[str, int], tuple[int, bool]]
    deposited: Deposited
    sessions: dict[str, SessionCount]
    snapshots_removed: dict[tuple[str, str], datetime]


async def read_database(database_url: str, consumer_group: str) -> DatabaseEvidence:
    """Reads all tables in one snapshot. Raises Retryable when the database is out of reach or has no schema yet."""
    engine = create_async_engine(
        engine_url(database_url),
        poolclass=NullPool,
        isolation_level="REPEATABLE READ",
        connect_args={"timeout": _CONNECT_SECONDS, "command_timeout": _STATEMENT_SECONDS},
    )
    try:
        async with engine.connect() as connection:
            await connection.execution_options(postgresql_readonly=True)
            return await _read(connection, consumer_group)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise Retryable(f"the database is out of reach ({type(error).__name__})") from error
    finally:
        await engine.dispose()


async def _rows(connection: AsyncConnection, sql: str, **parameters: Any) -> list[RowMapping]:
    result = await connection.execute(text(sql), parameters)
    return list(result.mappings())


async def _read(connection: AsyncConnection, consumer_group: str) -> DatabaseEvidence:
    # `order_of` and `source_of` read columns by name, which is all that both kinds of row have in common.
    orders = [order_of(cast("Record", row)) for row in await _rows(connection, "SELECT * FROM orders")]
    withdrawals = [withdrawal_of(cast("Record", row)) for row in await _rows(connection, "SELECT * FROM withdrawals")]
    cancels = await _rows(connection, "SELECT source_topic, source_partition, source_offset FROM cancels WHERE NOT ended")
    claims = await _rows(connection, "SELECT user_id, idempotency_key, result FROM claims")
    positions = await _rows(
        connection,
        "SELECT topic, partition, next_offset, carried IS NOT NULL AS carries FROM input_partitions WHERE consumer_group = :consumer_group",
        consumer_group=consumer_group,
    )
    return DatabaseEvidence(
        orders={order.order_id: order for order in orders},
        withdrawals={one.withdrawal_id: one for one in withdrawals},
        pending_cancels={source_of(cast("Record", row)) for row in cancels},
        answers={(row["user_id"], row["idempotency_key"]): sha256(row["result"].encode()).digest() for row in claims if row["result"]},
        running={(row["user_id"], row["idempotency_key"]) for row in claims if row["result"] is None},
        accounts=await _accounts(connection),
        trail=await _trail(connection),
        positions={(row["topic"], row["partition"]): (row["next_offset"], row["carries"]) for row in positions},
        deposited=await _deposited(connection),
        sessions={
            row["session_id"]: SessionCount(row["orders_used"], row["orders_max"], row["amount_usd_used"], row["amount_usd_max"])
            for row in await _rows(connection, "SELECT session_id, orders_used, orders_max, amount_usd_used, amount_usd_max FROM sessions")
        },
        snapshots_removed={
            (row["kind"], row["exchange"]): row["removing_until"]
            for row in await _rows(connection, "SELECT kind, exchange, removing_until FROM state_retention")
        },
    )


async def _deposited(connection: AsyncConnection) -> Deposited:
    deposits = [deposit_of(cast("Record", row)) for row in await _rows(connection, "SELECT * FROM deposits")]
    announcements = [announcement_of(cast("Record", row)) for row in await _rows(connection, "SELECT * FROM deposit_announcements")]
    disputes = await _rows(connection, "SELECT deposit_id FROM deposit_disputes")
    return Deposited(
        deposits={one.deposit_id: one for one in deposits},
        announcements={one.announcement_id: one for one in announcements},
        movements={
            row["order_id"]: Movement(row["credits"], row["credited"], row["taken_back"]) for row in await _rows(connection, _MOVED)
        },
        opened_at={(row["user_id"], row["exchange"]): row["opened_at"] for row in await _rows(connection, _OPENED)},
        disputed={row["deposit_id"] for row in disputes},
    )


async def _accounts(connection: AsyncConnection) -> Accounts:
    balances = await _rows(connection, "SELECT user_id, exchange, book, asset, posted, pending FROM balances")
    totals = await _rows(connection, _TOTALS)
    held = await _rows(connection, _HELD)
    advanced = await _rows(connection, _ADVANCED)
    return Accounts(
        balances={
            AccountKey(row["user_id"], row["exchange"], row["book"], row["asset"]): Balance(row["posted"], row["pending"])
            for row in balances
        },
        totals=[
            TransferTotal(
                TransferKind(row["kind"]),
                AccountKey(row["debit_owner"], row["exchange"], row["book"], row["asset"]),
                AccountKey(row["credit_owner"], row["exchange"], row["book"], row["asset"]),
                row["amount"],
            )
            for row in totals
        ],
        held={row["order_id"]: Decimal(row["held"]) for row in held},
        advanced={(row["user_id"], row["asset"]): row["amount"] for row in advanced},
    )


async def _trail(connection: AsyncConnection) -> DatabaseTrail:
    trail = DatabaseTrail()
    # Streamed: the bodies of a large installation need not fit into memory.
    events = await connection.stream(text("SELECT account, seq, event_id, hash, body FROM audit_events ORDER BY account, seq"))
    async for row in events:
        trail.add(row.account, row.seq, row.event_id, row.hash, row.body)
    for head in await _rows(connection, "SELECT account, seq, hash FROM audit_chains"):
        trail.heads[head["account"]] = (head["seq"], head["hash"])
    return trail


def with_positions(partitions: Iterable[PartitionProgress], evidence: DatabaseEvidence) -> list[PartitionProgress]:
    """The offsets of the broker with the database's beside them."""
    found: list[PartitionProgress] = []
    for row in partitions:
        next_offset, carries = evidence.positions.get((row.topic, row.partition), (None, False))
        found.append(replace(row, next_offset=next_offset, carries=carries))
    return found
