"""Values that tests of the gate start from: a user who may do everything that the default limits allow, and a request that passes."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from pipeline.books.ledger import AccountKey, Balance
from pipeline.gate.check import Step
from pipeline.gate.context import AccountState, OpenOrder, RecentOrder, TradeContext
from pipeline.gate.ladder import refusal_of
from pipeline.gate.limits import Limits
from pipeline.model.api_key import ApiKeyState
from pipeline.model.halts import NO_HALTS, Halt, HaltBook
from pipeline.model.refusal import Refusal
from schemas.commands import HaltLevel, HaltScope
from schemas.orders import OrderStatus, OrderType, Side
from schemas.reasons import ReasonCode
from schemas.requests import TradeRequest
from tests.unit.builders import BTC_USDT, EXCHANGE, NOW, RULES, USER, arrival, market_data, trade

MICROSECOND: Final = timedelta(microseconds=1)
# What no test of another limit should meet.
NO_LIMITS: Final = {
    "trade_usd_max": Decimal(10) ** 30,
    "daily_volume_usd_max": Decimal(10) ** 30,
    "position_usd_max": Decimal(10) ** 30,
    "open_orders_usd_max": Decimal(10) ** 30,
    "exchange_open_usd_max": Decimal(10) ** 30,
}


def limit_at_market(**fields: Any) -> dict[str, Any]:
    """A limit purchase of 0.001 BTC at the market price."""
    return trade(**{"order_type": "limit", "price": "50000", **fields})


def request_of(document: Mapping[str, Any]) -> TradeRequest:
    request = arrival(document).decoded
    assert isinstance(request, TradeRequest), request
    return request


def account_of(*, limits: Mapping[str, Any] | None = None, **fields: Any) -> AccountState:
    """An active user, who has used the symbols of the tests before."""
    known = {"BTC/USDT", "ETH/BTC"}
    return AccountState(**{"user_id": USER, "status": "active", "limits": Limits(**(limits or {})), "known_symbols": known, **fields})


def context_of(document: Mapping[str, Any], *, limits: Mapping[str, Any] | None = None, **changes: Any) -> TradeContext:
    """A request of a user who may trade. Fields of `AccountState` and of `TradeContext` are given by name."""
    ours = {name: changes.pop(name) for name in list(changes) if name in AccountState.__slots__}
    request = request_of(document)
    context = TradeContext(
        request=request,
        appended_at=NOW,
        now=NOW,
        rules=RULES,
        account=account_of(limits=limits, **ours),
        api_key=ApiKeyState(EXCHANGE, "active"),
        market_data=market_data(),
        halts=NO_HALTS,
        balances={},
        idempotency_key=request.idempotency_key,
    )
    return replace(context, **changes)


def first_refusal(context: TradeContext) -> Refusal | None:
    """What the whole ladder answers."""
    for step in Step:
        refusal = refusal_of(context, step)
        if refusal is not None:
            return refusal
    return None


def code_of(document: Mapping[str, Any], **changes: Any) -> ReasonCode | None:
    """The code that a request gets from the whole ladder, None when it passes."""
    refusal = first_refusal(context_of(document, **changes))
    return None if refusal is None else refusal.code


def at(now: datetime, **changes: Any) -> dict[str, Any]:
    """A decision at another time, with prices of that time."""
    return {"now": now, "market_data": market_data(observed_at=now), **changes}


def one_btc_market(**changes: Any) -> dict[str, Any]:
    return {"market_data": market_data(markets=[replace(BTC_USDT, **changes)])}


def halted(scope: HaltScope, target: str, level: HaltLevel = HaltLevel.HALT) -> dict[str, Any]:
    return {"halts": HaltBook(frozenset({Halt(scope, target, level)}))}


def open_order(**fields: Any) -> OpenOrder:
    """A resting limit purchase of 0.001 BTC at 49,000 USDT."""
    values: dict[str, Any] = {
        "order_id": "o" + "2" * 32,
        "exchange": EXCHANGE,
        "symbol": "BTC/USDT",
        "side": Side.BUY,
        "order_type": OrderType.LIMIT,
        "price": Decimal(49_000),
        "leaves_quantity": Decimal("0.001"),
        "usd_value": Decimal(49),
        "status": OrderStatus.NEW,
    }
    return OpenOrder(**{**values, **fields})


def recent_order(ago: timedelta = timedelta(minutes=1), **fields: Any) -> RecentOrder:
    """A market purchase of 0.001 BTC, as `trade()` asks for."""
    values: dict[str, Any] = {
        "exchange": EXCHANGE,
        "symbol": "BTC/USDT",
        "side": Side.BUY,
        "order_type": OrderType.MARKET,
        "quantity": Decimal("0.001"),
        "quote_quantity": None,
        "price": None,
        "usd_value": Decimal(50),
        "requested_at": NOW - ago,
        "decided_at": NOW - ago,
    }
    return RecentOrder(**{**values, **fields})


def owned(exchange: str = EXCHANGE, user: str = USER, book: str = "live", **amounts: str) -> dict[AccountKey, Balance]:
    """Balances of a user by asset."""
    return {AccountKey(user, exchange, book, asset): Balance(Decimal(amount)) for asset, amount in amounts.items()}
