"""Withdrawals until they are sent: the way through the gate, and an operator's approval.

The steps of one request are those of a trade (pipeline/orders/acceptance): safety validation → second factor → API key → risk, with the
address and the limits → hold of amount and fee. What is worth more than the rules let pass, or comes soon after a change of the user's
credentials, then waits as `pending_approval` for an operator; the rest is queued for its exchange at once
(pipeline/withdrawals/settlement).

Invariants:
1. Nothing is queued that no second factor was given for, where this installation asks for one: the user's at acceptance, the operator's at
   approval.
2. Nobody approves a withdrawal of their own, nor one that would not be accepted any more.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Final

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, Claim
from pipeline.books.ledger import AccountKey, book_of
from pipeline.books.lifecycle import Lifecycle
from pipeline.gate.check import HOLD, Step
from pipeline.gate.payouts import payout_refusal
from pipeline.gate.withdrawals import WITHDRAWAL_GATE, WithdrawalContext
from pipeline.model.halts import HaltBook
from pipeline.model.identifiers import client_withdrawal_id_of
from pipeline.model.money import round_up
from pipeline.model.payee import NOBODY
from pipeline.model.refusal import Refusal
from pipeline.model.retries import waiting_while_accepted
from pipeline.model.withdrawal import Withdrawal, legal_after
from pipeline.requests.confirmation import Confirmation
from pipeline.requests.intake_state import IntakeState
from pipeline.requests.passage import confirmation_fields, through_the_gate
from pipeline.requests.record import Arrival
from pipeline.requests.rejection import reject
from schemas.audit import EventType
from schemas.commands import DecisionWord, WithdrawalDecision
from schemas.decimals import format_decimal
from schemas.orders import Mode, RequestType, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.requests import WithdrawalRequest
from schemas.results import Result, ResultStatus
from schemas.routing import Action
from schemas.wire import SCHEMA_VERSION
from schemas.withdrawals import WITHDRAWAL_STATE, WithdrawalState

WARNING: Final = "real money: what is paid out to an address cannot be called back"
_S = WithdrawalStatus


def take_in_withdrawal(
    arrival: Arrival, request: WithdrawalRequest, claim: Callable[[], Claim], state: IntakeState, changes: Changes
) -> None:
    """Accepts or refuses one withdrawal request. `claim` claims its key, once it is clear that it may."""
    account = state.accounts[request.user_id]
    context = WithdrawalContext(
        request=request,
        appended_at=arrival.appended_at,
        now=changes.now,
        rules=state.rules,
        account=account,
        api_key=state.api_keys.get((request.user_id, request.api_key_id)),
        market_data=state.market_data.get(request.exchange),
        networks=state.networks.get(request.exchange, {}),
        addresses=state.addresses.get(request.user_id, ()),
        halts=state.halts,
    )
    through_the_gate(
        arrival,
        account,
        request.mode,
        safety=WITHDRAWAL_GATE.refusal(context, Step.SAFETY),
        claim=claim,
        behind=lambda claimed, confirmed: _behind_the_second_factor(arrival, context, claimed, confirmed, changes),
        changes=changes,
    )


def _behind_the_second_factor(
    arrival: Arrival, context: WithdrawalContext, claimed: Claim, confirmation: Confirmation, changes: Changes
) -> ReasonCode | None:
    """The key, the risk and the hold, in their order; returns why the request was refused, None when it was accepted."""
    refusal = (
        WITHDRAWAL_GATE.refusal(context, Step.API_KEY)
        or WITHDRAWAL_GATE.refusal(context, Step.RISK)
        or _hold_and_accept(arrival, claimed, context, confirmation, changes)
    )
    if refusal is not None:
        reject(arrival, claimed, refusal, changes)
        return refusal.code
    return None


def _hold_and_accept(
    arrival: Arrival, claim: Claim, context: WithdrawalContext, confirmation: Confirmation, changes: Changes
) -> Refusal | None:
    """Holds amount and fee and accepts the withdrawal; a refusal, and nothing changed, where the funds do not cover them."""
    network, usd_value = context.network, context.usd_value
    if network is None or usd_value is None:
        return Refusal(ReasonCode.PRICE_UNAVAILABLE, "no fresh price or fee says what to reserve; nothing was sent or held")
    withdrawal = _withdrawal_of(arrival, claim, context, network.fee, round_up(usd_value))
    account = account_of(withdrawal)
    if not changes.ledger.hold(f"{withdrawal.withdrawal_id}:hold", withdrawal.withdrawal_id, account, withdrawal.hold_amount):
        available = format_decimal(changes.ledger.balance(account).available)
        wanted = f"{format_decimal(withdrawal.hold_amount)} {withdrawal.asset} with the fee"
        return Refusal(ReasonCode.BALANCE_INSUFFICIENT, f"{wanted} would be reserved, {available} are available; nothing was sent")
    context.account.usage.withdrawn_24h_usd += withdrawal.usd_value
    _accept(withdrawal, confirmation, changes)
    return None


def _withdrawal_of(arrival: Arrival, claim: Claim, context: WithdrawalContext, fee: Decimal, usd_value: Decimal) -> Withdrawal:
    withdrawal_id = claim.order_id or ""
    request = context.request
    return Withdrawal(
        withdrawal_id=withdrawal_id,
        client_withdrawal_id=client_withdrawal_id_of(withdrawal_id),
        exchange_withdrawal_id=None,
        transaction_id=None,
        user_id=request.user_id,
        idempotency_key=request.idempotency_key,
        request_id=claim.request_id,
        source=arrival.source,
        mode=request.mode,
        exchange=request.exchange,
        api_key_id=request.api_key_id,
        asset=request.asset,
        network=request.network or "",
        address=request.address,
        address_tag=request.address_tag,
        amount=request.amount,
        fee=fee,
        status=_S.PENDING_APPROVAL if context.needs_approval else _S.ACCEPTED,
        reason_code=None,
        reason="it waits for an operator's approval" if context.needs_approval else None,
        hold_amount=request.amount + fee,
        usd_value=usd_value,
        approved_by=None,
        attempt=0,
        fencing_epoch=0,
        work_partition=-1,
        submitting_at=None,
        expires_at=context.expires_at,
        requested_at=arrival.appended_at,
        decided_at=context.now,
        updated_at=context.now,
        executed_at=None,
        traceparent=arrival.traceparent,
    )


def _accept(withdrawal: Withdrawal, confirmation: Confirmation, changes: Changes) -> None:
    extra: dict[str, Value] = {
        **confirmation_fields(confirmation),
        "checks": [*WITHDRAWAL_GATE.passed(), HOLD],
        "evidence": [f"worth {format_decimal(withdrawal.usd_value)} USD"],
        "warning": WARNING,
    }
    WITHDRAWAL_LIFE.advance(None, withdrawal, EventType.WITHDRAWAL_ACCEPTED, changes, extra)
    tell(withdrawal, changes)
    if withdrawal.status is _S.ACCEPTED:
        route(withdrawal, changes)


def decide_withdrawal(decision: WithdrawalDecision, changes: Changes, facts: Mapping[str, Value]) -> Refusal | None:
    """Applies an operator's word on a withdrawal; a refusal, and nothing changed, where it cannot be. Whether the operator may command was
    judged before (pipeline/commands/halts). What is known of the withdrawal's user is in `changes.payees`; `facts` is what events say of
    the command."""
    # The withdrawal's events keep its request's id, the operator's has the command's.
    acted = {name: value for name, value in facts.items() if name != "request_id"}
    withdrawal = changes.withdrawals.get(decision.withdrawal_id)
    if withdrawal is None or withdrawal.status is not _S.PENDING_APPROVAL:
        how = "there is no such withdrawal" if withdrawal is None else f"the withdrawal is {withdrawal.status}"
        return Refusal(ReasonCode.APPROVAL_NOT_PENDING, f"{how}; nothing was changed")
    if decision.command is DecisionWord.REFUSE:
        reason = f"operator {decision.operator} refused it: {decision.reason}. Nothing was sent and the funds are released"
        ended = replace(withdrawal, reason_code=ReasonCode.APPROVAL_REFUSED, reason=reason)
        end_unsent(ended, withdrawal, EventType.WITHDRAWAL_REFUSED, changes, acted)
        _note_decision(decision, withdrawal, changes, facts)
        return None
    if decision.operator == withdrawal.user_id:
        return Refusal(ReasonCode.APPROVAL_NOT_ALLOWED, "nobody approves a withdrawal of their own; nothing was changed")
    payee = changes.payees.get(withdrawal.user_id, NOBODY)
    if payee.status != "active":
        return Refusal(ReasonCode.APPROVAL_NOT_ALLOWED, f"the withdrawal's user is {payee.status}; nothing was changed")
    if changes.now >= withdrawal.expires_at:
        return Refusal(ReasonCode.REQUEST_EXPIRED, "the withdrawal's time for approval is over; it ends by itself, and nothing is sent")
    halts = HaltBook(frozenset(found.halt for found in changes.halts.values()))
    refusal = payout_refusal(withdrawal, payee, payee.left_usd + payee.queued_usd, halts, changes.now)
    if refusal is not None:
        return Refusal(refusal.code, f"it cannot be approved: {refusal.reason}; nothing was changed, and it still waits")
    payee.queued_usd += withdrawal.usd_value
    after = replace(
        withdrawal, status=_S.ACCEPTED, reason=None, approved_by=decision.operator, updated_at=changes.now
    )
    evidence = [f"approved by {decision.operator}: {decision.reason}"]
    WITHDRAWAL_LIFE.advance(withdrawal, after, EventType.WITHDRAWAL_APPROVED, changes, {**acted, "evidence": evidence})
    tell(after, changes)
    route(after, changes)
    _note_decision(decision, withdrawal, changes, facts)
    return None


def _note_decision(decision: WithdrawalDecision, withdrawal: Withdrawal, changes: Changes, facts: Mapping[str, Value]) -> None:
    """The decision in its operator's chain; what it did to the withdrawal is in the chain of the withdrawal's user."""
    fields: dict[str, Value] = {
        **facts,
        "idempotency_key": withdrawal.idempotency_key,
        "reason": f"{decision.command.value} {withdrawal.withdrawal_id}: {decision.reason}",
        "quantity": withdrawal.amount,
        "asset": withdrawal.asset,
        "network": withdrawal.network,
        "address": withdrawal.address,
        "exchange": withdrawal.exchange,
    }
    changes.audit(decision.operator, None, EventType.OPERATOR_DECIDED, fields, None)


def account_of(withdrawal: Withdrawal) -> AccountKey:
    """The account that it is paid from."""
    return AccountKey(withdrawal.user_id, withdrawal.exchange, book_of(withdrawal.mode), withdrawal.asset)


def route(withdrawal: Withdrawal, changes: Changes) -> None:
    """Queues it for its exchange, as the next attempt."""
    changes.route(Action.WITHDRAW, withdrawal.withdrawal_id, withdrawal.attempt + 1, withdrawal, withdrawal.traceparent)


def release(withdrawal: Withdrawal, changes: Changes) -> Withdrawal:
    """Gives back what is still held."""
    if withdrawal.hold_amount <= 0:
        return withdrawal
    transfer_id = f"{withdrawal.withdrawal_id}:release" + ("" if withdrawal.corrected_at is None else ":corrected")
    changes.ledger.release(transfer_id, withdrawal.withdrawal_id, account_of(withdrawal), withdrawal.hold_amount)
    return replace(withdrawal, hold_amount=Decimal(0))


def end_unsent(
    ended: Withdrawal, before: Withdrawal, event_type: EventType, changes: Changes, extra: Mapping[str, Value] | None = None
) -> None:
    """Ends a withdrawal as `rejected`, of which nothing stands at the exchange: releases its hold and answers it. `ended` says why."""
    after = release(replace(ended, status=_S.REJECTED, updated_at=changes.now, executed_at=changes.now), changes)
    WITHDRAWAL_LIFE.advance(before, after, event_type, changes, extra)
    tell(after, changes)


def tell(withdrawal: Withdrawal, changes: Changes) -> None:
    """Says how a withdrawal stands."""
    changes.tell(result_of_withdrawal(withdrawal), withdrawal.traceparent)


def withdrawal_fields(withdrawal: Withdrawal) -> dict[str, Value]:
    """What every audit event about a withdrawal says of it."""
    return {
        "user_id": withdrawal.user_id,
        "request_id": withdrawal.request_id,
        "idempotency_key": withdrawal.idempotency_key,
        "client_order_id": withdrawal.client_withdrawal_id,
        "exchange_order_id": withdrawal.exchange_withdrawal_id,
        "quantity": withdrawal.amount,
        "asset": withdrawal.asset,
        "network": withdrawal.network,
        "address": withdrawal.address,
        "address_tag": withdrawal.address_tag,
        "transaction_id": withdrawal.transaction_id,
        "status_after": withdrawal.status.value,
        "reason_code": withdrawal.reason_code.value if withdrawal.reason_code else None,
        "reason": withdrawal.reason,
        "exchange": withdrawal.exchange,
        "fee": withdrawal.fee,
        "fee_asset": withdrawal.asset,
        "real_money": withdrawal.mode is Mode.LIVE,
    }


def withdrawal_state(withdrawal: Withdrawal) -> WithdrawalState:
    """The snapshot that dashboards read."""
    return WithdrawalState(
        schema_version=SCHEMA_VERSION,
        withdrawal_id=withdrawal.withdrawal_id,
        client_withdrawal_id=withdrawal.client_withdrawal_id,
        exchange_withdrawal_id=withdrawal.exchange_withdrawal_id,
        user_id=withdrawal.user_id,
        request_id=withdrawal.request_id,
        idempotency_key=withdrawal.idempotency_key,
        mode=withdrawal.mode,
        exchange=withdrawal.exchange,
        asset=withdrawal.asset,
        network=withdrawal.network,
        address=withdrawal.address,
        address_tag=withdrawal.address_tag,
        amount=withdrawal.amount,
        fee=withdrawal.fee,
        withdrawal_status=withdrawal.status,
        transaction_id=withdrawal.transaction_id,
        reason_code=withdrawal.reason_code,
        requested_at=withdrawal.requested_at,
        updated_at=withdrawal.updated_at,
    )


WITHDRAWAL_LIFE: Final[Lifecycle[Withdrawal]] = Lifecycle(
    name="withdrawal",
    rows=lambda changes: changes.withdrawals,
    id_of=lambda withdrawal: withdrawal.withdrawal_id,
    legal=legal_after,
    fields=withdrawal_fields,
    snapshot=lambda withdrawal: WITHDRAWAL_STATE.dump_json(withdrawal_state(withdrawal)),
    begins=_S.RECEIVED,
    kept=lambda _, after: waiting_while_accepted(after),
)


_RESULT_STATUS: Final[dict[WithdrawalStatus, tuple[ResultStatus, bool]]] = {
    _S.PENDING_APPROVAL: (ResultStatus.ACCEPTED, False),
    _S.ACCEPTED: (ResultStatus.ACCEPTED, False),
    _S.SUBMITTING: (ResultStatus.ACCEPTED, False),
    _S.IN_DOUBT: (ResultStatus.IN_DOUBT, False),
    _S.PROCESSING: (ResultStatus.OPEN, False),
    _S.COMPLETED: (ResultStatus.COMPLETED, True),
    _S.FAILED: (ResultStatus.FAILED, True),
    _S.REJECTED: (ResultStatus.REJECTED, True),
}


def result_of_withdrawal(withdrawal: Withdrawal) -> Result:
    """The answer that a withdrawal's status stands for: final when it is over.

    One whose final answer was wrong has had it: what is said of it from then on corrects that answer, and is not final itself.
    """
    status, final = _RESULT_STATUS[withdrawal.status]
    corrects = withdrawal.corrected_at is not None
    completed = withdrawal.status is _S.COMPLETED
    return Result(
        schema_version=SCHEMA_VERSION,
        request_id=withdrawal.request_id,
        idempotency_key=withdrawal.idempotency_key,
        user_id=withdrawal.user_id,
        type=RequestType.WITHDRAWAL,
        mode=withdrawal.mode,
        status=status,
        reason_code=withdrawal.reason_code,
        reason=withdrawal.reason,
        order_id=withdrawal.withdrawal_id,
        client_order_id=withdrawal.client_withdrawal_id,
        exchange_order_id=withdrawal.exchange_withdrawal_id,
        order_status=withdrawal.status,
        filled_quantity=withdrawal.amount if completed else Decimal(0),
        average_price=None,
        fee=withdrawal.fee if completed else None,
        fee_asset=withdrawal.asset if completed else None,
        remaining_quantity=None,
        final=final and not corrects,
        replayed=False,
        duplicate_of=None,
        requested_at=withdrawal.requested_at,
        decided_at=withdrawal.decided_at,
        executed_at=withdrawal.executed_at,
        source=withdrawal.source,
        corrects=corrects,
    )
