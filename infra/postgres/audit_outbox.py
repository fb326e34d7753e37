"""The outbox of administration: audit events that are stored and that the broker has not acknowledged yet.

Workers publish their own events with their batches (infra/postgres/step). Events of administration have no input record to come with, so
each leaves a row here, in the transaction that stores it, which goes when the broker has it.

Invariants:
1. An event of administration and its row here are written by one transaction: none can be forgotten.
2. One publisher at a time: nobody publishes what another is publishing. A publisher that dies before its rows are deleted leaves them to
   the next one, which publishes the same keys and bytes again; in no other case is anything published twice.

Start with `publish_pending`.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import asyncpg

from infra.postgres.database import Connection, Database
from infra.postgres.rows import columns_of
from pipeline.books.audit import AuditRow

# Any number will do, as long as it is always the same: the lock's name.
_LOCK: Final = 7_020_112
_BATCH: Final = 500

Send = Callable[[Sequence[AuditRow]], Awaitable[None]]


async def await_publication(connection: Connection, rows: Sequence[AuditRow]) -> None:
    """Notes events as stored and not published, inside the transaction that stores them."""
    await connection.execute(
        "INSERT INTO audit_outbox (account, seq) SELECT * FROM unnest($1::text[], $2::bigint[])",
        *columns_of([(row.account, row.seq) for row in rows], 2),
    )


async def publish_pending(database: Database, send: Send) -> int:
    """Hands everything that waits to `send`, oldest first, in batches; returns how many.

    `send` returns when the broker has acknowledged all of them, and raises otherwise: then they go on waiting. It must take less time than
    the database lets a transaction idle.
    """
    published = 0
    while True:
        async with database.connection() as connection, connection.transaction():
            # Behind it the next statement sees what the publisher before has deleted.
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            found = await connection.fetch(
                """
                SELECT account, seq, event_id, order_id, hash, body FROM audit_outbox JOIN audit_events USING (account, seq)
                ORDER BY recorded_at, account, seq LIMIT $1
                """,
                _BATCH,
            )
            rows = [audit_row(row) for row in found]
            if rows:
                await send(rows)
                await connection.execute(
                    """
                    DELETE FROM audit_outbox USING unnest($1::text[], $2::bigint[]) AS gone (account, seq)
                    WHERE audit_outbox.account = gone.account AND audit_outbox.seq = gone.seq
                    """,
                    *columns_of([(row.account, row.seq) for row in rows], 2),
                )
        published += len(rows)
        if len(rows) < _BATCH:
            return published


def audit_row(row: asyncpg.Record) -> AuditRow:
    """An event as it is published, from its row."""
    return AuditRow(row["account"], row["seq"], row["event_id"], row["order_id"], row["hash"], row["body"].encode())
