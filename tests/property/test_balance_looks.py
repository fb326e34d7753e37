"""A look at a moving account: whatever happens between its four steps, one that counts shows what was taken and nothing else.

The world is a naive model of an account: orders and withdrawals as the database has them, and as the exchange has them, each with its own
clock. The look's judgement is the product's.
"""

from dataclasses import dataclass, field
from decimal import Decimal

from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline.model.order import Order
from pipeline.model.venue import Absent, Fee, Found, LookUpOutcome, VenueOrder
from pipeline.reconciliation.balances import AccountLedger, Drift, Judged, NotJudged, judge
from schemas.orders import OrderStatus
from tests.unit.builders import NOW, order_of

S = OrderStatus
START = {"BTC": Decimal(1_000), "USDT": Decimal(100_000), "BNB": Decimal(50)}
LEAVES = 3
# What often follows a submission, so that it does not take luck to see it in the middle of a look.
AT_A_STRETCH = {"rest": ("arrive", "settle"), "buy": ("arrive", "fill", "settle"), "meet": ("arrive", "fill")}


@dataclass
class SentOrder:
    """A purchase of up to three bitcoins at 10 dollars. `state` and `known` (fills) are the database's, the rest the exchange's."""

    number: int
    state: OrderStatus = S.SUBMITTING
    known: int = 0
    arrived: bool = False
    open: bool = False
    filled: int = 0

    def fees(self, fills: int) -> tuple[Fee, ...]:
        """A tenth of a coin for each fill: of the first in BNB, then in BTC."""
        found = [Fee("BNB", Decimal("0.1"))] if fills else []
        return tuple(found + ([Fee("BTC", Decimal("0.1") * (fills - 1))] if fills > 1 else []))

    def row(self) -> Order:
        return order_of(
            order_id=f"o{self.number}",
            status=self.state,
            quantity=Decimal(LEAVES),
            cum_quantity=Decimal(self.known),
            cum_quote=Decimal(self.known * 10),
            fees=self.fees(self.known),
        )

    def outcome(self) -> LookUpOutcome:
        if not self.arrived:
            return Absent(NOW)
        status = S.FILLED if self.filled == LEAVES else (S.PARTIALLY_FILLED if self.filled else S.NEW) if self.open else S.CANCELED
        return Found(
            VenueOrder("co", f"x{self.number}", status, Decimal(self.filled), Decimal(self.filled * 10), self.fees(self.filled), NOW)
        )


@dataclass
class SentWithdrawal:
    """100 dollars, 1 of them as a fee. `taken` is the exchange's; `known` the database's: unfinished while it is None."""

    taken: bool = False
    given_back: bool = False
    known: bool | None = None


