"""Payouts: what is sent, what each outcome and each word of the exchange's history does to a withdrawal and its funds."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest

from agents.watches.withdrawals import report_of, spans_of, windows_of
from infra.exchange.venues.binance.venue import BINANCE
from pipeline.books.audit import ChainHead
from pipeline.books.changes import Changes
from pipeline.books.ledger import TransferKind
from pipeline.model.absence import absence_is_proven
from pipeline.model.halts import NO_HALTS, Halt, HaltBook
from pipeline.model.intents import NotSent
from pipeline.model.invariants import InvariantViolation, LocksMissing
from pipeline.model.retries import ATTEMPTS_MAX
from pipeline.model.venue import InDoubt, Refused
from pipeline.model.withdrawal import Taken, VenueWithdrawal, Withdrawal
from pipeline.withdrawals.settlement import Outcome, apply_withdrawal_report, conclude_withdrawals, plan_withdrawals
from schemas.commands import TRIPS_ACCOUNT, HaltLevel, HaltScope
from schemas.orders import WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, RoutedOrder
from schemas.withdrawals import WithdrawalFinding
from tests.unit.builders import EXCHANGE, NOW, RULES, TOPICS, USER, account, finals_of, outputs_on, results_of
from tests.unit.withdrawal_builders import ADDRESS, FEE, changes_with, report, withdrawal_of

_S = WithdrawalStatus
MICROSECOND = timedelta(microseconds=1)
HORIZON = RULES.receive_window + RULES.venue_timeout + RULES.withdrawal_history_lag


def work(withdrawal: Withdrawal, attempt: int = 1) -> RoutedOrder:
    return RoutedOrder(
        schema_version=1, action=Action.WITHDRAW, order_id=withdrawal.withdrawal_id, user_id=withdrawal.user_id, attempt=attempt
    )


def only(changes: Changes) -> Withdrawal:
    [one] = changes.withdrawals.values()
    return one


def queued_again(changes: Changes) -> int:
    return len(outputs_on(changes, TOPICS.orders(EXCHANGE)))


def test_accepted_withdrawal_is_sent_once_with_its_intent_stored() -> None:
    """However often its record comes, one call is planned, and it carries the time of the intent."""
    withdrawal = withdrawal_of()
    changes = changes_with(withdrawal)
    [sent] = plan_withdrawals([work(withdrawal), work(withdrawal), work(withdrawal, 2)], changes, 5, 1, NO_HALTS)
    after = only(changes)
    assert (after.status, after.attempt, after.fencing_epoch, after.work_partition, after.submitting_at) == (_S.SUBMITTING, 1, 5, 1, NOW)
    assert (sent.amount, sent.fee, sent.address, sent.submitting_at) == (Decimal(100), FEE, ADDRESS, NOW)


@pytest.mark.parametrize("status", [_S.PENDING_APPROVAL, _S.PROCESSING, _S.IN_DOUBT, _S.COMPLETED, _S.REJECTED])
def test_withdrawal_in_another_state_is_not_sent(status: WithdrawalStatus) -> None:
    """One that waits for an operator least of all."""
    withdrawal = withdrawal_of(status=status)
    changes = changes_with(withdrawal)
    assert plan_withdrawals([work(withdrawal, withdrawal.attempt + 1)], changes, 5, 1, NO_HALTS) == []
    assert only(changes) == withdrawal and not changes.outputs


def test_withdrawal_interrupted_under_an_older_epoch_is_in_doubt() -> None:
    """Another worker may have sent it; the same worker, whose commit was answered late, has not."""
    withdrawal = withdrawal_of(status=_S.SUBMITTING)
    changes = changes_with(withdrawal)
    assert plan_withdrawals([work(withdrawal)], changes, 4, 0, NO_HALTS) == []
    assert only(changes).status is _S.IN_DOUBT and only(changes).hold_amount == 100 + FEE
    assert plan_withdrawals([work(withdrawal)], changes_with(withdrawal), 3, 0, NO_HALTS) == []
    own_intents = {(withdrawal.withdrawal_id, withdrawal.attempt)}
    assert len(plan_withdrawals([work(withdrawal)], changes_with(withdrawal), 3, 0, NO_HALTS, own_intents)) == 1


@pytest.mark.parametrize("level", list(HaltLevel))
@pytest.mark.parametrize(("scope", "target"), [(HaltScope.ALL, ""), (HaltScope.EXCHANGE, EXCHANGE), (HaltScope.USER, USER)])
def test_halt_of_either_level_ends_a_queued_withdrawal(scope: HaltScope, target: str, level: HaltLevel) -> None:
    """Nothing is sent and the funds are free again."""
    changes = changes_with(withdrawal := withdrawal_of())
    assert plan_withdrawals([work(withdrawal)], changes, 5, 1, HaltBook(frozenset({Halt(scope, target, level)}))) == []
    assert (only(changes).status, only(changes).reason_code, only(changes).hold_amount) == (_S.REJECTED, ReasonCode.TRADING_HALTED, 0)


def test_withdrawal_past_its_deadline_is_not_sent() -> None:
    """At the deadline itself it is over."""
    changes = changes_with(withdrawal := withdrawal_of(expires_at=NOW))
    assert plan_withdrawals([work(withdrawal)], changes, 5, 1, NO_HALTS) == []
    assert [result.reason_code for result in finals_of(changes)] == [ReasonCode.REQUEST_EXPIRED]
    with pytest.raises(InvariantViolation):
        plan_withdrawals([work(replace(withdrawal, withdrawal_id="w-none"))], changes, 5, 1, NO_HALTS)


OUTCOMES: tuple[tuple[Outcome, WithdrawalStatus, ResultStatus | None, bool], ...] = (
    (Taken("x9"), _S.PROCESSING, ResultStatus.OPEN, True),
    (Refused(ReasonCode.BALANCE_INSUFFICIENT, "no"), _S.REJECTED, ResultStatus.REJECTED, False),
    (InDoubt("no answer"), _S.IN_DOUBT, ResultStatus.IN_DOUBT, True),
    (NotSent("too late"), _S.ACCEPTED, None, True),
)


@pytest.mark.parametrize(("outcome", "status", "told", "held"), OUTCOMES, ids=[type(row[0]).__name__ for row in OUTCOMES])
def test_outcome_of_the_call_is_kept_as_it_was_proven(
    outcome: Outcome, status: WithdrawalStatus, told: ResultStatus | None, held: bool
) -> None:
    """Only a proven refusal frees the funds; without proof they stay held."""
    changes = changes_with(withdrawal := withdrawal_of(status=_S.SUBMITTING))
    conclude_withdrawals({withdrawal.withdrawal_id: outcome}, changes)
    assert only(changes).status is status
    assert [result.status for result in results_of(changes)] == ([] if told is None else [told])
    assert changes.ledger.balance(account("USDT")).pending == (100 + FEE if held else 0)
    assert queued_again(changes) == (1 if isinstance(outcome, NotSent) else 0)
    with pytest.raises(InvariantViolation):
        conclude_withdrawals({withdrawal.withdrawal_id: Taken("x9")}, changes)


def test_withdrawal_that_never_gets_through_ends_after_its_attempts() -> None:
    """An exchange that is down must not fill the audit trail until a far deadline."""
    changes = changes_with(withdrawal := withdrawal_of(status=_S.SUBMITTING, attempt=ATTEMPTS_MAX))
    conclude_withdrawals({withdrawal.withdrawal_id: NotSent("down")}, changes)
    assert (only(changes).status, only(changes).reason_code) == (_S.REJECTED, ReasonCode.EXCHANGE_UNAVAILABLE)


def test_withdrawal_that_was_tried_twice_waits_in_its_row_and_not_in_the_queue() -> None:
    """Nothing goes round in circles while its exchange is away; whatever moves it on ends the wait."""
    changes = changes_with(withdrawal := withdrawal_of(status=_S.SUBMITTING, attempt=2))
    conclude_withdrawals({withdrawal.withdrawal_id: NotSent("down")}, changes)
    assert (only(changes).status, only(changes).retry_at) == (_S.ACCEPTED, NOW + timedelta(seconds=1))
    assert queued_again(changes) == 0
    assert len(plan_withdrawals([work(only(changes), 3)], changes, 5, 1, NO_HALTS)) == 1
    assert (only(changes).status, only(changes).retry_at) == (_S.SUBMITTING, None)


def test_key_that_may_not_withdraw_stays_in_use_for_trading() -> None:
    """A venue says the same of a key that may trade and not withdraw: the withdrawal ends, the key is not marked."""
    changes = changes_with(withdrawal := withdrawal_of(status=_S.SUBMITTING))
    conclude_withdrawals({withdrawal.withdrawal_id: Refused(ReasonCode.API_KEY_PERMISSION, "no withdrawals")}, changes)
    assert only(changes).status is _S.REJECTED and not changes.keys_refused


@pytest.mark.parametrize("status", [_S.PROCESSING, _S.IN_DOUBT])
def test_completed_withdrawal_leaves_the_ledger_once(status: WithdrawalStatus) -> None:
    """Amount to clearing, fee to fees, nothing left held; the same word again changes nothing."""
    changes = changes_with(withdrawal := withdrawal_of(status=status), funds={"USDT": "50"})
    for _ in range(2):
        apply_withdrawal_report(report(withdrawal), changes, RULES)
    assert [(transfer.kind, transfer.credit.owner, transfer.amount) for transfer in changes.ledger.transfers] == [
        (TransferKind.POST_HELD, "@clearing", Decimal(100)),
        (TransferKind.POST_HELD, "@fees", FEE),
    ]
    balance = changes.ledger.balance(account("USDT"))
    assert (balance.posted, balance.pending) == (50, 0)
    [final] = finals_of(changes)
    assert (final.status, final.filled_quantity, final.fee, final.fee_asset) == (ResultStatus.COMPLETED, 100, FEE, "USDT")
    assert only(changes).transaction_id == "t1"


@pytest.mark.parametrize(("amount", "fee", "left"), [("100.2", "0.3", "0"), ("99", "1.5", "0"), ("99", "0.5", "1")])
def test_fee_that_the_exchange_has_changed_is_posted_as_it_is(amount: str, fee: str, left: str) -> None:
    """The history's own figures count; what they do not use of the hold is released."""
    changes = changes_with(withdrawal := withdrawal_of(status=_S.PROCESSING), funds={"USDT": "0"})
    apply_withdrawal_report(report(withdrawal, amount=Decimal(amount), fee=Decimal(fee)), changes, RULES)
    balance = changes.ledger.balance(account("USDT"))
    assert (balance.posted, balance.pending) == (Decimal(left), 0)
    assert (only(changes).amount, only(changes).fee) == (Decimal(amount), Decimal(fee))


