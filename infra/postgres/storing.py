"""Everything that a batch decided, written by one statement.

The statement has one part per table, each a common table expression that writes. PostgreSQL runs all of them on one snapshot, in no order
that counts: so no two parts may touch the same row, and what refers to a row of the same batch (a cancel to its order) is written after
it. One statement, because each one more is a round trip while the users' locks are held.

Invariants:
1. Each part writes exactly as many rows as it must, or the whole batch is rolled back (InvariantViolation).
2. The text of a statement depends only on which parts it has, so that each is prepared once per connection.

Start with `store`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any, Final, TypeVar

import orjson
from asyncpg.pool import PoolConnectionProxy

from infra.postgres.deposits import ANNOUNCEMENTS, ANNOUNCEMENTS_CHANGING, DEPOSITS, DEPOSITS_CHANGING, DISPUTES
from infra.postgres.drifts import drift_parts
from infra.postgres.proposals import proposal_parts
from infra.postgres.quarantine import QUARANTINE
from infra.postgres.rows import (
    AUDIT_EVENTS,
    CANCEL_ATTEMPTS,
    CANCELS,
    CLAIM_CORRECTIONS,
    CLAIM_RESULTS,
    CLAIMS,
    KEY_LIVES_FROM,
    ORDERS,
    ORDERS_CHANGING,
    TRANSFERS,
    Columns,
    columns_of,
    plain,
)
from infra.postgres.sessions import remove_old, session_parts
from infra.postgres.withdrawals import WITHDRAWALS, WITHDRAWALS_CHANGING
from pipeline.books.changes import Changes, SetHalt
from pipeline.books.cost import RealisedResult
from pipeline.model.conduct import Conduct
from pipeline.model.invariants import InvariantViolation
from pipeline.model.tracked import Tracked
from schemas.orders import Mode
from schemas.results import RESULT
from schemas.wire import format_time

_CANCEL: Final = " AND ".join(f"cancels.{name} = given.{name}" for name, _, _ in CANCEL_ATTEMPTS.columns[:4])

_REALISED: Final[Columns[RealisedResult]] = Columns(
    "realised_results", plain(text="order_id user_id", numeric="cum_quantity fee_usd usd")
)
_HALTS: Final[Columns[SetHalt]] = Columns(
    "halts",
    (
        ("scope", "text", attrgetter("halt.scope")),
        ("target", "text", attrgetter("halt.target")),
        ("level", "text", attrgetter("halt.level")),
        *plain(text="reason set_by command_id", boolean="cancel_open"),
    ),
)

T = TypeVar("T")


@dataclass(slots=True)
class _Statement:
    """The parts of one statement, by name. `rows` is how many each must write."""

    parts: dict[str, str] = field(default_factory=dict)
    arguments: list[object] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, sql: Callable[[int], str], arguments: Sequence[object], rows: int) -> None:
        """Adds a part. `sql` gets the number of its first parameter."""
        self.parts[name] = sql(len(self.arguments) + 1)
        self.arguments += arguments
        self.rows[name] = rows

    def insert(self, name: str, columns: Columns[T], objects: Sequence[T], **same: object) -> None:
        """Adds an insert of these objects, where there are any. `same` are further columns of one value for all rows each."""
        if objects:
            self.add(name, lambda first: columns.insert(first, *same), [*columns.arrays(objects), *same.values()], len(objects))

    async def run(self, connection: PoolConnectionProxy, subject: str) -> None:
        """Writes. Raises InvariantViolation when a part has written other than it must; `subject` is whose batch it was."""
        if not self.parts:
            return
        parts = ", ".join(f"{name} AS ({sql} RETURNING 1)" for name, sql in self.parts.items())
        counts = ", ".join(f"(SELECT count(*) FROM {name})" for name in self.parts)  # noqa: S608 — the names are literals
        written = await connection.fetchrow(f"WITH {parts} SELECT {counts}", *self.arguments)
        for (name, wanted), count in zip(self.rows.items(), written or (), strict=True):
            if wanted != count:
                raise InvariantViolation(
                    f"{count} rows were written where {wanted} were meant ({name}, {subject}). The batch was rolled back, no funds were "
                    "moved. This is a defect: run `orchestrator verify` and report it with this line."
                )


@dataclass(frozen=True, slots=True)
class _Kind:
    """Where a batch has the rows of a kind, the columns of a whole row, those that change in its life, and what else must be true of a row
    that moves (`AND` included)."""

    rows: Callable[[Changes], Tracked[Any]]
    whole: Columns[Any]
    changing: Columns[Any]
    only: str = ""

    def add_to(self, statement: _Statement, changes: Changes) -> None:
        """Adds what the batch has made and what it has moved."""
        rows, table = self.rows(changes), self.whole.table
        made, moved = [rows[key] for key in rows.made], [rows[key] for key in rows.changed]
        statement.insert(f"{table}_made", self.whole, made)
        if moved:
            statement.add(f"{table}_moved", lambda first: self.changing.update(first, self.only), self.changing.arrays(moved), len(moved))


_KINDS: Final = (
    _Kind(lambda changes: changes.orders, ORDERS, ORDERS_CHANGING),
    _Kind(lambda changes: changes.withdrawals, WITHDRAWALS, WITHDRAWALS_CHANGING),
    _Kind(lambda changes: changes.deposits.deposits, DEPOSITS, DEPOSITS_CHANGING),
)
# They refer to deposits, so they are written after them. Fewer rows than answers: a request would get a second final answer.
_ANNOUNCED: Final = _Kind(
    lambda changes: changes.deposits.announcements,
    ANNOUNCEMENTS,
    ANNOUNCEMENTS_CHANGING,
    " AND deposit_announcements.executed_at IS NULL",
)


async def store(connection: PoolConnectionProxy, changes: Changes, claims_older_than: datetime, subject: str) -> None:
    """Writes everything that `changes` holds. Raises InvariantViolation when the database disagrees with what was loaded."""
    statement = _Statement()
    _claims(statement, changes, claims_older_than)
    for kind in _KINDS:
        kind.add_to(statement, changes)
    statement.insert("disputes_made", DISPUTES, changes.deposits.disputes_made, noted_at=changes.now)
    _ledger(statement, changes)
    _trail(statement, changes)
    _users(statement, changes)
    _halts(statement, changes)
    statement.insert("records_set_aside", QUARANTINE, changes.set_aside, set_aside_at=changes.now, last_at=changes.now)
    for part in (*drift_parts(changes), *session_parts(changes), *proposal_parts(changes)):
        statement.add(*part)
    await statement.run(connection, subject)
    await remove_old(connection, changes)
    await _cancels(connection, changes)
    announced = _Statement()
    _ANNOUNCED.add_to(announced, changes)
    await announced.run(connection, subject)
    await _corrections(connection, changes)


def _claims(statement: _Statement, changes: Changes, older_than: datetime) -> None:
    claims = [changes.claims[key] for key in changes.claimed]
    if claims:
        # A row that is still there has expired, or its answer would have been given again; it is taken over.
        statement.add(
            "claims_made",
            lambda first: (
                f"{CLAIMS.upsert(first, 2)} WHERE claims.result IS NOT NULL AND {KEY_LIVES_FROM} <= ${first + len(CLAIMS.columns)}"
            ),
            [*CLAIMS.arrays(claims), older_than],
            len(claims),
        )
    ended = [(*key, RESULT.dump_json(result).decode()) for key, result in changes.finished.items() if key not in changes.claimed]
    if ended:
        # Fewer rows than answers: a request would get a second final answer.
        statement.add(
            "claims_ended",
            lambda first: (
                f"UPDATE claims SET result = given.result, ended_at = ${first + 3} "  # noqa: S608 — literals
                f"FROM {CLAIM_RESULTS.unnest(first)} "
                "WHERE claims.user_id = given.user_id AND claims.idempotency_key = given.idempotency_key AND claims.result IS NULL"
            ),
            [*columns_of(ended, 3), changes.now],
            len(ended),
        )


async def _corrections(connection: PoolConnectionProxy, changes: Changes) -> None:
    """What is true after all of requests that were answered before. By itself, as a batch may end a claim and correct it; a claim may be
    gone by now, as it lives no longer than its key."""
    if changes.corrected:
        rows = [(*key, RESULT.dump_json(result).decode(), result.order_id) for key, result in changes.corrected.items()]
        await connection.execute(
            f"UPDATE claims SET result = given.result FROM {CLAIM_CORRECTIONS.unnest()} "  # noqa: S608 — literals
            "WHERE claims.user_id = given.user_id AND claims.idempotency_key = given.idempotency_key AND claims.order_id = given.order_id",
            *columns_of(rows, 4),
        )


def _ledger(statement: _Statement, changes: Changes) -> None:
    ledger = changes.ledger
    statement.insert("transfers_made", TRANSFERS, ledger.transfers, recorded_at=changes.now)
    statement.insert("results_realised", _REALISED, changes.realised, recorded_at=changes.now)
    if ledger.costs_changed:
        # What is owned and held is moved by the transfers above: the database does it when the statement ends (migration 0007).
        rows = []
        for account in sorted(ledger.costs_changed):
            balance = ledger.balances[account]
            rows.append((*account, balance.cost_quantity, balance.cost_usd))
        statement.add(
            "costs_moved",
            lambda first: (
                "INSERT INTO balances (user_id, exchange, book, asset, posted, pending, cost_quantity, cost_usd) "  # noqa: S608 — literals
                "SELECT user_id, exchange, book, asset, 0, 0, cost_quantity, cost_usd "
                f"FROM unnest(${first}::text[], ${first + 1}::text[], ${first + 2}::text[], ${first + 3}::text[], "
                f"${first + 4}::numeric[], ${first + 5}::numeric[]) AS given (user_id, exchange, book, asset, cost_quantity, cost_usd) "
                "ON CONFLICT (user_id, exchange, book, asset) DO UPDATE SET cost_quantity = EXCLUDED.cost_quantity, "
                "cost_usd = EXCLUDED.cost_usd"
            ),
            columns_of(rows, 6),
            len(rows),
        )


def _trail(statement: _Statement, changes: Changes) -> None:
    events = changes.trail.rows
    statement.insert("events_made", AUDIT_EVENTS, events, recorded_at=changes.now)
    heads = []
    for account in sorted({event.account for event in events} | changes.conduct_moved):
        head, conduct = changes.trail.heads[account], changes.conduct.get(account, Conduct())
        heads.append((account, head.seq, head.hash, conduct.failures_in_row, conduct.failed_at, conduct.message_clock))
    if heads:
        statement.add(
            "chains_moved",
            lambda first: (
                "UPDATE audit_chains SET seq = given.seq, hash = given.hash, failures_in_row = given.failures_in_row, "  # noqa: S608
                "failed_at = given.failed_at, message_clock = given.message_clock "
                f"FROM unnest(${first}::text[], ${first + 1}::bigint[], ${first + 2}::text[], ${first + 3}::integer[], "
                f"${first + 4}::timestamptz[], ${first + 5}::timestamptz[]) "
                "AS given (account, seq, hash, failures_in_row, failed_at, message_clock) WHERE audit_chains.account = given.account"
            ),
            columns_of(heads, 6),
            len(heads),
        )


def _users(statement: _Statement, changes: Changes) -> None:
    """What the gate remembers of users: sums of real orders per day, symbols, tries of the second factor, who is frozen, which keys were
    refused."""
    days: dict[tuple[str, date], tuple[int, Decimal]] = {}
    for order_id in changes.orders.made:
        order = changes.orders[order_id]
        if order.mode is not Mode.LIVE:
            continue
        key = order.user_id, order.decided_at.date()
        trades, volume = days.get(key, (0, Decimal(0)))
        days[key] = trades + 1, volume + order.usd_value
    if days:
        statement.add(
            "days_moved",
            lambda first: (
                "INSERT INTO user_days AS known (user_id, day, trades, volume_usd) "  # noqa: S608 — literals
                f"SELECT * FROM unnest(${first}::text[], ${first + 1}::date[], ${first + 2}::integer[], ${first + 3}::numeric[]) "
                "ON CONFLICT (user_id, day) DO UPDATE SET trades = known.trades + EXCLUDED.trades, "
                "volume_usd = known.volume_usd + EXCLUDED.volume_usd"
            ),
            columns_of([(*key, *sums) for key, sums in sorted(days.items())], 4),
            len(days),
        )
    if changes.symbols_new:
        symbols = sorted(changes.symbols_new)
        statement.add(
            "symbols_made",
            lambda first: (
                "INSERT INTO user_symbols (user_id, symbol, first_at) "  # noqa: S608 — literals
                f"SELECT user_id, symbol, ${first + 2} FROM unnest(${first}::text[], ${first + 1}::text[]) AS given (user_id, symbol)"
            ),
            [*columns_of(symbols, 2), changes.now],
            len(symbols),
        )
    if changes.factors:
        # An array per row cannot travel in an array of them: unnest would flatten it. So the times travel as JSON.
        rows = [
            (user_id, factor.last_step, orjson.dumps([format_time(at) for at in factor.wrong_at]).decode(), factor.locked)
            for user_id, factor in sorted(changes.factors.items())
        ]
        statement.add(
            "factors_moved",
            lambda first: (
                "UPDATE second_factors SET last_step = given.last_step, locked = given.locked, "  # noqa: S608 — literals
                "wrong_at = ARRAY(SELECT value::timestamptz FROM jsonb_array_elements_text(given.wrong_at::jsonb) AS value) "
                f"FROM unnest(${first}::text[], ${first + 1}::bigint[], ${first + 2}::text[], ${first + 3}::boolean[]) "
                "AS given (user_id, last_step, wrong_at, locked) WHERE second_factors.user_id = given.user_id"
            ),
            columns_of(rows, 4),
            len(rows),
        )
    if changes.frozen:
        statement.add(
            "users_frozen",
            lambda first: (
                "UPDATE users SET status = 'frozen' "  # noqa: S608 — literals
                f"WHERE user_id = ANY(${first}::text[]) AND status = 'active'"
            ),
            [sorted(changes.frozen)],
            len(changes.frozen),
        )
    if changes.keys_refused:
        keys = [(*key, reason) for key, reason in sorted(changes.keys_refused.items())]
        statement.add(
            "keys_refused",
            lambda first: (
                "UPDATE api_keys SET status = CASE status WHEN 'revoked' THEN status ELSE 'refused' END, "  # noqa: S608 — literals
                "status_reason = given.reason "
                f"FROM unnest(${first}::text[], ${first + 1}::text[], ${first + 2}::text[]) AS given (user_id, api_key_id, reason) "
                "WHERE api_keys.user_id = given.user_id AND api_keys.api_key_id = given.api_key_id"
            ),
            columns_of(keys, 3),
            len(keys),
        )


def _halts(statement: _Statement, changes: Changes) -> None:
    moved = sorted(changes.halts_moved)
    rows = [changes.halts[key] for key in moved if key in changes.halts]
    gone = [(scope.value, target) for scope, target in moved if (scope, target) not in changes.halts]
    if rows:
        statement.add(
            "halts_set",
            lambda first: _HALTS.upsert(first, 2, "set_at"),
            [*_HALTS.arrays(rows), changes.now],
            len(rows),
        )
    if gone:
        statement.add(
            "halts_lifted",
            lambda first: (
                "DELETE FROM halts USING "  # noqa: S608 — literals
                f"unnest(${first}::text[], ${first + 1}::text[]) AS given (scope, target) "
                "WHERE halts.scope = given.scope AND halts.target = given.target"
            ),
            columns_of(gone, 2),
            len(gone),
        )


async def _cancels(connection: PoolConnectionProxy, changes: Changes) -> None:
    """After the orders they refer to, and one statement after the other: a batch may make a cancel and end it."""
    if changes.cancels_made:
        await connection.execute(CANCELS.insert(), *CANCELS.arrays(changes.cancels_made))
    if changes.cancels_repeated:
        await connection.execute(
            "UPDATE cancels SET attempt = given.attempt, attempts_sent = given.attempts_sent "  # noqa: S608 — literals
            f"FROM {CANCEL_ATTEMPTS.unnest()} WHERE {_CANCEL}",
            *CANCEL_ATTEMPTS.arrays(changes.cancels_repeated),
        )
    if changes.cancels_ended:
        await connection.execute(
            f"UPDATE cancels SET ended = true FROM {CANCEL_ATTEMPTS.unnest()} WHERE {_CANCEL}",  # noqa: S608 — literals
            *CANCEL_ATTEMPTS.arrays(changes.cancels_ended),
        )
