"""Payouts: which withdrawals are sent, what becomes of each outcome, and what an exchange's history does to funds and answers.

As for orders (pipeline/orders/execution, pipeline/orders/settlement), and stricter: what was paid out cannot be called back.

Invariants:
1. A withdrawal is sent only from `accepted`, for the attempt that its record names, before its deadline, and while nothing that was looked
   at when it was accepted speaks against it any more: halts of any level, user, key, address list, the day's limit (pipeline/gate/payouts).
   One batch makes at most one call for it.
2. `submitting` means that it may have been sent: it is in doubt, and never sent blindly again, but where this very run of the step has
   stored the intent and not made its calls yet.
3. Once in doubt it is never sent again. Two looks at the exchange's history that do not show it, so far apart that it must have been shown
   in between, prove that it was not executed: it ends as `ORDER_NOT_EXECUTED`, its funds are released, and its producer decides.
4. What was proven absent is watched for a day all the same. If it shows up after all, that is booked, its result is corrected by an event
   of its own, and its user is halted.
5. What leaves the account is posted when the exchange says `completed`; until then it stays held.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from pipeline.books.changes import Changes
from pipeline.books.cost import trim_cost
from pipeline.books.ledger import book_of, clearing, fees
from pipeline.books.trip import halt_user, require_halts_locked
from pipeline.gate.payouts import payout_refusal
from pipeline.gate.throttle import after_exchange_refusal, after_success
from pipeline.model.absence import absence_is_proven, is_watched
from pipeline.model.detail import DETAIL_MAX, storable
from pipeline.model.halts import HaltBook
from pipeline.model.intents import NotSent, OwnIntents
from pipeline.model.invariants import InvariantViolation
from pipeline.model.payee import NOBODY, Payee
from pipeline.model.retries import given_up, retry_at
from pipeline.model.rules import Rules
from pipeline.model.venue import WINDOW_MIN, InDoubt, Refused
from pipeline.model.withdrawal import TERMINAL, VENUE_STATES, Taken, Withdrawal, WithdrawalOutcome, WithdrawalSubmission
from pipeline.withdrawals.acceptance import WITHDRAWAL_LIFE, account_of, end_unsent, release, route, tell
from schemas.audit import EventType
from schemas.orders import WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.routing import RoutedOrder
from schemas.withdrawals import WithdrawalFinding, WithdrawalReport

INTERRUPTED: Final = "the worker stopped while it was being sent; it is looked up in the exchange's history"
_S = WithdrawalStatus
_EVENT_OF_STATUS: Final = {
    _S.PROCESSING: EventType.WITHDRAWAL_PROCESSING,
    _S.COMPLETED: EventType.WITHDRAWAL_COMPLETED,
    _S.FAILED: EventType.WITHDRAWAL_FAILED,
}

Outcome = WithdrawalOutcome | NotSent


def plan_withdrawals(
    work: Sequence[RoutedOrder],
    changes: Changes,
    fencing_epoch: int,
    work_partition: int,
    halts: HaltBook,
    own_intents: OwnIntents = (),
) -> list[WithdrawalSubmission]:
    """Decides what is sent. Those that need no call any more are ended or put in doubt here, in the same database transaction. Its users
    are in `changes.payees`.

    `own_intents` are those that earlier tries of this very step have stored, whose commit was answered late.
    """
    submissions: list[WithdrawalSubmission] = []
    named: set[str] = set()
    for routed in work:
        withdrawal = changes.withdrawals.get(routed.order_id)
        if withdrawal is None:
            raise InvariantViolation(f"withdrawal {routed.order_id} is queued but not in the database; nothing was sent.")
        again = routed.order_id in named
        named.add(routed.order_id)
        if withdrawal.status is _S.ACCEPTED and routed.attempt == withdrawal.attempt + 1:
            payee = changes.payees.get(withdrawal.user_id, NOBODY)
            refused = _not_to_be_sent(withdrawal, payee, changes, halts)
            if refused is not None:
                ended = replace(withdrawal, reason_code=refused.reason_code, reason=refused.detail)
                end_unsent(ended, withdrawal, EventType.WITHDRAWAL_REFUSED, changes)
                continue
            key = changes.keys.get((withdrawal.user_id, withdrawal.api_key_id))
            submitting = replace(
                withdrawal,
                status=_S.SUBMITTING,
                attempt=withdrawal.attempt + 1,
                fencing_epoch=fencing_epoch,
                work_partition=work_partition,
                submitting_at=changes.now,
                first_submitting_at=withdrawal.sent_from or changes.now,
                updated_at=changes.now,
                key_version=key.version if key is not None else None,
                account_id=key.account_id if key is not None else None,
            )
            payee.left_usd += withdrawal.usd_value
            WITHDRAWAL_LIFE.advance(withdrawal, submitting, EventType.WITHDRAWAL_SUBMITTED, changes)
            submissions.append(submission_of(submitting))
        elif withdrawal.status is _S.SUBMITTING and routed.attempt == withdrawal.attempt and not again:
            if withdrawal.fencing_epoch == fencing_epoch and (withdrawal.withdrawal_id, withdrawal.attempt) in own_intents:
                # Stored by this very step, whose commit was answered late: nothing was sent yet.
                submissions.append(submission_of(withdrawal))
            else:
                put_in_doubt(withdrawal, INTERRUPTED, changes)
    return submissions


def _not_to_be_sent(withdrawal: Withdrawal, payee: Payee, changes: Changes, halts: HaltBook) -> Refused | None:
    if withdrawal.expires_at - changes.now < WINDOW_MIN:
        text = "the deadline passed before it was sent; nothing reached the exchange and the funds are released"
        return Refused(ReasonCode.REQUEST_EXPIRED, text)
    refusal = payout_refusal(withdrawal, payee, payee.left_usd, halts, changes.now)
    if refusal is None:
        return None
    return Refused(refusal.code, f"when it was about to be sent {refusal.reason}; nothing reached the exchange and the funds are released")


def submission_of(withdrawal: Withdrawal) -> WithdrawalSubmission:
    """What the gateway is asked to send. Raises InvariantViolation when no intent is recorded."""
    if withdrawal.submitting_at is None:
        raise InvariantViolation(f"withdrawal {withdrawal.withdrawal_id} has no intent to send; nothing was sent.")
    return WithdrawalSubmission(
        withdrawal_id=withdrawal.withdrawal_id,
        client_withdrawal_id=withdrawal.client_withdrawal_id,
        exchange=withdrawal.exchange,
        user_id=withdrawal.user_id,
        api_key_id=withdrawal.api_key_id,
        asset=withdrawal.asset,
        network=withdrawal.network,
        address=withdrawal.address,
        address_tag=withdrawal.address_tag,
        amount=withdrawal.amount,
        fee=withdrawal.fee,
        submitting_at=withdrawal.submitting_at,
        expires_at=withdrawal.expires_at,
        sent_with=withdrawal.sent_with,
    )


def conclude_withdrawals(outcomes: Mapping[str, Outcome], changes: Changes) -> None:
    """Applies the outcomes of the calls, by withdrawal id."""
    for withdrawal_id, outcome in outcomes.items():
        withdrawal = changes.withdrawals[withdrawal_id]
        if withdrawal.status is not _S.SUBMITTING:
            raise InvariantViolation(f"withdrawal {withdrawal_id} is {withdrawal.status} after this worker sent it; nothing was written.")
        match outcome:
            case Taken(exchange_withdrawal_id):
                _take(withdrawal, exchange_withdrawal_id, changes)
            case Refused():
                # The key itself stays in use: a venue says the same of one that may trade and not withdraw.
                _refuse(withdrawal, outcome, changes)
            case InDoubt(detail):
                put_in_doubt(withdrawal, detail, changes)
            case NotSent(detail):
                _requeue(withdrawal, detail, changes)


def _take(withdrawal: Withdrawal, exchange_withdrawal_id: str, changes: Changes) -> None:
    changes.move_conduct(withdrawal.user_id, after_success(changes.conduct_of(withdrawal.user_id)))
    after = replace(
        withdrawal, status=_S.PROCESSING, exchange_withdrawal_id=exchange_withdrawal_id, reason=None, updated_at=changes.now
    )
    WITHDRAWAL_LIFE.advance(withdrawal, after, EventType.WITHDRAWAL_PROCESSING, changes)
    tell(after, changes)


def _refuse(withdrawal: Withdrawal, refused: Refused, changes: Changes) -> None:
    """Ends a withdrawal that the exchange provably did not take."""
    conduct = after_exchange_refusal(changes.conduct_of(withdrawal.user_id), refused.reason_code, changes.now)
    changes.move_conduct(withdrawal.user_id, conduct)
    ended = replace(withdrawal, reason_code=refused.reason_code, reason=storable(refused.detail))
    end_unsent(ended, withdrawal, EventType.WITHDRAWAL_REFUSED, changes)


def put_in_doubt(withdrawal: Withdrawal, detail: str, changes: Changes) -> None:
    """No proof either way: the funds stay held until the exchange's history proves what became of it."""
    after = replace(withdrawal, status=_S.IN_DOUBT, reason=storable(detail), absent_since=None, updated_at=changes.now)
    WITHDRAWAL_LIFE.advance(withdrawal, after, EventType.WITHDRAWAL_IN_DOUBT, changes)
    tell(after, changes)


