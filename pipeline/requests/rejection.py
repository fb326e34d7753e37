"""Rejections: how a record is answered that is not executed.

Three kinds, by what is proven of the sender:
1. `answer_unproven`: nobody is proven. The answer names no user and no key, so that it is nobody's answer; no audit event.
2. `refuse_unclaimed`: the user is proven by a token but not by the second factor. Audited; the key stays free for the right code.
3. `reject`: the record has claimed its key. Audited, and kept as the answer to its copies.
"""

from datetime import datetime

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, Claim
from pipeline.model.identifiers import request_id_of, request_id_of_source
from pipeline.model.refusal import Refusal
from pipeline.requests.record import Arrival
from schemas.audit import EventType
from schemas.orders import Mode
from schemas.requests import MoneyRequest, TradeRequest, TransferRequest
from schemas.results import Result, ResultStatus
from schemas.wire import SCHEMA_VERSION


def request_id_in(arrival: Arrival, key: tuple[str, str] | None) -> str:
    """The id under which a record is answered: its own, else derived from user and key, else from where it stands."""
    return arrival.decoded.request_id or (request_id_of(*key) if key is not None else request_id_of_source(arrival.source))


def rejection(
    arrival: Arrival,
    request_id: str,
    refusal: Refusal,
    now: datetime,
    *,
    replayed: bool = False,
    duplicate_of: str | None = None,
    names_user: bool = True,
    names_key: bool = True,
) -> Result:
    """The final result `rejected`."""
    return Result(
        schema_version=SCHEMA_VERSION,
        request_id=request_id,
        idempotency_key=arrival.decoded.idempotency_key if names_key else None,
        user_id=arrival.decoded.user_id if names_user else None,
        type=arrival.request_type,
        mode=arrival.decoded.mode if isinstance(arrival.decoded, MoneyRequest) else None,
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


def answer_unproven(arrival: Arrival, refusal: Refusal, changes: Changes) -> None:
    """Answers a record of which nobody is proven to be the sender, or that names nobody."""
    request_id = request_id_in(arrival, arrival.claim_key)
    result = rejection(arrival, request_id, refusal, changes.now, names_user=False, names_key=False)
    changes.answer(result, arrival.traceparent)


def refuse_unclaimed(arrival: Arrival, refusal: Refusal, changes: Changes) -> None:
    """Answers a record whose second factor failed: the next with the same key and the right code is executed."""
    user_id = arrival.decoded.user_id or ""
    request_id = request_id_in(arrival, arrival.claim_key)
    changes.audit(user_id, None, EventType.REQUEST_REJECTED, _refused_fields(arrival, request_id, refusal), arrival.traceparent)
    changes.answer(rejection(arrival, request_id, refusal, changes.now, names_key=False), arrival.traceparent)


def reject(arrival: Arrival, claim: Claim, refusal: Refusal, changes: Changes, evidence: list[str] | None = None) -> None:
    """The final answer to a record that claimed its key; kept for its copies."""
    fields = _refused_fields(arrival, claim.request_id, refusal)
    fields["idempotency_key"] = claim.idempotency_key
    fields["evidence"] = evidence or []
    changes.audit(claim.user_id, None, EventType.REQUEST_REJECTED, fields, arrival.traceparent)
    changes.tell(rejection(arrival, claim.request_id, refusal, changes.now), arrival.traceparent)


def base_fields(arrival: Arrival, request_id: str) -> dict[str, Value]:
    """What every audit event about a request says of it."""
    return {"user_id": arrival.decoded.user_id, "request_id": request_id}


def _refused_fields(arrival: Arrival, request_id: str, refusal: Refusal) -> dict[str, Value]:
    fields: dict[str, Value] = {
        **base_fields(arrival, request_id),
        "reason_code": refusal.code.value,
        "reason": refusal.reason,
    }
    decoded = arrival.decoded
    if isinstance(decoded, TradeRequest):
        fields |= {
            "symbol": decoded.symbol,
            "side": decoded.side.value,
            "order_type": decoded.order_type.value,
            "quantity": decoded.quantity if decoded.quantity is not None else decoded.quote_quantity,
            "price": decoded.price,
            "exchange": decoded.exchange,
            "real_money": decoded.mode is Mode.LIVE,
        }
    elif isinstance(decoded, TransferRequest):
        fields |= {
            "quantity": decoded.amount,
            "asset": decoded.asset,
            "network": decoded.network,
            "address": decoded.address,
            "address_tag": decoded.address_tag,
            "exchange": decoded.exchange,
            "real_money": decoded.mode is Mode.LIVE,
        }
    return fields
