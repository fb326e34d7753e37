"""Binance and Binance.US: their facts, and their orders, books, markets and prices on the wire.

Sources: Binance spot API (binance-spot-api-docs). Start with `BINANCE`.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from infra.exchange.venues.binance import market_rules, refusals
from infra.exchange.venues.binance.wallet import ACCOUNT, KEY, KEY_HEADER, BinanceDeposits, BinanceWithdrawals, read_balances
from infra.exchange.venues.pages import by_time
from infra.exchange.venues.reading import UnreadableBooks, amount, reading
from infra.exchange.venues.unified import create_order
from infra.exchange.venues.venue import Evidence, Order, Trade, Venue, canceled_id, first_of
from infra.exchange.venues.wire import WireForm
from pipeline.model.venue import AccountBalances, Market, OrderReference, Submission
from schemas.orders import OrderType, Side, TimeInForce
from schemas.reasons import ReasonCode

_ORDER: Final = "/api/v3/order"
_PAGE: Final = 1_000
_TRADE_PAGES_MAX: Final = 10
_SIDES: Final[Mapping[Side, str]] = {Side.BUY: "BUY", Side.SELL: "SELL"}
_TYPES: Final[Mapping[OrderType, str]] = {
    OrderType.MARKET: "MARKET", OrderType.LIMIT: "LIMIT", OrderType.LIMIT_MAKER: "LIMIT_MAKER",
}  # fmt: skip
_TIMES_IN_FORCE: Final[Mapping[TimeInForce, str]] = {TimeInForce.GTC: "GTC", TimeInForce.IOC: "IOC", TimeInForce.FOK: "FOK"}
# The form of the answer, and what the venue itself judges.
_OTHERS: Final[Mapping[str, frozenset[str] | None]] = {"newOrderRespType": frozenset({"ACK", "RESULT", "FULL"}), "signature": None}


@dataclass(frozen=True, kw_only=True)
class Binance(Venue):
    """`numbers_accounts`: its documentation names the number of an account, and the parameter that leaves balances of zero out.
    `own_options` are options of ccxt's for it alone."""

    numbers_accounts: bool
    own_options: Mapping[str, object]

    def options(self, receive_window_ms: int) -> Mapping[str, object]:
        return {
            "defaultType": "spot",
            # Spot only: load_markets then asks for /api/v3/exchangeInfo and for nothing that needs a key.
            "fetchMarkets": {"types": ["spot"]},
            "fetchMargins": False,
            "fetchCurrencies": False,
            "warnOnFetchOpenOrdersWithoutSymbol": False,
            "recvWindow": receive_window_ms,
            **self.own_options,
        }

    def replaced(self, base: Any) -> Mapping[str, Any]:
        def create_order_request(self: Any, symbol: str, kind: str, side: str, amount: Any, price: Any = None, params: Any = None) -> Any:
            """ccxt cuts a quote quantity to the price tick, which is no rule of the venue's: it takes the places of the quote asset.
            Quantity and price that lie between steps are cut, too; what `check_request` sees of that is not sent."""
            request = base.create_order_request(self, symbol, kind, side, amount, price, params or {})
            asked = (params or {}).get("cost")
            if asked is not None:
                request["quoteOrderQty"] = asked
            return request

        return {"create_order_request": create_order_request}

    def error_of(self, answer: Any) -> tuple[str, str]:
        told = answer if isinstance(answer, dict) else {}
        return str(told.get("code", "")), str(told.get("msg", ""))

    def refusal(self, evidence: Evidence) -> ReasonCode | None:
        return first_of(refusals.ORDERS, evidence)

    def order_form(self, submission: Submission, market_id: str, signed_ms: int, window_ms: int, key: str) -> WireForm:
        time_in_force = None if submission.time_in_force is None else _TIMES_IN_FORCE[submission.time_in_force]
        if submission.order_type is OrderType.LIMIT and time_in_force is None:
            time_in_force = "GTC"
        return WireForm(
            method="POST",
            path=_ORDER,
            fields={
                "symbol": market_id,
                "side": _SIDES[submission.side],
                "type": _TYPES[submission.order_type],
                "timeInForce": time_in_force,
                "newClientOrderId": submission.client_order_id,
                "quantity": submission.quantity,
                "quoteOrderQty": submission.quote_quantity,
                "price": submission.price,
                "timestamp": str(signed_ms),
                "recvWindow": str(window_ms),
            },
            others=_OTHERS,
            key_header=KEY_HEADER,
            key=key,
        )

    def cancel_form(self, reference: OrderReference, market_id: str, key: str) -> WireForm:
        """Named by the venue's id where it is known, and by that alone: the client order id of a canceled order may have been replaced, and
        the venue refuses a pair that does not fit."""
        fields: dict[str, str | Decimal | None] = {
            "symbol": market_id,
            "orderId": reference.exchange_order_id,
            "origClientOrderId": None if reference.exchange_order_id is not None else reference.client_order_id,
            # "`newClientOrderId` will replace `clientOrderId` of the canceled order, freeing it up for new orders" (Cancel order).
            "newClientOrderId": canceled_id(reference.client_order_id),
        }
        others = {**_OTHERS, "timestamp": None, "recvWindow": None}
        return WireForm(method="DELETE", path=_ORDER, fields=fields, others=others, key_header=KEY_HEADER, key=key)

    async def create(self, exchange: Any, submission: Submission, signed_ms: int, window_ms: int) -> Order:
        return await create_order(exchange, submission, {"clientOrderId": submission.client_order_id, "recvWindow": window_ms})

    async def cancel(self, exchange: Any, reference: OrderReference, window_ms: int | None) -> Mapping[str, Any]:
        parameters = {**_named(reference), "newClientOrderId": canceled_id(reference.client_order_id)}
        if window_ms is not None:
            parameters["recvWindow"] = window_ms
        answer: Mapping[str, Any] = await exchange.cancel_order(reference.exchange_order_id, reference.symbol, parameters)
        return answer

    async def order(self, exchange: Any, reference: OrderReference) -> Order:
        found: Order = await exchange.fetch_order(reference.exchange_order_id, reference.symbol, _named(reference))
        return found

    async def orders(self, exchange: Any, symbol: str, window_ms: tuple[int, int] | None) -> list[Order]:
        return await _listed(exchange.fetch_orders, symbol, window_ms, "orders")

    async def trades(self, exchange: Any, symbol: str, window_ms: tuple[int, int] | None) -> list[Trade]:
        return await _listed(exchange.fetch_my_trades, symbol, window_ms, "trades")

    async def trades_of(self, exchange: Any, symbol: str, exchange_order_id: str) -> list[Trade]:
        trades: list[Trade] = []
        parameters: dict[str, object] = {"orderId": exchange_order_id}
        for _ in range(_TRADE_PAGES_MAX):
            page = await exchange.fetch_my_trades(symbol, None, _PAGE, parameters)
            trades += [trade for trade in page if str(trade.get("order")) == exchange_order_id]
            if len(page) < _PAGE:
                return trades
            # The greatest, not the last: ccxt sorts trades of one millisecond by their ids as text.
            parameters = {"orderId": exchange_order_id, "fromId": max(int(trade["id"]) for trade in page) + 1}
        raise UnreadableBooks(f"it has more than {len(trades)} trades")

    def quote_quantity_of(self, order: Order) -> object:
        info = order.get("info")
        return info.get("origQuoteOrderQty") if isinstance(info, Mapping) else None

    def market_id(self, symbol: str) -> str:
        return symbol.replace("/", "")

    def market(self, symbol: str, row: Mapping[str, Any]) -> Market:
        return market_rules.read_market(symbol, row)

    def unknown_rules(self, rows: Iterable[Mapping[str, Any]]) -> set[str]:
        return market_rules.unknown_rules(rows)

    async def prices(self, public: Any, wanted: Mapping[str, str]) -> dict[str, Decimal]:
        # The endpoint itself: ccxt's fetch_last_prices holds the loop for 80 ms where a venue has 3,000 markets.
        return _prices(await public.publicGetTickerPrice(), wanted)

    async def balances(self, exchange: Any) -> AccountBalances:
        answer = await exchange.privateGetAccount({"omitZeroBalances": "true"} if self.numbers_accounts else {})
        return read_balances(answer, numbered=self.numbers_accounts, code_of=exchange.safe_currency_code)


