"""The ledger's movements, one by one."""

from decimal import Decimal

import pytest

from pipeline.books.ledger import AccountKey, Balance, Ledger, Outcome, Transfer, TransferKind, book_of, clearing, fees, opening, shortfall
from pipeline.model.invariants import InvariantViolation
from schemas.orders import Mode
from tests.unit.builders import EXCHANGE, account

USDT = account("USDT")
CLEARING = clearing(EXCHANGE, "live", "USDT")
D = Decimal


def _ledger(posted: str = "100", pending: str = "0") -> Ledger:
    return Ledger({USDT: Balance(D(posted), D(pending))})


@pytest.mark.parametrize(("amount", "held"), [("100", True), ("100.000000000000000001", False), ("99.999999999999999999", True)])
def test_hold_takes_what_is_available_and_not_more(amount: str, held: bool) -> None:
    """The boundary is the last place of 18."""
    ledger = _ledger()
    assert ledger.hold("h", "o", USDT, D(amount)) is held
    assert ledger.balance(USDT) == Balance(D(100), D(amount) if held else D(0))
    assert len(ledger.transfers) == (1 if held else 0)


def test_hold_of_an_account_that_does_not_exist_is_refused() -> None:
    """No row is no money."""
    assert not Ledger({}).hold("h", "o", USDT, D(1))


def test_held_funds_are_not_available_twice() -> None:
    """Two holds of 60 out of 100: the second is refused."""
    ledger = _ledger()
    assert ledger.hold("a", "o", USDT, D(60))
    assert not ledger.hold("b", "o", USDT, D(60))
    assert ledger.balance(USDT).available == D(40)


def test_post_held_spends_the_hold_and_leaves_the_free_part() -> None:
    """Held 60 of 100, 50 posted: 50 owned, 10 held."""
    ledger = _ledger(pending="60")
    ledger.post_held("p", "o", USDT, CLEARING, D(50))
    assert ledger.balance(USDT) == Balance(D(50), D(10))
    assert CLEARING not in ledger.balances
    ledger.release("r", "o", USDT, D(10))
    assert ledger.balance(USDT) == Balance(D(50), D(0))


@pytest.mark.parametrize("act", ["release", "post_held"])
def test_more_than_is_held_cannot_be_moved(act: str) -> None:
    """Releasing or posting past the hold is a defect: it would free another order's funds."""
    ledger = _ledger(pending="10")
    with pytest.raises(InvariantViolation):
        if act == "release":
            ledger.release("r", "o", USDT, D("10.01"))
        else:
            ledger.post_held("p", "o", USDT, CLEARING, D("10.01"))


def test_post_of_free_funds_never_touches_held_ones() -> None:
    """Free 40 beside 60 held: 40 can go, 40.01 cannot."""
    ledger = _ledger(pending="60")
    with pytest.raises(InvariantViolation):
        ledger.post("p", "o", USDT, CLEARING, D("40.01"))
    ledger.post("p", "o", USDT, CLEARING, D(40))
    assert ledger.balance(USDT) == Balance(D(60), D(60))


@pytest.mark.parametrize(
    ("free", "amount", "paid", "advanced"),
    [("100", "30", "30", "0"), ("30", "30", "30", "0"), ("10", "30", "10", "20"), ("0", "30", "0", "30")],
)
def test_charge_takes_what_is_there_and_the_house_the_rest(free: str, amount: str, paid: str, advanced: str) -> None:
    """What was spent already is charged in full: from the user as far as it goes, then from the house, so that sums stay zero."""
    ledger = _ledger(posted=free)
    ledger.charge("c", "o", USDT, CLEARING, D(amount))
    by_owner = {transfer.debit.owner: transfer.amount for transfer in ledger.transfers}
    assert by_owner.get(USDT.owner, D(0)) == D(paid)
    assert by_owner.get("@shortfall", D(0)) == D(advanced)
    assert ledger.balance(USDT).posted == D(free) - D(paid)
    assert sum(transfer.amount for transfer in ledger.transfers) == D(amount)


def test_charge_of_an_account_with_everything_held_leaves_the_hold() -> None:
    """Another order's hold is not spent on this order's fee."""
    ledger = _ledger(posted="50", pending="50")
    ledger.charge("c", "o", USDT, CLEARING, D(5))
    assert ledger.balance(USDT) == Balance(D(50), D(50))
    assert [transfer.debit for transfer in ledger.transfers] == [shortfall(EXCHANGE, "live", "USDT")]


