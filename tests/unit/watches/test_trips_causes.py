"""What trips: an audit trail that does not add up, prices that are old. What is not so trips nothing."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import sha256

import pytest

from agents.steps.conclusion import Outcomes
from agents.steps.execution import batch_of_calls
from agents.watches.circuit_breakers import CircuitBreakers, TripRules, broken_trail
from agents.watches.watch import WatchContext
from infra.postgres.trips import StoredEvent
from pipeline.books.audit import AuditTrail, ChainHead
from pipeline.gate.limits import Limits
from pipeline.model.call_record import BatchOfCalls, CallRecord
from pipeline.model.intents import NotSent
from pipeline.model.venue import InDoubt, MarketData, Quote, Refused
from pipeline.orders.execution import Plan, submission_of
from schemas.audit import EventType
from schemas.orders import Mode, OrderStatus
from schemas.reasons import ReasonCode
from tests.unit.builders import NOW, RULES, TOPICS, market_data, order_of


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


class _Looking(CircuitBreakers):
    """Circuit breakers whose prices a test gives; what needs a database is not asked."""

    def __init__(self, known: MarketData, began_at: datetime, calls: CallRecord | None = None) -> None:
        super().__init__(
            WatchContext(None, None, lambda _: [], TOPICS, RULES, lambda: began_at),  # type: ignore[arg-type]  # neither is asked
            market_data=lambda: {"binance": known},
            calls={"binance": calls or CallRecord()},
            limits=Limits(),
            trip_rules=TripRules(25, timedelta(minutes=10), timedelta(seconds=60)),
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


def _record(*batches: tuple[int, int], seconds_apart: int = 10) -> CallRecord:
    """Batches as (calls, in doubt), the newest now."""
    record = CallRecord()
    for back, (calls, doubts) in zip(range(len(batches) - 1, -1, -1), batches, strict=True):
        record.note(BatchOfCalls(NOW - timedelta(seconds=back * seconds_apart), calls, doubts))
    return record


@pytest.mark.parametrize(
    ("batches", "found"),
    [
        # A network that breaks under a full batch, or between two.
        ([(128, 128)], None),
        ([(10, 0), (64, 64), (64, 64), (10, 0)], None),
        # An exchange that loses answers, of whole batches or of every second order.
        ([(10, 10)] * 3, (30, 30)),
        ([(20, 10)] * 3, (30, 60)),
        ([(1, 1)] * 25, (25, 25)),
        # Ordinary faults: some answers among many are lost.
        ([(50, 10)] * 4, None),
        ([(10, 4)] * 20, None),
        ([(1, 1)] * 24, None),
        # It has answered since.
        ([(10, 10)] * 3 + [(50, 0)], None),
        ([], None),
    ],
)
def test_exchange_loses_answers_when_half_of_the_newest_calls_over_several_batches_say_so(
    batches: list[tuple[int, int]], found: tuple[int, int] | None
) -> None:
    """One interruption, however many orders it meets, is none; nor is a share that any network has."""
    record = _record(*batches)
    assert record.lost_answers(NOW, 25) == found
    assert bool(_Looking(market_data(), NOW, record).lost_answers(NOW)) is (found is not None)


def test_calls_that_are_long_past_say_nothing_about_an_exchange() -> None:
    """Neither by their age, nor behind two hundred newer ones; and what was kept is bounded."""
    assert _record(*[(10, 10)] * 3, seconds_apart=400).lost_answers(NOW, 25) is None
    record = _record(*[(10, 10)] * 3, *[(50, 0)] * 4)
    assert record.lost_answers(NOW, 1) is None
    assert len(record.batches) == 4


def test_exchange_that_was_halted_for_lost_answers_has_another_chance_when_it_is_resumed() -> None:
    """Otherwise a resume would last no longer than a look."""
    record = _record(*[(10, 10)] * 3)
    record.forget()
    assert record.lost_answers(NOW, 25) is None


def test_calls_of_a_batch_are_what_was_sent_to_the_exchange_and_how_it_answered() -> None:
    """Not what was never sent, nor simulated orders; and nothing of what a worker that died has left: that is no answer."""
    ids = ["a", "b", "c", "d", "paper"]
    sent = order_of(status=OrderStatus.SUBMITTING)
    orders = [replace(sent, order_id=one, mode=Mode.PAPER if one == "paper" else Mode.LIVE) for one in ids]
    decided = Plan([submission_of(order) for order in orders])
    outcomes = Outcomes(
        submitted={
            "a": InDoubt("no answer"),
            "b": NotSent("too late"),
            "c": Refused(ReasonCode.EXCHANGE_REFUSED, "no"),
            "d": InDoubt("cut off"),
            "paper": InDoubt("no answer"),
        },
        withdrawn={"w": InDoubt("no answer")},
    )
    assert batch_of_calls(decided, outcomes, NOW) == BatchOfCalls(NOW, 4, 3)