def _named(reference: OrderReference) -> dict[str, object]:
    return {} if reference.exchange_order_id is not None else {"clientOrderId": reference.client_order_id}


async def _listed(
    fetch: Callable[..., Awaitable[list[dict[str, Any]]]], symbol: str, window_ms: tuple[int, int] | None, what: str
) -> list[dict[str, Any]]:
    if window_ms is None:
        return await fetch(symbol, None, _PAGE, {})
    since_ms, until_ms = window_ms
    return await by_time(lambda begin_ms: fetch(symbol, begin_ms, _PAGE, {"endTime": until_ms}), since_ms, _PAGE, what)


def _prices(answer: object, wanted: Mapping[str, str]) -> dict[str, Decimal]:
    """Raises UnreadableBooks for what is no list, and for one of which nothing can be read."""
    if not isinstance(answer, list):
        raise UnreadableBooks("its prices are no list")
    prices: dict[str, Decimal] = {}
    problem: UnreadableBooks | None = None
    for row in answer:
        try:
            with reading("a price"):
                symbol = wanted.get(str(row.get("symbol")))
                if symbol is None:
                    continue
                price = amount(row.get("price"), "price")
        except UnreadableBooks as error:
            # One below zero, or with too many digits, is no price, and no reason to do without the others.
            problem = error
            continue
        if price > 0:
            prices[symbol] = price
    if problem is not None and not prices:
        raise problem
    return prices


