"""How values become rows: one `unnest` of arrays per table and batch, one round trip, whatever the batch's size.

Each table lists its columns once: name, SQL type and how to take the value from its object, which most often is the field of that name.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from operator import attrgetter
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
    def key(self) -> str:
        """The column by which a row is found, which is the first."""
        return self.columns[0][0]

    @property
    def names(self) -> str:
        return ", ".join(name for name, _, _ in self.columns)

    def unnest(self, first: int = 1) -> str:
        """`unnest($1::text[], …) AS given (…)`, the batch as a table; `first` is the number of its first parameter."""
        types = ", ".join(f"${number}::{sql_type}[]" for number, (_, sql_type, _) in enumerate(self.columns, start=first))
        return f"unnest({types}) AS given ({self.names})"

    def insert(self, first: int = 1, *same: str) -> str:
        """An insert of the batch. `same` are further columns of one value for all rows each: the parameters behind the arrays."""
        names = ", ".join((self.names, *same))
        values = ", ".join((self.names, *(f"${number}" for number, _ in enumerate(same, start=first + len(self.columns)))))
        # The names come from the literals below, never from a request.
        return f"INSERT INTO {self.table} ({names}) SELECT {values} FROM {self.unnest(first)}"  # noqa: S608 — see above

    def upsert(self, first: int, key: int, *same: str) -> str:
        """As `insert`; a row that is there, by the first `key` columns, takes over all others."""
        names = [name for name, _, _ in self.columns]
        assignments = ", ".join(f"{name} = EXCLUDED.{name}" for name in (*names[key:], *same))
        return f"{self.insert(first, *same)} ON CONFLICT ({', '.join(names[:key])}) DO UPDATE SET {assignments}"

    def update(self, first: int = 1, only: str = "") -> str:
        """An update of the batch's rows, found by the first column. `only` is a further condition, `AND` included."""
        assignments = ", ".join(f"{name} = given.{name}" for name, _, _ in self.columns[1:])
        where = f"{self.table}.{self.key} = given.{self.key}{only}"
        return f"UPDATE {self.table} SET {assignments} FROM {self.unnest(first)} WHERE {where}"  # noqa: S608 — as above

    def arrays(self, objects: Iterable[T]) -> list[list[object]]:
        taken = list(objects)
        return [[take(value) for value in taken] for _, _, take in self.columns]

    def only(self, *names: str) -> "Columns[T]":
        """The same table with fewer columns, in the order given."""
        by_name = {column[0]: column for column in self.columns}
        return Columns(self.table, tuple(by_name[name] for name in names))


_TIME: Final = "timestamptz"


def plain(**names: str) -> tuple[tuple[str, str, Take[Any]], ...]:
    """Columns by their SQL type, each with the value of its object's field of that name: `text="user_id mode", numeric="amount"`. The word
    of an enumeration is text by itself."""
    return tuple((name, sql_type, attrgetter(name)) for sql_type, named in names.items() for name in named.split())


SOURCE: Final[tuple[tuple[str, str, Take[Any]], ...]] = (
    ("source_topic", "text", attrgetter("source.topic")),
    ("source_partition", "integer", attrgetter("source.partition")),
    ("source_offset", "bigint", attrgetter("source.offset")),
)

ORDERS: Columns[Order] = Columns(
    "orders",
    (
        *plain(
            text="order_id client_order_id exchange_order_id user_id idempotency_key request_id mode exchange api_key_id symbol side "
            "order_type time_in_force status reason_code reason fee_asset hold_asset traceparent account_id market_id",
            numeric="quantity quote_quantity price cum_quantity cum_quote fee hold_amount usd_value usd_rate",
            integer="attempt work_partition key_version",
            bigint="fencing_epoch",
            timestamptz="submitting_at expires_at requested_at decided_at updated_at executed_at absent_since watched_until corrected_at "
            "retry_at",
        ),
        *SOURCE,
        ("fees", "text", lambda order: _fees_text(order.fees)),
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
        *plain(text="user_id idempotency_key request_id request_type fingerprint order_id", timestamptz="claimed_at ended_at"),
        *SOURCE,
        ("result", "text", lambda claim: RESULT.dump_json(claim.result).decode() if claim.result else None),
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
        *SOURCE,
        *plain(
            text="order_id user_id idempotency_key request_id traceparent",
            integer="attempt attempts_sent",
            timestamptz="requested_at decided_at expires_at",
        ),
    ),
)

CANCEL_ATTEMPTS: Columns[PendingCancel] = CANCELS.only(
    "source_topic", "source_partition", "source_offset", "requested_at", "attempt", "attempts_sent"
)

TRANSFERS: Columns[Transfer] = Columns(
    "transfers",
    (
        *plain(text="transfer_id kind order_id", numeric="amount"),
        ("exchange", "text", attrgetter("debit.exchange")),
        ("book", "text", attrgetter("debit.book")),
        ("asset", "text", attrgetter("debit.asset")),
        ("debit_owner", "text", attrgetter("debit.owner")),
        ("credit_owner", "text", attrgetter("credit.owner")),
    ),
)

AUDIT_EVENTS: Columns[AuditRow] = Columns(
    "audit_events",
    (*plain(text="account event_id order_id hash", bigint="seq"), ("body", "text", lambda row: row.body.decode())),
)


def fields_of(row: Record, columns: Columns[T], **words: Callable[[str], object]) -> dict[str, Any]:
    """A row's values by the names of its object's fields, its `source_` columns as one. `words` are those columns whose text stands for
    something else, such as a member of an enumeration, which is made of it.

    Raises RowUnreadable for a time without a zone, which is how the driver reads `infinity`: nothing can be compared with it.
    """
    fields: dict[str, Any] = {}
    for name, sql_type, _ in columns.columns:
        if name.startswith("source_"):
            fields["source"] = source_of(row)
            continue
        value = row[name]
        if sql_type == _TIME and value is not None and value.tzinfo is None:
            key = columns.key
            raise RowUnreadable(f"{columns.table} with {key} {row[key]} has no finite {name}; nothing was written, its funds stay held.")
        fields[name] = words[name](value) if name in words and value is not None else value
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
    fields = fields_of(
        row,
        ORDERS,
        mode=Mode,
        side=Side,
        order_type=OrderType,
        time_in_force=TimeInForce,
        status=OrderStatus,
        reason_code=ReasonCode,
        fees=_fees_of,
    )
    return Order(**fields)


def _fees_text(fees: tuple[Fee, ...]) -> str:
    """`[["BNB","0.0007"],…]`: in the order in which they came."""
    return orjson.dumps([[fee.asset, format_decimal(fee.amount)] for fee in fees]).decode()


def _fees_of(text: str) -> tuple[Fee, ...]:
    fees: list[list[str]] = orjson.loads(text)
    return tuple(Fee(asset, Decimal(amount)) for asset, amount in fees)


def claim_of(row: Record) -> Claim:
    """One row of `claims`. Raises RowUnreadable."""
    return Claim(**fields_of(row, CLAIMS, request_type=RequestType, result=RESULT.validate_json))


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