def test_more_than_was_held_is_charged_and_advanced_by_the_house() -> None:
    """Nobody goes negative: what a raised fee takes beyond hold and free funds, the house advances."""
    changes = changes_with(withdrawal := withdrawal_of(status=_S.PROCESSING), funds={"USDT": "1"})
    apply_withdrawal_report(report(withdrawal, fee=Decimal(3)), changes, RULES)
    balance = changes.ledger.balance(account("USDT"))
    assert (balance.posted, balance.pending) == (0, 0)
    moved = {(transfer.debit.owner, transfer.credit.owner): transfer.amount for transfer in changes.ledger.transfers}
    assert moved[USER, "@fees"] == 1 and moved["@shortfall", "@fees"] == Decimal("1.5")


def test_failed_withdrawal_gives_its_funds_back() -> None:
    """The exchange took it and did not pay: a final answer, no posting."""
    changes = changes_with(withdrawal := withdrawal_of(status=_S.PROCESSING))
    apply_withdrawal_report(report(withdrawal, withdrawal_status=_S.FAILED, detail="bad address"), changes, RULES)
    assert [transfer.kind for transfer in changes.ledger.transfers] == [TransferKind.RELEASE]
    [final] = finals_of(changes)
    assert (final.status, final.reason_code) == (ResultStatus.FAILED, ReasonCode.EXCHANGE_REFUSED)
    assert "bad address" in (final.reason or "")


