"""What an exchange's word does to a deposit, its user's funds and the announcements: one claim per test."""

import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.books.changes import Changes
from pipeline.books.ledger import Balance
from pipeline.deposits.announcements import apply_announcement_report
from pipeline.deposits.settlement import DEPOSIT_LIFE, Move, apply_deposit_report, deposit_id_in, verdict_on
from pipeline.intake import decide
from pipeline.model.api_key import ApiKeyState
from pipeline.model.deposit import TRANSITIONS, VENUE_STATES, Announcement, Dispute, DisputeKind, next_status
from pipeline.model.invariants import InvariantViolation, LocksMissing
from pipeline.model.second_factor import SecondFactor
from pipeline.model.tracked import Tracked
from schemas.commands import TRIPS_ACCOUNT, HaltLevel, HaltScope
from schemas.orders import AnnouncementStatus, DepositStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from tests.unit.builders import (
    EXCHANGE,
    NOW,
    RULES,
    USER,
    WIDE_LIMITS,
    account,
    account_state,
    arrival,
    changes_of,
    finals_of,
    intake_state,
    results_of,
)
from tests.unit.deposit_builders import OTHER, announcing, arriving, deposit_of, deposit_report, expiry

_S = DepositStatus
USDT = account("USDT")


def events(changes: Changes) -> list[str]:
    """The types of the audit events that a batch made."""
    return [row.body.decode().partition('"event_type":"')[2].partition('"')[0] for row in changes.trail.rows]


def announced(changes: Changes | None = None, offset: int = 0, **fields: Any) -> Announcement:
    """An announcement as intake makes it."""
    batch = changes_of() if changes is None else changes
    decide([arrival(announcing(**fields), offset)], intake_state(), batch)
    return list(batch.deposits.announcements.values())[-1]


@pytest.mark.parametrize(("before", "after"), list(itertools.product(_S, _S)))
def test_deposit_moves_along_the_table_alone(before: DepositStatus, after: DepositStatus) -> None:
    """Every other step is a defect."""
    was, becomes = deposit_of(status=before), deposit_of(status=after)
    if after in TRANSITIONS[before]:
        DEPOSIT_LIFE.require_transition(was, becomes)
    else:
        with pytest.raises(InvariantViolation):
            DEPOSIT_LIFE.require_transition(was, becomes)


@pytest.mark.parametrize(("before", "told"), list(itertools.product(_S, sorted(VENUE_STATES))))
def test_word_of_an_exchange_never_leads_off_the_table(before: DepositStatus, told: DepositStatus) -> None:
    """Whatever is shown in whatever order; only a credited deposit is ever reversed, and by a rejection alone."""
    after = next_status(before, told)
    assert after is None or after in TRANSITIONS[before]
    assert (after is _S.REVERSED) == (before is _S.CREDITED and told is _S.REJECTED)


def test_deposit_is_credited_once_however_often_it_is_reported() -> None:
    """One transfer from the exchange's side to the user, one event, one snapshot."""
    changes = arriving()
    for _ in range(3):
        apply_deposit_report(deposit_report(), changes)
    assert changes.ledger.balance(USDT) == Balance(Decimal(100))
    assert len(changes.ledger.transfers) == 1
    assert events(changes) == ["DEPOSIT_CREDITED"]


def test_deposit_on_its_way_is_shown_and_not_credited() -> None:
    """Detected and confirming move no money; success does."""
    changes = arriving()
    apply_deposit_report(deposit_report(_S.DETECTED), changes)
    apply_deposit_report(deposit_report(_S.CONFIRMING), changes)
    assert not changes.ledger.transfers
    apply_deposit_report(deposit_report(), changes)
    assert events(changes) == ["DEPOSIT_DETECTED", "DEPOSIT_CONFIRMING", "DEPOSIT_CREDITED"]


@pytest.mark.parametrize("told", [_S.DETECTED, _S.CONFIRMING])
def test_credited_deposit_shown_as_on_its_way_stays_credited(told: DepositStatus) -> None:
    """An exchange's copies of its books do not always show the same."""
    changes = arriving(deposit_of())
    apply_deposit_report(deposit_report(told, looked_up_at=NOW + timedelta(hours=1)), changes)
    assert not changes.trail.rows


