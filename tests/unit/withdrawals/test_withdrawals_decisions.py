"""Withdrawals until they are sent: what a request does to funds, audit trail and answers, and what an operator's word does."""

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pyotp
import pytest

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, SetHalt
from pipeline.books.ledger import TransferKind
from pipeline.commands.halts import CommandArrival, arrive_command, decide_commands
from pipeline.intake import decide
from pipeline.model.api_key import ApiKeyState
from pipeline.model.halts import NO_HALTS, Halt
from pipeline.model.invariants import InvariantViolation
from pipeline.model.second_factor import SecondFactor
from pipeline.model.withdrawal import TRANSITIONS, Withdrawal
from pipeline.withdrawals.acceptance import WITHDRAWAL_LIFE, decide_withdrawal
from pipeline.withdrawals.settlement import plan_withdrawals
from schemas.audit import AuditEvent, EventType
from schemas.commands import COMMANDS_ACCOUNT, DecisionWord, HaltLevel, HaltScope, WithdrawalDecision
from schemas.orders import Mode, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, RoutedOrder
from schemas.wire import SourceOffset
from schemas.withdrawals import WITHDRAWAL_STATE
from tests.unit.builders import (
    EXCHANGE,
    NOW,
    RULES,
    TOPICS,
    USER,
    account,
    account_state,
    arrival,
    changes_of,
    finals_of,
    outputs_on,
    results_of,
)
from tests.unit.withdrawal_builders import ALLOWED, FEE, asking, changes_with, payee, withdrawal_of, withdrawing_state

OPERATOR = "olga"
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
_S = WithdrawalStatus
KEY = ApiKeyState(EXCHANGE, "active", frozenset({"trade", "withdraw"}))


def taken_in(*documents: dict[str, Any], funds: dict[str, str] | None = None, **state: Any) -> Changes:
    changes = changes_of(funds=funds)
    decide([arrival(document, offset) for offset, document in enumerate(documents)], withdrawing_state(**state), changes)
    return changes


def routed(changes: Changes) -> list[RoutedOrder]:
    return [RoutedOrder.model_validate_json(output.value or b"") for output in outputs_on(changes, TOPICS.orders(EXCHANGE))]


def events(changes: Changes) -> list[AuditEvent]:
    return [AuditEvent.model_validate_json(output.value or b"") for output in outputs_on(changes, TOPICS.audit)]


def test_withdrawal_holds_amount_and_fee_and_is_queued() -> None:
    """Accepted: the hold, one audit event with all of it, a snapshot, a first answer, and its place in the exchange's queue."""
    changes = taken_in(asking())
    [made] = changes.withdrawals.values()
    assert (made.status, made.hold_amount, made.fee, made.usd_value) == (_S.ACCEPTED, 100 + FEE, FEE, 100 + FEE)
    assert changes.ledger.balance(account("USDT")).pending == 100 + FEE
    assert [transfer.kind for transfer in changes.ledger.transfers] == [TransferKind.HOLD]
    [event] = events(changes)
    assert (event.event_type, event.status_before, event.status_after) == (EventType.WITHDRAWAL_ACCEPTED, "received", "accepted")
    assert (event.address, event.network, event.asset, event.quantity, event.fee) == (made.address, "ETH", "USDT", Decimal(100), FEE)
    assert event.warning is not None and len(event.transfers) == 1
    assert "address_is_on_the_list" in event.checks and "balance_covers_the_hold" in event.checks
    [work] = routed(changes)
    assert (work.action, work.order_id, work.user_id, work.attempt) == (Action.WITHDRAW, made.withdrawal_id, USER, 1)
    [told] = results_of(changes)
    assert (told.status, told.final, told.order_id, told.order_status) == (ResultStatus.ACCEPTED, False, made.withdrawal_id, "accepted")
    assert told.mode is Mode.LIVE
    [snapshot] = outputs_on(changes, TOPICS.state)
    assert WITHDRAWAL_STATE.validate_json(snapshot.value or b"").withdrawal_status is _S.ACCEPTED
    assert snapshot.key == made.withdrawal_id.encode()