def test_cost_of_what_is_withdrawn_goes_with_it() -> None:
    """What was bought here and is gone counts no more for the result of a later sale."""
    changes = changes_with(withdrawal := withdrawal_of(status=_S.PROCESSING), funds={"USDT": "99.5"})
    changes.ledger.set_cost(account("USDT"), Decimal(200), Decimal(400))
    apply_withdrawal_report(report(withdrawal), changes, RULES)
    balance = changes.ledger.balance(account("USDT"))
    assert (balance.posted, balance.cost_quantity, balance.cost_usd) == (Decimal("99.5"), Decimal("99.5"), Decimal(199))


def _looked(withdrawal: Withdrawal, *at: datetime, now: datetime | None = None) -> Changes:
    """What looks at the exchange's history that begin then, by its clock, and do not show the withdrawal come to."""
    changes = changes_with(withdrawal, now=now or NOW)
    for looked_up_at in at:
        apply_withdrawal_report(report(withdrawal, WithdrawalFinding.ABSENT, looked_up_at=looked_up_at), changes, RULES)
    return changes


def test_absence_needs_two_looks_that_far_apart() -> None:
    """However late the first look: what the history did not show then may have come just before it. Until the second the funds stay held,
    and nobody is told anything new."""
    doubtful = withdrawal_of(status=_S.IN_DOUBT, submitting_at=NOW - timedelta(days=2), expires_at=NOW + timedelta(days=1))
    once = _looked(doubtful, NOW)
    assert only(once) == replace(doubtful, absent_since=NOW) and not once.outputs
    early = _looked(doubtful, NOW, NOW + HORIZON - MICROSECOND, now=NOW + HORIZON)
    assert only(early) == replace(doubtful, absent_since=NOW) and not early.outputs
    changes = _looked(doubtful, NOW, NOW + HORIZON, now=NOW + HORIZON)
    ended = only(changes)
    assert (ended.status, ended.reason_code, ended.hold_amount) == (_S.REJECTED, ReasonCode.ORDER_NOT_EXECUTED, 0)
    assert (ended.absent_since, ended.watched_until) == (None, NOW + HORIZON + RULES.watch_time)
    [final] = finals_of(changes)
    assert (final.status, final.reason_code, final.corrects) == (ResultStatus.REJECTED, ReasonCode.ORDER_NOT_EXECUTED, False)
    assert changes.ledger.balance(account("USDT")).pending == 0


