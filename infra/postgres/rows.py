"""How values become rows: one `unnest` of arrays per table and batch, one round trip, whatever the batch's size.

Each table lists its columns once: name, SQL type and how to take the value from its object.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Generic, TypeVar

import orjson
import structlog
from asyncpg import Record

from pipeline.books.audit import AuditRow
from pipeline.books.changes import Claim, PendingCancel
from pipeline.books.ledger import AccountKey, Transfer, TransferKind
from pipeline.model.invariants import InvariantViolation, RowUnreadable
from pipeline.model.order import Order
from pipeline.model.venue import Fee
from schemas.decimals import format_decimal
from schemas.orders import Mode, OrderStatus, OrderType, RequestType, Side, TimeInForce
from schemas.reasons import ReasonCode
from schemas.results import RESULT
from schemas.wire import SourceOffset

log = structlog.get_logger(__name__)

T = TypeVar("T")
Take = Callable[[T], object]


@dataclass(frozen=True, slots=True)
class Columns(Generic[T]):
    """A table's columns for objects of one type."""

    table: str
    columns: tuple[tuple[str, str, Take[T]], ...]

    @property
    def names(self) -> str:
        return ", ".join(name for name, _, _ in self.columns)

    def unnest(self, first: int = 1) -> str:
        """`unnest($1::text[], …) AS given (…)`, the batch as a table; `first` is the number of its first parameter."""
        types = ", ".join(f"${number}::{sql_type}[]" for number, (_, sql_type, _) in enumerate(self.columns, start=first))
        return f"unnest({types}) AS given ({self.names})"

    def insert(self, first: int = 1, **same: int) -> str:
        """An insert of the batch. `same` are further columns by the numbers of their parameters: one value for all rows."""
        names = ", ".join((self.names, *same))
        values = ", ".join((self.names, *(f"${number}" for number in same.values())))
        # The names come from the literals below, never from a request.
        return f"INSERT INTO {self.table} ({names}) SELECT {values} FROM {self.unnest(first)}"  # noqa: S608 — see above

    def update(self, first: int = 1, only: str = "") -> str:
        """An update of the batch's rows, found by the first column. `only` is a further condition, `AND` included."""
        key = self.columns[0][0]
        assignments = ", ".join(f"{name} = given.{name}" for name, _, _ in self.columns[1:])
        where = f"{self.table}.{key} = given.{key}{only}"
        return f"UPDATE {self.table} SET {assignments} FROM {self.unnest(first)} WHERE {where}"  # noqa: S608 — as above

    def arrays(self, objects: Iterable[T]) -> list[list[object]]:
        taken = list(objects)
        return [[take(value) for value in taken] for _, _, take in self.columns]

    def only(self, *names: str) -> "Columns[T]":
        """The same table with fewer columns, in the order given."""
        by_name = {column[0]: column for column in self.columns}
        return Columns(self.table, tuple(by_name[name] for name in names))


_AMOUNT = "numeric"
_TIME = "timestamptz"

ORDERS: Columns[Order] = Columns(
    "orders",
    (
        ("order_id", "text", lambda order: order.order_id),
        ("client_order_id", "text", lambda order: order.client_order_id),
        ("exchange_order_id", "text", lambda order: order.exchange_order_id),
        ("user_id", "text", lambda order: order.user_id),
        ("idempotency_key", "text", lambda order: order.idempotency_key),
        ("request_id", "text", lambda order: order.request_id),
        ("source_topic", "text", lambda order: order.source.topic),
        ("source_partition", "integer", lambda order: order.source.partition),
        ("source_offset", "bigint", lambda order: order.source.offset),
        ("mode", "text", lambda order: order.mode.value),
        ("exchange", "text", lambda order: order.exchange),
        ("api_key_id", "text", lambda order: order.api_key_id),
        ("symbol", "text", lambda order: order.symbol),
        ("side", "text", lambda order: order.side.value),
        ("order_type", "text", lambda order: order.order_type.value),
        ("time_in_force", "text", lambda order: order.time_in_force.value if order.time_in_force else None),
        ("quantity", _AMOUNT, lambda order: order.quantity),
        ("quote_quantity", _AMOUNT, lambda order: order.quote_quantity),
        ("price", _AMOUNT, lambda order: order.price),
        ("status", "text", lambda order: order.status.value),
        ("reason_code", "text", lambda order: order.reason_code.value if order.reason_code else None),
        ("reason", "text", lambda order: order.reason),
        ("cum_quantity", _AMOUNT, lambda order: order.cum_quantity),
        ("cum_quote", _AMOUNT, lambda order: order.cum_quote),
        ("fee", _AMOUNT, lambda order: order.fee),
        ("fee_asset", "text", lambda order: order.fee_asset),
        ("hold_asset", "text", lambda order: order.hold_asset),
        ("hold_amount", _AMOUNT, lambda order: order.hold_amount),
        ("attempt", "integer", lambda order: order.attempt),
        ("fencing_epoch", "bigint", lambda order: order.fencing_epoch),
        ("work_partition", "integer", lambda order: order.work_partition),
        ("submitting_at", _TIME, lambda order: order.submitting_at),
        ("expires_at", _TIME, lambda order: order.expires_at),
        ("requested_at", _TIME, lambda order: order.requested_at),
        ("decided_at", _TIME, lambda order: order.decided_at),
        ("updated_at", _TIME, lambda order: order.updated_at),
        ("executed_at", _TIME, lambda order: order.executed_at),
        ("traceparent", "text", lambda order: order.traceparent),
        ("fees", "text", lambda order: _fees_text(order.fees)),
        ("usd_value", _AMOUNT, lambda order: order.usd_value),
        ("usd_rate", _AMOUNT, lambda order: order.usd_rate),
        ("absent_since", _TIME, lambda order: order.absent_since),
        ("watched_until", _TIME, lambda order: order.watched_until),
        ("corrected_at", _TIME, lambda order: order.corrected_at),
        ("key_version", "integer", lambda order: order.key_version),
        ("account_id", "text", lambda order: order.account_id),
        ("retry_at", _TIME, lambda order: order.retry_at),
        ("market_id", "text", lambda order: order.market_id),
    ),
)

