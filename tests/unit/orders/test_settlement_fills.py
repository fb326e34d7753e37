"""What the exchange's word does to an order and its funds."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from pipeline.books.changes import Changes
from pipeline.books.ledger import Balance, TransferKind
from pipeline.model.halts import NO_HALTS
from pipeline.model.invariants import InvariantViolation
from pipeline.model.order import Order
from pipeline.model.retries import ATTEMPTS_MAX
from pipeline.model.venue import Fee, Refused, VenueOrder
from pipeline.orders.execution import plan
from pipeline.orders.settlement import apply_refusal, apply_venue_order, mark_in_doubt, requeue
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, RoutedOrder
from tests.unit.builders import NOW, ORDER_ID, RULES, TOPICS, account, changes_of, order_of, outputs_on, results_of, sale_of, told

S = OrderStatus
D = Decimal
NOTHING = {"USDT": "0", "BTC": "0", "BNB": "0"}


def _applied(order: Order, *words: VenueOrder, funds: dict[str, str] | None = None) -> Changes:
    changes = changes_of(order, funds=NOTHING if funds is None else funds)
    for word in words:
        apply_venue_order(changes.orders[order.order_id], word, changes)
    return changes


def _balances(changes: Changes) -> dict[str, tuple[Decimal, Decimal]]:
    """Per asset what the user owns and what of it is held, without empty ones."""
    found = {key.asset: (balance.posted, balance.pending) for key, balance in changes.ledger.balances.items()}
    return {asset: amounts for asset, amounts in found.items() if amounts != (0, 0)}


def _advanced(changes: Changes) -> dict[str, Decimal]:
    """What the house paid, per asset."""
    sums: dict[str, Decimal] = {}
    for transfer in changes.ledger.transfers:
        if transfer.debit.owner == "@shortfall":
            sums[transfer.debit.asset] = sums.get(transfer.debit.asset, D(0)) + transfer.amount
    return sums


SUBMITTING = order_of(status=S.SUBMITTING)


def test_fill_in_one_word_spends_the_hold_and_gives_the_rest_back() -> None:
    """2 BTC bought for 190 of the 200 USDT held: 10 USDT are free again, the fee is taken from what came."""
    changes = _applied(SUBMITTING, told(S.FILLED, "2", "190", {"BTC": "0.002"}))
    assert _balances(changes) == {"USDT": (10, 0), "BTC": (D("1.998"), 0)}
    (result,) = results_of(changes)
    assert (result.status, result.final, result.average_price, result.fee, result.fee_asset) == (
        ResultStatus.EXECUTED, True, D(95), D("0.002"), "BTC",
    )  # fmt: skip
    assert changes.orders[ORDER_ID].hold_amount == 0


def test_sale_takes_the_fee_from_its_proceeds() -> None:
    """2 BTC sold for 210 USDT less 0.21 fee."""
    changes = _applied(sale_of(status=S.SUBMITTING), told(S.FILLED, "2", "210", {"USDT": "0.21"}))
    assert _balances(changes) == {"USDT": (D("209.79"), 0)}


def test_fills_in_steps_end_where_one_fill_ends() -> None:
    """The same totals in five words, two of them said twice and one come late, move the same money."""
    words = [
        told(S.NEW),
        told(S.PARTIALLY_FILLED, "0.5", "48", {"BTC": "0.0005"}),
        told(S.PARTIALLY_FILLED, "0.5", "48", {"BTC": "0.0005"}),
        told(S.PARTIALLY_FILLED, "1.5", "143", {"BTC": "0.0015"}),
        told(S.PARTIALLY_FILLED, "0.5", "48", {"BTC": "0.0005"}),
        told(S.NEW),
        told(S.FILLED, "2", "190", {"BTC": "0.002"}),
        told(S.FILLED, "2", "190", {"BTC": "0.002"}),
        told(S.PARTIALLY_FILLED, "1.5", "143", {"BTC": "0.0015"}),
        told(S.CANCELED, "1.5", "143"),
    ]
    stepwise, at_once = _applied(SUBMITTING, *words), _applied(SUBMITTING, words[6])
    assert _balances(stepwise) == _balances(at_once)
    assert len(results_of(stepwise)) == 4
    assert [result.final for result in results_of(stepwise)] == [False, False, False, True]
    assert len({transfer.transfer_id for transfer in stepwise.ledger.transfers}) == len(stepwise.ledger.transfers)


def test_fees_in_several_assets_are_each_charged_once() -> None:
    """A venue that takes fees in BNB until there is none, then in BTC: later words repeat both totals, and only growth is charged."""
    changes = _applied(
        SUBMITTING,
        told(S.PARTIALLY_FILLED, "0.5", "50", {"BNB": "0.01"}),
        told(S.PARTIALLY_FILLED, "1", "100", {"BNB": "0.01", "BTC": "0.001"}),
        told(S.PARTIALLY_FILLED, "1.5", "150", {"BTC": "0.002", "BNB": "0.01"}),
        told(S.FILLED, "2", "200", {"BTC": "0.003", "BNB": "0.01"}),
        funds={**NOTHING, "BNB": "1"},
    )
    assert _balances(changes) == {"BTC": (D("1.997"), 0), "BNB": (D("0.99"), 0)}
    assert changes.orders[ORDER_ID].fees == (Fee("BNB", D("0.01")), Fee("BTC", D("0.003")))
    assert (results_of(changes)[-1].fee, results_of(changes)[-1].fee_asset) == (D("0.01"), "BNB")


@pytest.mark.parametrize("late", [told(S.PARTIALLY_FILLED, "1", "100", {"BTC": "0.001"}), told(S.CANCELED, "1", "100", {"BTC": "0.001"})])
def test_fee_told_later_than_its_fill_is_charged_then(late: VenueOrder) -> None:
    """An order list knows the quantity before the trade list knows the fee."""
    changes = _applied(SUBMITTING, told(S.PARTIALLY_FILLED, "1", "100"), late, late)
    assert _balances(changes)["BTC"] == (D("0.999"), 0)
    assert changes.orders[ORDER_ID].fee == D("0.001")


def test_value_told_later_than_its_quantity_is_paid_then() -> None:
    """What was bought is paid for, also when the venue tells the price one word later."""
    changes = _applied(SUBMITTING, told(S.PARTIALLY_FILLED, "1", "0"), told(S.FILLED, "2", "200"))
    assert _balances(changes) == {"BTC": (2, 0)}


@pytest.mark.parametrize(
    "word", [told(S.PARTIALLY_FILLED, "1.5", "90"), told(S.PARTIALLY_FILLED, "1.5", "-1"), told(S.CANCELED, "0.5", "100"), told(S.NEW)]
)
def test_word_that_knows_less_changes_nothing(word: VenueOrder) -> None:
    """Quantity and value never fall; a word that says so is old, or wrong, and waits for a better one."""
    known = told(S.PARTIALLY_FILLED, "1", "100")
    assert _balances(_applied(SUBMITTING, known, word)) == _balances(_applied(SUBMITTING, known))


def test_fee_that_falls_is_kept() -> None:
    """A total that was charged is not charged again when a word in between leaves it out."""
    changes = _applied(
        SUBMITTING,
        told(S.PARTIALLY_FILLED, "1", "100", {"BTC": "0.001"}),
        told(S.PARTIALLY_FILLED, "1.5", "150"),
        told(S.FILLED, "2", "200", {"BTC": "0.002"}),
    )
    assert _balances(changes) == {"BTC": (D("1.998"), 0)}


def test_fee_in_a_third_asset_that_is_missing_is_advanced_by_the_house() -> None:
    """Nobody goes negative, and nothing is lost: the shortfall account shows it."""
    changes = _applied(SUBMITTING, told(S.FILLED, "2", "200", {"BNB": "0.5"}), funds={**NOTHING, "BNB": "0.2"})
    assert _balances(changes) == {"BTC": (2, 0)}
    assert _advanced(changes) == {"BNB": D("0.3")}


def test_fee_in_the_held_asset_is_paid_from_what_is_left_of_the_hold() -> None:
    """A venue that takes its fee on top of the price: what was held and not spent pays it before the house does."""
    changes = _applied(SUBMITTING, told(S.FILLED, "2", "190", {"USDT": "0.19"}))
    assert _balances(changes) == {"USDT": (D("9.81"), 0), "BTC": (2, 0)}
    assert _advanced(changes) == {}


def test_cost_above_the_hold_is_paid_from_free_funds_then_by_the_house() -> None:
    """A price that jumped past the allowance: 200 held, 230 spent, 10 free, 20 advanced."""
    changes = _applied(SUBMITTING, told(S.FILLED, "2", "230"), funds={**NOTHING, "USDT": "10"})
    assert _balances(changes) == {"BTC": (2, 0)}
    assert _advanced(changes) == {"USDT": D(20)}
    assert changes.orders[ORDER_ID].hold_amount == 0


def test_another_order_s_hold_never_pays() -> None:
    """Two orders of one user: the one that costs too much leaves the other's hold alone."""
    other = order_of(order_id="o" + "2" * 32, status=S.NEW)
    changes = changes_of(SUBMITTING, other, funds=NOTHING)
    apply_venue_order(SUBMITTING, told(S.FILLED, "2", "230"), changes)
    assert changes.ledger.balance(account("USDT")) == Balance(D(200), D(200))


