"""A venue is one module and a line in the registry: one of another shape than Binance (tests/integration/listing_venue.py) goes through the
gateway as it is, over real HTTP, and the gateway's proofs hold for it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from time import time
from typing import Any
from urllib.parse import parse_qsl

import pytest
from aiohttp import web

from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.ccxt.transport import venue_class
from infra.exchange.gateway import Credentials
from infra.exchange.key_check import KeyUnanswered
from infra.exchange.venues.registry import is_real_money
from pipeline.model.venue import Absent, Confirmed, Fee, Found, InDoubt, LookUpFailed, Refused
from schemas.orders import OrderStatus, OrderType, TimeInForce
from schemas.reasons import ReasonCode
from tests.integration.listing_venue import ListingVenue, registered
from tests.integration.scripted_venue import reference, submission

PAIR = {
    "altname": "XBTUSD", "wsname": "XBT/USD", "base": "XXBT", "quote": "ZUSD", "pair_decimals": 1, "lot_decimals": 8, "tick_size": "0.1",
    "fees": [["0", "0.40"]], "fees_maker": [["0", "0.25"]], "ordermin": "0.0001", "costmin": "0.5", "status": "online", "leverage_buy": [],
}  # fmt: skip
KEYS = {"key-1": Credentials("the-key", "dGhlLXNlY3JldA=="), "key-2": Credentials("other-key", "dGhlLW90aGVy")}

Form = dict[str, str]


@dataclass
class Books:
    """The server's books, and what arrived. `says` has answers of its own by name: an error, or a whole response; `takes` is whether a
    create that is answered that way is taken all the same, and `shows` whether the books show it."""

    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    trades: dict[str, dict[str, Any]] = field(default_factory=dict)
    arrived: list[tuple[str, Form, str]] = field(default_factory=list)
    says: dict[str, list[str] | web.Response] = field(default_factory=dict)
    takes: bool = False
    shows: bool = True

    def forms(self, name: str) -> list[Form]:
        return [form for called, form, _ in self.arrived if called == name]

    async def answer(self, request: web.Request) -> web.Response:
        name, form = request.match_info["name"], dict(parse_qsl(await request.text()))
        self.arrived.append((name, form, request.headers.get("API-Key", "")))
        told = self.says.get(name)
        if told is None or self.takes:
            result = getattr(self, f"_{name}")(form)
        if isinstance(told, web.Response):
            return told
        return web.json_response({"error": told} if told else {"error": [], "result": result})

    def _Time(self, _form: Form) -> dict[str, Any]:  # noqa: N802  the venue's name of it
        return {"unixtime": int(time())}

    def _Assets(self, _form: Form) -> dict[str, Any]:  # noqa: N802
        return {}

    def _AssetPairs(self, _form: Form) -> dict[str, Any]:  # noqa: N802
        return {"XXBTZUSD": PAIR}

    def _Ticker(self, _form: Form) -> dict[str, Any]:  # noqa: N802
        return {"XXBTZUSD": {"c": ["50000.1", "0.01"]}, "XETHZUSD": {"c": ["2500.0", "1"]}}

    def _BalanceEx(self, _form: Form) -> dict[str, Any]:  # noqa: N802
        return {"XXBT": {"balance": "1.5", "hold_trade": "0.5"}, "ZUSD": {"balance": "10", "hold_trade": "0"}}

    def _AddOrder(self, form: Form) -> dict[str, Any]:  # noqa: N802
        named = f"O{len(self.orders)}"
        described = {"pair": "XBTUSD", "type": form["type"], "ordertype": form["ordertype"], "price": form.get("price", "0")}
        self.orders[named] = {
            "cl_ord_id": form["cl_ord_id"], "status": "open", "opentm": time(), "descr": described, "vol": form["volume"], "vol_exec": "0",
            "cost": "0", "oflags": "fciq", "trades": [],
        }  # fmt: skip
        text = f"{form['type']} {form['volume']} XBTUSD @ {form['ordertype']} {form.get('price', '')}"
        return {"descr": {"order": text.strip()}, "txid": [named]}

    def fill(self, named: str, quantity: str, cost: str, fee: str) -> None:
        traded = f"T{len(self.trades)}"
        self.trades[traded] = {
            "ordertxid": named, "pair": "XXBTZUSD", "time": time(), "type": "buy", "ordertype": "limit", "price": "50000", "vol": quantity,
            "cost": cost, "fee": fee,
        }  # fmt: skip
        self.orders[named] |= {"status": "closed", "vol_exec": quantity, "cost": cost, "closetm": time(), "trades": [traded]}

    def _listed(self, form: Form, *, opened: bool) -> dict[str, Any]:
        wanted = form.get("cl_ord_id")
        found = {
            named: order for named, order in self.orders.items()
            if (order["status"] == "open") is opened and wanted in {None, order["cl_ord_id"]} and self.shows
        }  # fmt: skip
        return dict(list(found.items())[int(form.get("ofs", 0)) :][:50])

    def _OpenOrders(self, form: Form) -> dict[str, Any]:  # noqa: N802
        return {"open": self._listed(form, opened=True)}

    def _ClosedOrders(self, form: Form) -> dict[str, Any]:  # noqa: N802
        return {"closed": self._listed(form, opened=False)}

    def _QueryOrders(self, form: Form) -> dict[str, Any]:  # noqa: N802
        return {named: order for named, order in self.orders.items() if named == form["txid"] and self.shows}

    def _TradesHistory(self, form: Form) -> dict[str, Any]:  # noqa: N802
        return {"trades": dict(list(self.trades.items())[int(form.get("ofs", 0)) :][:50])}

    def _QueryTrades(self, form: Form) -> dict[str, Any]:  # noqa: N802
        return {named: dict(self.trades[named]) for named in form["txid"].split(",")}

    def _CancelOrder(self, form: Form) -> dict[str, Any]:  # noqa: N802
        for named, order in self.orders.items():
            if form.get("txid") == named or form.get("cl_ord_id") == order["cl_ord_id"]:
                order |= {"status": "canceled", "closetm": time()}
        return {"count": 1}


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Books, CcxtGateway]]:
    books = Books()
    app = web.Application()
    app.router.add_route("*", "/0/{kind:public|private}/{name}", books.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    async def credentials(_user_id: str, api_key_id: str) -> Credentials | None:
        return KEYS.get(api_key_id)

    with registered():
        gateway = CcxtGateway(
            "kraken", credentials, base_url=f"http://127.0.0.1:{runner.addresses[0][1]}", timeout_ms=1_000, rate_limit=False
        )
        try:
            yield books, gateway
        finally:
            await gateway.close()
            await runner.cleanup()


def order(**changes: object) -> Any:
    return submission(**{"exchange": "kraken", "symbol": "BTC/USD", **changes})


def asked(client_order_id: str, **changes: object) -> Any:
    known = {"exchange": "kraken", "symbol": "BTC/USD", "submitting_at": datetime.now(UTC), "client_order_id": client_order_id}
    return reference(**{**known, **changes})


async def test_order_is_taken_and_shown_by_the_books_that_its_answer_does_not_tell_of() -> None:
    """The answer to a create has an id and no more: the order is confirmed as the books show it, under the client order id it was given."""
    async with running() as (books, gateway):
        sent = order(time_in_force=TimeInForce.IOC)
        outcome = await gateway.submit(sent)
        assert isinstance(outcome, Confirmed), outcome
        assert (outcome.order.exchange_order_id, outcome.order.client_order_id) == ("O0", sent.client_order_id)
        assert outcome.order.order_status is OrderStatus.NEW
        [form] = books.forms("AddOrder")
        asked_for = {"pair": "XXBTZUSD", "type": "buy", "ordertype": "limit", "cl_ord_id": sent.client_order_id, "timeinforce": "IOC"}
        assert {name: form[name] for name in asked_for} == asked_for
        assert (Decimal(form["volume"]), Decimal(form["price"])) == (sent.quantity, sent.price)
        # Its clock tells whole seconds.
        left = datetime.fromisoformat(form["deadline"]) - sent.submitting_at
        assert timedelta(seconds=3.9) < left <= timedelta(seconds=5.1)


@pytest.mark.parametrize(("error", "reason"), [
    ("EOrder:Insufficient funds", ReasonCode.BALANCE_INSUFFICIENT),
    ("EGeneral:Permission denied", ReasonCode.API_KEY_PERMISSION),
    ("EService:Deadline elapsed", ReasonCode.EXCHANGE_UNAVAILABLE),
    ("EAPI:Invalid key", ReasonCode.API_KEY_UNKNOWN),
])
async def test_error_that_its_white_list_names_is_a_refusal(error: str, reason: ReasonCode) -> None:
    """In an answer of HTTP 200, by the venue's own list."""
    async with running() as (books, gateway):
        books.says["AddOrder"] = [error]
        outcome = await gateway.submit(order())
        assert outcome == Refused(reason, f"kraken HTTP 200: {error} ")
        assert len(books.forms("AddOrder")) == 1


