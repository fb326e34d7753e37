"""Values that tests of the pure core start from: each function gives a valid one, and takes what a test wants different."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from pipeline.books.audit import AuditTrail, ChainHead
from pipeline.books.changes import Changes, OutputRecord, PendingCancel
from pipeline.books.ledger import AccountKey, Balance, Ledger
from pipeline.gate.context import AccountState
from pipeline.gate.limits import Limits
from pipeline.model.api_key import ApiKeyState
from pipeline.model.halts import NO_HALTS
from pipeline.model.identifiers import client_order_id_of
from pipeline.model.order import Order
from pipeline.model.rules import Rules
from pipeline.model.tracked import Tracked
from pipeline.model.venue import Fee, Market, MarketData, Quote, VenueOrder
from pipeline.requests.intake_state import IntakeState
from pipeline.requests.record import Arrival, arrive
from schemas.orders import Mode, OrderStatus, OrderType, Side
from schemas.results import RESULT, Result
from schemas.topics import Topics
from schemas.wire import SourceOffset

NOW: Final = datetime(2026, 11, 24, 7, 0, tzinfo=UTC)
TOPICS: Final = Topics("t.")
EXCHANGE: Final = "binance"
USER: Final = "alice"
ORDER_ID: Final = "o" + "1" * 32
PRICE: Final = Decimal(50_000)

RULES: Final = Rules(
    exchanges=frozenset({EXCHANGE}),
    slippage_allowance=Decimal("0.05"),
    usd_assets=frozenset({"USD", "USDT"}),
    price_age_max=timedelta(seconds=5),
    submission_deadline=timedelta(seconds=30),
    key_lifetime=timedelta(hours=24),
    receive_window=timedelta(seconds=5),
    venue_timeout=timedelta(seconds=10),
    cancel_attempts_max=3,
)

BTC_USDT: Final = Market(
    symbol="BTC/USDT",
    base="BTC",
    quote="USDT",
    active=True,
    price_tick=Decimal("0.01"),
    quantity_step=Decimal("0.00001"),
    quantity_min=Decimal("0.00001"),
    quantity_max=Decimal(9_000),
    notional_min=Decimal(5),
    taker_fee_rate=Decimal("0.001"),
)
ETH_BTC: Final = replace(
    BTC_USDT, symbol="ETH/BTC", base="ETH", quote="BTC", price_tick=Decimal("0.00001"), notional_min=Decimal("0.0001")
)


def market_data(
    *, markets: Iterable[Market] = (BTC_USDT, ETH_BTC), prices: Mapping[str, Decimal] | None = None, observed_at: datetime = NOW
) -> MarketData:
    known = {"BTC/USDT": PRICE, "ETH/BTC": Decimal("0.05")} if prices is None else prices
    return MarketData(
        EXCHANGE,
        {market.symbol: market for market in markets},
        {symbol: Quote(price, observed_at) for symbol, price in known.items()},
    )


def trade(**fields: Any) -> dict[str, Any]:
    """A market purchase of 0.001 BTC (50 USDT) as a JSON document; a field given as None is left out."""
    document = {
        "schema_version": 1,
        "type": "trade",
        "idempotency_key": "key-1",
        "user_id": USER,
        "mode": "live",
        "exchange": EXCHANGE,
        "api_key_id": "k1",
        "symbol": "BTC/USDT",
        "side": "buy",
        "order_type": "market",
        "quantity": "0.001",
        **fields,
    }
    return {name: value for name, value in document.items() if value is not None}


def limit(**fields: Any) -> dict[str, Any]:
    """A limit purchase of 0.001 BTC at 40,000 USDT."""
    return trade(**{"order_type": "limit", "price": "40000", **fields})


def cancel(**fields: Any) -> dict[str, Any]:
    """A cancel of what `key-1` made."""
    return {
        "schema_version": 1,
        "type": "cancel",
        "idempotency_key": "cancel-1",
        "user_id": USER,
        "mode": "live",
        "target_idempotency_key": "key-1",
        **fields,
    }


def arrival(
    value: Mapping[str, Any] | bytes | None,
    offset: int = 0,
    *,
    appended_at: datetime = NOW,
    headers: Iterable[tuple[str, bytes | None]] = (),
    partition: int = 0,
) -> Arrival:
    encoded = json.dumps(value).encode() if isinstance(value, Mapping) else value
    return arrive(SourceOffset(TOPICS.requests, partition, offset), appended_at, b"key", encoded, tuple(headers))


# So wide that a test of something else meets none of them; tests of the gate have the defaults.
WIDE_LIMITS: Final = Limits(
    daily_volume_usd_max=Decimal(10**15),
    hourly_trades_max=10**9,
    cooldown_failures=10**9,
    price_band=Decimal(10**6),
    position_usd_max=Decimal(10**15),
    open_orders_max=10**9,
    open_orders_usd_max=Decimal(10**15),
    exchange_open_usd_max=Decimal(10**15),
    daily_loss_usd_max=Decimal(10**15),
    messages_per_second_max=10**6,
    messages_burst_max=10**6,
    duplicate_window=timedelta(0),
    suspicion_flag=10**9,
    suspicion_block=10**9,
)


def account_state(user_id: str = USER, **changes: Any) -> AccountState:
    """An active user with wide limits and no history."""
    return AccountState(**{"user_id": user_id, "status": "active", "limits": WIDE_LIMITS, **changes})


class EveryUser(dict[str, AccountState]):
    """Loaded states as the database gives them: one for everybody who is named, also for who is no user."""

    def __missing__(self, user_id: str) -> AccountState:
        self[user_id] = AccountState(user_id, None)
        return self[user_id]


def intake_state(**changes: Any) -> IntakeState:
    """One active user with one key."""
    state = IntakeState(
        accounts=EveryUser({USER: account_state()}),
        api_keys={(USER, "k1"): ApiKeyState(EXCHANGE, "active")},
        market_data={EXCHANGE: market_data()},
        halts=NO_HALTS,
        rules=RULES,
    )
    return replace(state, **changes)


def account(asset: str, owner: str = USER) -> AccountKey:
    return AccountKey(owner, EXCHANGE, "live", asset)


def changes_of(
    *orders: Order,
    funds: Mapping[str, str] | None = None,
    now: datetime = NOW,
    users: Iterable[str] = (USER,),
    heads: Mapping[str, ChainHead] | None = None,
) -> Changes:
    """An open batch. `funds` are the users' free amounts per asset; what the orders hold is there on top."""
    given = {"USDT": "1000000", "BTC": "100"} if funds is None else funds
    balances = {account(asset, user): Balance(Decimal(amount)) for user in users for asset, amount in given.items()}
    for order in orders:
        key = account(order.hold_asset, order.user_id)
        before = balances.get(key, Balance())
        balances[key] = Balance(before.posted + order.hold_amount, before.pending + order.hold_amount)
    trail = AuditTrail({user: ChainHead() for user in users} if heads is None else dict(heads), now)
    return Changes(
        topics=TOPICS,
        now=now,
        actor="test",
        trail=trail,
        ledger=Ledger(balances),
        orders=Tracked({order.order_id: order for order in orders}),
    )


