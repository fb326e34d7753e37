"""Average cost and what a sale realises against it: the figures by which a user's losses are counted."""

from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.books.changes import Changes
from pipeline.model.money import SCALE
from pipeline.model.venue import VenueOrder
from pipeline.orders.settlement import apply_venue_order
from schemas.orders import OrderStatus
from tests.unit.builders import account, changes_of, order_of, sale_of, told

S = OrderStatus
D = Decimal


class Book:
    """One user's account, through orders one after another; every order is worth one dollar per unit of its quote asset, or `rate`."""

    def __init__(self, rate: str = "1") -> None:
        self.changes: Changes = changes_of(funds={"USDT": "100000000", "BTC": "1000", "BNB": "10"})
        self._rate = D(rate)
        self._number = 0

    def trade(self, side: str, *words: VenueOrder) -> None:
        """A purchase (b) or sale (s), with the exchange's words about it."""
        self._number += 1
        make = order_of if side == "b" else sale_of
        order = make(
            order_id=f"o{self._number:032}", status=S.SUBMITTING, hold_amount=D(0), usd_rate=self._rate, quantity=D(1000),
            idempotency_key=f"k{self._number}",
        )  # fmt: skip
        self.changes.orders.keep(order.order_id, order)
        for word in words:
            apply_venue_order(self.changes.orders[order.order_id], word, self.changes)

    @property
    def cost(self) -> tuple[Decimal, Decimal]:
        balance = self.changes.ledger.balance(account("BTC"))
        return balance.cost_quantity, balance.cost_usd

    @property
    def results(self) -> list[Decimal]:
        return [found.usd for found in self.changes.realised]


def _filled(quantity: str, quote: str, **fees: str) -> VenueOrder:
    return told(S.PARTIALLY_FILLED, quantity, quote, fees)


def test_purchases_have_one_average_cost_and_a_sale_takes_its_share() -> None:
    """1 at 100 and 3 at 200 cost 175 each: 2 sold at 150 lose 50, and 2 are left at the same cost."""
    book = Book()
    book.trade("b", _filled("1", "100"))
    book.trade("b", _filled("3", "600"))
    assert book.cost == (4, 700)
    book.trade("s", _filled("2", "300"))
    assert (book.results, book.cost) == ([-50], (2, 350))
    book.trade("s", _filled("2", "400"))
    assert (book.results, book.cost) == ([-50, 50], (0, 0))


def test_sale_in_parts_states_a_result_for_each_word_once() -> None:
    """Totals since the order began, one of them said twice: each part counts once."""
    book = Book()
    book.trade("b", _filled("4", "400"))
    book.trade("s", _filled("1", "90"), _filled("1", "90"), _filled("4", "300"))
    assert book.results == [-10, -90]
    assert [(found.cum_quantity, found.user_id) for found in book.changes.realised] == [(1, "alice"), (4, "alice")]


def test_what_was_not_bought_here_is_sold_without_a_result() -> None:
    """The account had 1,000 before. 1 bought at 100; of a sale of 4 at 50 each only that one counts."""
    book = Book()
    book.trade("s", _filled("5", "1"))
    assert book.results == []
    book.trade("b", _filled("1", "100"))
    book.trade("s", _filled("4", "200"))
    assert (book.results, book.cost) == ([-50], (0, 0))


@pytest.mark.parametrize(
    ("fees", "cost"),
    [
        ({"BTC": "0.5"}, (D("1.5"), 200)),
        ({"USDT": "10"}, (2, 210)),
        ({"BNB": "1"}, (2, 200)),
        ({"BTC": "0.5", "USDT": "10"}, (D("1.5"), 210)),
    ],
)
def test_fee_of_a_purchase_is_part_of_its_cost(fees: dict[str, str], cost: tuple[Decimal, Decimal]) -> None:
    """Taken from what came, less is there for the same money; taken in the quote asset, it was paid on top. A third asset has no price."""
    book = Book()
    book.trade("b", _filled("2", "200", **fees))
    assert book.cost == cost
    late = Book()
    late.trade("b", _filled("2", "200"), _filled("2", "200", **fees))
    assert late.cost == cost


def test_fee_of_a_sale_makes_its_result_smaller() -> None:
    """2 bought for 200 and sold for 200 with a fee of 5: 5 are lost, also where the fee is told one word later."""
    for words in ([_filled("2", "200", USDT="5")], [_filled("2", "200"), _filled("2", "200", USDT="5"), _filled("2", "200", USDT="5")]):
        book = Book()
        book.trade("b", _filled("2", "200"))
        book.trade("s", *words)
        assert sum(book.results) == -5
        keys = [(found.order_id, found.cum_quantity, found.fee_usd) for found in book.changes.realised]
        assert len(set(keys)) == len(keys)


def test_value_of_a_purchase_that_is_told_late_is_part_of_its_cost() -> None:
    """What was paid counts whenever it is told; of a sale, value told after its quantity is no gain."""
    book = Book()
    book.trade("b", _filled("2", "0"), _filled("2", "200"))
    assert book.cost == (2, 200)
    book.trade("s", _filled("2", "100"), _filled("2", "300"))
    assert book.results == [-100]


def test_results_are_in_dollars_of_the_order() -> None:
    """A quote asset worth 2 dollars doubles cost and result; one without a rate (an order of an older version) states nothing twice."""
    book = Book(rate="2")
    book.trade("b", _filled("1", "100", USDT="1"))
    book.trade("s", _filled("1", "90", USDT="1"))
    assert book.results == [-24]
    without = Book(rate="0")
    without.trade("b", _filled("1", "100"))
    without.trade("s", _filled("1", "90"), _filled("1", "90", USDT="1"))
    assert without.results == [0]


def test_result_is_rounded_against_the_user() -> None:
    """A third of 10 is 3.33…: sold for that, rounded as the exchange does, a loss is stated, not nothing."""
    book = Book()
    book.trade("b", _filled("3", "10"))
    book.trade("s", _filled("1", "3.333333333333333333"))
    assert book.results == [-SCALE]
    assert book.cost[1] == D("6.666666666666666666")
    mixed = Book()
    mixed.trade("b", _filled("1", "5"))
    # A third of what came in belongs to what was bought here.
    mixed.trade("s", _filled("3", "10"))
    assert mixed.results == [D("-1.666666666666666667")]


_AMOUNT = st.decimals(min_value="0.000001", max_value="100000", places=6)


@given(st.lists(st.tuples(st.sampled_from("bs"), _AMOUNT, _AMOUNT), max_size=12))
def test_gains_and_cost_never_exceed_what_was_paid_and_received(trades: Sequence[tuple[str, Decimal, Decimal]]) -> None:
    """Where nothing was there before, results plus what is left at cost are what came in less what was paid, and never more."""
    book = Book()
    owned = received = D(0)
    for side, quantity, quote in trades:
        if side == "s" and quantity > owned:
            continue
        owned += quantity if side == "b" else -quantity
        received += -quote if side == "b" else quote
        book.trade(side, told(S.PARTIALLY_FILLED, str(quantity), str(quote)))
    quantity, cost = book.cost
    assert quantity == owned
    assert cost >= 0
    stated = sum(book.results) - cost
    assert stated <= received
    assert received - stated <= len(trades) * 2 * SCALE