def test_older_word_never_undoes_a_newer_one() -> None:
    """A rejection that was read before the success does not take it back; a success read before the rejection does not credit."""
    changes = arriving(deposit_of())
    apply_deposit_report(deposit_report(_S.REJECTED, looked_up_at=NOW - timedelta(seconds=1)), changes)
    assert not changes.trail.rows
    changes = arriving(deposit_of(_S.REJECTED))
    apply_deposit_report(deposit_report(looked_up_at=NOW - timedelta(seconds=1)), changes)
    assert not changes.trail.rows


def test_deposit_that_was_rejected_and_recovered_is_credited() -> None:
    """A wrong deposit may be recovered at the exchange."""
    changes = arriving(deposit_of(_S.REJECTED))
    apply_deposit_report(deposit_report(looked_up_at=NOW + timedelta(hours=1)), changes)
    assert changes.ledger.balance(USDT).posted == 100


def test_deposit_taken_back_is_reversed_from_free_funds() -> None:
    """A new transfer, and nobody is frozen who can pay."""
    deposit = deposit_of()
    changes = arriving(deposit)
    apply_deposit_report(deposit_report(_S.REJECTED), changes)
    assert changes.ledger.balance(USDT) == Balance()
    assert [transfer.transfer_id for transfer in changes.ledger.transfers] == [f"{deposit.deposit_id}:reverse"]
    assert not changes.frozen and events(changes) == ["DEPOSIT_REVERSED"]


@pytest.mark.parametrize(
    ("posted", "held", "advanced"), [("100", "100", "100"), ("100", "60", "60"), ("0", "0", "100"), ("250", "180", "30")]
)
def test_deposit_taken_back_from_who_has_spent_it_is_advanced_and_freezes(posted: str, held: str, advanced: str) -> None:
    """What is held stays held, nothing goes negative, the house advances the rest, and the user is frozen once."""
    changes = arriving(deposit_of())
    changes.ledger.balances[USDT] = Balance(Decimal(posted), Decimal(held))
    apply_deposit_report(deposit_report(_S.REJECTED), changes)
    after = changes.ledger.balance(USDT)
    assert (after.pending, after.available) == (Decimal(held), Decimal(0))
    assert sum(one.amount for one in changes.ledger.transfers if one.credit.owner == "@clearing") == 100
    assert sum(one.amount for one in changes.ledger.transfers if one.debit.owner == "@shortfall") == Decimal(advanced)
    [deposit] = changes.deposits.deposits.values()
    assert deposit.advanced == Decimal(advanced)
    assert list(changes.frozen) == [USER] and events(changes) == ["DEPOSIT_REVERSED", "USER_FROZEN"]


def test_deposit_taken_back_does_not_freeze_a_user_who_is_not_active() -> None:
    """There is no such row to change: a frozen user stays frozen, a closed one closed."""
    changes = arriving(deposit_of())
    changes.ledger.balances[USDT] = Balance()
    changes.deposits.user_status[USER] = "closed"
    apply_deposit_report(deposit_report(_S.REJECTED), changes)
    assert not changes.frozen


@pytest.mark.parametrize(
    ("fields", "is_news"),
    [
        ({"arrived_at": NOW - timedelta(hours=2)}, False),
        ({"arrived_at": NOW - timedelta(hours=2), "completed_at": NOW - timedelta(minutes=61)}, False),
        ({"arrived_at": NOW - timedelta(hours=2), "completed_at": NOW - timedelta(minutes=59)}, True),
        ({"arrived_at": NOW - timedelta(minutes=59)}, True),
    ],
)
def test_deposit_credited_before_the_opening_balance_is_part_of_it(fields: dict[str, Any], is_news: bool) -> None:
    """The account was opened an hour ago with what lay there: crediting it again would invent money."""
    assert (verdict_on(deposit_report(**fields), arriving().deposits) is not None) is is_news


