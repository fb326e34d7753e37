"""`approvals`: what one operator asks for and a second one approves (infra/postgres/admin/approvals). Start with `decide`."""

from typing import Final

from sqlalchemy import text

from cli.access.administration import administering, asking
from cli.access.credentials import usage
from cli.access.database import Row, reading, rows_of
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.terminal.output import print_table, printable, write_line
from infra.postgres.admin.approvals import decide_request

_ID_LENGTH_MAX: Final = 64
# Where a request stands, as `infra.postgres.admin.approvals.standing_of` says it.
REQUESTS: Final = text("""
    SELECT request_id, CASE WHEN used_at IS NOT NULL THEN 'used' WHEN refused_at IS NOT NULL THEN 'refused'
            WHEN expires_at <= now() THEN 'too old' WHEN approved_at IS NOT NULL THEN 'approved' ELSE 'waiting' END AS standing,
        command, target_id, what, requested_by, reason, requested_at, expires_at, COALESCE(approved_by, refused_by) AS decided_by,
        COALESCE(approved_at, refused_at) AS decided_at, decision_reason, used_at
    FROM administration_requests
    WHERE CAST(:all AS boolean) OR (used_at IS NULL AND refused_at IS NULL AND expires_at > now())
    ORDER BY requested_at DESC, request_id LIMIT :limit
""")
COLUMNS: Final = (
    "request_id", "standing", "command", "target_id", "what", "requested_by", "reason", "expires_at", "decided_by", "decision_reason",
)  # fmt: skip


async def show(installation: Installation, *, everything: bool, limit: int, as_json: bool) -> None:
    """Prints requests, the newest first: those that can still be decided or used, or with `everything` all. Raises CommandFailed."""
    async with reading(installation) as connection:
        rows: list[Row] = await rows_of(connection, REQUESTS, all=everything, limit=limit)
    print_table(rows, COLUMNS, as_json=as_json, nothing="Nothing waits for a second operator.")


async def decide(installation: Installation, request_id: str, *, approve: bool, reason: str, credentials: Credentials) -> None:
    """Approves or refuses a request. Raises CommandFailed."""
    if not (request_id.isascii() and request_id.isalnum() and len(request_id) <= _ID_LENGTH_MAX):
        raise usage("A request's id is letters and digits, as `orchestrator approvals list` shows it.")
    asked = asking(f"approvals {'approve' if approve else 'refuse'}", request_id, credentials, reason)
    async with administering(installation) as administration:
        by = await administration.by(asked)
        wanted = await decide_request(administration.database, request_id, by, approve=approve)
        what = f"`{wanted.command}` on {printable(wanted.target_id)} ({printable(wanted.what)})"
        write_line(f"Approved: {what}. Whoever asked for it gives the command again." if approve else f"Refused: {what} is not done.")
        await administration.publish()
