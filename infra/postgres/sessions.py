"""Sessions in the database: columns, what a step loads, and what is stored with a batch (infra/postgres/storing).

A session's row is read and moved under its user's lock. One that is over is kept for a day, so that a record that waited is told why, and
removed when its user begins another.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
from asyncpg import Record
from asyncpg.pool import PoolConnectionProxy

from infra.postgres.rows import Columns, plain
from pipeline.books.changes import Changes
from pipeline.model.session import Session

_KEPT: Final = timedelta(days=1)
Part = tuple[str, Callable[[int], str], Sequence[object], int]

SESSIONS: Columns[Session] = Columns(
    "sessions",
    (
        *plain(
            text="session_id user_id issuer_key request_id ended_because",
            bigint="generation orders_max orders_used",
            numeric="amount_usd_max amount_usd_used",
            timestamptz="started_at expires_at ended_at",
        ),
        ("symbols", "text", lambda one: None if one.symbols is None else orjson.dumps(sorted(one.symbols)).decode()),
    ),
)
_CHANGING: Final = SESSIONS.only("session_id", "amount_usd_used", "orders_used", "ended_at", "ended_because")

_WANTED: Final = """
    SELECT * FROM sessions WHERE session_id = ANY($1::text[])
    UNION SELECT * FROM sessions WHERE user_id = ANY($2::text[]) AND ended_at IS NULL AND expires_at > $3
"""


def session_of(row: Record) -> Session:
    """One row of `sessions`."""
    fields: dict[str, Any] = {name: row[name] for name, _, _ in SESSIONS.columns}
    if row["symbols"] is not None:
        fields["symbols"] = frozenset(orjson.loads(row["symbols"]))
    return Session(**fields)


async def sessions(
    connection: PoolConnectionProxy, session_ids: Sequence[str], beginning: Sequence[str], now: datetime
) -> dict[str, Session]:
    """Those of these sessions that have begun, by id; of the users in `beginning`, who begin one, all that are not over as well."""
    if not session_ids and not beginning:
        return {}
    # A worker's clock may be ahead of the broker's, by which a session ends: what is a little over counts as open for longer, not shorter.
    rows = await connection.fetch(_WANTED, session_ids, beginning, now - timedelta(hours=1))
    return {row["session_id"]: session_of(row) for row in rows}


def session_parts(changes: Changes) -> Iterator[Part]:
    """The parts of a batch's statement that store its sessions."""
    begun = [changes.sessions[session_id] for session_id in sorted(changes.sessions_begun)]
    if begun:
        yield "sessions_begun", lambda first: SESSIONS.upsert(first, 1), SESSIONS.arrays(begun), len(begun)
    moved = [changes.sessions[session_id] for session_id in sorted(changes.sessions_moved - changes.sessions_begun)]
    if moved:
        # A session that has ended meanwhile confirms nothing: the batch is rolled back, and decided again.
        yield "sessions_moved", lambda first: _CHANGING.update(first, " AND sessions.ended_at IS NULL"), _CHANGING.arrays(moved), len(moved)


async def remove_old(connection: PoolConnectionProxy, changes: Changes) -> None:
    """Removes what was over for a day of those users who begin a session now."""
    begun = [changes.sessions[session_id] for session_id in sorted(changes.sessions_begun)]
    if begun:
        await connection.execute(
            "DELETE FROM sessions WHERE user_id = ANY($1::text[]) AND expires_at < $2 AND session_id <> ALL($3::text[])",
            [one.user_id for one in begun],
            changes.now - _KEPT,
            [one.session_id for one in begun],
        )
