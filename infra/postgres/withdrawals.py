"""Withdrawals and addresses in the database: columns, what steps load, and what the watch of the exchanges' histories asks.

Written with the batch (infra/postgres/storing), loaded behind the users' locks.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from asyncpg import Record
from asyncpg.pool import PoolConnectionProxy

from infra.postgres.rows import Columns, fields_of, readable
from pipeline.withdrawal import AllowedAddress, Withdrawal
from schemas.orders import Mode, WithdrawalStatus
from schemas.reasons import ReasonCode

if TYPE_CHECKING:
    from infra.postgres.step import Database, InputPartition

_AMOUNT: Final = "numeric"
_TIME: Final = "timestamptz"
_DAY: Final = timedelta(hours=24)

WITHDRAWALS: Columns[Withdrawal] = Columns(
    "withdrawals",
    (
        ("withdrawal_id", "text", lambda one: one.withdrawal_id),
        ("client_withdrawal_id", "text", lambda one: one.client_withdrawal_id),
        ("exchange_withdrawal_id", "text", lambda one: one.exchange_withdrawal_id),
        ("transaction_id", "text", lambda one: one.transaction_id),
        ("user_id", "text", lambda one: one.user_id),
        ("idempotency_key", "text", lambda one: one.idempotency_key),
        ("request_id", "text", lambda one: one.request_id),
        ("source_topic", "text", lambda one: one.source.topic),
        ("source_partition", "integer", lambda one: one.source.partition),
        ("source_offset", "bigint", lambda one: one.source.offset),
        ("mode", "text", lambda one: one.mode.value),
        ("exchange", "text", lambda one: one.exchange),
        ("api_key_id", "text", lambda one: one.api_key_id),
        ("asset", "text", lambda one: one.asset),
        ("network", "text", lambda one: one.network),
        ("address", "text", lambda one: one.address),
        ("address_tag", "text", lambda one: one.address_tag),
        ("amount", _AMOUNT, lambda one: one.amount),
        ("fee", _AMOUNT, lambda one: one.fee),
        ("status", "text", lambda one: one.status.value),
        ("reason_code", "text", lambda one: one.reason_code.value if one.reason_code else None),
        ("reason", "text", lambda one: one.reason),
        ("hold_amount", _AMOUNT, lambda one: one.hold_amount),
        ("usd_value", _AMOUNT, lambda one: one.usd_value),
        ("approved_by", "text", lambda one: one.approved_by),
        ("attempt", "integer", lambda one: one.attempt),
        ("fencing_epoch", "bigint", lambda one: one.fencing_epoch),
        ("work_partition", "integer", lambda one: one.work_partition),
        ("submitting_at", _TIME, lambda one: one.submitting_at),
        ("expires_at", _TIME, lambda one: one.expires_at),
        ("requested_at", _TIME, lambda one: one.requested_at),
        ("decided_at", _TIME, lambda one: one.decided_at),
        ("updated_at", _TIME, lambda one: one.updated_at),
        ("executed_at", _TIME, lambda one: one.executed_at),
        ("traceparent", "text", lambda one: one.traceparent),
        ("key_version", "integer", lambda one: one.key_version),
        ("account_id", "text", lambda one: one.account_id),
    ),
)

# What changes in a withdrawal's life; the rest is written once.
WITHDRAWALS_CHANGING: Columns[Withdrawal] = WITHDRAWALS.only(
    "withdrawal_id", "exchange_withdrawal_id", "transaction_id", "amount", "fee", "status", "reason_code", "reason", "hold_amount",
    "approved_by", "attempt", "fencing_epoch", "work_partition", "submitting_at", "updated_at", "executed_at", "key_version", "account_id",
)  # fmt: skip

_WITHDRAWN: Final = """
    SELECT user_id, sum(usd_value) AS usd FROM withdrawals
    WHERE user_id = ANY($1::text[]) AND decided_at > $2 AND status NOT IN ('failed', 'rejected') GROUP BY user_id
"""
_ADDRESSES: Final = """
    SELECT user_id, network, address, address_tag, added_at FROM addresses WHERE user_id = ANY($1::text[]) AND removed_at IS NULL
"""
# As `StepTransaction.unpublished` has it for orders.
_UNPUBLISHED: Final = """
    SELECT withdrawals.withdrawal_id FROM withdrawals JOIN input_partitions AS stored ON
        (stored.updated_at = withdrawals.updated_at
         OR (stored.topic = $2 || withdrawals.exchange AND stored.partition = withdrawals.work_partition
             AND stored.updated_at <= withdrawals.updated_at))
    WHERE withdrawals.withdrawal_id = ANY($1::text[]) AND stored.consumer_group = $3
      AND (stored.base_offset < stored.next_offset OR stored.carried IS NOT NULL)
      AND (stored.topic, stored.partition) <> ($4, $5)
"""
_UNFINISHED: Final = """
    SELECT * FROM withdrawals
    WHERE exchange = $1 AND work_partition = ANY($2::integer[]) AND status IN ('in_doubt', 'processing') AND executed_at IS NULL
      AND withdrawal_id > $3
    ORDER BY withdrawal_id LIMIT $4