@pytest.mark.parametrize(("funds", "code"), [("100.5", None), ("100.499999", ReasonCode.BALANCE_INSUFFICIENT)])
def test_withdrawal_needs_funds_for_the_fee_too(funds: str, code: ReasonCode | None) -> None:
    """Exactly amount and fee are enough; a little less holds nothing and sends nothing."""
    changes = taken_in(asking(), funds={"USDT": funds})
    assert [result.reason_code for result in finals_of(changes)] == ([] if code is None else [code])
    assert len(routed(changes)) == (1 if code is None else 0)
    assert bool(changes.ledger.transfers) is (code is None)


def test_withdrawals_of_one_batch_count_together() -> None:
    """The daily limit and the funds see what an earlier record of the same batch took."""
    limits = replace(account_state().limits, daily_withdrawal_usd_max=Decimal(250))
    documents = [asking(idempotency_key=f"key-{number}") for number in range(3)]
    changes = taken_in(*documents, accounts={USER: account_state(limits=limits)})
    assert [result.reason_code for result in finals_of(changes)] == [ReasonCode.DAILY_WITHDRAWAL_EXCEEDED]
    assert len(routed(changes)) == 2


def test_copy_of_a_withdrawal_pays_nothing() -> None:
    """The same record again is a duplicate while the first runs; another payload under the key is refused."""
    changes = taken_in(asking(), asking(), asking(amount="200"))
    assert [(result.status, result.reason_code) for result in finals_of(changes)] == [
        (ResultStatus.DUPLICATE, ReasonCode.IDEMPOTENCY_IN_PROGRESS),
        (ResultStatus.REJECTED, ReasonCode.IDEMPOTENCY_KEY_REUSED),
    ]
    assert len(routed(changes)) == 1


@pytest.mark.parametrize("needs_second_factor", [False, True])
def test_withdrawal_of_simulated_money_is_refused_and_counts_as_no_failure(needs_second_factor: bool) -> None:
    """Nothing is held or queued, real money in the user's account or not; the answer says which mode it was, and its key is used."""
    changes, state = changes_of(), withdrawing_state()
    decide([replace(arrival(asking(mode="paper")), needs_second_factor=needs_second_factor)], state, changes)
    [told] = finals_of(changes)
    assert (told.status, told.reason_code, told.mode) == (ResultStatus.REJECTED, ReasonCode.REQUEST_UNSUPPORTED, Mode.PAPER)
    assert told.reason is not None and "simulated and cannot be withdrawn" in told.reason
    assert not routed(changes) and not changes.withdrawals and not changes.ledger.transfers
    [event] = events(changes)
    assert (event.event_type, event.real_money) == (EventType.REQUEST_REJECTED, False)
    assert state.accounts[USER].conduct.failures_in_row == 0
    assert changes.claims[USER, "key-1"].result == told


def test_slip_of_a_real_withdrawal_counts_as_a_failure() -> None:
    """The other side: what a user can do better with real money is counted."""
    state = withdrawing_state()
    decide([arrival(asking(network="SOL"))], state, changes_of())
    assert state.accounts[USER].conduct.failures_in_row == 1


def _with_code(code: str | None, factor: SecondFactor | None) -> Changes:
    changes = changes_of()
    headers = [] if code is None else [("x-totp", code.encode())]
    asked = replace(arrival(asking(), headers=headers), needs_second_factor=True)
    decide([asked], withdrawing_state(accounts={USER: account_state(factor=factor)}), changes)
    return changes


@pytest.mark.parametrize(
    ("code", "enrolled", "reason"),
    [
        (None, True, ReasonCode.TOTP_MISSING),
        ("000000", True, ReasonCode.TOTP_INVALID),
        (None, False, ReasonCode.TOTP_MISSING),
        ("123456", False, ReasonCode.TOTP_MISSING),
    ],
)
def test_withdrawal_without_second_factor_is_refused_and_claims_nothing(code: str | None, enrolled: bool, reason: ReasonCode) -> None:
    """Nothing is held, queued or claimed: the right code may come later under the same key."""
    changes = _with_code(code, SecondFactor(SECRET) if enrolled else None)
    assert [result.reason_code for result in finals_of(changes)] == [reason]
    assert not routed(changes) and not changes.claimed and not changes.ledger.transfers and not changes.withdrawals


