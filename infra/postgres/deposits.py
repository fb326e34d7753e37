"""Deposits, announcements and disputes in the database: columns, what steps load, and what the watch of the exchanges' histories asks.

Written with the batch (infra/postgres/storing), loaded behind the users' locks. A deposit may be reported for two users whose keys are for
one account: so steps lock the entries of the history, too, behind the users' locks and in one order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from asyncpg import Record
from asyncpg.pool import PoolConnectionProxy

from infra.postgres.rows import SOURCE, Columns, columns_of, fields_of, plain
from pipeline.model.deposit import Announcement, Deposit, DepositBook, Dispute, DisputeKind
from pipeline.model.tracked import Tracked
from schemas.orders import AnnouncementStatus, DepositStatus, Mode
from schemas.reasons import ReasonCode

if TYPE_CHECKING:
    from infra.postgres.database import Database, InputPartition

DEPOSITS: Columns[Deposit] = Columns(
    "deposits",
    plain(
        text="deposit_id exchange transaction_id asset address output_index exchange_deposit_id user_id api_key_id network address_tag "
        "status",
        numeric="amount advanced",
        timestamptz="arrived_at looked_up_at detected_at updated_at credited_at reversed_at",
    ),
)

# What changes in a deposit's life; the rest is written once.
DEPOSITS_CHANGING: Columns[Deposit] = DEPOSITS.only(
    "deposit_id", "status", "advanced", "looked_up_at", "updated_at", "credited_at", "reversed_at"
)

ANNOUNCEMENTS: Columns[Announcement] = Columns(
    "deposit_announcements",
    (
        *plain(
            text="announcement_id user_id idempotency_key request_id mode exchange api_key_id asset network address address_tag status "
            "reason_code reason deposit_id exchange_deposit_id traceparent",
            numeric="amount",
            timestamptz="expires_at requested_at decided_at updated_at executed_at",
        ),
        *SOURCE,
    ),
)

ANNOUNCEMENTS_CHANGING: Columns[Announcement] = ANNOUNCEMENTS.only(
    "announcement_id", "status", "reason_code", "reason", "deposit_id", "exchange_deposit_id", "updated_at", "executed_at"
)

DISPUTES: Columns[Dispute] = Columns("deposit_disputes", plain(text="user_id deposit_id kind what"))

# Of one account at most two steps wait for each other here, and only where two users share it.
_LOCK: Final = """
    SELECT pg_advisory_xact_lock(entry) FROM (
        SELECT DISTINCT hashtextextended(given.exchange || ' ' || given.transaction_id, 0) AS entry
        FROM unnest($1::text[], $2::text[]) AS given (exchange, transaction_id) ORDER BY entry
    ) AS entries
"""
_KNOWN: Final = """
    SELECT deposits.* FROM unnest($1::text[], $2::text[], $3::text[]) AS given (exchange, transaction_id, entry)
    JOIN deposits ON deposits.exchange = given.exchange AND deposits.transaction_id = given.transaction_id
    UNION
    SELECT deposits.* FROM unnest($1::text[], $2::text[], $3::text[]) AS given (exchange, transaction_id, entry)
    JOIN deposits ON deposits.exchange = given.exchange AND deposits.exchange_deposit_id = given.entry
"""
_OPENED: Final = """
    SELECT users.user_id, given.exchange, users.status, greatest(users.created_at, (
        SELECT max(transfers.recorded_at) FROM transfers
        WHERE transfers.credit_owner = users.user_id AND transfers.exchange = given.exchange AND transfers.kind = 'opening'
          AND transfers.book = 'live'
    ), (
        SELECT max(imported_at) FROM balance_imports
        WHERE balance_imports.user_id = users.user_id AND balance_imports.exchange = given.exchange
    )) AS opened_at
    FROM unnest($1::text[], $2::text[]) AS given (user_id, exchange) JOIN users ON users.user_id = given.user_id
"""
# A key that is replaced under its id may be for another account: it is watched from then on.
_WATCHED: Final = "SELECT user_id, api_key_id, created_at FROM api_keys WHERE user_id = ANY($1::text[])"
_DISPUTES: Final = "SELECT user_id, deposit_id, kind FROM deposit_disputes WHERE user_id = ANY($1::text[])"
_EXPECTED: Final = "SELECT * FROM deposit_announcements WHERE user_id = ANY($1::text[]) AND executed_at IS NULL"
_NAMED: Final = "SELECT * FROM deposit_announcements WHERE announcement_id = ANY($1::text[])"
_UNCLAIMED: Final = """
    SELECT * FROM deposits WHERE user_id = ANY($1::text[]) AND credited_at > $2 AND status = 'credited'
      AND NOT EXISTS (SELECT FROM deposit_announcements WHERE deposit_announcements.deposit_id = deposits.deposit_id)
"""
# As `StepTransaction.unpublished` has it for orders: a batch and what it changed carry the same time.
_UNPUBLISHED: Final = """
    SELECT DISTINCT stored.updated_at FROM input_partitions AS stored
    WHERE stored.updated_at = ANY($1::timestamptz[]) AND stored.consumer_group = $2
      AND (stored.base_offset <> stored.next_offset OR stored.carried IS NOT NULL) AND (stored.topic, stored.partition) <> ($3, $4)
