"""Circuit breakers: a cause that cannot be looked for does not keep the others from stopping trading."""

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import pytest

import agents.watches.circuit_breakers
from agents.watches.circuit_breakers import CircuitBreakers, TripRules
from agents.watches.watch import WatchContext
from infra.postgres.database import Database
from pipeline.model.halts import NO_HALTS
from schemas.commands import HaltScope
from tests.unit.builders import EXCHANGE, NOW, RULES, TOPICS, WIDE_LIMITS, market_data


class _Database:
    @asynccontextmanager
    async def connection(self) -> Any:
        yield None


def _trips() -> CircuitBreakers:
    old = market_data(observed_at=NOW - timedelta(hours=1))
    return CircuitBreakers(
        WatchContext(cast("Database", _Database()), cast("Any", None), lambda _: [], TOPICS, RULES, lambda: NOW),
        market_data=lambda: {EXCHANGE: old},
        limits=WIDE_LIMITS,
        calls={},
        trip_rules=TripRules(25, timedelta(minutes=10), timedelta(seconds=30)),
    )


@pytest.mark.parametrize("broken", ["exchanges_in_doubt", "users_over_loss_limit", "newest_events"])
async def test_cause_that_cannot_be_looked_for_leaves_the_others(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """One damaged row in what one cause reads: stale prices still stop their exchange, and the sales are read again by the next look."""

    async def fails(*_: Any) -> Any:
        raise KeyError("a damaged row")

    async def nothing(*_: Any) -> Any:
        return {}

    async def no_events(*_: Any) -> Any:
        return []

    async def no_halts(_: Any) -> Any:
        return NO_HALTS

    monkeypatch.setattr(agents.watches.circuit_breakers, "read_halts", no_halts)
    monkeypatch.setattr(agents.watches.circuit_breakers, "exchanges_in_doubt", nothing)
    monkeypatch.setattr(agents.watches.circuit_breakers, "users_over_loss_limit", nothing)
    monkeypatch.setattr(agents.watches.circuit_breakers, "newest_events", no_events)
    monkeypatch.setattr(agents.watches.circuit_breakers, broken, fails)
    trips = _trips()
    (trip,) = await trips.look(NOW)
    assert (trip.scope, trip.target) == (HaltScope.EXCHANGE, EXCHANGE)
    assert trips._losses_seen == (broken != "users_over_loss_limit")
