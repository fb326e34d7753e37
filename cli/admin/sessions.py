"""`sessions`: what one code of a user's second factor lets later trades do, and how an operator ends it. Start with `show`."""

import re
from typing import Final

from sqlalchemy import text

from cli.access.administration import asking, change, user_id_of
from cli.access.credentials import usage
from cli.access.database import Row, reading, rows_of
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.terminal.output import print_table
from infra.postgres.admin.session_administration import revoke_sessions
from schemas.requests import SESSION_ID

# What `pipeline.model.session.Session.is_open` says, in SQL, with the reason.
_LISTED: Final = text("""
    SELECT session_id, user_id, started_at, expires_at, orders_used, orders_max, amount_usd_used, amount_usd_max, symbols,
        CASE WHEN ended_at IS NOT NULL OR generation <> session_generation THEN 'revoked'
             WHEN expires_at <= now() THEN 'over'
             WHEN orders_used >= orders_max THEN 'used up' ELSE 'open' END AS standing,
        CASE WHEN ended_at IS NULL AND generation <> session_generation THEN 'its user''s status or second factor changed'
             ELSE ended_because END AS ended_because
    FROM sessions JOIN users USING (user_id)
    WHERE (CAST(:user_id AS text) IS NULL OR user_id = :user_id)
      AND (CAST(:all AS boolean)
           OR (ended_at IS NULL AND generation = session_generation AND expires_at > now() AND orders_used < orders_max))
    ORDER BY started_at DESC, session_id LIMIT :limit
""")
_COLUMNS: Final = (
    "session_id", "user_id", "standing", "started_at", "expires_at", "orders_used", "orders_max", "amount_usd_used", "amount_usd_max",
    "symbols", "ended_because",
)  # fmt: skip


async def show(installation: Installation, user_id: str | None, *, everything: bool, limit: int, as_json: bool) -> None:
    """Prints sessions, the newest first: those that are open, or with `everything` those that were as well. Raises CommandFailed."""
    named = None if user_id is None else user_id_of(user_id)
    async with reading(installation) as connection:
        rows: list[Row] = await rows_of(connection, _LISTED, user_id=named, all=everything, limit=limit)
    print_table(rows, _COLUMNS, as_json=as_json, nothing="There is no session." if everything else "No session is open.")


async def revoke(installation: Installation, user_id: str, session_id: str | None, *, reason: str, credentials: Credentials) -> None:
    """Ends one session of a user, or all that are open. Raises CommandFailed."""
    user_id = user_id_of(user_id)
    asked = asking("sessions revoke", user_id if session_id is None else f"{user_id}/{session_id}", credentials, reason)
    if session_id is not None and not re.fullmatch(SESSION_ID, session_id):
        raise usage("A session's id is s and 32 hexadecimal digits, as `orchestrator sessions list` shows it.")
    await change(installation, asked, lambda database, by: revoke_sessions(database, user_id, session_id, by))