@pytest.mark.parametrize("told", [
    lambda: ["EService:Unavailable"],
    lambda: ["EGeneral:Internal error"],
    lambda: ["EOrder:Insufficient funds", "EService:Busy"],
    lambda: web.json_response({"error": ["EOrder:Insufficient funds"]}, status=520),
    lambda: web.Response(text="<html>502</html>", status=502, content_type="text/html"),
    lambda: web.json_response({"error": [], "result": {}}),
])
async def test_order_whose_answer_proves_nothing_is_in_doubt_until_its_lists_show_it(told: Callable[[], list[str] | web.Response]) -> None:
    """Whatever is not named leaves it in doubt, though it was taken; it is sent once, and found by its client order id."""
    async with running() as (books, gateway):
        books.says["AddOrder"], books.takes = told(), True
        sent = order()
        outcome = await gateway.submit(sent)
        assert isinstance(outcome, InDoubt), outcome
        assert len(books.forms("AddOrder")) == 1
        found = await gateway.look_up(asked(sent.client_order_id))
        assert isinstance(found, Found) and found.order.exchange_order_id == "O0", found


async def test_error_that_its_venue_fails_to_read_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in a venue's module refuses no order and raises nothing: what was handed over stays in doubt."""
    async with running() as (books, gateway):
        books.says["AddOrder"] = ["EOrder:Insufficient funds"]
        monkeypatch.setattr(ListingVenue, "error_of", lambda _self, answer: answer["errors"][0])
        assert isinstance(await gateway.submit(order()), InDoubt)


