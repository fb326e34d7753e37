"""Withdrawals and addresses in the database: columns, what steps load, and what the watch of the exchanges' histories asks.

Written with the batch (infra/postgres/storing), loaded behind the users' locks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from asyncpg import Record
from asyncpg.pool import PoolConnectionProxy

from infra.postgres.rows import SOURCE, Columns, fields_of, plain, readable
from pipeline.gate.limits import Limits
from pipeline.model.api_key import ApiKeyState
from pipeline.model.payee import Payee
from pipeline.model.tracked import Tracked
from pipeline.model.withdrawal import AllowedAddress, Withdrawal
from schemas.orders import Mode, WithdrawalStatus
from schemas.reasons import ReasonCode

if TYPE_CHECKING:
    from infra.postgres.database import Database

_DAY: Final = timedelta(hours=24)

WITHDRAWALS: Columns[Withdrawal] = Columns(
    "withdrawals",
    (
        *plain(
            text="withdrawal_id client_withdrawal_id exchange_withdrawal_id transaction_id user_id idempotency_key request_id mode "
            "exchange api_key_id asset network address address_tag status reason_code reason approved_by traceparent account_id",
            numeric="amount fee hold_amount usd_value",
            integer="attempt work_partition key_version",
            bigint="fencing_epoch",
            timestamptz="submitting_at expires_at requested_at decided_at updated_at executed_at first_submitting_at absent_since "
            "watched_until corrected_at retry_at",
        ),
        *SOURCE,
    ),
)

# What changes in a withdrawal's life; the rest is written once.
WITHDRAWALS_CHANGING: Columns[Withdrawal] = WITHDRAWALS.only(
    "withdrawal_id", "exchange_withdrawal_id", "transaction_id", "amount", "fee", "status", "reason_code", "reason", "hold_amount",
    "approved_by", "attempt", "fencing_epoch", "work_partition", "submitting_at", "updated_at", "executed_at", "first_submitting_at",
    "absent_since", "watched_until", "corrected_at", "key_version", "account_id", "retry_at",
)  # fmt: skip

# What has left is counted by when it was sent, whenever it was asked for; what waits may still leave, however long it has waited.
_WITHDRAWN: Final = """
    SELECT user_id,
        COALESCE(sum(usd_value) FILTER (WHERE status IN ('submitting', 'in_doubt', 'processing', 'completed') AND submitting_at > $2), 0)
            AS left_usd,
        COALESCE(sum(usd_value) FILTER (WHERE status = 'accepted'), 0) AS queued_usd,
        COALESCE(sum(usd_value) FILTER (WHERE status = 'pending_approval'), 0) AS waiting_usd
    FROM withdrawals
    WHERE user_id = ANY($1::text[]) AND (executed_at IS NULL OR executed_at > $2 OR submitting_at > $2) GROUP BY user_id
"""
_ADDRESSES: Final = """
    SELECT user_id, network, address, address_tag, added_at FROM addresses WHERE user_id = ANY($1::text[]) AND removed_at IS NULL
"""
_STATUSES: Final = "SELECT user_id, status FROM users WHERE user_id = ANY($1::text[])"
_DAILY_LIMITS: Final = "SELECT user_id, amount FROM user_limits WHERE user_id = ANY($1::text[]) AND name = 'daily_withdrawal_usd_max'"
_KEY_STATES: Final = "SELECT user_id, api_key_id, exchange, status, permissions, expires_at FROM api_keys WHERE user_id = ANY($1::text[])"
_UNFINISHED: Final = """
    SELECT * FROM withdrawals
    WHERE exchange = $1 AND work_partition = ANY($2::integer[]) AND withdrawal_id > $3
      AND ((status IN ('in_doubt', 'processing') AND executed_at IS NULL) OR watched_until > $5)
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
    return Withdrawal(**fields_of(row, WITHDRAWALS, mode=Mode, status=WithdrawalStatus, reason_code=ReasonCode))