"""
# Every worker asks the same server, so that all divide the accounts alike.
_ACCOUNTS: Final = """
    SELECT user_id, api_key_id FROM api_keys
    WHERE exchange = $1 AND status = 'active' AND (expires_at IS NULL OR expires_at > $2)
      AND (hashtext(user_id) & 2147483647) % $3 = ANY($4::integer[]) AND (user_id, api_key_id) > ($5, $6)
    ORDER BY user_id, api_key_id LIMIT $7
"""
_LATE: Final = """
    SELECT announcement_id, user_id FROM deposit_announcements
    WHERE exchange = $1 AND executed_at IS NULL AND expires_at <= $2 ORDER BY expires_at LIMIT $3
"""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """An entry of an exchange's history of deposits, by what it is found again."""

    exchange: str
    transaction_id: str
    exchange_deposit_id: str


def deposit_of(row: Record) -> Deposit:
    """One row of `deposits`. Raises RowUnreadable."""
    return Deposit(**fields_of(row, DEPOSITS, status=DepositStatus))


def announcement_of(row: Record) -> Announcement:
    """One row of `deposit_announcements`. Raises RowUnreadable."""
    return Announcement(**fields_of(row, ANNOUNCEMENTS, mode=Mode, status=AnnouncementStatus, reason_code=ReasonCode))


async def lock_entries(connection: PoolConnectionProxy, entries: Iterable[Entry]) -> None:
    """Holds these entries' transactions until the end of the database transaction; call it behind the users' locks."""
    pairs = sorted({(entry.exchange, entry.transaction_id) for entry in entries})
    await connection.execute(_LOCK, *columns_of(pairs, 2))


async def read_book(
    connection: PoolConnectionProxy, entries: Iterable[Entry], users: Iterable[tuple[str, str]]
) -> DepositBook:
    """What is known that words about these entries may be judged by. `users` are (user id, exchange) pairs."""
    wanted = sorted({(entry.exchange, entry.transaction_id, entry.exchange_deposit_id) for entry in entries})
    pairs = sorted(set(users))
    user_ids = sorted({user_id for user_id, _ in pairs})
    opened = await connection.fetch(_OPENED, *columns_of(pairs, 2))
    keys = await connection.fetch(_WATCHED, user_ids)
    return DepositBook(
        deposits=Tracked({row["deposit_id"]: deposit_of(row) for row in await connection.fetch(_KNOWN, *columns_of(wanted, 3))}),
        disputes={(row["user_id"], row["deposit_id"], DisputeKind(row["kind"])) for row in await connection.fetch(_DISPUTES, user_ids)},
        opened_at={(row["user_id"], row["exchange"]): row["opened_at"] for row in opened},
        watched_from={(row["user_id"], row["api_key_id"]): row["created_at"] for row in keys},
        user_status={row["user_id"]: row["status"] for row in opened},
    )


async def expected_announcements(connection: PoolConnectionProxy, user_ids: Sequence[str]) -> Tracked[Announcement]:
    """The announcements of these users that still wait, by id."""
    return Tracked({row["announcement_id"]: announcement_of(row) for row in await connection.fetch(_EXPECTED, user_ids)})


async def announcements(connection: PoolConnectionProxy, announcement_ids: Sequence[str]) -> dict[str, Announcement]:
    """These announcements, by id."""
    return {row["announcement_id"]: announcement_of(row) for row in await connection.fetch(_NAMED, announcement_ids)}


async def unclaimed_deposits(connection: PoolConnectionProxy, user_ids: Sequence[str], credited_after: datetime) -> Tracked[Deposit]:
    """Deposits of these users credited since then that no announcement has taken, by id."""
    return Tracked({row["deposit_id"]: deposit_of(row) for row in await connection.fetch(_UNCLAIMED, user_ids, credited_after)})


async def unpublished_deposits(
    connection: PoolConnectionProxy, partition: "InputPartition", book: DepositBook
) -> list[Deposit | Announcement]:
    """What the book holds and another input partition has changed and not published, as far as the database knows."""
    held: list[Deposit | Announcement] = [*book.deposits.values(), *book.announcements.values()]
    if not held:
        return []
    own = partition.consumer_group, partition.topic, partition.partition
    rows = await connection.fetch(_UNPUBLISHED, sorted({one.updated_at for one in held}), *own)
    waiting = {row["updated_at"] for row in rows}
    return [one for one in held if one.updated_at in waiting]


async def watched_accounts(
    database: "Database", exchange: str, shares: tuple[int, Sequence[int]], after: tuple[str, str], now: datetime, limit: int
) -> list[tuple[str, str]]:
    """(user id, key id) of active keys at an exchange, from one on. `shares` is in how many the users are divided, and which of them are
    asked for. Raises Retryable when the database is out of reach."""
    async with database.connection() as connection:
        rows = await connection.fetch(_ACCOUNTS, exchange, now, shares[0], shares[1], *after, limit)
    return [(row["user_id"], row["api_key_id"]) for row in rows]


async def known_deposits(database: "Database", entries: Iterable[Entry], user_id: str, exchange: str) -> DepositBook:
    """The book for one account, outside any step. Raises Retryable when the database is out of reach."""
    async with database.connection() as connection:
        return await read_book(connection, entries, [(user_id, exchange)])


async def late_announcements(database: "Database", exchange: str, now: datetime, limit: int) -> list[tuple[str, str]]:
    """(announcement id, user id) of those whose time is over. Raises Retryable when the database is out of reach."""
    async with database.connection() as connection:
        rows = await connection.fetch(_LATE, exchange, now, limit)
    return [(row["announcement_id"], row["user_id"]) for row in rows]
