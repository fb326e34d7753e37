"""What trips: an audit trail that does not add up, prices that are old. What is not so trips nothing."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import sha256

import pytest

from agents.trips import TripRules, Trips, broken_trail
from infra.postgres.trips import StoredEvent
from pipeline.audit import AuditTrail, ChainHead
from pipeline.gate.context import Limits
from pipeline.venue import MarketData, Quote
from schemas.audit import EventType
from tests.unit.builders import NOW, market_data


def _events(account: str, count: int, shown: int = 5) -> list[StoredEvent]:
    """The newest events of an account as the database gives them."""
    trail = AuditTrail({account: ChainHead()}, NOW)
    for _ in range(count):
        trail.append(account, None, EventType.REQUEST_REJECTED, {"actor": "test", "ts_event": NOW})
    head = trail.heads[account]
    return [StoredEvent(account, head.seq, head.hash, row.seq, row.hash, row.body.decode()) for row in trail.rows[-shown:]]


def _rehashed(event: StoredEvent, body: str) -> StoredEvent:
    return replace(event, body=body, hash=sha256(body.encode()).hexdigest())


def test_sound_trails_trip_nothing() -> None:
    """Also one that began before the events that are looked at, and an account whose neighbours are other ones."""
    assert broken_trail([]) is None
    assert broken_trail([*_events("alice", 1), *_events("bob", 12), *_events("carl", 5)]) is None


def _changed(events: list[StoredEvent]) -> list[StoredEvent]:
    return [replace(events[0], body=(events[0].body or "").replace("test", "tent")), *events[1:]]


def _changed_with_its_hash(events: list[StoredEvent]) -> list[StoredEvent]:
    return [_rehashed(events[0], (events[0].body or "").replace("test", "tent")), *events[1:]]


def _removed(events: list[StoredEvent]) -> list[StoredEvent]:
    return [events[0], *events[2:]]


def _cut(events: list[StoredEvent]) -> list[StoredEvent]:
    return events[:-1]


def _all_removed(events: list[StoredEvent]) -> list[StoredEvent]:
    return [replace(events[0], seq=None, hash=None, body=None)]


def _newest_rewritten(events: list[StoredEvent]) -> list[StoredEvent]:
    return [*events[:-1], _rehashed(events[-1], (events[-1].body or "").replace("test", "tent"))]


@pytest.mark.parametrize("change", [_changed, _changed_with_its_hash, _removed, _cut, _all_removed, _newest_rewritten])
def test_trail_that_was_changed_is_found(change: object) -> None:
    """A changed event, one with a new hash of its own, one that is gone in the middle, at the end, all of them."""
    assert callable(change)
    events = [*_events("alice", 3), *change(_events("bob", 8)), *_events("carl", 2)]
    assert broken_trail(events) == "bob"


class _Looking(Trips):
    """Trips whose prices a test gives; what needs a database is not asked."""

    def __init__(self, known: MarketData, began_at: datetime) -> None:
        super().__init__(
            database=None,  # type: ignore[arg-type]  # not asked
            producer=None,
            topic="t",
            market_data=lambda: {"binance": known},
            limits=Limits(),
            rules=TripRules(3, timedelta(seconds=60)),
            clock=lambda: began_at,
        )


@pytest.mark.parametrize(
    ("age", "stale"), [(timedelta(seconds=60), False), (timedelta(seconds=60, microseconds=1), True)]
)
def test_exchange_is_stale_when_its_newest_price_is_too_old(age: timedelta, stale: bool) -> None:
    """One price that is new enough is enough; before the first one the worker's start counts."""
    old = market_data(observed_at=NOW - timedelta(hours=1))
    one_newer = replace(old, quotes={**old.quotes, "ETH/BTC": Quote(Decimal(1), NOW - age)})
    assert bool(_Looking(one_newer, NOW).stale_prices(NOW)) is stale
    none_yet = replace(old, quotes={})
    assert bool(_Looking(none_yet, NOW - age).stale_prices(NOW)) is stale
