"""A made-up venue of another shape than Binance, as a new one would be added: one module, and a line in the registry (`registered`).

Its wire is that of ccxt's class for Kraken: errors are a list in an answer of HTTP 200, a request carries a nonce and a deadline, an order
is found by our client order id through two lists only, and the answer to a create says no more than its id. It is no Kraken: what it takes
for proven of its errors and its delays is made up, which is why the product does not offer it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import ccxt
import pytest

from infra.exchange.ccxt.transport import venue_class
from infra.exchange.venues import registry
from infra.exchange.venues.pages import by_offset
from infra.exchange.venues.reading import UnreadableBooks, amount, reading, text
from infra.exchange.venues.unified import create_order
from infra.exchange.venues.venue import Evidence, Order, RefusalRule, Trade, Venue, first_of
from infra.exchange.venues.wire import WireForm
from pipeline.model.venue import AccountBalances, Market, OrderReference, Submission
from schemas.orders import OrderType, TimeInForce
from schemas.reasons import ReasonCode

_PAGE: Final = 50
_ANSWERED: Final = frozenset({200})
# "EService:Unavailable", "EService:Busy" and "EGeneral:Internal error" prove nothing and are therefore missing.
_REFUSALS: Final = (
    RefusalRule(ReasonCode.BALANCE_INSUFFICIENT, _ANSWERED, frozenset({"EOrder:Insufficient funds"})),
    RefusalRule(ReasonCode.EXCHANGE_REFUSED, _ANSWERED, frozenset({"EGeneral:Invalid arguments", "EOrder:Order minimum not met"})),
    RefusalRule(ReasonCode.API_KEY_PERMISSION, _ANSWERED, frozenset({"EGeneral:Permission denied"})),
    RefusalRule(ReasonCode.API_KEY_UNKNOWN, _ANSWERED, frozenset({"EAPI:Invalid key", "EAPI:Invalid signature"})),
    RefusalRule(
        ReasonCode.EXCHANGE_UNAVAILABLE,
        _ANSWERED,
        frozenset({"EAPI:Invalid nonce", "EAPI:Rate limit exceeded", "EService:Deadline elapsed"}),
    ),
)
_OTHERS: Final[Mapping[str, frozenset[str] | None]] = {"nonce": None}


def _deadline(signed_ms: int, window_ms: int) -> str:
    """RFC 3339."""
    return (datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=signed_ms + window_ms)).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class ListingVenue(Venue):
    def options(self, receive_window_ms: int) -> Mapping[str, object]:
        return {}

    def error_of(self, answer: Any) -> tuple[str, str]:
        errors = answer.get("error") if isinstance(answer, dict) else None
        told = [str(error) for error in errors] if isinstance(errors, list) else []
        # Of several it is not known which counts, so none does.
        return (told[0], "") if len(told) == 1 else ("", "; ".join(told))

    def refusal(self, evidence: Evidence) -> ReasonCode | None:
        return first_of(_REFUSALS, evidence)

    def order_form(self, submission: Submission, market_id: str, signed_ms: int, window_ms: int, key: str) -> WireForm:
        fields: dict[str, str | Decimal | None] = {
            "pair": market_id,
            "type": submission.side.value,
            "ordertype": submission.order_type.value,
            "volume": submission.quantity,
            "price": submission.price,
            "timeinforce": None if submission.time_in_force is None else submission.time_in_force.value,
            "cl_ord_id": submission.client_order_id,
            "deadline": _deadline(signed_ms, window_ms),
        }
        return self._form("AddOrder", fields, key)

    def cancel_form(self, reference: OrderReference, market_id: str, key: str) -> WireForm:
        known = reference.exchange_order_id
        return self._form("CancelOrder", {"txid": known, "cl_ord_id": None if known else reference.client_order_id}, key)

    @staticmethod
    def _form(name: str, fields: Mapping[str, str | Decimal | None], key: str) -> WireForm:
        return WireForm("POST", f"/0/private/{name}", fields, _OTHERS, key_header="API-Key", key=key)

    async def create(self, exchange: Any, submission: Submission, signed_ms: int, window_ms: int) -> str:
        own = {"clientOrderId": submission.client_order_id, "deadline": _deadline(signed_ms, window_ms)}
        answer = await create_order(exchange, submission, own)
        named = text(answer.get("id"), "its order id")
        if not named:
            raise UnreadableBooks("it names no order")
        return named

    async def cancel(self, exchange: Any, reference: OrderReference, window_ms: int | None) -> Mapping[str, Any]:
        named = {} if reference.exchange_order_id else {"clientOrderId": reference.client_order_id}
        answer: Mapping[str, Any] = await exchange.cancel_order(reference.exchange_order_id, reference.symbol, named)
        return answer

    async def order(self, exchange: Any, reference: OrderReference) -> Order | None:
        if reference.exchange_order_id is not None:
            try:
                return _with_cost(await exchange.fetch_order(reference.exchange_order_id, reference.symbol))
            except ccxt.OrderNotFound:
                return None
        named = {"clientOrderId": reference.client_order_id}
        # The open ones first: an order that ends meanwhile stands in both, and not in neither.
        found = [*await exchange.fetch_open_orders(None, None, None, named), *await exchange.fetch_closed_orders(None, None, None, named)]
        found = list({order["id"]: order for order in found}.values())
        return _with_cost(found[0]) if len(found) == 1 else None

    async def orders(self, exchange: Any, symbol: str, window_ms: tuple[int, int] | None) -> list[Order]:
        opened = await exchange.fetch_open_orders()
        closed = await self._whole(exchange.fetch_closed_orders, window_ms, "orders")
        return [_with_cost(order) for order in [*opened, *closed] if order["symbol"] == symbol]

    async def trades(self, exchange: Any, symbol: str, window_ms: tuple[int, int] | None) -> list[Trade]:
        return [trade for trade in await self._whole(exchange.fetch_my_trades, window_ms, "trades") if trade["symbol"] == symbol]

    @staticmethod
    async def _whole(fetch: Any, window_ms: tuple[int, int] | None, what: str) -> list[dict[str, Any]]:
        # In whole seconds, and of all markets: what ccxt leaves out of a page would make it look like the last one.
        window = {} if window_ms is None else {"start": window_ms[0] // 1_000, "end": window_ms[1] // 1_000 + 1}
        return await by_offset(lambda offset: fetch(None, None, None, {**window, "ofs": offset}), _PAGE, what)

    async def trades_of(self, exchange: Any, symbol: str, exchange_order_id: str) -> list[Trade]:
        order = await exchange.fetch_order(exchange_order_id)
        named = {"trades": order["trades"]}
        trades: list[Trade] = await exchange.fetch_order_trades(exchange_order_id, symbol, None, None, named) if order["trades"] else []
        return trades

    def quote_quantity_of(self, order: Order) -> object:
        return None

    def market_id(self, symbol: str) -> str:
        return symbol.replace("/", "")

    def market(self, symbol: str, row: Mapping[str, Any]) -> Market:
        info = row["info"]
        return Market(
            symbol=symbol, base=text(row["base"], "base"), quote=text(row["quote"], "quote"), active=info.get("status") == "online",
            price_tick=amount(info["tick_size"], "price tick"), quantity_step=Decimal(1).scaleb(-int(info["lot_decimals"])),
            quantity_min=amount(info["ordermin"], "least quantity"), quantity_max=None,
            notional_min=amount(info["costmin"], "least value"), taker_fee_rate=amount(row["taker"], "taker fee"),
            quote_quantity_taken=False, order_types=self.order_types, market_id=text(row["id"], "the name of the market"),
        )  # fmt: skip

    def unknown_rules(self, rows: Iterable[Mapping[str, Any]]) -> set[str]:
        return set()

    async def prices(self, public: Any, wanted: Mapping[str, str]) -> dict[str, Decimal]:
        answer = await public.publicGetTicker()
        with reading("the prices"):
            told = answer["result"]
            return {symbol: amount(told[name]["c"][0], "price") for name, symbol in wanted.items() if name in told}

    async def balances(self, exchange: Any) -> AccountBalances:
        answer = await exchange.privatePostBalanceEx()
        with reading("the account"):
            rows = {exchange.safe_currency_code(name): row for name, row in answer["result"].items()}
            totals = {asset: amount(row["balance"], asset) for asset, row in rows.items()}
            locked = {asset: amount(row["hold_trade"], asset) for asset, row in rows.items()}
            return AccountBalances(None, totals, {asset: held for asset, held in locked.items() if held})


def _with_cost(order: Order) -> Order:
    """ccxt leaves the executed value out."""
    return {**order, "cost": order["info"].get("cost")}


LISTING: Final = ListingVenue(
    exchange_id="kraken",
    client_order_id_pattern=re.compile(r"[0-9a-z-]{1,36}"),
    order_types=frozenset({OrderType.MARKET, OrderType.LIMIT}),
    times_in_force=frozenset({TimeInForce.GTC, TimeInForce.IOC}),
    receive_window_max=timedelta(seconds=60),
    request_timeout=timedelta(seconds=10),
    read_lag=timedelta(seconds=120),
    history_span=timedelta(days=30),
    listed_within=timedelta(hours=1),
    replaces_canceled_id=False,
    unknown_order_codes=frozenset({"EOrder:Invalid order"}),
    not_cancelable_codes=frozenset({"EOrder:Unknown order"}),
    clock_refused_codes=frozenset({"EService:Deadline elapsed"}),
    key_questions=(),
    real_money_domains=frozenset({"kraken.com"}),
)


@contextmanager
def registered() -> Iterator[None]:
    """The line in the registry, for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.VENUES, LISTING.exchange_id, LISTING)
        yield
    venue_class.cache_clear()