def test_withdrawal_with_its_second_factor_is_accepted_once() -> None:
    """The right code lets it through, and is used up."""
    code = pyotp.TOTP(SECRET).at(NOW)
    changes = _with_code(code, SecondFactor(SECRET))
    assert len(routed(changes)) == 1 and changes.factors[USER].last_step > 0
    again = _with_code(code, changes.factors[USER])
    assert [result.reason_code for result in finals_of(again)] == [ReasonCode.TOTP_REPLAYED]


def test_large_withdrawal_waits_with_its_funds_held() -> None:
    """Above the amount it is answered as accepted, not queued, and tells that it waits."""
    changes = taken_in(asking(amount="20000"))
    [made] = changes.withdrawals.values()
    assert (made.status, made.hold_amount) == (_S.PENDING_APPROVAL, 20_000 + FEE)
    assert made.expires_at == NOW + timedelta(hours=24)
    [told] = results_of(changes)
    assert (told.status, told.final, told.order_status) == (ResultStatus.ACCEPTED, False, "pending_approval")
    assert not routed(changes)


def _decision(word: DecisionWord = DecisionWord.APPROVE, **fields: Any) -> WithdrawalDecision:
    values: dict[str, Any] = {
        "schema_version": 1,
        "command_id": "c1",
        "command": word,
        "operator": OPERATOR,
        "reason": "called back",
        "withdrawal_id": withdrawal_of().withdrawal_id,
    }
    return WithdrawalDecision(**{**values, **fields})


def waiting(**fields: Any) -> Withdrawal:
    return withdrawal_of(**{"status": _S.PENDING_APPROVAL, "expires_at": NOW + timedelta(hours=1), **fields})


def _facts(decision: WithdrawalDecision) -> dict[str, Value]:
    """What the events of a decision say of whoever was proven to send it."""
    read = CommandArrival(SourceOffset("trade.commands", 0, 0), NOW, (), decision, None, needs_second_factor=True)
    return read.facts


def _applied(decision: WithdrawalDecision, withdrawal: Withdrawal, **known: Any) -> tuple[Changes, ReasonCode | None]:
    """`known` is what is known of the user at the decision."""
    changes = changes_with(withdrawal, users=(USER, OPERATOR))
    changes.payees[withdrawal.user_id] = payee(**known)
    refusal = decide_withdrawal(decision, changes, _facts(decision))
    return changes, refusal.code if refusal is not None else None


def test_approved_withdrawal_is_queued_and_says_by_whom() -> None:
    """The withdrawal's user and the operator each have the event in their own chain."""
    changes, code = _applied(_decision(), waiting())
    assert code is None
    [made] = changes.withdrawals.values()
    assert (made.status, made.approved_by, made.hold_amount) == (_S.ACCEPTED, OPERATOR, 100 + FEE)
    assert [work.action for work in routed(changes)] == [Action.WITHDRAW]
    approved, decided = events(changes)
    assert (approved.event_type, approved.account, approved.status_before) == (EventType.WITHDRAWAL_APPROVED, USER, "pending_approval")
    assert (decided.event_type, decided.account, decided.request_id, decided.order_id) == (
        EventType.OPERATOR_DECIDED,
        OPERATOR,
        "c1",
        None,
    )


def test_refused_withdrawal_ends_with_its_funds_free() -> None:
    """An operator's no is a final answer, and releases the hold."""
    changes, code = _applied(_decision(DecisionWord.REFUSE), waiting())
    assert code is None
    [made] = changes.withdrawals.values()
    assert (made.status, made.hold_amount) == (_S.REJECTED, 0)
    assert [(result.status, result.reason_code) for result in finals_of(changes)] == [(ResultStatus.REJECTED, ReasonCode.APPROVAL_REFUSED)]
    assert changes.ledger.balance(account("USDT")).pending == 0
    assert not routed(changes)


