"""Cancels that wait for their order to end: what is sent again, what is counted, and when one is answered although its order still rests.

A cancel ends with its order (pipeline/orders/settlement). Where the order goes on resting it ends by itself, so that whoever sent it is
answered in bounded time:

| what ends it | answer |
|---|---|
| its own deadline (`expires_at`) | `REQUEST_EXPIRED` |
| as many calls as the rules allow were handed to the exchange, and none was confirmed | `EXCHANGE_UNAVAILABLE` |
| the time that the rules allow is over, however many calls were made | `EXCHANGE_UNAVAILABLE` |

Invariants:
1. `attempts_sent` counts calls that were handed over to the exchange, never those that were queued.
2. Once no cancel of an order is pending, no queued record of one sends anything any more (pipeline/orders/execution).
3. A cancel of an order in doubt is not ended here: it waits for the same proof as its order.
"""

from dataclasses import replace

from pipeline.books.changes import Changes, PendingCancel
from pipeline.books.order_words import order_fields, result_of_order
from pipeline.model.order import RESTING, Order
from pipeline.model.rules import Rules
from schemas.audit import EventType
from schemas.orders import RequestType
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action


def end_cancel(
    cancel: PendingCancel, order: Order, changes: Changes, status: ResultStatus, code: ReasonCode | None, reason: str | None
) -> None:
    """The final answer to a cancel. `changes.cancels` is the caller's to keep."""
    changes.cancels_ended.append(cancel)
    event_type = EventType.CANCEL_EXECUTED if status is ResultStatus.EXECUTED else EventType.CANCEL_REFUSED
    fields = {**order_fields(order), "request_id": cancel.request_id, "reason_code": code.value if code else None, "reason": reason}
    fields["idempotency_key"] = cancel.idempotency_key
    changes.audit(order.user_id, order.order_id, event_type, fields, cancel.traceparent)
    result = replace(
        result_of_order(order),
        request_id=cancel.request_id,
        idempotency_key=cancel.idempotency_key,
        type=RequestType.CANCEL,
        status=status,
        reason_code=code,
        reason=reason,
        final=True,
        corrects=False,
        requested_at=cancel.requested_at,
        decided_at=cancel.decided_at,
        executed_at=changes.now,
        source=cancel.source,
    )
    changes.tell(result, cancel.traceparent)


def count_cancel_sent(order: Order, changes: Changes) -> None:
    """Notes that one call for the order's cancels was handed over and did not end it."""
    for cancel in list(changes.cancels.get(order.order_id, [])):
        changes.move_cancel(cancel, replace(cancel, attempts_sent=cancel.attempts_sent + 1))


def end_expired_cancels(order: Order, changes: Changes) -> None:
    """Answers the cancels of a resting order whose own deadline has passed: none of them is sent any more."""
    if order.status not in RESTING:
        return
    for cancel in list(changes.cancels.get(order.order_id, [])):
        if cancel.expires_at is not None and changes.now >= cancel.expires_at:
            text = "the deadline passed before the exchange confirmed the cancel"
            _refuse(cancel, order, ReasonCode.REQUEST_EXPIRED, text, changes)


def end_unconfirmed_cancels(order: Order, changes: Changes, rules: Rules) -> None:
    """Answers the cancels of a resting order that the exchange has not confirmed within the rules' calls or time."""
    end_expired_cancels(order, changes)
    if order.status not in RESTING:
        return
    for cancel in list(changes.cancels.get(order.order_id, [])):
        if cancel.attempts_sent >= rules.cancel_attempts_max:
            text = f"the exchange was sent {cancel.attempts_sent} cancels and confirmed none"
        elif changes.now - cancel.decided_at >= rules.cancel_time_max:
            minutes = int(rules.cancel_time_max.total_seconds() // 60)
            text = f"in {minutes} minutes no cancel could be sent to the exchange"
            if cancel.attempts_sent:
                text = f"in {minutes} minutes the exchange confirmed none of the cancels sent to it ({cancel.attempts_sent})"
        else:
            continue
        _refuse(cancel, order, ReasonCode.EXCHANGE_UNAVAILABLE, text, changes)


def _refuse(cancel: PendingCancel, order: Order, code: ReasonCode, text: str, changes: Changes) -> None:
    changes.cancels[order.order_id].remove(cancel)
    stands = f"the order is still {order.status} and its funds are held; send another cancel under a new key"
    if cancel.attempts_sent:
        stands = f"the order is still {order.status} and its funds are held, and a cancel that was sent may yet end it; else send another"
    end_cancel(cancel, order, changes, ResultStatus.REJECTED, code, f"{text}: {stands}")


def repeat_pending_cancels(order: Order, changes: Changes, rules: Rules) -> None:
    """Queues the cancels of a resting order again whose outcome is not known, one call for all of them: a second cancel cannot do harm."""
    end_unconfirmed_cancels(order, changes, rules)
    if order.status not in RESTING:
        return
    for position, cancel in enumerate(list(changes.cancels.get(order.order_id, []))):
        repeated = replace(cancel, attempt=cancel.attempt + 1)
        changes.move_cancel(cancel, repeated)
        if position == 0:
            changes.route(Action.CANCEL, order.order_id, repeated.attempt, order, cancel.traceparent)
