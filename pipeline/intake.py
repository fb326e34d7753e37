"""Intake: what becomes of each record on `trade.requests`.

The ladder for one record, top to bottom:
1. no user and key can be read → dead letter, answered by its source only
2. the key is claimed already → the stored answer again, `duplicate` while the first runs, or refused as reused for another payload
3. otherwise this record claims the key; whatever it is answered from here on is kept for copies appended within 24 hours of the decision
4. unreadable or refused by a check → rejected
5. a cancel → ends an order that was not sent yet, or is queued for the exchange
6. a trade → funds held, order accepted, queued for its exchange

Invariants:
1. Each record gets exactly one answer that is final, now or (for what is accepted) later.
2. A record that did not claim its key never reaches an exchange.
3. Per key exactly one final answer has `replayed: false`: that of the record that claimed it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from pipeline.audit import Value
from pipeline.changes import REAL_MONEY_WARNING, Changes, Claim, PendingCancel, order_fields, result_of_order, state_of, transfer_entry
from pipeline.checks import PASSED, ApiKeyState, Refusal, TradeContext, expires_at, hold_of, refusal_of, stale_refusal
from pipeline.identifiers import client_order_id_of, fingerprint_of, fingerprint_of_bytes, order_id_of, request_id_of, request_id_of_source
from pipeline.invariants import InvariantViolation
from pipeline.ledger import AccountKey, book_of
from pipeline.order import TERMINAL, Order
from pipeline.rules import Rules
from pipeline.settlement import end_order_unsent
from pipeline.venue import MarketData
from schemas.audit import EventType
from schemas.decimals import format_decimal
from schemas.orders import Mode, OrderStatus, RequestType
from schemas.reasons import ReasonCode
from schemas.requests import CancelRequest, Request, TradeRequest, Unreadable, decode_request
from schemas.results import Result, ResultStatus
from schemas.routing import Action, RoutedOrder
from schemas.state import ORDER_STATE
from schemas.topics import DEAD_LETTER_BYTES_MAX, DEAD_LETTER_HEADERS_BYTES_MAX, DEAD_LETTER_KEY_BYTES_MAX
from schemas.wire import SCHEMA_VERSION, SourceOffset

_SECRET_HEADERS = frozenset({"authorization", "x-totp"})
_TRACEPARENT_LENGTH = 55
# Each look-up of a resting order goes through the cancels that wait for it.
CANCELS_PENDING_MAX = 20


@dataclass(frozen=True, slots=True)
class Arrival:
    """One record of `trade.requests`, decoded. `appended_at` is the broker's time, UTC."""

    source: SourceOffset
    appended_at: datetime
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    decoded: Request | Unreadable

    @property
    def claim_key(self) -> tuple[str, str] | None:
        if self.decoded.user_id is None or self.decoded.idempotency_key is None:
            return None
        return self.decoded.user_id, self.decoded.idempotency_key

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context, passed on when it has the standard's length and alphabet; anything else is dropped."""
        for name, value in self.headers:
            if name == "traceparent" and len(value) == _TRACEPARENT_LENGTH and set(value) <= set(b"0123456789abcdef-"):
                return value.decode()
        return None


def arrive(
    source: SourceOffset, appended_at: datetime, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]
) -> Arrival:
    """Decodes one record. Never raises for what a producer may have sent. A header without a value, which Kafka allows, counts as empty."""
    return Arrival(source, appended_at, key, value, tuple((name, text or b"") for name, text in headers), decode_request(value))


@dataclass(frozen=True, slots=True)
class IntakeState:
    """What was loaded for a batch, apart from what `Changes` holds: users' statuses, their keys, prices per exchange."""

    user_status: Mapping[str, str]
    api_keys: Mapping[tuple[str, str], ApiKeyState]
    market_data: Mapping[str, MarketData]
    rules: Rules


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
        request_id = request_id_of_source(arrival.source)
        refusal = Refusal(decoded.reason_code, decoded.reason)
        changes.answer(_rejection(arrival, request_id, refusal, changes.now, replayed=False), arrival.traceparent)
        return
    claim = changes.claims.get(key)
    if claim is not None and not _has_expired(claim, arrival, state.rules, changes):
        _answer_again(arrival, claim, changes)
        return
    claim = _claim(arrival, key, changes)
    match decoded:
        case Unreadable():
            _reject(arrival, claim, Refusal(decoded.reason_code, decoded.reason), changes)
        case TradeRequest():
            _trade(arrival, claim, decoded, state, changes)
        case CancelRequest():
            _cancel(arrival, claim, decoded, state, changes)
        case _:
            refusal = Refusal(ReasonCode.REQUEST_UNSUPPORTED, f"type {decoded.type} is not offered by this version; no funds were moved")
            _reject(arrival, claim, refusal, changes)