def test_deposit_known_before_the_opening_balance_and_credited_before_it_is_part_of_it() -> None:
    """Where the exchange says when, also for one that was seen on its way."""
    changes = arriving(deposit_of(_S.CONFIRMING))
    told = deposit_report(completed_at=NOW - timedelta(minutes=61), looked_up_at=NOW + timedelta(seconds=1))
    assert verdict_on(told, changes.deposits) is None


@pytest.mark.parametrize(
    ("stored_at", "is_news"), [(NOW - timedelta(seconds=61), True), (NOW - timedelta(seconds=59), False), (None, False)]
)
def test_deposit_that_came_before_its_key_was_stored_is_not_credited(stored_at: datetime | None, is_news: bool) -> None:
    """It may be spent long since: crediting it would invent money. One that was on its way then is credited when it is success."""
    changes = arriving()
    changes.deposits.watched_from = {} if stored_at is None else {(USER, "k1"): stored_at}
    assert (verdict_on(deposit_report(), changes.deposits) is not None) is is_news
    apply_deposit_report(deposit_report(_S.CONFIRMING), changes)
    apply_deposit_report(deposit_report(looked_up_at=NOW + timedelta(seconds=1)), changes)
    assert changes.ledger.balance(USDT).posted == 100


def test_deposit_of_a_user_who_is_not_known_is_not_credited() -> None:
    """Nobody knows what that account held before."""
    changes = arriving(users=(OTHER,))
    assert verdict_on(deposit_report(), changes.deposits) is None


_DISPUTES = (
    (DisputeKind.CHANGED, {"amount": "101"}),
    (DisputeKind.CHANGED, {"transaction_id": "t2"}),
    (DisputeKind.CHANGED, {"address": "elsewhere"}),
    (DisputeKind.CHANGED, {"asset": "BTC"}),
    (DisputeKind.FOREIGN, {"user_id": OTHER}),
    (DisputeKind.TWIN, {"exchange_deposit_id": "e2"}),
)


@pytest.mark.parametrize(("kind", "fields"), _DISPUTES, ids=[f"{kind}-{next(iter(fields))}" for kind, fields in _DISPUTES])
def test_deposit_that_does_not_fit_what_is_known_is_disputed_once(kind: DisputeKind, fields: dict[str, Any]) -> None:
    """Audited, its user halted, nothing credited; the next look changes nothing."""
    changes = arriving(deposit_of())
    told = deposit_report(looked_up_at=NOW + timedelta(seconds=1), **fields)
    for _ in range(2):
        apply_deposit_report(told, changes)
    assert not changes.ledger.transfers and not changes.deposits.deposits.made
    assert [(one.kind, one.user_id) for one in changes.deposits.disputes_made] == [(kind, told.user_id)]
    assert events(changes) == ["DEPOSIT_DISPUTED", "HALT_SET"]
    assert changes.halts[HaltScope.USER, told.user_id].halt.level is HaltLevel.HALT
    assert {row.order_id for row in changes.trail.rows} == {None}


def test_dispute_without_the_lock_of_the_halts_begins_again() -> None:
    """Its step has not locked what a halt of its user moves: nothing is written, and it takes that lock as well."""
    changes = arriving(deposit_of())
    del changes.trail.heads[TRIPS_ACCOUNT]
    with pytest.raises(LocksMissing):
        apply_deposit_report(deposit_report(amount="101", looked_up_at=NOW + timedelta(seconds=1)), changes)
    assert not changes.trail.rows and not changes.deposits.disputes_made


def test_deposit_shown_as_credited_after_it_was_taken_back_is_disputed() -> None:
    """It is never credited a second time by itself."""
    changes = arriving(deposit_of(_S.REVERSED))
    verdict = verdict_on(deposit_report(looked_up_at=NOW + timedelta(seconds=1)), changes.deposits)
    assert isinstance(verdict, Dispute) and verdict.kind is DisputeKind.RETURNED
    assert verdict_on(deposit_report(looked_up_at=NOW - timedelta(seconds=1)), changes.deposits) is None