"""
# Nobody has sent them yet, so they have no partition of their own.
_UNAPPROVED: Final = """
    SELECT * FROM withdrawals
    WHERE exchange = $1 AND work_partition = -1 AND status = 'pending_approval' AND executed_at IS NULL AND expires_at <= $2
    ORDER BY expires_at LIMIT $3
"""
_KEYS: Final = """
    SELECT user_id, api_key_id FROM api_keys
    WHERE exchange = $1 AND status = 'active' AND 'withdraw' = ANY(permissions) AND (expires_at IS NULL OR expires_at > $2)
    ORDER BY created_at DESC, user_id LIMIT $3
"""


def withdrawal_of(row: Record) -> Withdrawal:
    """One row of `withdrawals`. Raises RowUnreadable."""
    fields = fields_of(row, WITHDRAWALS)
    fields["mode"] = Mode(row["mode"])
    fields["status"] = WithdrawalStatus(row["status"])
    fields["reason_code"] = ReasonCode(row["reason_code"]) if row["reason_code"] else None
    return Withdrawal(**fields)


async def withdrawals(connection: PoolConnectionProxy, withdrawal_ids: Sequence[str]) -> dict[str, Withdrawal]:
    """These withdrawals, by id."""
    if not withdrawal_ids:
        return {}
    rows = await connection.fetch("SELECT * FROM withdrawals WHERE withdrawal_id = ANY($1::text[])", withdrawal_ids)
    return {row["withdrawal_id"]: withdrawal_of(row) for row in rows}


async def users_of_withdrawals(connection: PoolConnectionProxy, withdrawal_ids: Sequence[str]) -> dict[str, str]:
    """Whose these withdrawals are: what never changes of them, and may be read before the user's lock."""
    rows = await connection.fetch("SELECT withdrawal_id, user_id FROM withdrawals WHERE withdrawal_id = ANY($1::text[])", withdrawal_ids)
    return {row["withdrawal_id"]: row["user_id"] for row in rows}


async def unpublished_withdrawals(
    connection: PoolConnectionProxy, partition: "InputPartition", withdrawal_ids: Sequence[str], orders_topic_prefix: str
) -> set[str]:
    """Those withdrawals whose newest change another input partition has stored and not published yet, as far as the database knows."""
    if not withdrawal_ids:
        return set()
    own = partition.consumer_group, partition.topic, partition.partition
    rows = await connection.fetch(_UNPUBLISHED, withdrawal_ids, orders_topic_prefix, *own)
    return {row["withdrawal_id"] for row in rows}


async def withdrawn_usd(connection: PoolConnectionProxy, user_ids: Sequence[str], now: datetime) -> dict[str, Decimal]:
    """What these users have withdrawn in 24 hours, in US dollars; what was not paid does not count."""
    return {row["user_id"]: row["usd"] for row in await connection.fetch(_WITHDRAWN, user_ids, now - _DAY)}


async def addresses(connection: PoolConnectionProxy, user_ids: Sequence[str]) -> dict[str, tuple[AllowedAddress, ...]]:
    """The addresses on these users' lists, those that wait included."""
    found: dict[str, list[AllowedAddress]] = {}
    for row in await connection.fetch(_ADDRESSES, user_ids):
        allowed = AllowedAddress(row["network"], row["address"], row["address_tag"], row["added_at"])
        found.setdefault(row["user_id"], []).append(allowed)
    return {user_id: tuple(rows) for user_id, rows in found.items()}


async def unfinished_withdrawals(
    database: "Database", exchange: str, work_partitions: Sequence[int], after_withdrawal_id: str, limit: int
) -> list[Withdrawal]:
    """Withdrawals sent from these partitions of an exchange's queue that are in doubt or being paid out, by id from one on. Raises
    Retryable when the database is out of reach."""
    found: list[Withdrawal] = []
    async with database.connection() as connection:
        while len(found) < limit:
            wanted = limit - len(found)
            rows = await connection.fetch(_UNFINISHED, exchange, work_partitions, after_withdrawal_id, wanted)
            found += readable(rows, withdrawal_of, "withdrawals", "withdrawal_id")
            if len(rows) < wanted:
                break
            after_withdrawal_id = rows[-1]["withdrawal_id"]
    return found


async def unapproved_withdrawals(database: "Database", exchange: str, now: datetime, limit: int) -> list[Withdrawal]:
    """Withdrawals whose time for approval is over. Raises Retryable when the database is out of reach."""
    async with database.connection() as connection:
        rows = await connection.fetch(_UNAPPROVED, exchange, now, limit)
    return readable(rows, withdrawal_of, "withdrawals", "withdrawal_id")


async def keys_that_withdraw(database: "Database", exchange: str, now: datetime, limit: int) -> list[tuple[str, str]]:
    """(user id, key id) of the newest keys that may withdraw at an exchange. Raises Retryable when the database is out of reach."""
    async with database.connection() as connection:
        rows = await connection.fetch(_KEYS, exchange, now, limit)
    return [(row["user_id"], row["api_key_id"]) for row in rows]