@pytest.mark.parametrize("amount", ["0", "-1", "-0.000000000000000001"])
@pytest.mark.parametrize("act", ["hold", "post", "post_held", "release"])
def test_nothing_and_less_than_nothing_cannot_be_moved(act: str, amount: str) -> None:
    """A negative hold would be a gift, a zero one a row without a meaning."""
    ledger = _ledger(pending="50")
    with pytest.raises(InvariantViolation):
        match act:
            case "hold":
                ledger.hold("t", "o", USDT, D(amount))
            case "post":
                ledger.post("t", "o", CLEARING, USDT, D(amount))
            case "post_held":
                ledger.post_held("t", "o", USDT, CLEARING, D(amount))
            case _:
                ledger.release("t", "o", USDT, D(amount))
    assert not ledger.transfers


@pytest.mark.parametrize(
    "other",
    [
        account("BTC"),
        AccountKey("bob", EXCHANGE, "paper", "USDT"),
        AccountKey("bob", "kraken", "live", "USDT"),
        fees(EXCHANGE, "live", "BTC"),
    ],
)
def test_a_transfer_never_turns_one_kind_of_money_into_another(other: AccountKey) -> None:
    """Asset, book and exchange are the same on both sides, or sums per asset would not be zero."""
    ledger = _ledger()
    with pytest.raises(InvariantViolation):
        ledger.post("p", "o", USDT, other, D(1))
    assert not ledger.transfers
    assert ledger.balance(USDT) == Balance(D(100))


def test_books_and_system_accounts_have_names_of_their_own() -> None:
    """Real and simulated money never meet, and no user is called like the house."""
    assert book_of(Mode.LIVE) != book_of(Mode.PAPER)
    owners = {make(EXCHANGE, "live", "USDT").owner for make in (clearing, fees, opening, shortfall)}
    assert len(owners) == 4
    assert all(owner.startswith("@") for owner in owners)


def test_transfer_keeps_its_id_and_its_sides() -> None:
    """What the database writes is what was decided."""
    ledger = _ledger()
    ledger.post("o1:fee", "o1", USDT, CLEARING, D("1.5"))
    assert ledger.transfers == [Transfer("o1:fee", TransferKind.POST, "o1", USDT, CLEARING, D("1.5"))]
    assert ledger.changed == {USDT}


def test_transfer_applied_again_moves_nothing_and_says_so() -> None:
    """In the same batch, and where an earlier one is known; each phase alike."""
    ledger = _ledger(pending="50")
    for _ in range(2):
        assert ledger.hold("h", "o", USDT, D(5))
    assert ledger.post_held("p", "o", USDT, CLEARING, D(10)) is Outcome.APPLIED
    assert ledger.post_held("p", "o", USDT, CLEARING, D("10.0")) is Outcome.ALREADY_APPLIED
    assert ledger.balance(USDT) == Balance(D(90), D(45))
    later = Ledger({USDT: Balance(D(90), D(45))}, known=dict(ledger.known))
    # Reserved under this id before, whatever is available now.
    assert later.hold("h", "o", USDT, D(5))
    assert later.post_held("p", "o", USDT, CLEARING, D(10)) is Outcome.ALREADY_APPLIED
    assert (later.transfers, later.changed, later.balance(USDT)) == ([], set(), Balance(D(90), D(45)))


@pytest.mark.parametrize("free", ["100", "30", "0"])
def test_charge_applied_again_moves_nothing_whatever_it_was_paid_from(free: str) -> None:
    """By the user, by both, by the house: the parts of the first time count, not what is free now."""
    first = _ledger(posted=free)
    first.charge("c", "o", USDT, CLEARING, D(40))
    later = Ledger({USDT: Balance(D(1_000))}, known=dict(first.known))
    assert later.charge("c", "o", USDT, CLEARING, D(40)) is Outcome.ALREADY_APPLIED
    assert not later.transfers
    for order_id, amount in (("o", D(41)), ("o", D(39)), ("p", D(40))):
        with pytest.raises(InvariantViolation, match=r"transfer c.* was applied as"):
            later.charge("c", order_id, USDT, CLEARING, amount)
    assert not later.transfers


@pytest.mark.parametrize("amount", ["0.0000000000000000001", "1E+20", "NaN", "Infinity"])
def test_what_is_no_amount_is_not_moved(amount: str) -> None:
    """More than 18 places, more than 20 digits, no number."""
    ledger = _ledger()
    with pytest.raises(InvariantViolation):
        ledger.post("p", "o", CLEARING, USDT, D(amount))
    assert not ledger.transfers