@pytest.mark.parametrize("fields", [{"amount": "99"}, {"address_tag": "7"}, {"address": "elsewhere"}, {"asset": "BTC"}])
def test_other_output_of_the_same_transaction_is_a_deposit_of_its_own(fields: dict[str, Any]) -> None:
    """Another amount, address, tag or asset makes another output."""
    changes = arriving(deposit_of())
    told = deposit_report(exchange_deposit_id="e2", **fields)
    assert isinstance(verdict_on(told, changes.deposits), Move)
    assert deposit_id_in(told) not in changes.deposits.deposits


def test_entry_that_replaces_one_that_was_taken_back_is_credited() -> None:
    """An exchange may take an entry back and make another of the same transaction."""
    changes = arriving(deposit_of(_S.REVERSED))
    apply_deposit_report(deposit_report(exchange_deposit_id="e2"), changes)
    assert changes.ledger.balance(USDT).posted == 100


def test_announcement_waits_and_is_completed_by_the_deposit_that_fits() -> None:
    """Accepted first, completed with the exchange's id of the deposit when that is credited."""
    made = changes_of()
    one = announced(made)
    assert [result.status for result in results_of(made)] == [ResultStatus.ACCEPTED]
    assert one.status is AnnouncementStatus.EXPECTED and not made.ledger.transfers
    changes = arriving(announcements=[one])
    apply_deposit_report(deposit_report(), changes)
    [final] = finals_of(changes)
    assert (final.status, final.order_id, final.exchange_order_id, final.filled_quantity) == (
        ResultStatus.COMPLETED, one.announcement_id, "e1", Decimal(100),
    )  # fmt: skip
    assert events(changes) == ["DEPOSIT_CREDITED", "DEPOSIT_ARRIVED"]


@pytest.mark.parametrize(
    "fields",
    [{"amount": "100.1"}, {"amount": "99.9"}, {"network": "TRX"}, {"address": "elsewhere"}, {"address_tag": "7"}, {"asset": "BTC"}],
)
def test_announcement_that_does_not_fit_waits_on(fields: dict[str, Any]) -> None:
    """The deposit is credited all the same."""
    changes = arriving(announcements=[announced(**fields)])
    apply_deposit_report(deposit_report(), changes)
    assert not finals_of(changes) and changes.ledger.balance(USDT).posted == 100


def test_announcement_that_names_less_fits_more() -> None:
    """Network, address and tag count where they are named."""
    changes = arriving(announcements=[announced(network=None, address=None)])
    apply_deposit_report(deposit_report(address_tag="7"), changes)
    assert len(finals_of(changes)) == 1


def test_deposit_completes_the_oldest_announcement_that_fits_and_no_other() -> None:
    """Of two alike the second waits for the next deposit."""
    first = announced(idempotency_key="a")
    second = replace(announced(offset=1, idempotency_key="b"), requested_at=first.requested_at + timedelta(seconds=1))
    changes = arriving(announcements=[second, first])
    apply_deposit_report(deposit_report(), changes)
    assert [final.idempotency_key for final in finals_of(changes)] == ["a"]
    apply_deposit_report(deposit_report(exchange_deposit_id="e2", transaction_id="t2"), changes)
    assert [final.idempotency_key for final in finals_of(changes)] == ["a", "b"]


def test_announcement_that_comes_after_its_deposit_is_completed_at_once() -> None:
    """By one that no other announcement has taken."""
    changes = changes_of()
    deposit = deposit_of()
    changes.deposits.deposits = Tracked({deposit.deposit_id: deposit})
    announced(changes, idempotency_key="a")
    announced(changes, offset=1, idempotency_key="b")
    assert [(final.idempotency_key, final.status) for final in finals_of(changes)] == [("a", ResultStatus.COMPLETED)]
    assert not changes.deposits.deposits.changed and not changes.deposits.deposits.made


def test_announcement_ends_when_its_time_is_over_and_not_before() -> None:
    """As failed, with the code for what came too late; a second word changes nothing."""
    one = announced()
    early = arriving(announcements=[one], now=one.expires_at - timedelta(microseconds=1))
    apply_announcement_report(expiry(one), early)
    assert not early.trail.rows
    late = arriving(announcements=[one], now=one.expires_at)
    for _ in range(2):
        apply_announcement_report(expiry(one), late)
    [final] = finals_of(late)
    assert (final.status, final.reason_code, final.filled_quantity) == (ResultStatus.FAILED, ReasonCode.REQUEST_EXPIRED, Decimal(0))
    assert events(late) == ["DEPOSIT_EXPIRED"]