def _fingerprint(arrival: Arrival) -> str:
    if isinstance(arrival.decoded, Unreadable):
        return fingerprint_of_bytes(arrival.value or b"")
    return fingerprint_of(arrival.decoded)


def _request_id(arrival: Arrival, key: tuple[str, str]) -> str:
    return arrival.decoded.request_id or request_id_of(*key)


def _request_type(arrival: Arrival) -> RequestType | None:
    return None if isinstance(arrival.decoded, Unreadable) else RequestType(arrival.decoded.type)


def _has_expired(claim: Claim, arrival: Arrival, rules: Rules, changes: Changes) -> bool:
    """Whether a key is free again for this record: its request is over, and was decided a key's lifetime before this record was appended.

    The time of this record's own decision does not count: a copy that waits out an outage in the topic must not find its key free.
    """
    if claim.result is None or (claim.user_id, claim.idempotency_key) in changes.finished:
        return False
    # The broker's clock may be ahead of ours.
    return min(arrival.appended_at, changes.now) - claim.claimed_at >= rules.key_lifetime


def _claim(arrival: Arrival, key: tuple[str, str], changes: Changes) -> Claim:
    order_id = order_id_of(arrival.source, arrival.appended_at, *key) if isinstance(arrival.decoded, TradeRequest) else None
    claim = Claim(
        *key,
        source=arrival.source,
        request_id=_request_id(arrival, key),
        request_type=_request_type(arrival),
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

    A compressed record may be many times larger than the broker's limit once it is read. What would not fit into a dead letter is cut, and
    its headers say so: a record that cannot be buried would stop every worker that reads it.
    """
    headers = [(name, value) for name, value in arrival.headers if name.lower() not in _SECRET_HEADERS]
    if sum(len(name.encode()) + len(value) for name, value in headers) > DEAD_LETTER_HEADERS_BYTES_MAX:
        headers = [("dlq-headers-in-all", str(len(headers)).encode())]
    headers.append(("dlq-source", str(arrival.source).encode()))
    headers.append(("dlq-reason-code", unreadable.reason_code.value.encode()))
    headers.append(("dlq-reason", unreadable.reason.encode()))
    key, value = arrival.key, arrival.value
    if value is not None and len(value) > DEAD_LETTER_BYTES_MAX:
        headers.append(("dlq-bytes-in-all", str(len(value)).encode()))
        value = value[:DEAD_LETTER_BYTES_MAX]
    if key is not None and len(key) > DEAD_LETTER_KEY_BYTES_MAX:
        headers.append(("dlq-key-bytes-in-all", str(len(key)).encode()))
        key = key[:DEAD_LETTER_KEY_BYTES_MAX]
    changes.bury(key, value, tuple(headers))


def _base_fields(arrival: Arrival, request_id: str) -> dict[str, Value]:
    return {"user_id": arrival.decoded.user_id, "request_id": request_id}


def _rejection(
    arrival: Arrival, request_id: str, refusal: Refusal, now: datetime, *, replayed: bool, duplicate_of: str | None = None
) -> Result:
    return Result(
        schema_version=SCHEMA_VERSION,
        request_id=request_id,
        idempotency_key=arrival.decoded.idempotency_key,
        user_id=arrival.decoded.user_id,
        type=_request_type(arrival),
        status=ResultStatus.REJECTED,
        reason_code=refusal.code,
        reason=refusal.reason,
        order_id=None,
        client_order_id=None,
        exchange_order_id=None,
        order_status=None,
        filled_quantity=None,
        average_price=None,
        fee=None,
        fee_asset=None,
        remaining_quantity=None,
        final=True,
        replayed=replayed,
        duplicate_of=duplicate_of,
        requested_at=arrival.appended_at,
        decided_at=now,
        executed_at=None,
        source=arrival.source,
    )


def _reject(arrival: Arrival, claim: Claim, refusal: Refusal, changes: Changes) -> None:
    """The final answer to a record that claimed its key; kept for its copies."""
    fields: dict[str, Value] = {
        **_base_fields(arrival, claim.request_id),
        "reason_code": refusal.code.value,
        "reason": refusal.reason,
        **_order_words(arrival.decoded),
    }
    changes.audit(claim.user_id, None, EventType.REQUEST_REJECTED, fields, arrival.traceparent)
    result = _rejection(arrival, claim.request_id, refusal, changes.now, replayed=False)
    changes.finish((claim.user_id, claim.idempotency_key), result, arrival.traceparent)


def _order_words(decoded: Request | Unreadable) -> dict[str, Value]:
    if not isinstance(decoded, TradeRequest):
        return {}
    return {
        "symbol": decoded.symbol,
        "side": decoded.side.value,
        "order_type": decoded.order_type.value,
        "quantity": decoded.quantity if decoded.quantity is not None else decoded.quote_quantity,
        "price": decoded.price,
        "exchange": decoded.exchange,
        "real_money": decoded.mode is Mode.LIVE,
    }


def _answer_again(arrival: Arrival, claim: Claim, changes: Changes) -> None:
    """The answer to a record whose key another record has claimed. Nothing is executed for it."""
    request_id = _request_id(arrival, (claim.user_id, claim.idempotency_key))
    if _fingerprint(arrival) != claim.fingerprint:
        text = f"this key was used for another payload (request {claim.request_id}); nothing was executed for this record. Use a new key."
        refusal = Refusal(ReasonCode.IDEMPOTENCY_KEY_REUSED, text)
        fields: dict[str, Value] = {"reason_code": refusal.code.value, "reason": refusal.reason}
        event_type = EventType.REQUEST_REJECTED
        # `replayed` on purpose: this answer does not stand for an execution under the key.
        result = _rejection(arrival, request_id, refusal, changes.now, replayed=True, duplicate_of=claim.request_id)
    elif claim.result is None:
        text = f"request {claim.request_id} with this key is still running; its own result will follow. Nothing was executed for this copy."
        refusal = Refusal(ReasonCode.IDEMPOTENCY_IN_PROGRESS, text)
        fields = {"reason_code": refusal.code.value, "reason": refusal.reason}
        event_type = EventType.REQUEST_REPLAYED
        rejection = _rejection(arrival, request_id, refusal, changes.now, replayed=True, duplicate_of=claim.request_id)
        result = replace(rejection, status=ResultStatus.DUPLICATE, order_id=claim.order_id)
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
        )
    changes.audit(claim.user_id, None, event_type, {**_base_fields(arrival, request_id), **fields}, arrival.traceparent)
    changes.answer(result, arrival.traceparent)


def _trade(arrival: Arrival, claim: Claim, request: TradeRequest, state: IntakeState, changes: Changes) -> None:
    context = TradeContext(
        request=request,
        appended_at=arrival.appended_at,
        now=changes.now,
        rules=state.rules,
        user_status=state.user_status.get(request.user_id),
        api_key=state.api_keys.get((request.user_id, request.api_key_id)),
        market_data=state.market_data.get(request.exchange),
    )
    refusal = refusal_of(context)
    if refusal is not None:
        _reject(arrival, claim, refusal, changes)
        return
    hold = hold_of(context)
    if hold is None:
        _reject(arrival, claim, Refusal(ReasonCode.PRICE_UNAVAILABLE, "no fresh price says what to reserve; nothing was sent"), changes)
        return
    order = _order_of(arrival, claim, request, hold, context)
    account = AccountKey(order.user_id, order.exchange, book_of(order.mode), order.hold_asset)
    transfers_from = len(changes.ledger.transfers)
    if not changes.ledger.hold(f"{order.order_id}:hold", order.order_id, account, order.hold_amount):
        available = changes.ledger.balance(account).available
        wanted = f"{format_decimal(order.hold_amount)} {order.hold_asset}"
        reason = f"{wanted} would be reserved, {format_decimal(available)} are available; nothing was sent"
        _reject(arrival, claim, Refusal(ReasonCode.BALANCE_INSUFFICIENT, reason), changes)
        return
    _accept(order, transfers_from, changes)


def _order_of(arrival: Arrival, claim: Claim, request: TradeRequest, hold: tuple[str, Decimal], context: TradeContext) -> Order:
    order_id = claim.order_id or ""
    return Order(
        order_id=order_id,
        client_order_id=client_order_id_of(order_id),
        exchange_order_id=None,
        user_id=request.user_id,
        idempotency_key=request.idempotency_key,
        request_id=claim.request_id,
        source=arrival.source,
        mode=request.mode,
        exchange=request.exchange,
        api_key_id=request.api_key_id,
        symbol=request.symbol,
        side=request.side,
        order_type=request.order_type,
        time_in_force=request.time_in_force,
        quantity=request.quantity,
        quote_quantity=request.quote_quantity,
        price=request.price,
        status=OrderStatus.ACCEPTED,
        reason_code=None,
        reason=None,
        cum_quantity=Decimal(0),
        cum_quote=Decimal(0),
        fee=Decimal(0),
        fee_asset=None,
        hold_asset=hold[0],
        hold_amount=hold[1],
        attempt=0,
        fencing_epoch=0,
        work_partition=-1,
        submitting_at=None,
        expires_at=expires_at(request, arrival.appended_at, context.rules),
        requested_at=arrival.appended_at,
        decided_at=context.now,
        updated_at=context.now,
        executed_at=None,
        traceparent=arrival.traceparent,
    )


def _accept(order: Order, transfers_from: int, changes: Changes) -> None:
    changes.orders[order.order_id] = order
    changes.made.add(order.order_id)
    fields = order_fields(order)
    fields["status_before"] = OrderStatus.RECEIVED.value
    fields["checks"] = PASSED
    fields["transfers"] = [transfer_entry(transfer) for transfer in changes.ledger.transfers[transfers_from:]]
    fields["warning"] = REAL_MONEY_WARNING if order.mode is Mode.LIVE else None
    changes.audit(order.user_id, order.order_id, EventType.ORDER_ACCEPTED, fields, order.traceparent)
    changes.publish(changes.topics.state, order.order_id, ORDER_STATE.dump_json(state_of(order)), order.traceparent)
    changes.answer(result_of_order(order), order.traceparent)
    routed = RoutedOrder(schema_version=1, action=Action.SUBMIT, order_id=order.order_id, user_id=order.user_id, attempt=1)
    changes.route(routed, order.exchange, order.traceparent)


def _cancel(arrival: Arrival, claim: Claim, request: CancelRequest, state: IntakeState, changes: Changes) -> None:
    refusal = stale_refusal(arrival.appended_at, changes.now, state.rules)
    if refusal is None and request.expires_at is not None and changes.now > request.expires_at:
        refusal = Refusal(ReasonCode.REQUEST_EXPIRED, "the deadline passed before the cancel was decided; the order is as it was")
    if refusal is None and state.user_status.get(request.user_id) is None:
        refusal = Refusal(ReasonCode.USER_UNKNOWN, "no such user")
    if refusal is not None:
        _reject(arrival, claim, refusal, changes)
        return
    target = changes.claims.get((request.user_id, request.target_idempotency_key))
    order = changes.orders.get(target.order_id) if target is not None and target.order_id is not None else None
    if order is None:
        _reject(arrival, claim, Refusal(ReasonCode.ORDER_NOT_FOUND, "target_idempotency_key names no order of this user"), changes)
        return
    if order.status in TERMINAL:
        _reject(arrival, claim, Refusal(ReasonCode.ORDER_NOT_CANCELABLE, f"the order is {order.status} already"), changes)
        return
    if len(changes.cancels.get(order.order_id, [])) >= CANCELS_PENDING_MAX:
        text = f"{CANCELS_PENDING_MAX} cancels of this order are under way already; the order ends when the exchange confirms one of them"
        _reject(arrival, claim, Refusal(ReasonCode.ORDER_NOT_CANCELABLE, text), changes)
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
    )
    changes.cancels.setdefault(order.order_id, []).append(cancel)
    changes.cancels_made.append(cancel)
    fields: dict[str, Value] = {**order_fields(order), "request_id": claim.request_id, "status_before": order.status.value}
    changes.audit(request.user_id, order.order_id, EventType.CANCEL_ACCEPTED, fields, arrival.traceparent)
    if order.status is OrderStatus.ACCEPTED and order.order_id not in changes.unpublished:
        # Not sent yet: ending it here is proof enough, as the execution agent sends only what is `accepted`.
        after = replace(order, status=OrderStatus.CANCELED, updated_at=changes.now, executed_at=changes.now)
        end_order_unsent(order, after, EventType.ORDER_CANCELED, changes)
        return
    routed = RoutedOrder(schema_version=1, action=Action.CANCEL, order_id=order.order_id, user_id=order.user_id, attempt=1)
    changes.route(routed, order.exchange, arrival.traceparent)
