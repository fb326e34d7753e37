"""What a look at balances is compared with, what it is worth, and what is kept of it from look to look."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest

from infra.exchange.venues.binance.wallet import read_balances
from infra.exchange.venues.reading import UnreadableBooks
from pipeline.books.changes import Changes
from pipeline.model.drift import StoredDrift
from pipeline.model.venue import AccountBalances, LookUpFailed
from pipeline.reconciliation.balances import (
    RESTING_MAX,
    AccountLedger,
    Drift,
    NotJudged,
    apply_balance_report,
    compare,
    halt_reason,
    judge,
    value_of,
    whole_of,
)
from schemas.balances import BalanceReport, ReportedDrift
from schemas.orders import OrderStatus
from schemas.routing import ON_REPORTS
from tests.unit.builders import EXCHANGE, NOW, RULES, USER, changes_of, market_data, order_of

AGE = timedelta(seconds=60)
WATCHED = replace(RULES, balance_drift_halt_usd=Decimal(100), balance_drift_age=AGE)
D = Decimal


def amounts(**given: str) -> dict[str, Decimal]:
    return {asset: Decimal(amount) for asset, amount in given.items()}


@pytest.mark.parametrize(
    ("ledger", "shown", "expected"),
    [
        (AccountLedger(1, amounts(USDT="5")), amounts(USDT="5"), []),
        # Tolerance is zero, to the last place.
        (AccountLedger(1, amounts(USDT="5")), amounts(USDT="5.000000000000000001"), [("USDT", "0.000000000000000001")]),
        # An asset that one side does not know is zero there.
        (AccountLedger(1, amounts(USDT="5")), {}, [("USDT", "-5")]),
        (AccountLedger(1, {}), amounts(ETH="2"), [("ETH", "2")]),
        # A withdrawal under way: all between before and after is explained, and no more.
        (AccountLedger(1, amounts(USDT="5"), leaving=amounts(USDT="2")), amounts(USDT="3"), []),
        (AccountLedger(1, amounts(USDT="5"), leaving=amounts(USDT="2")), amounts(USDT="5"), []),
        (AccountLedger(1, amounts(USDT="5"), leaving=amounts(USDT="2")), amounts(USDT="2.9"), [("USDT", "-0.1")]),
        (AccountLedger(1, amounts(USDT="5"), leaving=amounts(USDT="2")), amounts(USDT="5.1"), [("USDT", "0.1")]),
        # What is on its way in.
        (AccountLedger(1, amounts(USDT="5"), arriving=amounts(USDT="1")), amounts(USDT="6"), []),
        (AccountLedger(1, amounts(USDT="5"), arriving=amounts(USDT="1")), amounts(USDT="6.5"), [("USDT", "0.5")]),
        # The house advanced more than the user has, so the exchange cannot show zero and be right.
        (AccountLedger(1, amounts(USDT="-3")), {}, [("USDT", "3")]),
    ],
)  # fmt: skip
def test_balances_compared_show_what_the_ledger_cannot_explain(
    ledger: AccountLedger, shown: Mapping[str, Decimal], expected: list[tuple[str, str]]
) -> None:
    """The difference is taken from the nearest amount that the ledger can explain."""
    assert [(drift.asset, drift.difference) for drift in compare(ledger, shown)] == [(asset, D(amount)) for asset, amount in expected]


def test_balances_of_several_keys_count_once_for_each_account() -> None:
    """Two keys of one account show the same money; two accounts of one user add up; without an id it is taken for one account."""
    first, second = AccountBalances("1", amounts(USDT="5"), {}), AccountBalances("2", amounts(USDT="1", BTC="2"), {})
    assert whole_of([first, first, second]) == amounts(USDT="6", BTC="2")
    unnamed = replace(first, account_id=None)
    assert whole_of([unnamed, unnamed]) == amounts(USDT="5")


def test_look_at_an_account_with_too_many_resting_orders_or_none_that_answers_says_nothing() -> None:
    """Too many to ask about, and an order that could not be asked about: neither is a drift, the second is said to be unanswered."""
    many = AccountLedger(1, {}, resting=tuple(order_of(order_id=f"o{n}", status=OrderStatus.NEW) for n in range(RESTING_MAX + 1)))
    assert isinstance(judge(many, amounts(USDT="9"), {}, many), NotJudged)
    one = AccountLedger(1, {}, resting=(order_of(status=OrderStatus.NEW),))
    look = judge(one, amounts(USDT="9"), {one.resting[0].order_id: LookUpFailed("no answer")}, one)
    assert isinstance(look, NotJudged)
    assert look.unanswered


@pytest.mark.parametrize(
    ("drift", "age_seconds", "expected"),
    [
        (Drift("USDT", D(5), D(3)), 0, "2"),
        (Drift("BTC", D(1), D("1.001")), 0, "50"),
        (Drift("BTC", D("1.001"), D(1)), 5, "50"),
        (Drift("BTC", D(1), D("1.001")), 6, None),
        (Drift("SHIB", D(1), D(2)), 0, None),
    ],
)
def test_drift_is_worth_what_a_fresh_price_says(drift: Drift, age_seconds: int, expected: str | None) -> None:
    """Whichever its direction; without a price that is fresh it is worth nobody knows what, not nothing."""
    known = market_data(observed_at=NOW - timedelta(seconds=age_seconds))
    assert value_of(drift, known, NOW, WATCHED) == (D(expected) if expected else None)


class Account:
    """What is kept of one account, look after look, as the settlement agent keeps it."""

    def __init__(self) -> None:
        self.stored: dict[str, StoredDrift] = {}

    def see(self, after_seconds: int, **differences: str | None) -> tuple[list[str], str | None]:
        """A look at so many seconds: asset → what the exchange has too little (a dollar each), None: of unknown worth. Returns the types of
        the audit events, and why the user is to be halted."""
        report = report_at(NOW + timedelta(seconds=after_seconds), **differences)
        why = halt_reason(report, self.stored, WATCHED)
        changes = changes_of(now=report.looked_up_at)
        changes.drifts = {(USER, EXCHANGE): dict(self.stored)}
        apply_balance_report(report, changes, WATCHED)
        self.stored = changes.drifts[USER, EXCHANGE]
        return kinds_of(changes), why


def report_at(looked_up_at: datetime, **differences: str | None) -> BalanceReport:
    drifts = tuple(
        ReportedDrift(
            asset=asset, ledger_amount=D(1_000), exchange_amount=D(1_000) - D(missing or 1), usd=None if missing is None else D(missing)
        )
        for asset, missing in differences.items()
    )
    return BalanceReport(schema_version=1, user_id=USER, exchange=EXCHANGE, looked_up_at=looked_up_at, drifts=drifts)


def kinds_of(changes: Changes) -> list[str]:
    return [orjson.loads(row.body)["event_type"] for row in changes.trail.rows]


FOUND, GONE = "BALANCE_DRIFT_FOUND", "BALANCE_DRIFT_GONE"


def test_drift_is_audited_when_it_is_old_enough_and_when_it_is_gone() -> None:
    """Once each, however many looks; its age counts from the first."""
    account = Account()
    assert account.see(0, USDT="10") == ([], None)
    assert account.see(59, USDT="10") == ([], None)
    assert account.see(60, USDT="10") == ([FOUND], None)
    assert account.see(90, USDT="11") == ([], None)
    [kept] = account.stored.values()
    assert (kept.first_seen_at, kept.last_seen_at, kept.difference) == (NOW, NOW + timedelta(seconds=90), D(-11))
    assert account.see(120) == ([GONE], None)
    assert account.stored == {}


def test_drift_that_goes_before_it_is_old_enough_leaves_no_trace() -> None:
    """As a deposit does that arrives at the exchange before it is credited here."""
    account = Account()
    assert account.see(0, USDT="5000") == ([], None)
    assert account.see(50) == ([], None)
    assert account.see(60, USDT="5000") == ([], None)
    assert account.stored["USDT"].first_seen_at == NOW + timedelta(seconds=60)


def test_account_is_halted_when_it_has_been_above_the_threshold_for_the_minimum_age() -> None:
    """Counted from when it rose above, not from when a small difference began; together, whichever assets they are."""
    account = Account()
    assert account.see(0, USDT="100") == ([], None)
    assert account.see(60, USDT="100")[1] is None
    assert account.see(300, USDT="60", BTC="41")[1] is None
    assert account.see(359, USDT="60", BTC="41")[1] is None
    _, why = account.see(360, USDT="90", ETH="30")
    assert why is not None
    assert "USDT 910 at the exchange, 1000 in the ledger (-90, worth 90 USD)" in why
    assert account.see(361, USDT="100")[1] is None
    assert account.see(420, USDT="101")[1] is None


def test_account_whose_drift_nobody_can_value_is_halted_after_the_minimum_age() -> None:
    """No fresh price is as much as too much."""
    account = Account()
    assert account.see(0, SHIB=None)[1] is None
    _, why = account.see(60, SHIB=None)
    assert why is not None
    assert "of unknown worth" in why


def test_balance_report_that_is_old_or_comes_again_changes_nothing() -> None:
    """The same words twice, and words that were overtaken."""
    account = Account()
    account.see(60, USDT="10")
    account.see(120, USDT="10")
    before = dict(account.stored)
    for seconds in (120, 119):
        for missing in ({"USDT": "10"}, {"USDT": "99"}, {}):
            assert account.see(seconds, **missing)[0] == []
            assert account.stored == before


def test_balance_report_reads_as_itself() -> None:
    """What stands on trade.reports is told apart by its own fields; a ledger below zero keeps its sign."""
    report = report_at(NOW, USDT="10")
    report = report.model_copy(update={"drifts": (report.drifts[0].model_copy(update={"ledger_amount": D("-0.5")}),)})
    assert ON_REPORTS.validate_json(report.model_dump_json()) == report
    assert ON_REPORTS.validate_json(report_at(NOW).model_dump_json()) == report_at(NOW)


def answer(**fields: Any) -> dict[str, Any]:
    rows = [{"asset": "USDT", "free": "1.5", "locked": "0.5"}, {"asset": "YOYO", "free": "7", "locked": "0"}]
    return {"uid": 354_937_868, "balances": [*rows, {"asset": "BTC", "free": "0.00000000", "locked": "0"}], **fields}


def test_balances_of_the_venue_are_free_and_locked_under_the_codes_of_symbols() -> None:
    """Zero is left out; the venue's own name of an asset becomes the one that symbols use; the account has its id as text."""
    codes = {"YOYO": "YOYOW"}
    found = read_balances(answer(), numbered=True, code_of=lambda asset: codes.get(asset, asset))
    assert found == AccountBalances("354937868", amounts(USDT="2", YOYOW="7"), amounts(USDT="0.5"))
    assert read_balances(answer(), numbered=False, code_of=str).account_id is None


@pytest.mark.parametrize(
    "wrong",
    [
        {}, [], None, answer(uid=None), answer(balances=None), answer(balances=[{"free": "1", "locked": "0"}]),
        answer(balances=[{"asset": "BTC", "free": 0.1, "locked": "0"}]), answer(balances=[{"asset": "BTC", "free": "-1", "locked": "0"}]),
        answer(balances=[{"asset": "BTC", "free": "1"}]), answer(balances=[{"asset": "BTC", "free": "1", "locked": "0"}] * 2),
    ],
)  # fmt: skip
def test_balances_that_cannot_be_read_whole_prove_nothing(wrong: Any) -> None:
    """An answer that lacks a part is no answer: what it does not show would count as zero."""
    with pytest.raises(UnreadableBooks):
        read_balances(wrong, numbered=True, code_of=str)