@pytest.mark.parametrize(
    ("status", "quantity", "after", "answer"),
    [
        (S.CANCELED, "0", S.CANCELED, ResultStatus.CANCELED),
        (S.CANCELED, "1", S.CANCELED, ResultStatus.CANCELED),
        (S.EXPIRED, "0", S.EXPIRED, ResultStatus.CANCELED),
        (S.EXPIRED, "1", S.EXPIRED, ResultStatus.EXECUTED),
        (S.REJECTED, "0", S.REJECTED, ResultStatus.REJECTED),
        # what was executed in part was not rejected, whatever the venue calls its end
        (S.REJECTED, "1", S.CANCELED, ResultStatus.CANCELED),
        (S.FILLED, "2", S.FILLED, ResultStatus.EXECUTED),
    ],
)
@pytest.mark.parametrize("before", [S.SUBMITTING, S.IN_DOUBT, S.NEW])
def test_end_releases_the_hold_and_answers_once(
    before: OrderStatus, status: OrderStatus, quantity: str, after: OrderStatus, answer: ResultStatus
) -> None:
    """Every end from every state before it: nothing stays held, one final answer, told in the venue's figures."""
    changes = _applied(order_of(status=before), told(status, quantity, str(100 * int(quantity))))
    order = changes.orders[ORDER_ID]
    assert (order.status, order.hold_amount, order.executed_at) == (after, 0, changes.now)
    assert _balances(changes).get("USDT", (D(0), D(0))) == (200 - 100 * int(quantity), 0)
    (result,) = results_of(changes)
    assert (result.status, result.final, result.filled_quantity, result.remaining_quantity) == (answer, True, D(quantity), 0)
    assert changes.finished == {("alice", "key-1"): result}