def test_withdrawal_in_doubt_is_never_sent_again_by_itself() -> None:
    """Not inside its deadline either, and not by a record that is queued: what is proven absent ends, and its producer decides."""
    doubtful = withdrawal_of(status=_S.IN_DOUBT, expires_at=NOW + timedelta(days=365))
    changes = _looked(doubtful, NOW, NOW + HORIZON)
    assert queued_again(changes) == 0
    for attempt in (1, 2, 3):
        assert plan_withdrawals([work(doubtful, attempt)], changes, 5, 1, NO_HALTS) == []
    assert not absence_is_proven(withdrawal_of(), NOW, RULES)


def test_new_doubt_forgets_what_was_seen_of_an_older_one() -> None:
    """A look before the newest attempt says nothing about it."""
    withdrawal = withdrawal_of(status=_S.SUBMITTING, absent_since=NOW - timedelta(hours=1))
    changes = changes_with(withdrawal)
    conclude_withdrawals({withdrawal.withdrawal_id: InDoubt("no answer")}, changes)
    assert only(changes).absent_since is None


NOT_EXECUTED = withdrawal_of(
    status=_S.REJECTED, reason_code=ReasonCode.ORDER_NOT_EXECUTED, submitting_at=NOW - timedelta(hours=1), attempt=1, work_partition=0,
    watched_until=NOW + timedelta(hours=1),
)  # fmt: skip


def _with_halts(withdrawal: Withdrawal, *, funds: str, now: datetime = NOW) -> Changes:
    changes = changes_with(withdrawal, funds={"USDT": funds}, now=now)
    changes.trail.heads[TRIPS_ACCOUNT] = ChainHead()
    return changes


@pytest.mark.parametrize("funds", ["1000", "40", "0"])
@pytest.mark.parametrize("on_its_way", [True, False])
def test_withdrawal_that_shows_up_after_all_is_booked_and_its_user_halted(funds: str, on_its_way: bool) -> None:
    """It was paid once and counted as not executed: it is booked as far as the funds go, the house advances the rest, the answer is
    corrected by an event and a result of its own, and nothing more is done for the user until somebody has looked."""
    changes = _with_halts(NOT_EXECUTED, funds=funds)
    if on_its_way:
        apply_withdrawal_report(report(NOT_EXECUTED, withdrawal_status=_S.PROCESSING), changes, RULES)
        assert only(changes).status is _S.PROCESSING
        assert only(changes).hold_amount == changes.ledger.balance(account("USDT")).pending == min(Decimal(funds), 100 + FEE)
    for _ in range(2):
        apply_withdrawal_report(report(NOT_EXECUTED), changes, RULES)
    # A word that was overtaken.
    apply_withdrawal_report(report(NOT_EXECUTED, withdrawal_status=_S.PROCESSING), changes, RULES)
    ended = only(changes)
    assert (ended.status, ended.hold_amount, ended.corrected_at) == (_S.COMPLETED, 0, NOW)
    balance = changes.ledger.balance(account("USDT"))
    assert (balance.posted, balance.pending) == (max(Decimal(funds) - 100 - FEE, Decimal(0)), 0)
    advanced = sum((moved.amount for moved in changes.ledger.transfers if moved.debit.owner == "@shortfall"), Decimal(0))
    assert advanced == max(100 + FEE - Decimal(funds), Decimal(0))
    assert finals_of(changes) == []
    told = [(result.status, result.corrects, result.filled_quantity) for result in results_of(changes)]
    assert told == [(ResultStatus.OPEN, True, 0)] * on_its_way + [(ResultStatus.COMPLETED, True, 100)]
    assert changes.corrected[USER, "key-1"].status is ResultStatus.COMPLETED
    corrections = [event for event in changes.trail.rows if b"WITHDRAWAL_RESULT_CORRECTED" in event.body]
    assert len(corrections) == 1
    assert changes.halts[HaltScope.USER, USER].halt.level is HaltLevel.HALT