def _requeue(withdrawal: Withdrawal, detail: str, changes: Changes) -> None:
    """Has a withdrawal tried again of which the last attempt provably reached nothing; when, and how often: pipeline/model/retries."""
    refused = given_up(withdrawal.attempt, "paid", detail)
    if refused is not None:
        _refuse(withdrawal, refused, changes)
        return
    due = retry_at(withdrawal.attempt, changes.now, withdrawal.expires_at)
    after = replace(withdrawal, status=_S.ACCEPTED, reason=None, updated_at=changes.now, retry_at=due)
    extra = {"reason": storable(detail)}
    WITHDRAWAL_LIFE.advance(withdrawal, after, EventType.WITHDRAWAL_REQUEUED, changes, extra)
    if due is None:
        route(after, changes)


def apply_withdrawal_report(report: WithdrawalReport, changes: Changes, rules: Rules) -> None:
    """Applies what is proven of a withdrawal. A report of an older attempt, or one that proves nothing new, changes nothing.

    Raises LocksMissing where it shows up after all and the halts are not locked.
    """
    withdrawal = changes.withdrawals.get(report.withdrawal_id)
    if withdrawal is None:
        raise InvariantViolation(f"a report names withdrawal {report.withdrawal_id}, which is not in the database; nothing was written.")
    if report.attempt != withdrawal.attempt:
        return
    if withdrawal.status in TERMINAL:
        if report.finding is WithdrawalFinding.FOUND and is_watched(withdrawal, changes.now):
            _correct(withdrawal, report, changes)
        return
    match report.finding:
        case WithdrawalFinding.UNAPPROVED:
            _end_unapproved(withdrawal, changes)
        case WithdrawalFinding.ABSENT:
            if withdrawal.status is _S.IN_DOUBT:
                _apply_absence(withdrawal, report.looked_up_at, changes, rules)
        case WithdrawalFinding.FOUND:
            # While it is `submitting`, its own worker will record the outcome.
            if withdrawal.status in {_S.IN_DOUBT, _S.PROCESSING}:
                _apply_found(withdrawal, report, changes)