BINANCE: Final = Binance(
    exchange_id="binance",
    client_order_id_pattern=re.compile(r"[.A-Z:/a-z0-9_-]{1,36}"),
    order_types=frozenset(_TYPES),
    times_in_force=frozenset(_TIMES_IN_FORCE),
    receive_window_max=timedelta(seconds=60),
    # Error -1007.
    request_timeout=timedelta(seconds=10),
    # Its order queries read memory, then a database that is written to asynchronously ("Data Sources"): some delay is to be expected and no
    # bound is published. Several bots have seen an order in none of its lists for minutes.
    read_lag=timedelta(seconds=120),
    # "The time between startTime and endTime must be less than 90 days".
    history_span=timedelta(days=80),
    # Longer than any receive window and time-out.
    listed_within=timedelta(hours=1),
    replaces_canceled_id=True,
    unknown_order_codes=frozenset({"-2013"}),
    not_cancelable_codes=frozenset({"-2011"}),
    clock_refused_codes=frozenset({"-1021"}),
    key_questions=(KEY, ACCOUNT),
    # Its sandbox is under binance.vision (Testnet).
    real_money_domains=frozenset({"binance.com"}),
    withdrawals=BinanceWithdrawals(),
    deposits=BinanceDeposits(),
    numbers_accounts=True,
    own_options={},
)


# Binance.US publishes the same rules for its spot API: return codes, timing security, order endpoints, error codes
# (github.com/binance-us/binance-us-api-docs). ccxt switches orders by quote quantity off there, the API takes them.
BINANCE_US: Final = replace(
    BINANCE,
    exchange_id="binanceus",
    # It publishes no endpoint about the key itself.
    key_questions=(ACCOUNT,),
    real_money_domains=frozenset({"binance.us"}),
    # Its history is not proven here to show the client's own id.
    withdrawals=None,
    # Nor what its deposits are shown as.
    deposits=None,
    numbers_accounts=False,
    own_options={"quoteOrderQty": True},
)