@dataclass
class World:
    seq: int = 1
    ours: dict[str, Decimal] = field(default_factory=lambda: dict(START))
    theirs: dict[str, Decimal] = field(default_factory=lambda: dict(START))
    orders: list[SentOrder] = field(default_factory=list)
    withdrawals: list[SentWithdrawal] = field(default_factory=list)

    def happen(self, what: str, which: int) -> None:
        """One event, of the order or withdrawal that the number picks; nothing where it does not fit."""
        if what == "submit":
            self.orders.append(SentOrder(len(self.orders)))
            self.seq += 1
        elif what in AT_A_STRETCH:
            self.happen("submit", 0)
            for step in AT_A_STRETCH[what]:
                self.happen(step, len(self.orders) - 1)
        elif what == "send_out":
            self.happen("pay", 0)
            self.happen("take", len(self.withdrawals) - 1)
        elif what == "pay":
            self.withdrawals.append(SentWithdrawal())
            self.seq += 1
        elif what in {"arrive", "fill", "close", "doubt", "settle"} and self.orders:
            self._order(what, self.orders[which % len(self.orders)])
        elif what in {"take", "give_back", "finish"} and self.withdrawals:
            self._withdrawal(what, self.withdrawals[which % len(self.withdrawals)])

    def _order(self, what: str, one: SentOrder) -> None:
        over = one.state in {S.FILLED, S.CANCELED}
        if what == "arrive" and not one.arrived and not over:
            one.arrived = one.open = True
        elif what == "fill" and one.open:
            one.filled += 1
            one.open = one.filled < LEAVES
            self._trade(self.theirs, one, one.filled - 1, one.filled)
        elif what == "close" and one.open:
            one.open = False
        elif what == "doubt" and one.state is S.SUBMITTING:
            one.state = S.IN_DOUBT
            self.seq += 1
        elif what == "settle" and one.arrived and not over:
            self._trade(self.ours, one, one.known, one.filled)
            one.known = one.filled
            one.state = (S.PARTIALLY_FILLED if one.filled else S.NEW) if one.open else (S.FILLED if one.filled == LEAVES else S.CANCELED)
            self.seq += 1

    @staticmethod
    def _trade(books: dict[str, Decimal], one: SentOrder, before: int, after: int) -> None:
        books["BTC"] += after - before
        books["USDT"] -= 10 * (after - before)
        for sign, fills in ((1, before), (-1, after)):
            for fee in one.fees(fills):
                books[fee.asset] += sign * fee.amount

    def _withdrawal(self, what: str, one: SentWithdrawal) -> None:
        if what == "take" and not one.taken and one.known is None:
            one.taken = True
            self.theirs["USDT"] -= 101
        elif what == "give_back" and one.taken and not one.given_back and one.known is None:
            one.given_back = True
            self.theirs["USDT"] += 101
        elif what == "finish" and one.taken and one.known is None:
            one.known = not one.given_back
            self.ours["USDT"] -= 101 if one.known else 0
            self.seq += 1

    def ledger(self) -> AccountLedger:
        unfinished = [one for one in self.withdrawals if one.known is None]
        return AccountLedger(
            seq=self.seq,
            owned=dict(self.ours),
            leaving={"USDT": Decimal(101 * len(unfinished))} if unfinished else {},
            resting=tuple(one.row() for one in self.orders if one.state in {S.NEW, S.PARTIALLY_FILLED}),
            unsettled=sum(one.state in {S.SUBMITTING, S.IN_DOUBT} for one in self.orders),
        )

    def outcomes(self) -> dict[str, LookUpOutcome]:
        return {f"o{one.number}": one.outcome() for one in self.orders}


words = st.sampled_from([
    *AT_A_STRETCH, "submit", "arrive", "arrive", "fill", "fill", "close", "doubt", "settle", "settle", "settle", "send_out", "pay", "take",
    "give_back", "finish",
])  # fmt: skip
happenings = st.lists(st.tuples(st.one_of(words, st.sampled_from(["rest", "send_out"])), st.integers(0, 3)), min_size=1, max_size=15)
between = st.lists(st.tuples(words, st.integers(0, 3)), max_size=3)


@settings(max_examples=600)
@given(before=happenings, first=between, second=between, third=between, taken=st.sampled_from([0, 0, 7, -7]))
def test_look_that_counts_shows_what_was_taken_and_nothing_else(
    before: list[tuple[str, int]], first: list[tuple[str, int]], second: list[tuple[str, int]], third: list[tuple[str, int]], taken: int
) -> None:
    """Orders that are sent, fill, end or are in doubt and withdrawals that leave or come back, at any moment, are never a drift; what was
    taken (or slipped in) is one, to the last place."""
    world = World()
    for what, which in before:
        world.happen(what, which)
    world.theirs["BTC"] -= taken
    at_first = world.ledger()
    for what, which in first:
        world.happen(what, which)
    shown = dict(world.theirs)
    for what, which in second:
        world.happen(what, which)
    looked_up = world.outcomes()
    for what, which in third:
        world.happen(what, which)
    look = judge(at_first, shown, looked_up, world.ledger())
    event("judged" if isinstance(look, Judged) else f"not judged: {look.why[:25]}")
    if isinstance(look, NotJudged):
        return
    expected = (Drift("BTC", at_first.owned["BTC"], at_first.owned["BTC"] - taken),) if taken else ()
    assert look.drifts == expected
    if at_first.resting:
        event("judged while orders rest")
    if at_first.leaving:
        event("judged while withdrawals are under way")


@given(before=happenings, taken=st.sampled_from([0, 7, -7]))
def test_look_at_a_quiet_account_always_counts(before: list[tuple[str, int]], taken: int) -> None:
    """Once what is under way has been settled, nothing keeps a look from counting: a drift cannot hide behind old movement."""
    world = World()
    for what, which in before:
        world.happen(what, which)
    for one in world.orders:
        for what in ("arrive", "settle"):
            world.happen(what, one.number)
    world.theirs["BTC"] -= taken
    look = judge(world.ledger(), dict(world.theirs), world.outcomes(), world.ledger())
    assert isinstance(look, Judged)
    assert [drift.difference for drift in look.drifts] == ([Decimal(-taken)] if taken else [])