def test_open_order_with_fills_counts_as_partially_filled() -> None:
    """A venue that calls it `new` cannot stop the batch."""
    order = order_of(status=S.NEW)
    changes = _applied(order, told(S.NEW, "1", "100"), told(S.NEW, "1.5", "150"))
    assert changes.orders[ORDER_ID].status is S.PARTIALLY_FILLED


def test_terminal_order_hears_nothing_more() -> None:
    """What is over stays as it was answered."""
    for status in (S.FILLED, S.CANCELED, S.EXPIRED, S.REJECTED):
        changes = _applied(order_of(status=status), told(S.FILLED, "2", "200"))
        assert not changes.outputs
        assert not changes.ledger.transfers


def test_refusal_releases_everything() -> None:
    """Proven not accepted: rejected with the venue's reason, all funds back."""
    changes = changes_of(SUBMITTING, funds=NOTHING)
    apply_refusal(SUBMITTING, Refused(ReasonCode.BALANCE_INSUFFICIENT, "the venue says\x00: no \ud800"), changes)
    (result,) = results_of(changes)
    assert (result.status, result.reason_code, result.reason) == (
        ResultStatus.REJECTED, ReasonCode.BALANCE_INSUFFICIENT, "the venue says?: no ?",
    )  # fmt: skip
    assert _balances(changes) == {"USDT": (200, 0)}
    assert [transfer.kind for transfer in changes.ledger.transfers] == [TransferKind.RELEASE]


