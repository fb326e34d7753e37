"""What an exchange says in any order, twice, or against itself: the funds end where its last true word puts them."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from pipeline.books.changes import Changes
from pipeline.model.order import TERMINAL, Order
from pipeline.model.venue import Fee, VenueOrder
from pipeline.orders.settlement import apply_venue_order
from schemas.orders import OrderStatus
from schemas.results import RESULT
from tests.unit.builders import NOW, ORDER_ID, TOPICS, account, changes_of, order_of, outputs_on, sale_of

S = OrderStatus
VENUE_STATES = (S.NEW, S.PARTIALLY_FILLED, S.FILLED, S.CANCELED, S.EXPIRED, S.REJECTED)
FUNDS = {"USDT": "50", "BTC": "0.5", "BNB": "0.01"}
ASSETS = ("BTC", "USDT", "BNB")

orders = st.sampled_from([order_of(status=status) for status in (S.SUBMITTING, S.IN_DOUBT, S.NEW)] + [sale_of(status=S.SUBMITTING)])
fills = st.lists(
    st.tuples(
        st.decimals(min_value="0.01", max_value="0.6", places=8),
        st.decimals(min_value=50, max_value=150, places=2),
        st.sampled_from(ASSETS),
        st.decimals(min_value=0, max_value="0.01", places=8),
    ),
    max_size=3,
)
ends = st.sampled_from([S.FILLED, S.CANCELED, S.EXPIRED])
words = st.builds(
    VenueOrder,
    client_order_id=st.just("co"),
    exchange_order_id=st.sampled_from(["x1", ""]),
    order_status=st.sampled_from(VENUE_STATES),
    cum_quantity=st.decimals(min_value=0, max_value=2, places=2),
    cum_quote=st.decimals(min_value=-1, max_value=300, places=2),
    fees=st.lists(st.builds(Fee, st.sampled_from(ASSETS), st.decimals(min_value=-1, max_value=1, places=3)), max_size=3).map(tuple),
    updated_at=st.just(NOW),
)


def _truth(steps: list[tuple[Decimal, Decimal, str, Decimal]], end: OrderStatus) -> list[VenueOrder]:
    """The words of one true life: open, growing, over."""
    quantity, quote, fees = Decimal(0), Decimal(0), dict[str, Decimal]()
    told = [VenueOrder("co", "x1", S.NEW, quantity, quote, (), NOW)]
    for amount, price, asset, fee in steps:
        quantity, quote, fees = quantity + amount, quote + amount * price, {**fees, asset: fees.get(asset, Decimal(0)) + fee}
        told.append(VenueOrder("co", "x1", S.PARTIALLY_FILLED, quantity, quote, _sorted(fees), NOW))
    return [*told, VenueOrder("co", "x1", end, quantity, quote, _sorted(fees), NOW)]


def _sorted(fees: dict[str, Decimal]) -> tuple[Fee, ...]:
    return tuple(Fee(asset, amount) for asset, amount in sorted(fees.items()) if amount)


def _heard(order: Order, heard: list[VenueOrder]) -> Changes:
    changes = changes_of(order, funds=FUNDS)
    for word in heard:
        apply_venue_order(changes.orders[ORDER_ID], word, changes)
    return changes


@given(orders, fills, ends, st.data())
def test_no_loss_whatever_the_order_of_words(
    order: Order, steps: list[tuple[Decimal, Decimal, str, Decimal]], end: OrderStatus, data: st.DataObject
) -> None:
    """Old words, repeated words and missing words on the way to the last one leave what the last one alone would have left, per account.

    Only who advanced a missing fee may differ: the house, where a fee came before what pays it.
    """
    truth = _truth(steps, end)
    before = data.draw(st.lists(st.sampled_from(truth[:-1]), max_size=6))
    after = data.draw(st.lists(st.sampled_from(truth), max_size=3))
    random, direct = _heard(order, [*before, truth[-1], *after]), _heard(order, truth[-1:])
    assert _told_of(random.orders[ORDER_ID]) == _told_of(direct.orders[ORDER_ID])
    for asset in ASSETS:
        assert _owned(random, asset) == _owned(direct, asset)
        assert random.ledger.balance(account(asset)).pending == 0


def _told_of(order: Order) -> tuple[object, ...]:
    return order.status, order.cum_quantity, order.cum_quote, set(order.fees)


def _owned(changes: Changes, asset: str) -> Decimal:
    """What the user has, less what the house advanced."""
    advanced = sum(
        transfer.amount for transfer in changes.ledger.transfers if transfer.debit.owner == "@shortfall" and transfer.debit.asset == asset
    )
    return changes.ledger.balance(account(asset)).posted - advanced


@given(orders, st.lists(words, max_size=8))
def test_no_word_of_the_exchange_stops_the_worker(order: Order, heard: list[VenueOrder]) -> None:
    """Figures that fall, statuses that contradict their figures, negative values and fees: nothing raises.

    Nothing is held beside the order's own hold, nothing is answered finally twice, and what is over holds nothing.
    """
    changes = _heard(order, heard)
    kept = changes.orders[ORDER_ID]
    assert changes.ledger.balance(account(kept.hold_asset)).pending == kept.hold_amount >= 0
    assert kept.cum_quote >= 0
    assert all(fee.amount > 0 for fee in kept.fees)
    finals = [result for output in outputs_on(changes, TOPICS.results) if (result := RESULT.validate_json(output.value or b"")).final]
    assert len(finals) == (1 if kept.status in TERMINAL else 0)
    assert (kept.hold_amount == 0) >= (kept.status in TERMINAL)
