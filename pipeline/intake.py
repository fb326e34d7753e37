"""Intake: what becomes of each record on `trade.requests`.

The ladder for one record, top to bottom:
1. no user and key can be read → dead letter, answered by its source only
2. nobody is proven to have sent it → answered by its source only; nothing is locked or claimed for the user that it names
3. the key is claimed already → the stored answer again, `duplicate` while the first runs, or refused as reused for another payload
4. a trade → the gate (pipeline/orders/acceptance): funds held, order accepted, queued for its exchange; a withdrawal likewise
   (pipeline/withdrawals/acceptance); an announced deposit → noted, and answered when one arrives (pipeline/deposits/announcements)
5. a session → begun or revoked (pipeline/requests/sessions); a request whose header asks for one begins it before it is looked at itself
6. a cancel → ends an order that was not sent yet, or is queued for the exchange
What it is answered under its claimed key is kept for copies appended within 24 hours of the request's end.

Invariants:
1. Each record gets exactly one answer that is final, now or (for what is accepted) later.
2. A record that did not claim its key never reaches an exchange.
3. Per key exactly one final answer has `replayed: false`: that of the record that claimed it.
"""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, Claim, PendingCancel
from pipeline.books.order_words import order_fields
from pipeline.deposits.announcements import take_in_announcement
from pipeline.gate.safety import stale_refusal
from pipeline.model.dead_letter import dead_letter_of
from pipeline.model.identifiers import announcement_id_of, fingerprint_of, fingerprint_of_bytes, order_id_of, withdrawal_id_of
from pipeline.model.invariants import InvariantViolation
from pipeline.model.order import TERMINAL
from pipeline.model.refusal import Refusal
from pipeline.model.rules import Rules
from pipeline.orders.acceptance import take_in_trade
from pipeline.orders.settlement import end_order_unsent
from pipeline.requests.intake_state import IntakeState
from pipeline.requests.record import Arrival
from pipeline.requests.rejection import answer_unproven, base_fields, refuse_unclaimed, reject, rejection, request_id_in
from pipeline.requests.sessions import asks_for_session, begin_with_request, take_in_session
from pipeline.withdrawals.acceptance import take_in_withdrawal
from schemas.audit import EventType
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode
from schemas.requests import CancelRequest, DepositRequest, SessionRequest, TradeRequest, Unreadable, WithdrawalRequest
from schemas.results import ResultStatus
from schemas.routing import Action

# Each look-up of a resting order goes through the cancels that wait for it.
CANCELS_PENDING_MAX = 20


def decide(arrivals: Sequence[Arrival], state: IntakeState, changes: Changes) -> None:
    """Decides a batch in order, each record seeing what those before it did."""
    for arrival in arrivals:
        _decide_one(arrival, state, changes)


def _decide_one(arrival: Arrival, state: IntakeState, changes: Changes) -> None:
    decoded = arrival.decoded
    if isinstance(decoded, Unreadable) and decoded.dead_letter:
        _bury(arrival, decoded, changes)
    key = arrival.claim_key
    if key is None:
        if not isinstance(decoded, Unreadable):
            raise InvariantViolation(f"record {arrival.source} was decoded without a user or a key; nothing was written. This is a defect.")
        answer_unproven(arrival, Refusal(decoded.reason_code, decoded.reason), changes)
        return
    if arrival.unproven is not None:
        answer_unproven(arrival, arrival.unproven, changes)
        return
    claim = changes.claims.get(key)
    if claim is not None and not _has_expired(claim, arrival, state.rules, changes):
        _answer_again(arrival, claim, changes)
        return
    if not isinstance(decoded, Unreadable | SessionRequest) and arrival.needs_second_factor:
        begun = _begin_session(arrival, state, changes)
        if isinstance(begun, Refusal):
            refuse_unclaimed(arrival, begun, changes)
            return
        arrival = begun
    _take_in(arrival, key, state, changes)


def _take_in(arrival: Arrival, key: tuple[str, str], state: IntakeState, changes: Changes) -> None:
    """What becomes of a record whose sender is proven and whose key is free."""
    decoded = arrival.decoded
    match decoded:
        case Unreadable():
            reject(arrival, _claim(arrival, key, changes), Refusal(decoded.reason_code, decoded.reason), changes)
        case TradeRequest():
            take_in_trade(arrival, decoded, lambda: _claim(arrival, key, changes), state, changes)
        case WithdrawalRequest():
            take_in_withdrawal(arrival, decoded, lambda: _claim(arrival, key, changes), state, changes)
        case DepositRequest():
            take_in_announcement(arrival, decoded, lambda: _claim(arrival, key, changes), state, changes)
        case SessionRequest():
            take_in_session(arrival, decoded, lambda: _claim(arrival, key, changes), state, changes)
        case CancelRequest():
            _cancel(arrival, _claim(arrival, key, changes), decoded, state, changes)