def pending_cancel(number: int, attempt: int = 1, **fields: Any) -> PendingCancel:
    """A cancel of the order that waits for it to end."""
    cancel = PendingCancel(
        source=SourceOffset(TOPICS.requests, 0, 100 + number),
        order_id=ORDER_ID,
        user_id="alice",
        idempotency_key=f"cancel-{number}",
        request_id=f"rc{number}",
        requested_at=NOW,
        decided_at=NOW,
        attempt=attempt,
        traceparent=None,
    )
    return replace(cancel, **fields)


def order_of(**fields: Any) -> Order:
    """A limit purchase of 2 BTC at 100 USDT with 200 USDT held, accepted and not sent yet; `status` makes the rest agree with it."""
    status = fields.get("status", OrderStatus.ACCEPTED)
    sent = status is not OrderStatus.ACCEPTED
    over = status in {OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.EXPIRED, OrderStatus.REJECTED}
    order_id = fields.get("order_id", ORDER_ID)
    values: dict[str, Any] = {
        "order_id": order_id,
        "client_order_id": client_order_id_of(order_id),
        "exchange_order_id": None,
        "user_id": USER,
        "idempotency_key": "key-1",
        "request_id": "r1",
        "source": SourceOffset(TOPICS.requests, 0, 7),
        "mode": Mode.LIVE,
        "exchange": EXCHANGE,
        "api_key_id": "k1",
        "symbol": "BTC/USDT",
        "side": Side.BUY,
        "order_type": OrderType.LIMIT,
        "time_in_force": None,
        "quantity": Decimal(2),
        "quote_quantity": None,
        "price": Decimal(100),
        "status": status,
        "reason_code": None,
        "reason": None,
        "cum_quantity": Decimal(0),
        "cum_quote": Decimal(0),
        "fee": Decimal(0),
        "fee_asset": None,
        "hold_asset": "USDT",
        "hold_amount": Decimal(0) if over else Decimal(200),
        "attempt": 1 if sent else 0,
        "fencing_epoch": 3 if sent else 0,
        "work_partition": 0 if sent else -1,
        "submitting_at": NOW - timedelta(seconds=1) if sent else None,
        "expires_at": NOW + timedelta(seconds=30),
        "requested_at": NOW - timedelta(seconds=2),
        "decided_at": NOW - timedelta(seconds=2),
        "updated_at": NOW - timedelta(seconds=1),
        "executed_at": NOW if over else None,
        "traceparent": None,
    }
    return Order(**{**values, **fields})


def sale_of(**fields: Any) -> Order:
    """The same the other way round: 2 BTC at 100 USDT for sale, 2 BTC held."""
    return order_of(**{"side": Side.SELL, "hold_asset": "BTC", "hold_amount": Decimal(2), **fields})


def told(
    status: OrderStatus, quantity: str = "0", quote: str = "0", fees: Mapping[str, str] | None = None, exchange_order_id: str = "x1"
) -> VenueOrder:
    """What a venue's books show of an order: totals since it began."""
    return VenueOrder(
        client_order_id=client_order_id_of(ORDER_ID),
        exchange_order_id=exchange_order_id,
        order_status=status,
        cum_quantity=Decimal(quantity),
        cum_quote=Decimal(quote),
        fees=tuple(Fee(asset, Decimal(amount)) for asset, amount in (fees or {}).items()),
        updated_at=NOW,
    )


def outputs_on(changes: Changes, topic: str) -> list[OutputRecord]:
    return [output for output in changes.outputs if output.topic == topic]


def results_of(changes: Changes) -> list[Result]:
    """What a batch answers, read back as a consumer reads it."""
    return [RESULT.validate_json(output.value or b"") for output in outputs_on(changes, TOPICS.results)]


def finals_of(changes: Changes) -> list[Result]:
    return [result for result in results_of(changes) if result.final]
