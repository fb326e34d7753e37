"""Whether trading was stopped by the system itself in a demonstration: its faults are over in seconds, so no exchange may be halted.

Users may: one whose losses reach the limit is meant to be.
"""

import orjson

from infra.postgres.database import Database
from schemas.commands import TRIPS_ACCOUNT, HaltScope
from verification.promises.finding import Check, Finding


class OwnHalts:
    """The halts of exchanges, and of everything, that no operator has asked for. Made before the load: those before it do not count."""

    def __init__(self, database: Database, before: int) -> None:
        self._database = database
        self._before = before

    @classmethod
    async def watched(cls, database: Database) -> "OwnHalts":
        """Begins to count. Raises Retryable when the database is out of reach."""
        return cls(database, await _newest(database))

    async def finding(self) -> Finding:
        """One breach for each, with its reason. Raises Retryable when the database is out of reach."""
        check = Check("no_exchange_halted", "faults, restarts and lags that are over in seconds halt no exchange", checked=1)
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT body FROM audit_events WHERE account = $1 AND seq > $2 ORDER BY seq", TRIPS_ACCOUNT, self._before
            )
        for event in (orjson.loads(row["body"]) for row in rows):
            if event.get("halt_scope") in {HaltScope.EXCHANGE, HaltScope.ALL}:
                check.breach(f"{event.get('halt_target') or 'everything'} was halted: {event.get('reason')}")
        return check.finding()


async def _newest(database: Database) -> int:
    async with database.connection() as connection:
        return int(await connection.fetchval("SELECT coalesce(max(seq), 0) FROM audit_events WHERE account = $1", TRIPS_ACCOUNT))