def _begin_session(arrival: Arrival, state: IntakeState, changes: Changes) -> Arrival | Refusal:
    """Begins the session that a request asks for by its header; the arrival, confirmed by the session's code where it did."""
    asks = asks_for_session(arrival)
    if isinstance(asks, Refusal):
        return asks
    if not asks:
        return arrival
    return begin_with_request(arrival, arrival.decoded.user_id or "", state, changes) or replace(arrival, is_confirmed=True)


def give_up(arrival: Arrival, reason: str, rules: Rules, changes: Changes) -> None:
    """The final answer to a record that could not be decided. Its key is claimed where it is free, so that copies get the same answer.

    `changes` holds the key's claim and its user's chain, where the record may speak for a user; nothing of it was stored before.
    """
    refusal = Refusal(ReasonCode.INTERNAL_ERROR, reason)
    key = arrival.proven_key
    if key is None:
        answer_unproven(arrival, refusal, changes)
        return
    claim = changes.claims.get(key)
    if claim is None or _has_expired(claim, arrival, rules, changes):
        reject(arrival, _claim(arrival, key, changes), refusal, changes)
        return
    request_id = request_id_in(arrival, key)
    fields: dict[str, Value] = {**base_fields(arrival, request_id), "reason_code": refusal.code.value, "reason": reason}
    changes.audit(key[0], None, EventType.REQUEST_REJECTED, fields, arrival.traceparent)
    changes.answer(
        rejection(arrival, request_id, refusal, changes.now, replayed=True, duplicate_of=claim.request_id), arrival.traceparent
    )


def _fingerprint(arrival: Arrival) -> str:
    if isinstance(arrival.decoded, Unreadable):
        return fingerprint_of_bytes(arrival.value or b"")
    return fingerprint_of(arrival.decoded)


def _has_expired(claim: Claim, arrival: Arrival, rules: Rules, changes: Changes) -> bool:
    """Whether a key is free again for this record: its request was over a key's lifetime before this record was appended.

    The time of this record's own decision does not count: a copy that waits out an outage in the topic must not find its key free.
    """
    lives_from = claim.key_lives_from
    if lives_from is None or (claim.user_id, claim.idempotency_key) in changes.finished:
        return False
    # The broker's clock may be ahead of ours.
    return min(arrival.appended_at, changes.now) - lives_from >= rules.key_lifetime


def _claim(arrival: Arrival, key: tuple[str, str], changes: Changes) -> Claim:
    order_id: str | None = None
    if isinstance(arrival.decoded, TradeRequest):
        order_id = order_id_of(arrival.source, arrival.appended_at, *key)
    elif isinstance(arrival.decoded, WithdrawalRequest):
        order_id = withdrawal_id_of(arrival.source, arrival.appended_at, *key)
    elif isinstance(arrival.decoded, DepositRequest):
        order_id = announcement_id_of(arrival.source, arrival.appended_at, *key)
    claim = Claim(
        *key,
        source=arrival.source,
        request_id=request_id_in(arrival, key),
        request_type=arrival.request_type,
        fingerprint=_fingerprint(arrival),
        order_id=order_id,
        claimed_at=changes.now,
        result=None,
    )
    changes.claims[key] = claim
    changes.claimed.add(key)
    return claim


def _bury(arrival: Arrival, unreadable: Unreadable, changes: Changes) -> None:
    """Copies a record to the dead-letter topic: original key and bytes, secrets taken out of the headers.

    A compressed record may be many times larger than the broker's limit once it is read: what would not fit is cut
    (pipeline.model.dead_letter).
    """
    changes.bury(
        *dead_letter_of(arrival.source, arrival.key, arrival.value, arrival.headers, unreadable.reason_code, unreadable.reason)
    )