async def test_order_that_was_taken_and_is_not_shown_yet_is_in_doubt() -> None:
    """An id is no proof that it stands, and books that lag are none that it does not."""
    async with running() as (books, gateway):
        books.shows = False
        outcome = await gateway.submit(order())
        assert outcome == InDoubt("kraken took order O0; its books do not show it")


async def test_order_is_found_in_either_list_with_the_fees_of_its_trades() -> None:
    """By our id or by the venue's, resting and filled alike."""
    async with running() as (books, gateway):
        sent = order()
        await gateway.submit(sent)
        books.fill("O0", "0.002", "100.0", "0.26")
        for known in (asked(sent.client_order_id), asked(sent.client_order_id, exchange_order_id="O0")):
            found = await gateway.look_up(known)
            assert isinstance(found, Found), found
            assert found.order.order_status is OrderStatus.FILLED
            assert (found.order.cum_quantity, found.order.cum_quote) == (Decimal("0.002"), Decimal("100.0"))
            assert found.order.fees == (Fee("USD", Decimal("0.26")),)


async def test_order_is_absent_only_when_every_list_was_shown_whole_and_shows_none() -> None:
    """Neither by its id nor in the pages of its lists; what is answered with an error, or beside a trade of no order, is no absence."""
    async with running() as (books, gateway):
        for _ in range(60):
            await gateway.submit(order())
        for named in books.orders:
            books.orders[named]["status"] = "canceled"
        assert isinstance(await gateway.look_up(asked("co-nowhere")), Absent)
        assert [form["ofs"] for form in books.forms("ClosedOrders") if "ofs" in form] == ["0", "50"]
        for name in ("OpenOrders", "ClosedOrders", "TradesHistory"):
            books.says[name] = ["EService:Unavailable"]
            assert isinstance(await gateway.look_up(asked("co-nowhere")), LookUpFailed)
            del books.says[name]
        books.fill("O0", "0.001", "50", "0")
        books.trades["T0"]["ordertxid"] = "O-hidden"
        assert isinstance(await gateway.look_up(asked("co-nowhere")), LookUpFailed)


