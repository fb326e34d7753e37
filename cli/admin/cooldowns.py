"""Which users' cooldowns run, and until when: what `users show` and `status` tell of them. Reads only."""

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.access.database import Row
from cli.access.installation import Installation
from infra.limits import limits_of

COOLDOWN_COLUMNS: Final = ("user_id", "failures_in_row", "failed_at", "until")
# The same as pipeline.gate.throttle.cooldown_end, with the user's own limits in the place of the installation's.
_RUNNING: Final = text("""
    SELECT users.user_id, chain.failures_in_row, chain.failed_at,
        chain.failed_at + coalesce(lasting.amount, :seconds) * interval '1 second' AS until
    FROM users
    JOIN audit_chains AS chain ON chain.account = users.user_id
    LEFT JOIN user_limits AS counted ON counted.user_id = users.user_id AND counted.name = 'cooldown_failures'
    LEFT JOIN user_limits AS lasting ON lasting.user_id = users.user_id AND lasting.name = 'cooldown'
    WHERE chain.failures_in_row >= coalesce(counted.amount, :failures)
        AND chain.failed_at + coalesce(lasting.amount, :seconds) * interval '1 second' > now()
        AND (CAST(:user_id AS text) IS NULL OR users.user_id = :user_id)
    ORDER BY users.user_id LIMIT 1000
""")


async def running_cooldowns(connection: AsyncConnection, installation: Installation, user_id: str | None = None) -> list[Row]:
    """The cooldowns that run now: of one user, or of the first thousand."""
    limits = limits_of(installation.settings)
    parameters = {"seconds": int(limits.cooldown.total_seconds()), "failures": limits.cooldown_failures, "user_id": user_id}
    return [dict(row) for row in (await connection.execute(_RUNNING, parameters)).mappings()]