def test_doubt_keeps_the_funds_and_answers_for_the_time_being() -> None:
    """`in_doubt` is told, is not final, and releases nothing; the venue's text is made fit to store."""
    changes = changes_of(SUBMITTING, funds=NOTHING)
    mark_in_doubt(SUBMITTING, "cut\x00off", changes)
    (result,) = results_of(changes)
    assert (result.status, result.final, result.reason) == (ResultStatus.IN_DOUBT, False, "cut?off")
    assert not changes.ledger.transfers
    assert changes.orders[ORDER_ID].hold_amount == 200


def test_requeue_asks_for_the_next_attempt() -> None:
    """Proven not sent: accepted again, queued as attempt 2, funds still held, nothing answered."""
    changes = changes_of(SUBMITTING, funds=NOTHING)
    requeue(SUBMITTING, "not sent", changes)
    (routed,) = [RoutedOrder.model_validate_json(output.value or b"") for output in outputs_on(changes, TOPICS.orders("binance"))]
    assert (routed.action, routed.attempt, routed.order_id) == (Action.SUBMIT, 2, ORDER_ID)
    assert changes.orders[ORDER_ID].status is S.ACCEPTED
    assert not results_of(changes)


def test_order_is_not_queued_again_without_end() -> None:
    """An exchange that is down for hours ends the order, proven unsent, with its funds free."""
    order = order_of(status=S.SUBMITTING, attempt=ATTEMPTS_MAX)
    changes = changes_of(order, funds=NOTHING)
    requeue(order, "not sent " * 100, changes)
    (result,) = results_of(changes)
    assert (result.status, result.reason_code, result.final) == (ResultStatus.REJECTED, ReasonCode.EXCHANGE_UNAVAILABLE, True)
    assert not outputs_on(changes, TOPICS.orders("binance"))
    assert _balances(changes) == {"USDT": (200, 0)}
    order = replace(order, attempt=ATTEMPTS_MAX - 1)
    requeue(order, "not sent", again := changes_of(order, funds=NOTHING))
    assert again.orders[ORDER_ID].status is S.ACCEPTED


def test_order_that_was_tried_twice_waits_in_its_row_and_not_in_the_queue() -> None:
    """Nothing goes round in circles while its exchange is away; whatever moves it on ends the wait."""
    order = order_of(status=S.SUBMITTING, attempt=2)
    requeue(order, "not sent", changes := changes_of(order, funds=NOTHING))
    waiting = changes.orders[ORDER_ID]
    assert (waiting.status, waiting.retry_at) == (S.ACCEPTED, NOW + timedelta(seconds=1))
    assert not outputs_on(changes, TOPICS.orders("binance"))
    work = RoutedOrder(schema_version=1, action=Action.SUBMIT, order_id=ORDER_ID, user_id="alice", attempt=3)
    plan([work], changes, 4, 0, NO_HALTS, RULES.usd_assets)
    assert (changes.orders[ORDER_ID].status, changes.orders[ORDER_ID].retry_at) == (S.SUBMITTING, None)


def test_order_that_was_in_doubt_is_never_queued_again() -> None:
    """Whoever would send it once more meets a defect, not an exchange."""
    order = order_of(status=S.IN_DOUBT)
    with pytest.raises(InvariantViolation, match="cannot go from in_doubt to accepted"):
        requeue(order, "absent", changes_of(order, funds=NOTHING))


def test_order_that_was_never_sent_cannot_be_filled() -> None:
    """A word about an order without an intent is a defect, and nothing is written."""
    with pytest.raises(InvariantViolation):
        _applied(order_of(), told(S.FILLED, "2", "200"))


def test_order_by_value_pays_what_it_cost() -> None:
    """A market purchase for 200 USDT that found 199.99 worth of offers gives 0.01 back."""
    order = replace(SUBMITTING, quantity=None, quote_quantity=D(200), price=None)
    changes = _applied(order, told(S.FILLED, "0.004", "199.99"))
    assert _balances(changes) == {"USDT": (D("0.01"), 0), "BTC": (D("0.004"), 0)}
    assert results_of(changes)[0].average_price == D("49997.5")


def test_average_price_is_rounded_down_to_18_places() -> None:
    """1 ÷ 3 is told as 0.333…, never as more than was paid."""
    changes = _applied(SUBMITTING, told(S.PARTIALLY_FILLED, "1.5", "0.5"))
    assert results_of(changes)[0].average_price == D("0." + "3" * 18)