# What changes in an order's life; the rest is written once.
ORDERS_CHANGING: Columns[Order] = ORDERS.only(
    "order_id", "exchange_order_id", "status", "reason_code", "reason", "cum_quantity", "cum_quote", "fee", "fee_asset", "hold_amount",
    "attempt", "fencing_epoch", "work_partition", "submitting_at", "updated_at", "executed_at", "fees", "absent_since", "watched_until",
    "corrected_at", "key_version", "account_id", "retry_at",
)  # fmt: skip

CLAIMS: Columns[Claim] = Columns(
    "claims",
    (
        ("user_id", "text", lambda claim: claim.user_id),
        ("idempotency_key", "text", lambda claim: claim.idempotency_key),
        ("source_topic", "text", lambda claim: claim.source.topic),
        ("source_partition", "integer", lambda claim: claim.source.partition),
        ("source_offset", "bigint", lambda claim: claim.source.offset),
        ("request_id", "text", lambda claim: claim.request_id),
        ("request_type", "text", lambda claim: claim.request_type.value if claim.request_type else None),
        ("fingerprint", "text", lambda claim: claim.fingerprint),
        ("order_id", "text", lambda claim: claim.order_id),
        ("claimed_at", _TIME, lambda claim: claim.claimed_at),
        ("result", "text", lambda claim: RESULT.dump_json(claim.result).decode() if claim.result else None),
        ("ended_at", _TIME, lambda claim: claim.ended_at),
    ),
)

CLAIM_RESULTS: Columns[Claim] = CLAIMS.only("user_id", "idempotency_key", "result")
CLAIM_CORRECTIONS: Columns[Claim] = CLAIMS.only("user_id", "idempotency_key", "result", "order_id")

# From when a key's lifetime counts, as `Claim.key_lives_from` has it. A row of a worker that does not know `ended_at` is judged by what its
# result says; an older `ended_at` may be left in a row that such a worker took over, so the latest counts. A decision is never after the
# end. NULL, which is never before anything, while the request runs.
KEY_LIVES_FROM: Final = (
    "CASE WHEN claims.result::jsonb ->> 'status' = 'open' THEN NULL ELSE "
    "GREATEST(claims.claimed_at, claims.ended_at, (claims.result::jsonb ->> 'executed_at')::timestamptz, "
    "(claims.result::jsonb ->> 'decided_at')::timestamptz) END"
)

CANCELS: Columns[PendingCancel] = Columns(
    "cancels",
    (
        ("source_topic", "text", lambda cancel: cancel.source.topic),
        ("source_partition", "integer", lambda cancel: cancel.source.partition),
        ("source_offset", "bigint", lambda cancel: cancel.source.offset),
        ("order_id", "text", lambda cancel: cancel.order_id),
        ("user_id", "text", lambda cancel: cancel.user_id),
        ("idempotency_key", "text", lambda cancel: cancel.idempotency_key),
        ("request_id", "text", lambda cancel: cancel.request_id),
        ("requested_at", _TIME, lambda cancel: cancel.requested_at),
        ("decided_at", _TIME, lambda cancel: cancel.decided_at),
        ("attempt", "integer", lambda cancel: cancel.attempt),
        ("traceparent", "text", lambda cancel: cancel.traceparent),
        ("attempts_sent", "integer", lambda cancel: cancel.attempts_sent),
        ("expires_at", _TIME, lambda cancel: cancel.expires_at),
    ),
)

CANCEL_ATTEMPTS: Columns[PendingCancel] = CANCELS.only(
    "source_topic", "source_partition", "source_offset", "requested_at", "attempt", "attempts_sent"
)