async def withdrawals(connection: PoolConnectionProxy, withdrawal_ids: Sequence[str]) -> Tracked[Withdrawal]:
    """These withdrawals, by id."""
    if not withdrawal_ids:
        return Tracked()
    rows = await connection.fetch("SELECT * FROM withdrawals WHERE withdrawal_id = ANY($1::text[])", withdrawal_ids)
    return Tracked({row["withdrawal_id"]: withdrawal_of(row) for row in rows})


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What counts for a user's limit of a day, in US dollars: what was sent in 24 hours and not given back, what is accepted and not sent
    yet, and what waits for an operator."""

    left_usd: Decimal = Decimal(0)
    queued_usd: Decimal = Decimal(0)
    waiting_usd: Decimal = Decimal(0)

    @property
    def total_usd(self) -> Decimal:
        """What a further request comes on top of."""
        return self.left_usd + self.queued_usd + self.waiting_usd


async def withdrawn(connection: PoolConnectionProxy, user_ids: Sequence[str], now: datetime) -> dict[str, Withdrawn]:
    """What counts for the limits of these users. Call it behind their locks."""
    rows = await connection.fetch(_WITHDRAWN, user_ids, now - _DAY)
    return {row["user_id"]: Withdrawn(row["left_usd"], row["queued_usd"], row["waiting_usd"]) for row in rows}


async def payees(
    connection: PoolConnectionProxy, user_ids: Sequence[str], defaults: Limits, address_wait: timedelta, now: datetime
) -> dict[str, Payee]:
    """What is known now of users whose withdrawals are to leave. Call it behind their locks: it is then true until the step commits."""
    if not user_ids:
        return {}
    statuses = {row["user_id"]: row["status"] for row in await connection.fetch(_STATUSES, user_ids)}
    limits = {row["user_id"]: row["amount"] for row in await connection.fetch(_DAILY_LIMITS, user_ids)}
    allowed = await addresses(connection, user_ids)
    sums = await withdrawn(connection, user_ids, now)
    keys: dict[str, dict[str, ApiKeyState]] = {}
    for row in await connection.fetch(_KEY_STATES, user_ids):
        state = ApiKeyState(row["exchange"], row["status"], frozenset(row["permissions"]), row["expires_at"])
        keys.setdefault(row["user_id"], {})[row["api_key_id"]] = state
    return {
        user_id: Payee(
            status=statuses.get(user_id),
            daily_limit_usd=limits.get(user_id, defaults.daily_withdrawal_usd_max),
            api_keys=keys.get(user_id, {}),
            addresses=tuple(one for one in allowed.get(user_id, ()) if one.added_at + address_wait <= now),
            left_usd=sums.get(user_id, Withdrawn()).left_usd,
            queued_usd=sums.get(user_id, Withdrawn()).queued_usd,
        )
        for user_id in user_ids
    }


async def addresses(connection: PoolConnectionProxy, user_ids: Sequence[str]) -> dict[str, tuple[AllowedAddress, ...]]:
    """The addresses on these users' lists, those that wait included."""
    found: dict[str, list[AllowedAddress]] = {}
    for row in await connection.fetch(_ADDRESSES, user_ids):
        allowed = AllowedAddress(row["network"], row["address"], row["address_tag"], row["added_at"])
        found.setdefault(row["user_id"], []).append(allowed)
    return {user_id: tuple(rows) for user_id, rows in found.items()}


async def unfinished_withdrawals(
    database: "Database", exchange: str, work_partitions: Sequence[int], after_withdrawal_id: str, limit: int, now: datetime
) -> list[Withdrawal]:
    """Withdrawals sent from these partitions of an exchange's queue that are in doubt or being paid out, or that count as not executed and
    are watched, by id from one on. Raises Retryable when the database is out of reach."""
    found: list[Withdrawal] = []
    async with database.connection() as connection:
        while len(found) < limit:
            wanted = limit - len(found)
            rows = await connection.fetch(_UNFINISHED, exchange, work_partitions, after_withdrawal_id, wanted, now)
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
