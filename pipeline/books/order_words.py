"""An order as audit events, its snapshot on `trade.state` and its result say it, and how it goes from one form to its next."""

from typing import Final

from pipeline.books.audit import Value
from pipeline.books.lifecycle import Lifecycle
from pipeline.model.invariants import InvariantViolation
from pipeline.model.money import round_down
from pipeline.model.order import Order, legal_after
from pipeline.model.retries import waiting_while_accepted
from schemas.orders import Mode, OrderStatus, RequestType
from schemas.results import Result, ResultStatus
from schemas.state import ORDER_STATE, OrderState
from schemas.wire import SCHEMA_VERSION

REAL_MONEY_WARNING: Final = "real money: this order is sent to the exchange and can lose its whole value"


def order_fields(order: Order) -> dict[str, Value]:
    """What every audit event about an order says of it."""
    real_money = order.mode is Mode.LIVE
    return {
        "user_id": order.user_id,
        "request_id": order.request_id,
        "idempotency_key": order.idempotency_key,
        "client_order_id": order.client_order_id,
        "exchange_order_id": order.exchange_order_id,
        "symbol": order.symbol,
        "side": order.side.value,
        "order_type": order.order_type.value,
        "quantity": order.quantity if order.quantity is not None else order.quote_quantity,
        "price": order.price,
        "status_after": order.status.value,
        "reason_code": order.reason_code.value if order.reason_code else None,
        "reason": order.reason,
        "exchange": order.exchange,
        "fee": order.fee,
        "fee_asset": order.fee_asset,
        "filled_quantity": order.cum_quantity,
        "filled_quote": order.cum_quote,
        "real_money": real_money,
    }


def state_of(order: Order) -> OrderState:
    """The snapshot that dashboards read."""
    return OrderState(
        schema_version=SCHEMA_VERSION,
        order_id=order.order_id,
        client_order_id=order.client_order_id,
        exchange_order_id=order.exchange_order_id,
        user_id=order.user_id,
        request_id=order.request_id,
        idempotency_key=order.idempotency_key,
        mode=order.mode,
        exchange=order.exchange,
        symbol=order.symbol,
        side=order.side,
        order_type=order.order_type,
        time_in_force=order.time_in_force,
        quantity=order.quantity,
        quote_quantity=order.quote_quantity,
        price=order.price,
        order_status=order.status,
        reason_code=order.reason_code,
        cum_quantity=order.cum_quantity,
        cum_quote=order.cum_quote,
        requested_at=order.requested_at,
        updated_at=order.updated_at,
    )


def _kept(before: Order | None, after: Order) -> Order:
    if before is not None and after.cum_quantity < before.cum_quantity:
        raise InvariantViolation(f"order {after.order_id}: the filled quantity would fall; nothing was written. This is a defect.")
    return waiting_while_accepted(after)


ORDER_LIFE: Final[Lifecycle[Order]] = Lifecycle(
    name="order",
    rows=lambda changes: changes.orders,
    id_of=lambda order: order.order_id,
    legal=legal_after,
    fields=order_fields,
    snapshot=lambda order: ORDER_STATE.dump_json(state_of(order)),
    begins=OrderStatus.RECEIVED,
    kept=_kept,
)

_RESULT_STATUS: Final[dict[OrderStatus, tuple[ResultStatus, bool]]] = {
    OrderStatus.ACCEPTED: (ResultStatus.ACCEPTED, False),
    OrderStatus.SUBMITTING: (ResultStatus.ACCEPTED, False),
    OrderStatus.IN_DOUBT: (ResultStatus.IN_DOUBT, False),
    OrderStatus.NEW: (ResultStatus.OPEN, False),
    OrderStatus.PARTIALLY_FILLED: (ResultStatus.OPEN, False),
    OrderStatus.FILLED: (ResultStatus.EXECUTED, True),
    OrderStatus.CANCELED: (ResultStatus.CANCELED, True),
    OrderStatus.EXPIRED: (ResultStatus.CANCELED, True),
    OrderStatus.REJECTED: (ResultStatus.REJECTED, True),
}


def result_of_order(order: Order) -> Result:
    """The answer that an order's status stands for: final when the order is over.

    An order that the venue ended after filling a part of it (IOC, or a market order that found no more offers) counts as executed.
    One whose final answer was wrong has had it: what is said of it from then on corrects that answer, and is not final itself.
    """
    status, final = _RESULT_STATUS[order.status]
    corrects = order.corrected_at is not None
    if order.status is OrderStatus.EXPIRED and order.cum_quantity > 0:
        status = ResultStatus.EXECUTED
    average_price = round_down(order.cum_quote / order.cum_quantity) if order.cum_quantity > 0 else None
    return Result(
        schema_version=SCHEMA_VERSION,
        request_id=order.request_id,
        idempotency_key=order.idempotency_key,
        user_id=order.user_id,
        type=RequestType.TRADE,
        mode=order.mode,
        status=status,
        reason_code=order.reason_code,
        reason=order.reason,
        order_id=order.order_id,
        client_order_id=order.client_order_id,
        exchange_order_id=order.exchange_order_id,
        order_status=order.status,
        filled_quantity=order.cum_quantity,
        average_price=average_price,
        fee=order.fee if order.fee_asset else None,
        fee_asset=order.fee_asset,
        remaining_quantity=order.leaves_quantity,
        final=final and not corrects,
        replayed=False,
        duplicate_of=None,
        requested_at=order.requested_at,
        decided_at=order.decided_at,
        executed_at=order.executed_at,
        source=order.source,
        corrects=corrects,
    )