def _end_unapproved(withdrawal: Withdrawal, changes: Changes) -> None:
    if withdrawal.status is not _S.PENDING_APPROVAL or changes.now < withdrawal.expires_at:
        return
    reason = "nobody approved it in time; nothing was sent and the funds are released"
    ended = replace(withdrawal, reason_code=ReasonCode.REQUEST_EXPIRED, reason=reason)
    end_unsent(ended, withdrawal, EventType.WITHDRAWAL_REFUSED, changes)


def _apply_absence(withdrawal: Withdrawal, looked_up_at: datetime, changes: Changes, rules: Rules) -> None:
    if withdrawal.absent_since is None:
        # The first look that did not find it proves nothing; no word to anybody.
        changes.withdrawals.keep(withdrawal.withdrawal_id, replace(withdrawal, absent_since=looked_up_at))
        return
    if not absence_is_proven(withdrawal, looked_up_at, rules):
        return
    reason = (
        "the exchange's history does not show it, long after it could have been accepted; nothing was paid, the funds are released, and it "
        "is not sent again by itself"
    )
    ended = replace(
        withdrawal,
        reason_code=ReasonCode.ORDER_NOT_EXECUTED,
        reason=reason,
        absent_since=None,
        watched_until=changes.now + rules.watch_time,
    )
    end_unsent(ended, withdrawal, EventType.WITHDRAWAL_RESOLVED, changes)


