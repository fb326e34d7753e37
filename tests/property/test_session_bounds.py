"""However records fall into batches, arrive in copies and late, and whatever a crash rolls back: a session confirms no more than it may.

The model goes through the stored audit events one by one, and knows nothing of batches.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline.books.changes import Changes, Claim
from pipeline.books.ledger import AccountKey, Balance, Ledger
from pipeline.intake import decide
from pipeline.model.order import Order
from pipeline.model.second_factor import SecondFactor
from pipeline.model.session import Session
from pipeline.model.tracked import Tracked
from pipeline.requests.record import Arrival
from schemas.reasons import ReasonCode
from tests.unit.builders import NOW as BEGIN
from tests.unit.builders import TOPICS, USER, account_state, changes_of, intake_state, market_data, outputs_on, results_of, trade
from tests.unit.session_builders import ISSUER_KEY, SECRET, SESSION_ID, asking, code, proven

_FROZEN: Final = "frozen and unfrozen"


@dataclass(frozen=True)
class Sent:
    """What is sent: an order, a start or a revocation, so many seconds after the one before (below zero: it was appended earlier, and is
    read late)."""

    kind: str
    seconds: int
    key: int = 0
    quantity: str = "0.001"
    symbol: str = "BTC/USDT"
    bounds: tuple[tuple[str, Any], ...] = ()


orders = st.builds(
    Sent,
    st.just("trade"),
    st.sampled_from([0, 0, 1, 10, -3, -20, 28_800]),
    key=st.integers(0, 12),
    quantity=st.sampled_from(["0.001", "0.002", "0.003", "0.0015"]),
    symbol=st.sampled_from(["BTC/USDT", "BTC/USDT", "ETH/BTC"]),
)
starts = st.builds(
    Sent,
    st.just("start"),
    st.sampled_from([31, 60, 7_200]),
    key=st.integers(10, 99),
    bounds=st.tuples(
        st.sampled_from([("orders_max", count) for count in (1, 2, 4)]),
        st.sampled_from([("amount_max_usd", amount) for amount in ("50", "100", "149.99", "100000")]),
        st.sampled_from([("symbols", None), ("symbols", ["BTC/USDT"])]),
    ),
)
revocations = st.builds(Sent, st.just("revoke"), st.just(1), key=st.integers(100, 199))
histories = st.lists(
    st.one_of(orders, orders, orders, starts, revocations, st.builds(Sent, st.just(_FROZEN), st.just(1))), min_size=3, max_size=25
)
# How many records a batch takes, and whether its worker dies before it is stored.
cuts = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=20)


@dataclass
class World:
    """What the database has, and what time it is."""

    now: datetime = BEGIN
    offset: int = 0
    generation: int = 0
    factor: SecondFactor = field(default_factory=lambda: SecondFactor(SECRET))
    sessions: dict[str, Session] = field(default_factory=dict)
    claims: dict[tuple[str, str], Claim] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    balances: dict[AccountKey, Balance] = field(default_factory=lambda: changes_of().ledger.balances)

    def decided(self, batch: list[Sent]) -> tuple[Changes, datetime]:
        at, arrivals = self.now, list[Arrival]()
        for sent in batch:
            at += timedelta(seconds=max(0, sent.seconds))
            arrivals.append(_record(sent, self.offset + len(arrivals), at + timedelta(seconds=min(0, sent.seconds))))
        changes = changes_of(now=at)
        changes.ledger, changes.orders = Ledger(dict(self.balances)), Tracked(self.orders)
        changes.sessions, changes.claims = dict(self.sessions), dict(self.claims)
        account = account_state(factor=self.factor, session_generation=self.generation)
        prices = {"binance": market_data(observed_at=at)}
        decide(arrivals, intake_state(accounts={USER: account}, issuer_keys=frozenset({ISSUER_KEY}), market_data=prices), changes)
        return changes, at

    def store(self, changes: Changes, now: datetime, count: int) -> None:
        self.now, self.offset = now, self.offset + count
        self.factor = changes.factors.get(USER, self.factor)
        self.sessions, self.claims, self.orders = changes.sessions, changes.claims, dict(changes.orders)
        self.balances = changes.ledger.balances


def _record(sent: Sent, offset: int, at: datetime) -> Arrival:
    if sent.kind == "start":
        return proven(asking(idempotency_key=f"s{sent.key}", request_id=f"s{offset}", **dict(sent.bounds)), offset, code=code(at), at=at)
    if sent.kind == "revoke":
        return proven(asking(idempotency_key=f"s{sent.key}", revoke=True), offset, at=at)
    quantity = "0.02" if sent.symbol == "ETH/BTC" else sent.quantity
    document = trade(idempotency_key=f"k{sent.key}", symbol=sent.symbol, quantity=quantity, expires_at="2030-01-01T00:00:00Z")
    return proven(document, offset, at=at)


@dataclass
class Model:
    """One session, by what the events say happened, in their order."""

    starts: dict[str, dict[str, Any]]
    is_open: bool = False
    bounds: dict[str, Any] = field(default_factory=dict)
    orders: int = 0
    usd: Decimal = Decimal(0)
    keys: Counter[str] = field(default_factory=Counter)

    def take(self, told: dict[str, Any], stored: dict[str, Order]) -> None:
        match told["event_type"]:
            case "SESSION_STARTED":
                self.is_open, self.bounds, self.orders, self.usd = True, self.starts[told["request_id"]], 0, Decimal(0)
            case "SESSION_ENDED":
                self.is_open = False
            case "ORDER_ACCEPTED":
                order = stored[told["order_id"]]
                self.orders, self.usd = self.orders + 1, self.usd + order.usd_value
                self.keys[order.idempotency_key] += 1
                assert (told["confirmed_by"], told["session_id"]) == ("session", SESSION_ID)
                assert self.is_open, "an order was confirmed by a session that had ended"
                assert self.orders <= self.bounds["orders_max"]
                assert self.usd <= Decimal(self.bounds["amount_max_usd"])
                assert self.bounds["symbols"] is None or order.symbol in self.bounds["symbols"]


def _batches(history: list[Sent], cut: list[tuple[int, bool]]) -> Iterator[tuple[list[Sent], bool]]:
    """The history in parts, a status change by itself; each part as often as its worker dies before it is stored, and once more."""
    position = turn = 0
    while position < len(history):
        size, dies = cut[turn % len(cut)]
        turn += 1
        part = history[position : position + size]
        breaks = next((place for place, sent in enumerate(part) if sent.kind == _FROZEN), len(part))
        part = part[: max(1, breaks)]
        if dies:
            yield part, True
        yield part, False
        position += len(part)


def _play(history: list[Sent], cut: list[tuple[int, bool]]) -> Iterator[ReasonCode | None]:
    """The reason codes of all final answers; fails where a session confirmed too much."""
    world, model = World(), Model({})
    for part, dies in _batches(history, cut):
        if part[0].kind == _FROZEN:
            world.generation += 0 if dies else 1
            model.is_open = False
            continue
        changes, now = world.decided(part)
        if dies:
            continue
        model.starts |= {f"s{world.offset + place}": dict(sent.bounds) for place, sent in enumerate(part) if sent.kind == "start"}
        for output in outputs_on(changes, TOPICS.audit):
            model.take(json.loads(output.value or b""), changes.orders)
        world.store(changes, now, len(part))
        yield from (result.reason_code for result in results_of(changes))
        session = world.sessions.get(SESSION_ID)
        if session is not None:
            assert (session.orders_used, session.amount_usd_used) == (model.orders, model.usd), "what is used is not what was accepted"
    assert all(count == 1 for count in model.keys.values()), "a copy was executed"


@given(histories, cuts)
def test_no_session_confirms_more_than_it_may(history: list[Sent], cut: list[tuple[int, bool]]) -> None:
    """What was accepted in a session keeps its bounds and is what it says is used: whatever is copied, late, revoked or rolled back."""
    for reason in _play(history, cut):
        event(str(reason))


def test_histories_meet_every_bound() -> None:
    """The histories of the property above are such that each way to be refused is met, so that it is about all of them."""
    met: Counter[ReasonCode | None] = Counter()

    @settings(max_examples=300, derandomize=True, database=None)
    @given(histories, cuts)
    def meet(history: list[Sent], cut: list[tuple[int, bool]]) -> None:
        met.update(_play(history, cut))

    meet()
    wanted = ("UNKNOWN", "EXPIRED", "REVOKED", "LIMIT_EXCEEDED", "SYMBOL_NOT_ALLOWED")
    assert [name for name in wanted if not met[ReasonCode(f"SESSION_{name}")]] == []
    assert met[None] > 0
