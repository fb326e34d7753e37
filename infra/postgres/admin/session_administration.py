"""How operators end sessions. Built on the parts of infra/postgres/admin/administration."""

from typing import Final

from infra.postgres.admin.administration import Done, NotDone, changing_user
from infra.postgres.admin.operators import By
from infra.postgres.database import Database
from schemas.audit import EventType

_BY_OPERATOR: Final = "an operator revoked it"


async def revoke_sessions(database: Database, user_id: str, session_id: str | None, by: By) -> Done:
    """Ends one session of a user, or all of them. Raises NotDone for a session that is none of the user's."""
    async with changing_user(database, user_id, by) as changing:
        rows = await changing.connection.fetch(
            """
            UPDATE sessions SET ended_at = greatest($3, started_at), ended_because = $4
            WHERE user_id = $1 AND ($2::text IS NULL OR session_id = $2) AND ended_at IS NULL AND expires_at > $3 RETURNING session_id
            """,
            user_id,
            session_id,
            by.at,
            _BY_OPERATOR,
        )
        if not rows and session_id is not None:
            known = await changing.connection.fetchval(
                "SELECT true FROM sessions WHERE user_id = $1 AND session_id = $2", user_id, session_id
            )
            if not known:
                raise NotDone(f"User {user_id} has no session {session_id}. Nothing was changed. `orchestrator sessions list` shows all.")
        for row in rows:
            changing.record(EventType.SESSION_ENDED, f"session {row['session_id']} revoked", more={"target_id": row["session_id"]})
    if not rows:
        return Done(f"User {user_id} has no session that could be revoked; nothing was changed.", changed=False)
    count = f"{len(rows)} session{'s' if len(rows) > 1 else ''}"
    return Done(f"Revoked {count} of user {user_id}: what was begun with {'them' if len(rows) > 1 else 'it'} is confirmed no more.")
