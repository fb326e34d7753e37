"""The ledger against a model of three numbers per account."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from pipeline.books.ledger import Balance, Ledger, TransferKind, clearing
from pipeline.model.invariants import InvariantViolation
from tests.unit.builders import EXCHANGE, account

USDT, OTHER = account("USDT"), account("USDT", "bob")
CLEARING = clearing(EXCHANGE, "live", "USDT")
amounts = st.decimals(min_value="-1", max_value=150, places=2) | st.decimals(min_value=0, max_value=10**20 - 1, places=18)
acts = st.tuples(st.sampled_from(["hold", "release", "post_held", "post", "give", "charge", "receive"]), amounts)


class _Model:
    """What alice owns, holds, and what left and came: nothing more is needed to know what must happen."""

    def __init__(self, posted: Decimal) -> None:
        self.posted, self.pending, self.house = posted, Decimal(0), Decimal(0)

    def act(self, name: str, amount: Decimal) -> bool | None:
        """True when it happens, False when it is refused without harm, None when it is a defect."""
        free = self.posted - self.pending
        match name:
            case "hold":
                # A hold of nothing or less asks for a defect only when it would be granted.
                if amount > free:
                    return False
                self.pending += amount if amount > 0 else 0
            case "release":
                if amount > self.pending:
                    return None
                self.pending -= amount if amount > 0 else 0
            case "post_held":
                if amount > self.pending:
                    return None
                self.pending -= amount if amount > 0 else 0
                self.posted -= amount if amount > 0 else 0
            case "post":
                if amount > free:
                    return None
                self.posted -= amount if amount > 0 else 0
            case "give":
                # Money goes from one user to another in no case.
                return None
            case "receive":
                self.posted += amount if amount > 0 else 0
            case _:
                paid = min(amount, free) if amount > 0 else Decimal(0)
                self.posted -= paid
                self.house += amount - paid if amount > 0 else 0
                return True
        return True if amount > 0 else None


def _act(ledger: Ledger, number: int, name: str, amount: Decimal) -> bool | None:
    transfer_id = f"t{number}"
    try:
        match name:
            case "hold":
                return ledger.hold(transfer_id, "o", USDT, amount)
            case "release":
                ledger.release(transfer_id, "o", USDT, amount)
            case "post_held":
                ledger.post_held(transfer_id, "o", USDT, CLEARING, amount)
            case "post":
                ledger.post(transfer_id, "o", USDT, CLEARING, amount)
            case "give":
                ledger.post(transfer_id, "o", USDT, OTHER, amount)
            case "receive":
                ledger.post(transfer_id, "o", CLEARING, USDT, amount)
            case _:
                ledger.charge(transfer_id, "o", USDT, CLEARING, amount)
    except InvariantViolation:
        return None
    return True


@given(st.decimals(min_value=0, max_value=200, places=2), st.lists(acts, max_size=25))
def test_no_loss_and_no_invention_in_any_sequence(posted: Decimal, sequence: list[tuple[str, Decimal]]) -> None:
    """Every movement does what the model does, a defect writes nothing, and the transfers alone give the balances back."""
    ledger, model = Ledger({USDT: Balance(posted)}), _Model(posted)
    for number, (name, amount) in enumerate(sequence):
        written = len(ledger.transfers)
        expected = model.act(name, amount)
        assert _act(ledger, number, name, amount) == expected, (name, amount)
        if expected is not True:
            assert len(ledger.transfers) == written
        assert ledger.balance(USDT) == Balance(model.posted, model.pending)
        assert ledger.balance(OTHER).posted == 0
        assert ledger.balance(USDT).available >= 0
        assert ledger.balance(USDT).pending >= 0
    moved = {USDT: posted, OTHER: Decimal(0)}
    advanced = Decimal(0)
    for transfer in ledger.transfers:
        if transfer.kind not in {TransferKind.HOLD, TransferKind.RELEASE}:
            for key, sign in ((transfer.debit, -1), (transfer.credit, 1)):
                if key in moved:
                    moved[key] += sign * transfer.amount
        advanced += transfer.amount if transfer.debit.owner == "@shortfall" else 0
    assert moved == {USDT: model.posted, OTHER: Decimal(0)}
    assert advanced == model.house
    assert len({transfer.transfer_id for transfer in ledger.transfers}) == len(ledger.transfers)
