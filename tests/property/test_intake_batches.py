"""How records fall into batches changes no answer, and a naive model knows what each copy is answered."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.books.audit import AuditTrail, ChainHead
from pipeline.books.changes import Changes, Claim
from pipeline.books.ledger import AccountKey, Balance, Ledger
from pipeline.intake import decide
from pipeline.model.order import Order
from pipeline.model.tracked import Tracked
from pipeline.requests.record import Arrival
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode
from schemas.results import RESULT, Result, ResultStatus
from schemas.routing import RoutedOrder
from tests.unit.builders import NOW, TOPICS, arrival, cancel, changes_of, intake_state, trade

FUNDS = {"USDT": "250", "BTC": "0.0025"}
records = st.one_of(
    st.builds(
        lambda key, side, quantity: trade(idempotency_key=f"k{key}", side=side, quantity=quantity),
        st.integers(0, 4),
        st.sampled_from(["buy", "sell"]),
        st.sampled_from(["0.001", "0.002", "0.0010", "7", "nonsense"]),
    ),
    st.builds(
        lambda key, target: cancel(idempotency_key=f"k{key}", target_idempotency_key=f"k{target}"), st.integers(0, 4), st.integers(0, 4)
    ),
    st.sampled_from([b"", b"{}", b"null"]),
)
sequences = st.lists(records, min_size=1, max_size=14)


class _Stored:
    """What one batch leaves for the next."""

    def __init__(self) -> None:
        first = changes_of(funds=FUNDS)
        self.balances: dict[AccountKey, Balance] = first.ledger.balances
        self.heads: dict[str, ChainHead] = first.trail.heads
        self.claims: dict[tuple[str, str], Claim] = {}
        self.orders: dict[str, Order] = {}
        self.outputs: list[tuple[str, bytes | None, bytes | None]] = []

    def decide(self, arrivals: Sequence[Arrival]) -> None:
        changes = Changes(
            topics=TOPICS,
            now=NOW,
            actor="test",
            trail=AuditTrail(dict(self.heads), NOW),
            ledger=Ledger(dict(self.balances)),
            orders=Tracked(self.orders),
            claims=dict(self.claims),
        )
        decide(arrivals, intake_state(), changes)
        self.balances, self.heads = changes.ledger.balances, changes.trail.heads
        self.claims, self.orders = changes.claims, dict(changes.orders)
        self.outputs += [(output.topic, output.key, output.value) for output in changes.outputs]

    def results(self) -> list[Result]:
        return [RESULT.validate_json(value or b"") for topic, _, value in self.outputs if topic == TOPICS.results]


def _arrivals(sequence: list[dict[str, Any] | bytes]) -> list[Arrival]:
    return [arrival(value, offset) for offset, value in enumerate(sequence)]


@given(sequences, st.lists(st.integers(0, 14), max_size=6))
def test_any_split_into_batches_gives_the_same_bytes(sequence: list[dict[str, Any] | bytes], cuts: list[int]) -> None:
    """A batch sees what the records before it in the same batch did: one by one, in any parts or at once, every output is the same."""
    arrivals = _arrivals(sequence)
    bounds = sorted({0, len(arrivals), *(cut for cut in cuts if cut < len(arrivals))})
    in_parts, one_by_one = _Stored(), _Stored()
    for begin, end in pairwise(bounds):
        in_parts.decide(arrivals[begin:end])
    for record in arrivals:
        one_by_one.decide([record])
    assert in_parts.outputs == one_by_one.outputs
    assert in_parts.balances == one_by_one.balances
    assert in_parts.claims == one_by_one.claims


def _same_payload(one: object, other: object) -> bool:
    def plain(value: object) -> object:
        # 0.0010 is 0.001
        return {**value, "quantity": value["quantity"].rstrip("0")} if isinstance(value, dict) and "quantity" in value else value

    return plain(one) == plain(other)


@given(sequences)
def test_one_answer_per_record_and_one_first_answer_per_key(sequence: list[dict[str, Any] | bytes]) -> None:
    """The naive model: the first record of a key decides; copies are told its answer, or that it runs; other payloads are refused."""
    stored = _Stored()
    stored.decide(_arrivals(sequence))
    finals: dict[int, Result] = {}
    for result in stored.results():
        if result.final:
            assert result.source.offset not in finals
            finals[result.source.offset] = result
    first: dict[str, int] = {}
    for offset, value in enumerate(sequence):
        if isinstance(value, bytes):
            assert finals[offset].reason_code is ReasonCode.SCHEMA_INVALID
            continue
        key = value["idempotency_key"]
        if key not in first:
            first[key] = offset
            assert offset not in finals or not finals[offset].replayed
            continue
        answer = finals[offset]
        assert answer.replayed
        if not _same_payload(value, sequence[first[key]]):
            assert answer.reason_code is ReasonCode.IDEMPOTENCY_KEY_REUSED
        else:
            assert answer.status is ResultStatus.DUPLICATE or answer.reason_code is finals[first[key]].reason_code
    queued = [RoutedOrder.model_validate_json(value or b"") for topic, _, value in stored.outputs if topic == TOPICS.orders("binance")]
    assert len({routed.order_id for routed in queued}) == len(queued)
    held = sum(order.hold_amount for order in stored.orders.values() if order.status is OrderStatus.ACCEPTED and order.hold_asset == "USDT")
    assert held == next(balance.pending for key, balance in stored.balances.items() if key.asset == "USDT")