def _correct(withdrawal: Withdrawal, report: WithdrawalReport, changes: Changes) -> None:
    """Books a withdrawal that counted as not executed and that the exchange has after all; halts its user.

    The funds were released, so what is left of them is held again, and what they do not cover is advanced when it is paid (`@shortfall`).
    One that the exchange did not pay is what was said: nothing happens.
    """
    if withdrawal.status is not _S.REJECTED or report.withdrawal_status not in {_S.PROCESSING, _S.COMPLETED}:
        return
    require_halts_locked(changes, f"withdrawal {withdrawal.withdrawal_id} shows up after all")
    found = replace(
        withdrawal, corrected_at=changes.now, executed_at=None, reason_code=None, hold_amount=_hold_again(withdrawal, changes)
    )
    # As a step of its own in the ledger, and one move of the withdrawal.
    _apply_found(found, report, changes, before=withdrawal)
    what = f"withdrawal {withdrawal.withdrawal_id} was said not to be executed, and the exchange has it as {report.withdrawal_status}"
    cause = f"withdrawal:{withdrawal.withdrawal_id}:corrected"
    halt_user(withdrawal.user_id, cause, f"{what}: compare the account with the exchange", changes)


def _hold_again(withdrawal: Withdrawal, changes: Changes) -> Decimal:
    """Holds what is left of the funds, up to all that leaves; returns how much that is."""
    account = account_of(withdrawal)
    amount = min(withdrawal.total, max(changes.ledger.balance(account).available, Decimal(0)))
    transfer_id = f"{withdrawal.withdrawal_id}:hold:corrected"
    if amount > 0 and not changes.ledger.hold(transfer_id, withdrawal.withdrawal_id, account, amount):
        raise InvariantViolation(f"{amount} {withdrawal.asset} are available and could not be held; nothing was written. This is a defect.")
    return amount


def _apply_found(withdrawal: Withdrawal, report: WithdrawalReport, changes: Changes, before: Withdrawal | None = None) -> None:
    """Takes over how the exchange's history shows it. `before` is the withdrawal as it was, where more of it has changed than that."""
    status, amount, fee = report.withdrawal_status, report.amount, report.fee
    if status not in VENUE_STATES or amount is None or fee is None or report.exchange_withdrawal_id is None:
        raise InvariantViolation(f"a report says that withdrawal {withdrawal.withdrawal_id} was found but not how it stands.")
    if status is withdrawal.status:
        return
    after = replace(
        withdrawal,
        status=status,
        exchange_withdrawal_id=report.exchange_withdrawal_id,
        transaction_id=report.transaction_id,
        reason=None,
        absent_since=None,
        updated_at=changes.now,
    )
    if status is _S.COMPLETED:
        after = _pay_out(replace(after, amount=amount, fee=fee), changes)
    elif status is _S.FAILED:
        text = f"the exchange took it and did not pay it: {report.detail or 'it gives no reason'}. The funds are released"
        after = replace(after, reason_code=ReasonCode.EXCHANGE_REFUSED, reason=storable(text)[:DETAIL_MAX])
    if status in TERMINAL:
        after = replace(release(after, changes), executed_at=changes.now)
    event_type = EventType.WITHDRAWAL_RESOLVED if withdrawal.status is _S.IN_DOUBT else _EVENT_OF_STATUS[status]
    if before is not None:
        event_type = EventType.WITHDRAWAL_RESULT_CORRECTED
        after = replace(after, reason="it was said not to be executed, and the exchange has it after all; the user is halted")
    WITHDRAWAL_LIFE.advance(before or withdrawal, after, event_type, changes)
    tell(after, changes)


def _pay_out(withdrawal: Withdrawal, changes: Changes) -> Withdrawal:
    """Posts what was paid out and what the exchange kept, from the hold as far as it goes; returns it with what is left of the hold."""
    book = book_of(withdrawal.mode)
    account = account_of(withdrawal)
    held = withdrawal.hold_amount
    parts = (
        ("pay_out", clearing(withdrawal.exchange, book, withdrawal.asset), withdrawal.amount),
        ("fee", fees(withdrawal.exchange, book, withdrawal.asset), withdrawal.fee),
    )
    for name, to, amount in parts:
        from_hold = min(amount, held)
        transfer_id = f"{withdrawal.withdrawal_id}:{name}"
        if from_hold > 0:
            changes.ledger.post_held(transfer_id, withdrawal.withdrawal_id, account, to, from_hold)
        if amount > from_hold:
            # The exchange has raised its fee since the withdrawal was accepted.
            changes.ledger.charge(f"{transfer_id}_more", withdrawal.withdrawal_id, account, to, amount - from_hold)
        held -= from_hold
    trim_cost(account, changes.ledger)
    return replace(withdrawal, hold_amount=held)