@pytest.mark.parametrize("exchange_order_id", ["O0", None])
async def test_order_is_canceled_by_either_id(exchange_order_id: str | None) -> None:
    """Confirmed by the books, and one that the venue does not know any more is told by them."""
    async with running() as (books, gateway):
        sent = order()
        await gateway.submit(sent)
        known = asked(sent.client_order_id, exchange_order_id=exchange_order_id)
        outcome = await gateway.cancel(known)
        assert isinstance(outcome, Confirmed) and outcome.order.order_status is OrderStatus.CANCELED, outcome
        [form] = books.forms("CancelOrder")
        assert (form.get("txid"), form.get("cl_ord_id")) == (("O0", None) if exchange_order_id else (None, sent.client_order_id))
        books.says["CancelOrder"] = ["EOrder:Unknown order"]
        assert isinstance(await gateway.cancel(known), Confirmed)


@pytest.mark.parametrize(
    ("name", "value"), [("volume", "0.003"), ("type", "sell"), ("deadline", "2030-01-01T00:00:00"), ("leverage", "2:1")]
)
async def test_request_that_is_not_what_was_recorded_never_leaves(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own fields are compared whole, as at any venue."""
    async with running() as (books, gateway):
        await gateway.markets()
        original = venue_class("kraken").sign  # type: ignore[attr-defined]  # a class

        def sign(self: Any, path: str, api: Any = "public", method: str = "GET", params: Any = None) -> Any:
            return original(self, path, api, method, {**(params or {}), name: value})

        monkeypatch.setattr(venue_class("kraken"), "sign", sign)
        outcome = await gateway.submit(order())
        assert isinstance(outcome, Refused) and not outcome.by_venue, outcome
        assert books.forms("AddOrder") == []


async def test_nonces_rise_across_orders_and_accounts() -> None:
    """Whenever the intents were recorded: a later call never has a smaller nonce than an earlier one."""
    async with running() as (books, gateway):
        now = datetime.now(UTC)
        for key, ago in (("key-1", 0), ("key-2", 1), ("key-1", 2)):
            await gateway.submit(order(api_key_id=key, submitting_at=now - timedelta(seconds=ago)))
        nonces = [int(form["nonce"]) for _, form, key in books.arrived if key]
        assert nonces == sorted(set(nonces)) and len(nonces) == 6


async def test_markets_prices_and_balances_are_read_in_its_own_form() -> None:
    """By its own numbers; what it does not offer is said, and nothing is sent."""
    async with running() as (books, gateway):
        market = (await gateway.markets())["BTC/USD"]
        assert (market.market_id, market.price_tick, market.quantity_step) == ("XXBTZUSD", Decimal("0.1"), Decimal("1E-8"))
        assert {symbol: quote.price for symbol, quote in (await gateway.quotes(["BTC/USD"])).items()} == {"BTC/USD": Decimal("50000.1")}
        balances = await gateway.account_balances("alice", "key-1")
        assert not isinstance(balances, LookUpFailed)
        assert (balances.totals, balances.locked) == ({"BTC": Decimal("1.5"), "USD": Decimal(10)}, {"BTC": Decimal("0.5")})
        assert isinstance(await gateway.check_key("alice", "key-1"), KeyUnanswered)
        assert isinstance(await gateway.deposit_history("alice", "key-1", datetime.now(UTC), datetime.now(UTC)), LookUpFailed)
        for not_offered in ({"order_type": OrderType.LIMIT_MAKER}, {"time_in_force": TimeInForce.FOK}):
            refused = await gateway.submit(order(**not_offered))
            assert isinstance(refused, Refused) and refused.reason_code is ReasonCode.REQUEST_UNSUPPORTED
        assert is_real_money("https://api.kraken.com") and books.forms("AddOrder") == []
