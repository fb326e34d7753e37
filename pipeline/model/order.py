"""An order's life: its fields, and the one table of legal transitions.

Invariants:
1. A status changes only along `TRANSITIONS`; anything else is a defect (InvariantViolation) and stops the batch.
2. A terminal status is left by a correction alone (`CORRECTIONS`): the exchange shows after all what counted as proven not to be there.
3. `in_doubt` is reached from `submitting` only and left only with proof (a look-up's `Found` or `Absent`, or an operator's word). A real
   order that was once in doubt is never `accepted` again, so it is never sent again.
4. `cum_quantity` never falls.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from pipeline.model.venue import Fee, KeyVersion
from schemas.orders import Mode, OrderStatus, OrderType, Side, TimeInForce
from schemas.reasons import ReasonCode
from schemas.wire import SourceOffset

_S = OrderStatus

TERMINAL: Final = frozenset({_S.FILLED, _S.CANCELED, _S.EXPIRED, _S.REJECTED})
RESTING: Final = frozenset({_S.NEW, _S.PARTIALLY_FILLED})
_VENUE_STATES: Final = frozenset({_S.NEW, _S.PARTIALLY_FILLED, _S.FILLED, _S.CANCELED, _S.EXPIRED, _S.REJECTED})

TRANSITIONS: Final[dict[OrderStatus, frozenset[OrderStatus]]] = {
    _S.RECEIVED: frozenset({_S.ACCEPTED, _S.REJECTED}),
    # canceled: by its user before it was sent; rejected: its deadline passed before it was sent
    _S.ACCEPTED: frozenset({_S.SUBMITTING, _S.CANCELED, _S.REJECTED}),
    # accepted again: proven not sent
    _S.SUBMITTING: _VENUE_STATES | {_S.IN_DOUBT, _S.ACCEPTED},
    # rejected or canceled: also when it is proven that it was not executed
    _S.IN_DOUBT: _VENUE_STATES,
    # rejected: "an order can be rejected subsequent to order acknowledgment" (FIX 5.0 SP2, tag 39, value 8)
    _S.NEW: frozenset({_S.PARTIALLY_FILLED, _S.FILLED, _S.CANCELED, _S.EXPIRED, _S.REJECTED}),
    _S.PARTIALLY_FILLED: frozenset({_S.PARTIALLY_FILLED, _S.FILLED, _S.CANCELED, _S.EXPIRED}),
    _S.FILLED: frozenset(),
    _S.CANCELED: frozenset(),
    _S.EXPIRED: frozenset(),
    _S.REJECTED: frozenset(),
}
# A simulated order that was interrupted was not executed, so it can be queued again; nothing stands anywhere else.
PAPER_TRANSITIONS: Final[dict[OrderStatus, frozenset[OrderStatus]]] = {_S.IN_DOUBT: frozenset({_S.ACCEPTED})}
# Of an order that ended without the exchange's own word and is watched (`Order.watched_until`): how the exchange shows it.
CORRECTIONS: Final[dict[OrderStatus, frozenset[OrderStatus]]] = {
    _S.CANCELED: _VENUE_STATES - {_S.REJECTED},
    _S.REJECTED: _VENUE_STATES - {_S.REJECTED},
    _S.EXPIRED: _VENUE_STATES - {_S.REJECTED},
    # More of it than was said.
    _S.FILLED: frozenset({_S.FILLED}),
}


def legal_after(before: "Order", after: "Order") -> frozenset[OrderStatus]:
    """The statuses that an order may go to from `before`, where `after` is what it would become."""
    legal = TRANSITIONS[before.status]
    if before.mode is Mode.PAPER:
        legal |= PAPER_TRANSITIONS.get(before.status, frozenset())
    if before.watched_until is not None and after.corrected_at is not None:
        legal |= CORRECTIONS.get(before.status, frozenset())
    return legal


@dataclass(frozen=True, slots=True)
class Order:
    """One order as the database keeps it.

    `quantity` in base and `quote_quantity` in quote units (exactly one is set), `price` in quote per base, `cum_…` totals since the order
    began; `fees` one entry per asset, of which `fee` and `fee_asset` show the first. `hold_amount` is what is still held, in units of
    `hold_asset`. `usd_value` is what it was worth when it was accepted, at `usd_rate` US dollars per quote unit. `attempt` counts intents,
    from 0 before the first. `source` is the record that asked for it. `market_id` is the exchange's own name of the market when the order
    was accepted, None where it was not kept: an order outlives its market's place in the exchange's list. Times are UTC.

    `absent_since` is when, by the exchange's clock, the first look-up in doubt began that did not find it. `watched_until`: it counted as
    proven not to be executed and is looked up until then all the same; `corrected_at`: it was found. `retry_at`: it is accepted, its last
    attempt reached nothing, and it is queued again then (pipeline/model/retries). `key_version` and `account_id`: see `sent_with`.
    """

    order_id: str
    client_order_id: str
    exchange_order_id: str | None
    user_id: str
    idempotency_key: str
    request_id: str
    source: SourceOffset
    mode: Mode
    exchange: str
    api_key_id: str
    symbol: str
    side: Side
    order_type: OrderType
    time_in_force: TimeInForce | None
    quantity: Decimal | None
    quote_quantity: Decimal | None
    price: Decimal | None
    status: OrderStatus
    reason_code: ReasonCode | None
    reason: str | None
    cum_quantity: Decimal
    cum_quote: Decimal
    fee: Decimal
    fee_asset: str | None
    hold_asset: str
    hold_amount: Decimal
    attempt: int
    fencing_epoch: int
    work_partition: int
    submitting_at: datetime | None
    expires_at: datetime
    requested_at: datetime
    decided_at: datetime
    updated_at: datetime
    executed_at: datetime | None
    traceparent: str | None
    fees: tuple[Fee, ...] = ()
    usd_value: Decimal = Decimal(0)
    usd_rate: Decimal = Decimal(0)
    market_id: str | None = None
    absent_since: datetime | None = None
    watched_until: datetime | None = None
    corrected_at: datetime | None = None
    key_version: int | None = None
    account_id: str | None = None
    retry_at: datetime | None = None

    @property
    def sent_with(self) -> KeyVersion | None:
        """The account of the newest intent; None where a worker made it that did not keep it."""
        return None if self.key_version is None else KeyVersion(self.key_version, self.account_id)

    @property
    def base(self) -> str:
        return self.symbol.partition("/")[0]

    @property
    def quote(self) -> str:
        return self.symbol.partition("/")[2]

    @property
    def leaves_quantity(self) -> Decimal | None:
        """What is still open, in base units; None for an order by quote amount, zero when the order is over."""
        if self.status in TERMINAL:
            return Decimal(0)
        return None if self.quantity is None else self.quantity - self.cum_quantity
