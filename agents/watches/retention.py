"""Removes what is over, a little every minute, so that nothing grows but the books (infra/postgres/retention).

- Rows of working tables, by every worker: each takes what the others have not locked.
- Snapshots on the compacted `trade.state`, by a record without a value for each key: by the worker that owns partition 0 of the exchange's
  queue. A record that comes twice removes nothing more.

Invariants:
1. What can still change is never removed: an order or withdrawal that is watched is younger than any retention (`Settings` bounds it).
2. A look does a bounded amount of work, and a table or exchange that fails does not stop the others.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Final

import structlog

from agents.watches.looks import by_itself
from agents.watches.watch import Watch, WatchContext
from infra.postgres.retention import TABLES, StateKind, next_ended, note_removed, purge, purge_claims
from infra.settings import Settings

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 60.0
_SNAPSHOTS_AT_ONCE: Final = 1_000
_SNAPSHOT_SECONDS_MAX: Final = 5.0
_KINDS: Final[tuple[StateKind, ...]] = ("order", "withdrawal", "deposit")


@dataclass(frozen=True, slots=True)
class Retentions:
    """How long what is over is kept; None for ever."""

    state: timedelta | None
    records: timedelta | None


def retentions_of(settings: Settings) -> Retentions:
    """The times that the settings say."""
    state, records = settings.state_retention_days, settings.record_retention_days
    return Retentions(timedelta(days=state) if state else None, timedelta(days=records) if records else None)


class Retention:
    """Removes rows of tables, and the snapshots of these exchanges."""

    def __init__(self, context: WatchContext, exchanges: Sequence[str], retentions: Retentions) -> None:
        self._context = context
        self._exchanges = exchanges
        self._retentions = retentions

    @property
    def watch(self) -> Watch:
        return Watch("retention", _LOOK_SECONDS, self.look)

    async def look(self) -> None:
        """One look. Raises Retryable and KafkaError."""
        now = self._context.clock()
        # A record that is just not stale yet was appended a lifetime ago, and asks for claims of requests that ended in the lifetime
        # before that. One hour for clocks that differ and for what is under way.
        claims_until = now - 2 * self._context.rules.key_lifetime - timedelta(hours=1)
        self._tell("claims", await by_itself("retention", "claims", partial(purge_claims, self._context.database, claims_until)))
        if self._retentions.records is not None:
            for table in TABLES:
                found = await by_itself("retention", table, partial(purge, self._context.database, table, now - self._retentions.records))
                self._tell(table, found)
        for exchange in self._exchanges:
            if 0 in self._context.owned(exchange):
                for kind in _KINDS:
                    self._tell("snapshots", await by_itself("retention", exchange, partial(self._snapshots, kind, exchange)))

    def _tell(self, what: str, removed: int | None) -> None:
        if removed:
            log.info("removed", what=what, count=removed)

    async def _snapshots(self, kind: StateKind, exchange: str) -> int:
        if self._retentions.state is None:
            return 0
        removed, stop_at = 0, monotonic() + _SNAPSHOT_SECONDS_MAX
        older_than = self._context.clock() - self._retentions.state
        while monotonic() < stop_at:
            part = await next_ended(self._context.database, kind, exchange, older_than, _SNAPSHOTS_AT_ONCE)
            if part is None:
                break
            sent = [await self._context.producer.send(self._context.topics.state, None, key=key.encode()) for key in part.keys]
            await asyncio.gather(*sent)
            await note_removed(self._context.database, part)
            removed += len(part.keys)
        return removed
