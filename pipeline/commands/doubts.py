"""An operator's word on what became of an order or withdrawal in doubt, where no look-up can prove it.

Invariants:
1. Only what is in doubt is resolved. Nobody resolves what is their own.
2. Above an amount two operators must say the same, figures included: the first word is kept and changes nothing.
3. A word has evidence, and is in its operator's audit chain with it, and with who agreed.
4. What ended by a word is watched like what ended by a proof (pipeline/orders/corrections, pipeline/withdrawals/settlement): what the
   exchange shows corrects it.

Start with `decide_doubt`.
"""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, Proposal
from pipeline.model.order import Order
from pipeline.model.refusal import Refusal
from pipeline.model.rules import Rules
from pipeline.model.venue import Fee, VenueOrder
from pipeline.model.withdrawal import Withdrawal
from pipeline.orders.booking import book_venue_order
from pipeline.orders.settlement import apply_absence
from pipeline.withdrawals.acceptance import end_unsent
from pipeline.withdrawals.settlement import apply_withdrawal_report
from schemas.audit import EventType
from schemas.commands import DoubtDecision, DoubtWord
from schemas.orders import Mode, OrderStatus, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.withdrawals import WithdrawalFinding, WithdrawalReport


def decide_doubt(decision: DoubtDecision, facts: Mapping[str, Value], changes: Changes, rules: Rules) -> Refusal | None:
    """Applies an operator's word, or keeps it until a second operator says the same; a refusal, and nothing changed, where it cannot be.
    Whether the operator may command was judged before (pipeline/commands/halts), which gives what is known of the sender as `facts`."""
    order, withdrawal = changes.orders.get(decision.target_id), changes.withdrawals.get(decision.target_id)
    subject = order or withdrawal
    if decision.target_id in changes.unpublished:
        text = "its last change is not on the topics yet, and a word on it must not overtake it; it is as it was. Give the command again"
        return Refusal(ReasonCode.APPROVAL_NOT_PENDING, text)
    refusal = _not_to_be_resolved(decision, order, withdrawal)
    if refusal is not None or subject is None:
        return refusal
    approvers = [decision.operator]
    if subject.usd_value > rules.doubt_four_eyes_usd:
        first = changes.proposals.get(decision.target_id)
        figures = f"attempt {subject.attempt}: {decision.figures}"
        if first is None or first.operator == decision.operator or first.figures != figures:
            changes.proposals[decision.target_id] = Proposal(
                decision.target_id, decision.operator, decision.command_id, figures, changes.now
            )
            changes.proposals_made.add(decision.target_id)
            _note(decision, facts, subject, "waits for a second operator to say the same", [decision.operator], changes)
            return None
        approvers = [first.operator, decision.operator]
    if order is not None:
        _resolve_order(order, decision, approvers, changes, rules)
    elif withdrawal is not None:
        _resolve_withdrawal(withdrawal, decision, approvers, changes, rules)
    _note(decision, facts, subject, "resolved", approvers, changes)
    return None


def _not_to_be_resolved(decision: DoubtDecision, order: Order | None, withdrawal: Withdrawal | None) -> Refusal | None:
    if order is not None:
        is_in_doubt, status = order.status is OrderStatus.IN_DOUBT and order.mode is Mode.LIVE, order.status.value
        owner = order.user_id
    elif withdrawal is not None:
        is_in_doubt, status = withdrawal.status is WithdrawalStatus.IN_DOUBT, withdrawal.status.value
        owner = withdrawal.user_id
    else:
        return Refusal(ReasonCode.ORDER_NOT_FOUND, "there is no such order or withdrawal; nothing was changed")
    if not is_in_doubt:
        return Refusal(ReasonCode.APPROVAL_NOT_PENDING, f"it is {status}, not a real one in doubt; nothing was changed")
    if decision.operator == owner:
        return Refusal(ReasonCode.APPROVAL_NOT_ALLOWED, "nobody says what became of their own; nothing was changed")
    if order is not None and order.quantity is not None and decision.quantity is not None and decision.quantity > order.quantity:
        return Refusal(ReasonCode.SCHEMA_INVALID, "`quantity` is more than was ordered; nothing was changed")
    if withdrawal is not None and decision.command is DoubtWord.EXECUTED:
        if decision.exchange_id is None:
            return Refusal(ReasonCode.SCHEMA_INVALID, "a withdrawal that was paid out has an `exchange_id`; nothing was changed")
        if (decision.quantity or Decimal(0)) + (decision.cost or Decimal(0)) > withdrawal.hold_amount:
            return Refusal(ReasonCode.SCHEMA_INVALID, "amount and fee are more than is held for it; nothing was changed")
    return None


def _resolve_order(order: Order, decision: DoubtDecision, approvers: list[str], changes: Changes, rules: Rules) -> None:
    if decision.quantity is None or decision.cost is None:
        said = f"{' and '.join(approvers)} found that it was not executed: {decision.evidence}"
        apply_absence(order, said, changes, rules)
        return
    whole = order.quantity is None or decision.quantity == order.quantity
    status = OrderStatus.FILLED if whole else OrderStatus.CANCELED
    fees = tuple(Fee(fee.asset, fee.amount) for fee in decision.fees)
    told = VenueOrder(
        order.client_order_id, decision.exchange_id or "", status, decision.quantity, decision.cost, fees, changes.now
    )
    book_venue_order(order, told, status, EventType.ORDER_RESOLVED, changes)
    ended = changes.orders[order.order_id]
    changes.orders.keep(order.order_id, replace(ended, watched_until=changes.now + rules.watch_time))


def _resolve_withdrawal(withdrawal: Withdrawal, decision: DoubtDecision, approvers: list[str], changes: Changes, rules: Rules) -> None:
    if decision.command is DoubtWord.NOT_EXECUTED:
        said = f"{' and '.join(approvers)} found that it was not paid out: {decision.evidence}; the funds are released"
        watched_until = changes.now + rules.watch_time
        ended = replace(
            withdrawal, reason_code=ReasonCode.ORDER_NOT_EXECUTED, reason=said, absent_since=None, watched_until=watched_until
        )
        end_unsent(ended, withdrawal, EventType.WITHDRAWAL_RESOLVED, changes)
        return
    report = WithdrawalReport(
        schema_version=1,
        withdrawal_id=withdrawal.withdrawal_id,
        user_id=withdrawal.user_id,
        attempt=withdrawal.attempt,
        finding=WithdrawalFinding.FOUND,
        looked_up_at=changes.now,
        exchange_withdrawal_id=decision.exchange_id,
        withdrawal_status=WithdrawalStatus.COMPLETED,
        amount=decision.quantity,
        fee=decision.cost,
    )
    apply_withdrawal_report(report, changes, rules)


def _note(
    decision: DoubtDecision, facts: Mapping[str, Value], subject: Order | Withdrawal, what: str, approvers: list[str], changes: Changes
) -> None:
    """The word in its operator's chain; what it did is in the chain of the user."""
    fields: dict[str, Value] = {
        **facts,
        "reason": f"{decision.command.value} {decision.target_id}: {decision.reason} ({what})",
        "exchange": subject.exchange,
        "filled_quantity": decision.quantity,
        "filled_quote": decision.cost,
        "evidence": [decision.evidence, f"figures: {decision.figures}", *(f"agreed by {name}" for name in approvers)],
        "real_money": True,
    }
    changes.audit(decision.operator, None, EventType.OPERATOR_DECIDED, fields, None)