TRANSFERS: Columns[Transfer] = Columns(
    "transfers",
    (
        ("transfer_id", "text", lambda transfer: transfer.transfer_id),
        ("kind", "text", lambda transfer: transfer.kind.value),
        ("order_id", "text", lambda transfer: transfer.order_id),
        ("exchange", "text", lambda transfer: transfer.debit.exchange),
        ("book", "text", lambda transfer: transfer.debit.book),
        ("asset", "text", lambda transfer: transfer.debit.asset),
        ("debit_owner", "text", lambda transfer: transfer.debit.owner),
        ("credit_owner", "text", lambda transfer: transfer.credit.owner),
        ("amount", _AMOUNT, lambda transfer: transfer.amount),
    ),
)

AUDIT_EVENTS: Columns[AuditRow] = Columns(
    "audit_events",
    (
        ("account", "text", lambda row: row.account),
        ("seq", "bigint", lambda row: row.seq),
        ("event_id", "text", lambda row: row.event_id),
        ("order_id", "text", lambda row: row.order_id),
        ("hash", "text", lambda row: row.hash),
        ("body", "text", lambda row: row.body.decode()),
    ),
)


def fields_of(row: Record, columns: Columns[T]) -> dict[str, Any]:
    """A row's values by the names of its object's fields, its `source_` columns as one.

    Raises RowUnreadable for a time without a zone, which is how the driver reads `infinity`: nothing can be compared with it.
    """
    fields: dict[str, Any] = {}
    for name, sql_type, _ in columns.columns:
        if name.startswith("source_"):
            fields["source"] = source_of(row)
            continue
        value = row[name]
        if sql_type == _TIME and value is not None and value.tzinfo is None:
            key = columns.columns[0][0]
            raise RowUnreadable(f"{columns.table} with {key} {row[key]} has no finite {name}; nothing was written, its funds stay held.")
        fields[name] = value
    return fields


def readable(rows: Iterable[Record], of: Callable[[Record], T], table: str, key: str) -> list[T]:
    """The objects of these rows, without those whose row cannot be read: each is told of, and nothing waits for it. `key` names a row.

    For what looks at many rows; a step must know each of its own.
    """
    found: list[T] = []
    for row in rows:
        try:
            found.append(of(row))
        # What a damaged row raises depends on what is damaged: a time, an enumeration, a JSON text.
        except (InvariantViolation, ValueError, TypeError, KeyError) as error:
            log.error("row_unreadable", table=table, key=row[key], error=type(error).__name__, money="it stays as it is, its funds held")
    return found


def order_of(row: Record) -> Order:
    """One row of `orders`. Raises RowUnreadable."""
    fields = fields_of(row, ORDERS)
    fields["mode"] = Mode(row["mode"])
    fields["side"] = Side(row["side"])
    fields["order_type"] = OrderType(row["order_type"])
    fields["time_in_force"] = TimeInForce(row["time_in_force"]) if row["time_in_force"] else None
    fields["status"] = OrderStatus(row["status"])
    fields["reason_code"] = ReasonCode(row["reason_code"]) if row["reason_code"] else None
    fees: list[list[str]] = orjson.loads(row["fees"])
    fields["fees"] = tuple(Fee(asset, Decimal(amount)) for asset, amount in fees)
    return Order(**fields)


def _fees_text(fees: tuple[Fee, ...]) -> str:
    """`[["BNB","0.0007"],…]`: in the order in which they came."""
    return orjson.dumps([[fee.asset, format_decimal(fee.amount)] for fee in fees]).decode()


def claim_of(row: Record) -> Claim:
    """One row of `claims`. Raises RowUnreadable."""
    fields = fields_of(row, CLAIMS)
    fields["request_type"] = RequestType(row["request_type"]) if row["request_type"] else None
    fields["result"] = RESULT.validate_json(row["result"]) if row["result"] else None
    return Claim(**fields)


def cancel_of(row: Record) -> PendingCancel:
    """One row of `cancels`. Raises RowUnreadable."""
    return PendingCancel(**fields_of(row, CANCELS))


def transfer_of(row: Record) -> Transfer:
    """One row of `transfers`."""
    account = row["exchange"], row["book"], row["asset"]
    return Transfer(
        transfer_id=row["transfer_id"],
        kind=TransferKind(row["kind"]),
        order_id=row["order_id"],
        debit=AccountKey(row["debit_owner"], *account),
        credit=AccountKey(row["credit_owner"], *account),
        amount=row["amount"],
    )


def source_of(row: Record) -> SourceOffset:
    return SourceOffset(row["source_topic"], row["source_partition"], row["source_offset"])


def columns_of(rows: Sequence[Sequence[object]], width: int) -> list[list[object]]:
    """Rows turned into arrays; `width` arrays also when there is no row."""
    return [[row[index] for row in rows] for index in range(width)]