def test_correction_waits_for_the_lock_of_the_halts() -> None:
    """Booked and halted in one step or not at all."""
    with pytest.raises(LocksMissing):
        apply_withdrawal_report(report(NOT_EXECUTED), changes_with(NOT_EXECUTED), RULES)


def test_withdrawal_is_watched_for_its_time_and_what_was_not_paid_is_no_correction() -> None:
    """After a day it is a finding of verification; one that the exchange took and gave back is what was said of it."""
    late = _with_halts(NOT_EXECUTED, funds="1000", now=NOW + timedelta(hours=1))
    apply_withdrawal_report(report(NOT_EXECUTED), late, RULES)
    given_back = _with_halts(NOT_EXECUTED, funds="1000")
    apply_withdrawal_report(report(NOT_EXECUTED, withdrawal_status=_S.FAILED), given_back, RULES)
    unwatched = replace(NOT_EXECUTED, watched_until=None)
    refused = _with_halts(unwatched, funds="1000")
    apply_withdrawal_report(report(unwatched), refused, RULES)
    for changes in (late, given_back, refused):
        assert not changes.outputs and not changes.withdrawals.changed and not changes.halts
    assert report_of(NOT_EXECUTED, [row(_S.FAILED)], NOW, RULES) is None
    assert report_of(NOT_EXECUTED, [], NOW, RULES) is None
    assert report_of(NOT_EXECUTED, [row()], NOW, RULES) is not None


@pytest.mark.parametrize(
    ("withdrawal", "finding", "attempt"),
    [
        (withdrawal_of(status=_S.SUBMITTING), WithdrawalFinding.FOUND, 1),
        (withdrawal_of(status=_S.SUBMITTING), WithdrawalFinding.ABSENT, 1),
        (withdrawal_of(status=_S.PROCESSING, submitting_at=NOW - timedelta(days=1)), WithdrawalFinding.ABSENT, 1),
        (withdrawal_of(status=_S.IN_DOUBT), WithdrawalFinding.FOUND, 2),
        (withdrawal_of(status=_S.COMPLETED), WithdrawalFinding.FOUND, 1),
        (withdrawal_of(status=_S.PENDING_APPROVAL), WithdrawalFinding.UNAPPROVED, 0),
        (withdrawal_of(status=_S.ACCEPTED, expires_at=NOW), WithdrawalFinding.UNAPPROVED, 0),
    ],
    ids=["being-sent", "being-sent-absent", "taken-absent", "other-attempt", "over", "in-time", "approved"],
)
def test_report_that_proves_nothing_changes_nothing(withdrawal: Withdrawal, finding: WithdrawalFinding, attempt: int) -> None:
    """What is being sent is its own worker's to conclude; what the exchange took does not become absent; an old attempt is over."""
    changes = changes_with(withdrawal)
    apply_withdrawal_report(report(withdrawal, finding, attempt=attempt), changes, RULES)
    assert not changes.outputs and not changes.withdrawals.changed and not changes.ledger.transfers


def test_withdrawal_that_nobody_approved_ends_with_its_funds_free() -> None:
    """When its time is over it is rejected, as nothing was sent."""
    changes = changes_with(withdrawal := withdrawal_of(status=_S.PENDING_APPROVAL, expires_at=NOW))
    apply_withdrawal_report(report(withdrawal, WithdrawalFinding.UNAPPROVED), changes, RULES)
    assert (only(changes).status, only(changes).reason_code, only(changes).hold_amount) == (_S.REJECTED, ReasonCode.REQUEST_EXPIRED, 0)


