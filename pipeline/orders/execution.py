"""Execution: which orders are sent, and what becomes of each outcome.

A step of the execution agent has three parts:
1. `plan` decides, before any call, what is sent; the intents are stored (`submitting`) before the first byte leaves.
2. The calls, made by the agent.
3. `conclude` turns their outcomes into changes.

Invariants:
1. An order is sent only from `accepted`, for the attempt that its record names, before its deadline, and while no halt stops it.
2. `submitting` means that it may have been sent: it is in doubt, and never sent blindly again, but where this very run of the step has
   stored the intent and not made its calls yet.
3. A cancel is only ever sent for a resting order, and only while a cancel request waits or a halt asks for it. An order whose cancel
   waits is not sent.
4. One batch makes at most one call per order and action, however often its records name it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from pipeline.books.changes import Changes, PendingCancel
from pipeline.books.order_words import ORDER_LIFE, order_fields
from pipeline.model.halts import HaltBook
from pipeline.model.intents import NotSent, OwnIntents
from pipeline.model.invariants import InvariantViolation
from pipeline.model.order import RESTING, Order
from pipeline.model.rules import Rules
from pipeline.model.venue import (
    WINDOW_MIN,
    Confirmed,
    InDoubt,
    OrderReference,
    OrderTerms,
    PaperTerms,
    Refused,
    Submission,
    SubmissionOutcome,
)
from pipeline.model.withdrawal import WithdrawalSubmission
from pipeline.orders.cancels import count_cancel_sent, end_expired_cancels, end_unconfirmed_cancels, repeat_pending_cancels
from pipeline.orders.settlement import apply_refusal, apply_venue_order, end_order_unsent, mark_in_doubt, requeue
from schemas.audit import EventType
from schemas.commands import HaltLevel
from schemas.orders import Mode, OrderStatus, Side
from schemas.reasons import ReasonCode
from schemas.routing import Action, RoutedOrder

# What an exchange says of a key that it does not take. API_KEY_UNKNOWN is one only where it says so itself.
REFUSED_KEY: Final = frozenset({ReasonCode.API_KEY_PERMISSION, ReasonCode.API_KEY_REVOKED, ReasonCode.API_KEY_EXPIRED})
INTERRUPTED: Final = {
    Mode.LIVE: "the worker stopped while the order was being sent; it is looked up at the exchange",
    Mode.PAPER: "the worker stopped while the simulated order was being executed; it is looked at again",
}


Outcome = SubmissionOutcome | NotSent
CancelOutcome = Confirmed | Refused | InDoubt | NotSent


@dataclass(slots=True)
class Plan:
    """What one batch sends, in the order in which the records came."""

    submissions: list[Submission] = field(default_factory=list)
    cancels: list[OrderReference] = field(default_factory=list)
    withdrawals: list[WithdrawalSubmission] = field(default_factory=list)


def plan(
    work: Sequence[RoutedOrder],
    changes: Changes,
    fencing_epoch: int,
    work_partition: int,
    halts: HaltBook,
    usd_assets: Collection[str],
    own_intents: OwnIntents = (),
) -> Plan:
    """Decides what is sent. Orders that need no call any more are ended or put in doubt here, in the same database transaction.

    `own_intents` are those that earlier tries of this very step have stored, whose commit was answered late.
    """
    decided = Plan()
    named: set[tuple[Action, str]] = set()
    canceling = HaltBook(halts.canceling)
    for routed in work:
        order = changes.orders.get(routed.order_id)
        if order is None:
            raise InvariantViolation(f"order {routed.order_id} is queued but not in the database; nothing was sent. This is a defect.")
        again = (routed.action, routed.order_id) in named
        named.add((routed.action, routed.order_id))
        level = halts.level_for(order.exchange, order.symbol, order.user_id)
        stopped = level is not None and is_stopped(order, level, usd_assets)
        if routed.action is Action.CANCEL:
            end_expired_cancels(order, changes)
            # Without a cancel that waits, and without a halt or a correction that asks for one, the record is a copy that was overtaken:
            # its producer was told that the order stands. So it does under a halt that only keeps orders from being sent.
            without_end = order.corrected_at is not None or _is_canceled_by_halt(order, canceling, usd_assets)
            waiting = changes.cancels.get(order.order_id, [])
            if order.status in RESTING and not again and (waiting or without_end):
                before = None if without_end else _latest_deadline(waiting)
                decided.cancels.append(replace(reference_of(order), cancel_before=before))
            # Otherwise the cancel stays pending: it ends with its order, or is sent when a look-up finds the order resting.
        elif order.status is OrderStatus.ACCEPTED and routed.attempt == order.attempt + 1:
            if changes.cancels.get(order.order_id):
                # Its cancel came while its older word was not published yet, so it could not be ended there.
                end_order_unsent(replace(order, status=OrderStatus.CANCELED), order, EventType.ORDER_CANCELED, changes)
            elif level is not None and stopped:
                _end_halted(order, level, changes)
            else:
                _plan_submission(order, changes, fencing_epoch, work_partition, decided)
        elif order.status is OrderStatus.SUBMITTING and routed.attempt == order.attempt and not again:
            if order.fencing_epoch == fencing_epoch and (order.order_id, order.attempt) in own_intents:
                # Stored by this very step, whose commit was answered late: nothing was sent yet.
                decided.submissions.append(submission_of(order))
            else:
                mark_in_doubt(order, INTERRUPTED[order.mode], changes)
        # Anything else was decided by an earlier record: canceled before it was sent, or sent by a newer attempt.
    return decided


def is_stopped(order: Order | Submission, level: HaltLevel, usd_assets: Collection[str]) -> bool:
    """Whether a halt of this level keeps an order from being sent: `reduce` lets sales into dollars pass.

    `infra.postgres.gate` says the same in SQL for what rests.
    """
    return level is HaltLevel.HALT or order.side is not Side.SELL or order.symbol.partition("/")[2] not in usd_assets


def _latest_deadline(waiting: Sequence[PendingCancel]) -> datetime | None:
    """Until when somebody wants the order canceled; None where one of them wants it without end."""
    deadlines = [cancel.expires_at for cancel in waiting if cancel.expires_at is not None]
    return max(deadlines) if len(deadlines) == len(waiting) else None


def _is_canceled_by_halt(order: Order, canceling: HaltBook, usd_assets: Collection[str]) -> bool:
    level = canceling.level_for(order.exchange, order.symbol, order.user_id)
    return level is not None and is_stopped(order, level, usd_assets)


def _end_halted(order: Order, level: HaltLevel, changes: Changes) -> None:
    code = ReasonCode.TRADING_HALTED if level is HaltLevel.HALT else ReasonCode.REDUCE_ONLY
    what = "trading was halted" if level is HaltLevel.HALT else "trading was restricted to sales into US dollars"
    reason = f"{what} before the order was sent; nothing stands at the exchange and the funds are released"
    ended = replace(order, status=OrderStatus.REJECTED, reason_code=code, reason=reason)
    end_order_unsent(ended, order, EventType.ORDER_REFUSED, changes)


def _plan_submission(order: Order, changes: Changes, fencing_epoch: int, work_partition: int, decided: Plan) -> None:
    if order.expires_at - changes.now < WINDOW_MIN:
        reason = "the deadline passed before the order was sent; nothing reached the exchange and the funds are released"
        ended = replace(order, status=OrderStatus.REJECTED, reason_code=ReasonCode.REQUEST_EXPIRED, reason=reason)
        end_order_unsent(ended, order, EventType.ORDER_REFUSED, changes)
        return
    key = changes.keys.get((order.user_id, order.api_key_id)) if order.mode is Mode.LIVE else None
    submitting = replace(
        order,
        status=OrderStatus.SUBMITTING,
        attempt=order.attempt + 1,
        fencing_epoch=fencing_epoch,
        work_partition=work_partition,
        submitting_at=changes.now,
        updated_at=changes.now,
        key_version=key.version if key is not None else None,
        account_id=key.account_id if key is not None else None,
    )
    ORDER_LIFE.advance(order, submitting, EventType.ORDER_SUBMITTED, changes)
    decided.submissions.append(submission_of(submitting))


def conclude(
    submitted: Mapping[str, Outcome], canceled: Mapping[str, CancelOutcome], changes: Changes, rules: Rules
) -> None:
    """Applies the outcomes of the calls, by order id."""
    for order_id, outcome in submitted.items():
        order = changes.orders[order_id]
        if order.status is not OrderStatus.SUBMITTING:
            raise InvariantViolation(f"order {order_id} is {order.status} after it was sent by this worker; nothing was written.")
        match outcome:
            case Confirmed(venue_order):
                apply_venue_order(order, venue_order, changes)
                # A cancel that came while the order was being sent could not be sent itself.
                repeat_pending_cancels(changes.orders[order_id], changes, rules)
            case Refused():
                _note_refused_key(order, outcome, changes)
                apply_refusal(order, outcome, changes)
            case InDoubt(detail):
                mark_in_doubt(order, detail, changes)
            case NotSent(detail):
                requeue(order, detail, changes)
    for order_id, outcome in canceled.items():
        if isinstance(outcome, Confirmed):
            apply_venue_order(changes.orders[order_id], outcome.order, changes)
        # Refused or in doubt: the next look-up shows how the order stands, which ends or repeats the cancel.
        if _was_handed_over(outcome):
            count_cancel_sent(changes.orders[order_id], changes)
        end_unconfirmed_cancels(changes.orders[order_id], changes, rules)


def _was_handed_over(outcome: CancelOutcome) -> bool:
    """Whether the exchange got the cancel: not what was stopped on this side, and not what it turned away or never received."""
    match outcome:
        case Refused(reason_code, by_venue=by_venue):
            return by_venue and reason_code is not ReasonCode.EXCHANGE_UNAVAILABLE
        case NotSent():
            return False
        case _:
            return True


def _note_refused_key(order: Order, refused: Refused, changes: Changes) -> None:
    """Marks an exchange key that the exchange itself refuses, once: no further order is tried with it until somebody has looked."""
    key = order.user_id, order.api_key_id
    is_of_key = refused.reason_code in REFUSED_KEY or (refused.by_venue and refused.reason_code is ReasonCode.API_KEY_UNKNOWN)
    if not is_of_key or key in changes.keys_refused:
        return
    changes.keys_refused[key] = refused.detail
    fields = {**order_fields(order), "status_after": None, "reason_code": refused.reason_code.value}
    fields["reason"] = f"the exchange refuses the key {order.api_key_id}: {refused.detail}"
    changes.audit(order.user_id, None, EventType.KEY_REFUSED, fields, order.traceparent)


def submission_of(order: Order) -> Submission:
    """What the gateway is asked to send. Raises InvariantViolation when no intent is recorded."""
    if order.submitting_at is None:
        raise InvariantViolation(f"order {order.order_id} has no intent to send; nothing was sent.")
    return Submission(
        mode=order.mode,
        order_id=order.order_id,
        client_order_id=order.client_order_id,
        exchange=order.exchange,
        user_id=order.user_id,
        api_key_id=order.api_key_id,
        symbol=order.symbol,
        side=order.side,
        order_type=order.order_type,
        quantity=order.quantity,
        quote_quantity=order.quote_quantity,
        price=order.price,
        time_in_force=order.time_in_force,
        submitting_at=order.submitting_at,
        expires_at=order.expires_at,
        market_id=order.market_id,
        sent_with=order.sent_with,
    )


def reference_of(order: Order) -> OrderReference:
    """What the gateway needs to look an order up or to cancel it."""
    paper = None
    if order.mode is Mode.PAPER and order.quantity is not None and order.price is not None:
        paper = PaperTerms(order.side, order.quantity, order.price)
    return OrderReference(
        mode=order.mode,
        order_id=order.order_id,
        client_order_id=order.client_order_id,
        exchange_order_id=order.exchange_order_id,
        exchange=order.exchange,
        user_id=order.user_id,
        api_key_id=order.api_key_id,
        symbol=order.symbol,
        submitting_at=order.submitting_at,
        paper=paper,
        terms=OrderTerms(order.side, order.order_type, order.quantity, order.quote_quantity, order.price),
        sent_with=order.sent_with,
        market_id=order.market_id,
    )