@pytest.mark.parametrize(
    ("decision", "withdrawal", "status", "code"),
    [
        (_decision(operator=USER), waiting(), "active", ReasonCode.APPROVAL_NOT_ALLOWED),
        (_decision(), waiting(), "frozen", ReasonCode.APPROVAL_NOT_ALLOWED),
        (_decision(), waiting(), None, ReasonCode.APPROVAL_NOT_ALLOWED),
        (_decision(), waiting(expires_at=NOW), "active", ReasonCode.REQUEST_EXPIRED),
        (_decision(), withdrawal_of(), "active", ReasonCode.APPROVAL_NOT_PENDING),
        (_decision(DecisionWord.REFUSE), withdrawal_of(status=_S.PROCESSING), "active", ReasonCode.APPROVAL_NOT_PENDING),
        (_decision(withdrawal_id="w-none"), waiting(), "active", ReasonCode.APPROVAL_NOT_PENDING),
    ],
    ids=["own", "frozen", "nobody", "too-late", "accepted", "sent", "unknown"],
)
def test_decision_that_cannot_be_changes_nothing(
    decision: WithdrawalDecision, withdrawal: Withdrawal, status: str | None, code: ReasonCode
) -> None:
    """Neither the own withdrawal, nor one that does not wait, nor one of a user who may not act."""
    changes, found = _applied(decision, withdrawal, status=status)
    assert found is code
    assert not changes.outputs and not changes.withdrawals.changed and not changes.ledger.transfers


CHANGED: dict[str, tuple[dict[str, Any], ReasonCode]] = {
    "frozen": ({"status": "frozen"}, ReasonCode.USER_INACTIVE),
    "not-verified": ({"status": "pending"}, ReasonCode.USER_UNVERIFIED),
    "gone": ({"status": None}, ReasonCode.USER_UNKNOWN),
    "no-key": ({"api_keys": {}}, ReasonCode.API_KEY_UNKNOWN),
    "key-revoked": ({"api_keys": {"k1": replace(KEY, status="revoked")}}, ReasonCode.API_KEY_REVOKED),
    "key-refused": ({"api_keys": {"k1": replace(KEY, status="refused")}}, ReasonCode.API_KEY_PERMISSION),
    "key-elsewhere": ({"api_keys": {"k1": replace(KEY, exchange="binanceus")}}, ReasonCode.API_KEY_PERMISSION),
    "key-trades-only": ({"api_keys": {"k1": replace(KEY, permissions=frozenset({"trade"}))}}, ReasonCode.API_KEY_PERMISSION),
    "key-expired": ({"api_keys": {"k1": replace(KEY, expires_at=NOW)}}, ReasonCode.API_KEY_EXPIRED),
    "address-removed": ({"addresses": ()}, ReasonCode.ADDRESS_NOT_ALLOWED),
    "another-tag": ({"addresses": (replace(ALLOWED, address_tag="7"),)}, ReasonCode.ADDRESS_NOT_ALLOWED),
    "limit-used": ({"daily_limit_usd": Decimal(1_000), "left_usd": Decimal("899.51")}, ReasonCode.DAILY_WITHDRAWAL_EXCEEDED),
    "limit-lowered": ({"daily_limit_usd": Decimal("100.49")}, ReasonCode.DAILY_WITHDRAWAL_EXCEEDED),
}


@pytest.mark.parametrize(("known", "code"), CHANGED.values(), ids=list(CHANGED))
def test_withdrawal_is_looked_at_again_when_it_is_approved(known: dict[str, Any], code: ReasonCode) -> None:
    """A day may lie between acceptance and approval: what speaks against it now refuses the approval, and it goes on waiting."""
    changes, found = _applied(_decision(), waiting(), **known)
    about_the_user = code in {ReasonCode.USER_INACTIVE, ReasonCode.USER_UNVERIFIED, ReasonCode.USER_UNKNOWN}
    assert found is (ReasonCode.APPROVAL_NOT_ALLOWED if about_the_user else code)
    assert not changes.outputs and not changes.withdrawals.changed and not changes.ledger.transfers


