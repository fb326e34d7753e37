"""What operators do with a record that was set aside: it is published again, or dropped as dealt with. Audited in a chain of its own."""

from typing import Final

from infra.postgres.admin.accounts import store_events
from infra.postgres.admin.administration import Done, NotDone
from infra.postgres.admin.operators import By
from infra.postgres.database import Database
from infra.postgres.quarantine import Kept, kept_of
from infra.postgres.step import lock_chains
from pipeline.books.audit import AuditTrail, Value
from pipeline.model.quarantine import QUARANTINE_ACCOUNT, QuarantineState
from schemas.audit import EventType

_MOVED: Final = {
    QuarantineState.RETRIED: (EventType.RECORD_RETRIED, "published again"),
    QuarantineState.DROPPED: (EventType.RECORD_DROPPED, "dropped as dealt with"),
}


async def kept_record(database: Database, quarantine_id: str) -> Kept:
    """One entry. Raises NotDone where there is none, Retryable when the database is out of reach."""
    async with database.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM quarantine WHERE quarantine_id = $1", quarantine_id)
    if row is None:
        raise NotDone(f"Nothing is set aside as {quarantine_id}. Nothing was changed. `orchestrator quarantine list` shows what is.")
    return kept_of(row)


async def move_record(database: Database, quarantine_id: str, state: QuarantineState, by: By) -> Done:
    """Marks an open entry. Raises NotDone where there is none; one that is marked so already is no change."""
    event_type, what = _MOVED[state]
    async with database.connection() as connection, connection.transaction():
        heads = await lock_chains(connection, [QUARANTINE_ACCOUNT])
        row = await connection.fetchrow("SELECT * FROM quarantine WHERE quarantine_id = $1 FOR UPDATE", quarantine_id)
        if row is None:
            raise NotDone(f"Nothing is set aside as {quarantine_id}. Nothing was changed. `orchestrator quarantine list` shows what is.")
        if row["state"] != QuarantineState.OPEN:
            return Done(f"{quarantine_id} is {row['state']} already, by {row['moved_by']}; nothing was changed.", changed=False)
        kept = kept_of(row)
        await connection.execute(
            "UPDATE quarantine SET state = $2, moved_at = $3, moved_by = $4 WHERE quarantine_id = $1",
            quarantine_id,
            state.value,
            by.at,
            by.operator.name,
        )
        trail = AuditTrail(heads, by.at)
        fields: dict[str, Value] = {
            **by.facts(),
            "request_id": quarantine_id,
            "target_id": quarantine_id,
            "user_id": row["user_id"] or None,
            "reason": by.reason,
            "evidence": [f"record {kept.source}", *([kept.subject] if kept.subject else [])],
        }
        trail.append(QUARANTINE_ACCOUNT, None, event_type, fields)
        await store_events(connection, trail, by.at)
    return Done(f"{quarantine_id} (record {kept.source}) is {what}.")