def row(status: WithdrawalStatus = _S.COMPLETED, **fields: str) -> VenueWithdrawal:
    values = {"asset": "USDT", "network": "ETH", "address": ADDRESS.lower(), "exchange_withdrawal_id": "x1", **fields}
    return VenueWithdrawal(
        client_withdrawal_id=withdrawal_of().client_withdrawal_id,
        status=status,
        amount=Decimal(100),
        fee=FEE,
        transaction_id="t1",
        detail=None,
        **values,
    )


def test_history_is_reported_only_where_it_proves_something_new() -> None:
    """Found in doubt or ended, not shown for the first time, or for so long that it proves something: a report. Else none."""
    doubtful = withdrawal_of(status=_S.IN_DOUBT, submitting_at=NOW - timedelta(seconds=5))
    processing = withdrawal_of(status=_S.PROCESSING)
    assert report_of(doubtful, [row(_S.PROCESSING)], NOW, RULES) is not None
    assert report_of(processing, [row(_S.PROCESSING)], NOW, RULES) is None
    assert report_of(processing, [row(address=ADDRESS)], NOW, RULES) is not None
    assert report_of(doubtful, [], NOW, RULES) is not None
    seen = replace(doubtful, absent_since=NOW)
    assert report_of(seen, [], NOW + HORIZON - MICROSECOND, RULES) is None
    assert report_of(seen, [], NOW + HORIZON, RULES) is not None
    assert report_of(processing, [], NOW + HORIZON, RULES) is None


@pytest.mark.parametrize(
    "rows", [[row(), row(exchange_withdrawal_id="x2")], [row(asset="BTC")], [row(network="BSC")], [row(address="0x0")]]
)
def test_history_that_does_not_fit_is_reported_to_nobody(rows: list[VenueWithdrawal]) -> None:
    """Two rows with one client id, or one about other money, are for a person to look at: nothing is concluded."""
    with pytest.raises(ValueError, match="client id"):
        report_of(withdrawal_of(status=_S.PROCESSING), rows, NOW, RULES)


def test_history_of_long_is_asked_for_in_windows() -> None:
    """What was sent within 80 days is covered by one question; one whose time is not known is asked for by none."""
    ages = (1, 2, 79, 81, 200)
    sent = [withdrawal_of(status=_S.IN_DOUBT, withdrawal_id=f"w{age}", submitting_at=NOW - timedelta(days=age)) for age in ages]
    groups = [[one.withdrawal_id for one in group] for group in windows_of([*sent, withdrawal_of()], BINANCE.history_span)]
    assert groups == [["w200"], ["w81", "w79", "w2", "w1"]]


def test_withdrawals_that_were_sent_with_different_keys_are_asked_about_apart() -> None:
    """A key that was replaced under its id may answer for some of them only."""
    versions = {"a": 1, "b": 2, "c": 1, "d": None}
    sent = [
        withdrawal_of(status=_S.IN_DOUBT, withdrawal_id=name, submitting_at=NOW - timedelta(minutes=9 - number), key_version=version)
        for number, (name, version) in enumerate(versions.items())
    ]
    assert [[one.withdrawal_id for one in group] for group in windows_of(sent, BINANCE.history_span)] == [["a", "c"], ["b"], ["d"]]


def test_history_is_asked_from_the_first_attempt_on_for_ever() -> None:
    """Each attempt carries the same client id: an earlier one that the exchange took late must not lie outside what is asked for, however
    many came after it; and no question covers more than the exchange answers."""
    first = NOW - timedelta(days=200)
    newest = NOW - timedelta(seconds=20)
    one = withdrawal_of(status=_S.IN_DOUBT, attempt=4, submitting_at=newest, first_submitting_at=first)
    spans = spans_of([one], NOW, BINANCE.history_span, BINANCE.listed_within)
    assert spans[0][0] < first and spans[-1][1] > NOW
    assert all(before[1] >= after[0] for before, after in pairwise(spans))
    assert all(until - since <= timedelta(days=80) for since, until in spans)
    changes = changes_with(withdrawal := withdrawal_of(status=_S.SUBMITTING, submitting_at=first, first_submitting_at=first))
    conclude_withdrawals({withdrawal.withdrawal_id: NotSent("down")}, changes)
    [sent] = plan_withdrawals([work(withdrawal, 2)], changes, 5, 1, NO_HALTS)
    assert (only(changes).first_submitting_at, sent.submitting_at) == (first, NOW)