@pytest.mark.parametrize(("known", "code"), CHANGED.values(), ids=list(CHANGED))
def test_withdrawal_is_looked_at_again_when_it_is_about_to_be_sent(known: dict[str, Any], code: ReasonCode) -> None:
    """However it was accepted or approved: it ends unsent with its funds free, and says why."""
    changes = changes_with(accepted := withdrawal_of(approved_by=OPERATOR))
    changes.payees[USER] = payee(**known)
    work = RoutedOrder(schema_version=1, action=Action.WITHDRAW, order_id=accepted.withdrawal_id, user_id=USER, attempt=1)
    assert plan_withdrawals([work], changes, 5, 1, NO_HALTS) == []
    [final] = finals_of(changes)
    assert (final.status, final.reason_code) == (ResultStatus.REJECTED, code)
    assert changes.ledger.balance(account("USDT")).pending == 0


def test_withdrawals_of_one_batch_share_the_days_limit() -> None:
    """Each that is sent counts for the next; what is exactly within the limit passes."""
    sent = [withdrawal_of(withdrawal_id=f"w{number}" + "0" * 30, idempotency_key=f"k{number}") for number in range(3)]
    changes = changes_with(*sent)
    changes.payees[USER] = payee(daily_limit_usd=2 * (100 + FEE))
    work = [RoutedOrder(schema_version=1, action=Action.WITHDRAW, order_id=one.withdrawal_id, user_id=USER, attempt=1) for one in sent]
    assert [one.withdrawal_id for one in plan_withdrawals(work, changes, 5, 1, NO_HALTS)] == [one.withdrawal_id for one in sent[:2]]
    assert [final.reason_code for final in finals_of(changes)] == [ReasonCode.DAILY_WITHDRAWAL_EXCEEDED]


def test_approvals_count_what_is_approved_and_not_sent_yet() -> None:
    """Two approvals at once cannot both use what is left of the day's limit."""
    known = {"daily_limit_usd": Decimal(250), "left_usd": Decimal(10), "queued_usd": Decimal(100)}
    changes, found = _applied(_decision(), waiting(), **known)
    assert found is None
    assert changes.payees[USER].queued_usd == 200 + FEE
    _, found = _applied(_decision(), waiting(), **{**known, "left_usd": Decimal(50)})
    assert found is ReasonCode.DAILY_WITHDRAWAL_EXCEEDED


def test_halt_stops_an_approval() -> None:
    """Nothing is approved that would not be sent."""
    changes = changes_with(waiting(), users=(USER, OPERATOR))
    halt = Halt(HaltScope.USER, USER, HaltLevel.REDUCE)
    changes.halts[HaltScope.USER, USER] = SetHalt(halt, "x", "olga", "c", NOW)
    refusal = decide_withdrawal(_decision(), changes, _facts(_decision()))
    assert refusal is not None and refusal.code is ReasonCode.TRADING_HALTED
    assert not changes.withdrawals.changed


def test_decision_about_a_withdrawal_whose_older_word_is_not_published_is_refused() -> None:
    """It must not overtake that word on the topics, and the commands behind it, halts among them, do not wait for it."""
    value = _decision().model_dump_json().encode()
    changes = changes_with(waiting(), users=(USER, OPERATOR, COMMANDS_ACCOUNT))
    changes.unpublished = set(changes.withdrawals)
    operator = account_state(OPERATOR, role="operator")
    asked = arrive_command(SourceOffset(TOPICS.commands, 0, 1), NOW, value, [], None)
    (refusal,) = decide_commands([asked], {OPERATOR: operator, USER: account_state()}, changes, RULES)
    assert refusal.code is ReasonCode.APPROVAL_NOT_PENDING
    assert "Give the command again" in refusal.reason
    assert not changes.withdrawals.changed and not changes.ledger.transfers


