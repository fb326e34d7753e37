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
from typing import Final, TypeVar

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
)
from infra.postgres.sessions import remove_old, session_parts
from infra.postgres.withdrawals import WITHDRAWALS, WITHDRAWALS_CHANGING
from pipeline.books.changes import Changes
from pipeline.model.conduct import Conduct
from pipeline.model.invariants import InvariantViolation
from pipeline.model.tracked import Tracked
from schemas.orders import Mode
from schemas.results import RESULT
from schemas.wire import format_time

_CANCEL: Final = " AND ".join(f"cancels.{name} = given.{name}" for name, _, _ in CANCEL_ATTEMPTS.columns[:4])

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


async def store(connection: PoolConnectionProxy, changes: Changes, claims_older_than: datetime, subject: str) -> None:
    """Writes everything that `changes` holds. Raises InvariantViolation when the database disagrees with what was loaded."""
    statement = _Statement()
    _claims(statement, changes, claims_older_than)
    _orders(statement, changes)
    _withdrawals(statement, changes)
    _deposits(statement, changes)
    _ledger(statement, changes)
    _trail(statement, changes)
    _users(statement, changes)
    _halts(statement, changes)
    _set_aside(statement, changes)
    for part in (*drift_parts(changes), *session_parts(changes), *proposal_parts(changes)):
        statement.add(*part)
    await statement.run(connection, subject)
    await remove_old(connection, changes)
    await _cancels(connection, changes)
    await _announcements(connection, changes, subject)
    await _corrections(connection, changes)


def _claims(statement: _Statement, changes: Changes, older_than: datetime) -> None:
    claims = [changes.claims[key] for key in changes.claimed]
    if claims:
        assignments = ", ".join(f"{name} = EXCLUDED.{name}" for name, _, _ in CLAIMS.columns[2:])
        # A row that is still there has expired, or its answer would have been given again; it is taken over.
        statement.add(
            "claims_made",
            lambda first: (
                f"{CLAIMS.insert(first)} ON CONFLICT (user_id, idempotency_key) DO UPDATE SET {assignments} "
                f"WHERE claims.result IS NOT NULL AND {KEY_LIVES_FROM} <= ${first + len(CLAIMS.columns)}"
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


def _entities(
    statement: _Statement,
    name: str,
    columns: tuple[Columns[T], Columns[T]],
    rows: Tracked[T],
    only: str = "",
) -> None:
    """Adds what was made and what was moved of one kind, by id. `columns` are the whole row's and those that change; `only` is a further
    condition on what may move."""
    whole, changing = columns
    new = [rows[entity_id] for entity_id in rows.made]
    if new:
        statement.add(f"{name}_made", whole.insert, whole.arrays(new), len(new))
    moved = [rows[entity_id] for entity_id in rows.changed]
    if moved:
        statement.add(f"{name}_moved", lambda first: changing.update(first, only), changing.arrays(moved), len(moved))


def _orders(statement: _Statement, changes: Changes) -> None:
    _entities(statement, "orders", (ORDERS, ORDERS_CHANGING), changes.orders)


def _withdrawals(statement: _Statement, changes: Changes) -> None:
    _entities(statement, "withdrawals", (WITHDRAWALS, WITHDRAWALS_CHANGING), changes.withdrawals)


def _deposits(statement: _Statement, changes: Changes) -> None:
    book = changes.deposits
    _entities(statement, "deposits", (DEPOSITS, DEPOSITS_CHANGING), book.deposits)
    if book.disputes_made:
        statement.add(
            "disputes_made",
            lambda first: DISPUTES.insert(first, noted_at=first + len(DISPUTES.columns)),
            [*DISPUTES.arrays(book.disputes_made), changes.now],
            len(book.disputes_made),
        )


def _ledger(statement: _Statement, changes: Changes) -> None:
    ledger = changes.ledger
    if ledger.transfers:
        statement.add(
            "transfers_made",
            lambda first: TRANSFERS.insert(first, recorded_at=first + len(TRANSFERS.columns)),
            [*TRANSFERS.arrays(ledger.transfers), changes.now],
            len(ledger.transfers),
        )
    if changes.realised:
        results = [(found.order_id, found.cum_quantity, found.fee_usd, found.user_id, found.usd) for found in changes.realised]
        statement.add(
            "results_realised",
            lambda first: (
                "INSERT INTO realised_results (order_id, cum_quantity, fee_usd, user_id, usd, recorded_at) "  # noqa: S608 — literals
                f"SELECT given.*, ${first + 5} FROM unnest(${first}::text[], ${first + 1}::numeric[], ${first + 2}::numeric[], "
                f"${first + 3}::text[], ${first + 4}::numeric[]) AS given"
            ),
            [*columns_of(results, 5), changes.now],
            len(results),
        )
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
    if events:
        statement.add(
            "events_made",
            lambda first: AUDIT_EVENTS.insert(first, recorded_at=first + len(AUDIT_EVENTS.columns)),
            [*AUDIT_EVENTS.arrays(events), changes.now],
            len(events),
        )
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
    rows = [
        (scope.value, target, found.halt.level.value, found.reason, found.set_by, found.command_id, found.cancel_open)
        for scope, target in moved
        if (found := changes.halts.get((scope, target))) is not None
    ]
    gone = [(scope.value, target) for scope, target in moved if (scope, target) not in changes.halts]
    if rows:
        statement.add(
            "halts_set",
            lambda first: (
                "INSERT INTO halts (scope, target, level, reason, set_by, command_id, cancel_open, set_at) "  # noqa: S608 — literals
                f"SELECT given.*, ${first + 7} FROM unnest(${first}::text[], ${first + 1}::text[], ${first + 2}::text[], "
                f"${first + 3}::text[], ${first + 4}::text[], ${first + 5}::text[], ${first + 6}::boolean[]) AS given "
                "ON CONFLICT (scope, target) DO UPDATE SET level = EXCLUDED.level, reason = EXCLUDED.reason, set_by = EXCLUDED.set_by, "
                "command_id = EXCLUDED.command_id, cancel_open = EXCLUDED.cancel_open, set_at = EXCLUDED.set_at"
            ),
            [*columns_of(rows, 7), changes.now],
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


def _set_aside(statement: _Statement, changes: Changes) -> None:
    if changes.set_aside:
        now = len(QUARANTINE.columns)
        statement.add(
            "records_set_aside",
            lambda first: QUARANTINE.insert(first, set_aside_at=first + now, last_at=first + now),
            [*QUARANTINE.arrays(changes.set_aside), changes.now],
            len(changes.set_aside),
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


async def _announcements(connection: PoolConnectionProxy, changes: Changes, subject: str) -> None:
    """After the deposits they refer to."""
    book, statement = changes.deposits, _Statement()
    columns = ANNOUNCEMENTS, ANNOUNCEMENTS_CHANGING
    # Fewer rows than answers: a request would get a second final answer.
    only = " AND deposit_announcements.executed_at IS NULL"
    _entities(statement, "announcements", columns, book.announcements, only)
    await statement.run(connection, subject)