_REFUSALS = (
    (ReasonCode.REQUEST_UNSUPPORTED, {"mode": "paper"}, {}),
    (ReasonCode.EXCHANGE_UNKNOWN, {"exchange": "nowhere"}, {}),
    (ReasonCode.REQUEST_EXPIRED, {"expires_at": NOW.isoformat()}, {}),
    (ReasonCode.USER_UNKNOWN, {}, {"accounts": {USER: account_state(status=None)}}),
    (ReasonCode.USER_UNVERIFIED, {}, {"accounts": {USER: account_state(status="pending")}}),
    (ReasonCode.USER_INACTIVE, {}, {"accounts": {USER: account_state(status="frozen")}}),
    (ReasonCode.API_KEY_UNKNOWN, {"api_key_id": "other"}, {}),
    (ReasonCode.API_KEY_PERMISSION, {}, {"api_keys": {(USER, "k1"): ApiKeyState("kraken", "active")}}),
    (ReasonCode.API_KEY_PERMISSION, {}, {"api_keys": {(USER, "k1"): ApiKeyState(EXCHANGE, "refused")}}),
    (ReasonCode.API_KEY_REVOKED, {}, {"api_keys": {(USER, "k1"): ApiKeyState(EXCHANGE, "revoked")}}),
    (ReasonCode.API_KEY_EXPIRED, {}, {"api_keys": {(USER, "k1"): ApiKeyState(EXCHANGE, "active", expires_at=NOW)}}),
    (ReasonCode.AMOUNT_BELOW_MINIMUM, {"amount": "0"}, {}),
    (ReasonCode.OPEN_DEPOSITS_EXCEEDED, {}, {"rules": replace(RULES, announcements_max=0)}),
    (
        ReasonCode.MESSAGE_RATE_EXCEEDED,
        {},
        {"accounts": {USER: account_state(limits=replace(WIDE_LIMITS, messages_per_second_max=0, messages_burst_max=0))}},
    ),
)


@pytest.mark.parametrize(("code", "fields", "state"), _REFUSALS, ids=[f"{code}-{number}" for number, (code, _, _) in enumerate(_REFUSALS)])
def test_announcement_that_is_refused_is_answered_and_not_noted(
    code: ReasonCode, fields: dict[str, Any], state: dict[str, Any]
) -> None:
    """One row per code; nothing waits for a deposit then."""
    changes = changes_of()
    decide([arrival(announcing(**fields))], intake_state(**state), changes)
    [final] = finals_of(changes)
    assert (final.status, final.reason_code) == (ResultStatus.REJECTED, code)
    assert not changes.deposits.announcements


def test_announcement_needs_no_second_factor_and_begins_no_cooldown() -> None:
    """It moves no money. Whoever has a stolen token and no code must not be able to pause its owner's trading either."""
    factor = SecondFactor("JBSWY3DPEHPK3PXP", 0, (), False)
    state = intake_state(accounts={USER: account_state(factor=factor)})
    changes = changes_of()
    asked = replace(arrival(announcing()), needs_second_factor=True)
    refused = replace(arrival(announcing(idempotency_key="b", amount="0"), 1), needs_second_factor=True)
    decide([asked, refused], state, changes)
    assert [result.status for result in results_of(changes)] == [ResultStatus.ACCEPTED, ResultStatus.REJECTED]
    assert changes.conduct_of(USER).failures_in_row == 0


def test_announcement_is_repeated_under_its_key_as_any_request() -> None:
    """A copy while it waits is told so; one after its end gets the same answer."""
    changes = changes_of()
    decide([arrival(announcing(), 0), arrival(announcing(), 1)], intake_state(), changes)
    assert [result.status for result in results_of(changes)] == [ResultStatus.ACCEPTED, ResultStatus.DUPLICATE]
    assert len(changes.deposits.announcements) == 1