def _commanded(operator: Any, *, code: str | None) -> Changes:
    """A decision that came as a record, in an installation that asks who commands."""
    headers = [] if code is None else [("x-totp", code.encode())]
    value = _decision().model_dump_json().encode()
    read = arrive_command(SourceOffset(TOPICS.commands, 0, 1), NOW, value, headers, None)
    asked: CommandArrival = replace(read, needs_second_factor=True)
    changes = changes_with(waiting(), users=(USER, OPERATOR, COMMANDS_ACCOUNT))
    decide_commands([asked], {OPERATOR: operator, USER: account_state()}, changes, RULES)
    return changes


@pytest.mark.parametrize(
    ("role", "status", "code", "approved"),
    [
        ("operator", "active", "right", True),
        ("operator", "active", "000000", False),
        ("operator", "active", None, False),
        ("trader", "active", "right", False),
        ("operator", "frozen", "right", False),
    ],
)
def test_decision_needs_an_active_operator_with_second_factor(role: str, status: str, code: str | None, approved: bool) -> None:
    """No token alone moves money: without the operator's own code nothing is approved, and the refusal is audited."""
    right = pyotp.TOTP(SECRET).at(NOW)
    operator = account_state(OPERATOR, role=role, status=status, factor=SecondFactor(SECRET))
    changes = _commanded(operator, code=right if code == "right" else code)
    assert bool(routed(changes)) is approved
    kinds = {event.event_type for event in events(changes)}
    assert (EventType.COMMAND_REFUSED in kinds) is not approved
    assert (EventType.OPERATOR_DECIDED in kinds) is approved


def test_record_that_is_neither_command_nor_decision_is_refused() -> None:
    """A decision with a misspelt word or without its withdrawal is no command."""
    for change in ({"command": "approve"}, {"withdrawal_id": ""}, {"extra": 1}, {"operator": "@x y"}):
        document = {**json.loads(_decision().model_dump_json()), **change}
        read = arrive_command(SourceOffset(TOPICS.commands, 0, 1), NOW, json.dumps(document).encode(), (), None)
        assert read.command is None and read.refusal is not None


@pytest.mark.parametrize("before", list(WithdrawalStatus))
@pytest.mark.parametrize("after", list(WithdrawalStatus))
def test_withdrawal_moves_along_the_table_alone(before: WithdrawalStatus, after: WithdrawalStatus) -> None:
    """Nothing leaves an end, nothing returns to the beginning, and only what can be proven leads out of doubt."""
    legal = after in TRANSITIONS[before]
    if before in {_S.COMPLETED, _S.FAILED, _S.REJECTED}:
        assert not legal
    if after in {_S.RECEIVED, _S.PENDING_APPROVAL}:
        assert legal is (before is _S.RECEIVED and after is _S.PENDING_APPROVAL)
    if after is _S.IN_DOUBT:
        assert legal is (before is _S.SUBMITTING)
    if after is _S.SUBMITTING:
        assert legal is (before is _S.ACCEPTED)
    if after is _S.ACCEPTED:
        assert legal is (before in {_S.RECEIVED, _S.PENDING_APPROVAL, _S.SUBMITTING})
    if after is _S.COMPLETED:
        assert legal is (before in {_S.SUBMITTING, _S.IN_DOUBT, _S.PROCESSING})
    # An end is left by a correction alone, and only by one of what was proven absent.
    watched = withdrawal_of(status=before, watched_until=NOW)
    found = replace(watched, status=after, corrected_at=NOW)
    corrects = before is _S.REJECTED and after in {_S.PROCESSING, _S.COMPLETED}
    for start, allowed in ((watched, legal or corrects), (replace(watched, watched_until=None), legal)):
        if allowed:
            WITHDRAWAL_LIFE.require_transition(start, found)
        else:
            with pytest.raises(InvariantViolation):
                WITHDRAWAL_LIFE.require_transition(start, found)