def _answer_again(arrival: Arrival, claim: Claim, changes: Changes) -> None:
    """The answer to a record whose key another record has claimed. Nothing is executed for it."""
    request_id = request_id_in(arrival, (claim.user_id, claim.idempotency_key))
    if _fingerprint(arrival) != claim.fingerprint:
        text = f"this key was used for another payload (request {claim.request_id}); nothing was executed for this record. Use a new key."
        refusal = Refusal(ReasonCode.IDEMPOTENCY_KEY_REUSED, text)
        fields: dict[str, Value] = {"reason_code": refusal.code.value, "reason": refusal.reason}
        event_type = EventType.REQUEST_REJECTED
        # `replayed` on purpose: this answer does not stand for an execution under the key.
        result = rejection(arrival, request_id, refusal, changes.now, replayed=True, duplicate_of=claim.request_id)
    elif claim.result is None or claim.result.status is ResultStatus.OPEN:
        # Open again: what counted as not executed stands at the exchange after all, and is being canceled there.
        text = f"request {claim.request_id} with this key is still running; its own result will follow. Nothing was executed for this copy."
        refusal = Refusal(ReasonCode.IDEMPOTENCY_IN_PROGRESS, text)
        fields = {"reason_code": refusal.code.value, "reason": refusal.reason}
        event_type = EventType.REQUEST_REPLAYED
        running = rejection(arrival, request_id, refusal, changes.now, replayed=True, duplicate_of=claim.request_id)
        result = replace(running, status=ResultStatus.DUPLICATE, order_id=claim.order_id)
    else:
        first = claim.result
        fields = {"reason_code": first.reason_code.value if first.reason_code else None, "reason": f"copy of request {claim.request_id}"}
        event_type = EventType.REQUEST_REPLAYED
        result = replace(
            first,
            request_id=request_id,
            requested_at=arrival.appended_at,
            source=arrival.source,
            replayed=True,
            duplicate_of=claim.request_id,
            # The answer to a copy is final also where the first one's had to be corrected.
            final=True,
            corrects=False,
        )
    changes.audit(claim.user_id, None, event_type, {**base_fields(arrival, request_id), **fields}, arrival.traceparent)
    changes.answer(result, arrival.traceparent)


def _cancel(arrival: Arrival, claim: Claim, request: CancelRequest, state: IntakeState, changes: Changes) -> None:
    refusal = stale_refusal(arrival.appended_at, changes.now, state.rules)
    if refusal is None and request.expires_at is not None and changes.now > request.expires_at:
        refusal = Refusal(ReasonCode.REQUEST_EXPIRED, "the deadline passed before the cancel was decided; the order is as it was")
    if refusal is None and state.accounts[request.user_id].status is None:
        refusal = Refusal(ReasonCode.USER_UNKNOWN, "no such user")
    if refusal is not None:
        reject(arrival, claim, refusal, changes)
        return
    target = changes.claims.get((request.user_id, request.target_idempotency_key))
    order = changes.orders.get(target.order_id) if target is not None and target.order_id is not None else None
    if order is None:
        reject(arrival, claim, Refusal(ReasonCode.ORDER_NOT_FOUND, "target_idempotency_key names no order of this user"), changes)
        return
    if order.mode is not request.mode:
        # Whoever tests with simulated money must not end a real order by mistake, nor believe to have ended one.
        text = f"target_idempotency_key names an order in mode {order.mode}, the cancel says {request.mode}; the order is as it was"
        reject(arrival, claim, Refusal(ReasonCode.ORDER_NOT_FOUND, text), changes)
        return
    if order.status in TERMINAL:
        reject(arrival, claim, Refusal(ReasonCode.ORDER_NOT_CANCELABLE, f"the order is {order.status} already"), changes)
        return
    if len(changes.cancels.get(order.order_id, [])) >= CANCELS_PENDING_MAX:
        text = f"{CANCELS_PENDING_MAX} cancels of this order are under way already; the order ends when the exchange confirms one of them"
        reject(arrival, claim, Refusal(ReasonCode.ORDER_NOT_CANCELABLE, text), changes)
        return
    cancel = PendingCancel(
        source=arrival.source,
        order_id=order.order_id,
        user_id=request.user_id,
        idempotency_key=request.idempotency_key,
        request_id=claim.request_id,
        requested_at=arrival.appended_at,
        decided_at=changes.now,
        attempt=1,
        traceparent=arrival.traceparent,
        expires_at=request.expires_at,
    )
    changes.cancels.setdefault(order.order_id, []).append(cancel)
    changes.cancels_made.append(cancel)
    fields: dict[str, Value] = {**order_fields(order), "request_id": claim.request_id, "status_before": order.status.value}
    fields["idempotency_key"] = claim.idempotency_key
    changes.audit(request.user_id, order.order_id, EventType.CANCEL_ACCEPTED, fields, arrival.traceparent)
    if order.status is OrderStatus.ACCEPTED and order.order_id not in changes.unpublished:
        # Not sent yet: ending it here is proof enough, as the execution agent sends only what is `accepted`.
        end_order_unsent(replace(order, status=OrderStatus.CANCELED), order, EventType.ORDER_CANCELED, changes)
        state.accounts[request.user_id].ended(order.order_id)
        return
    changes.route(Action.CANCEL, order.order_id, 1, order, arrival.traceparent)
