"""What `submit` makes of each thing that can happen on the wire, over real HTTP."""

import asyncio
import hashlib
import hmac
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import parse_qsl

import ccxt
import pytest
from aiohttp import web

from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.ccxt.transport import Call, NotHandedOver, current_call
from infra.exchange.gateway import Credentials, VenueUnavailable
from pipeline.model.venue import Confirmed, Fee, InDoubt, LookUpFailed, Refused
from schemas.orders import OrderStatus, OrderType, Side, TimeInForce
from schemas.reasons import ReasonCode
from tests.integration.scripted_venue import (
    API_KEY,
    EXCHANGE_INFO,
    ORDER,
    SECRET,
    Answer,
    answers,
    drop,
    error,
    gateway_to,
    hang,
    order_row,
    reference,
    running_venue,
    stall,
    submission,
    trade_row,
    truncate,
)

IN_DOUBT = "in doubt"


def ours(changes: dict[str, object]) -> Answer:
    """An answer to a create under the client order id that arrived, with fields changed, or left out where None."""
    async def answer(request: web.Request) -> web.StreamResponse:
        row = {**order_row((await request.post())["newClientOrderId"]), **changes}
        return await answers(200, {name: value for name, value in row.items() if value is not None})(request)
    return answer

PLAYED = [
    ("hang", hang, IN_DOUBT),
    ("drop_after_reading", drop, IN_DOUBT),
    ("truncated", truncate, IN_DOUBT),
    ("stalled_half_way", stall, IN_DOUBT),
    ("acknowledged_without_a_status", ours({"status": None}), IN_DOUBT),
    ("unknown_status", ours({"status": "SOMETHING_NEW"}), IN_DOUBT),
    ("filled_without_an_executed_quantity", ours({"status": "FILLED", "executedQty": None}), IN_DOUBT),
    ("filled_without_a_value", ours({"status": "FILLED", "executedQty": "0.002", "cummulativeQuoteQty": None}), IN_DOUBT),
    ("executed_quantity_that_is_no_number", ours({"executedQty": "many"}), IN_DOUBT),
    ("rejected_by_the_engine", ours({"status": "REJECTED"}), ReasonCode.EXCHANGE_REFUSED),
    ("http_500", error(500, -1000, "An unknown error occurred while processing the request."), IN_DOUBT),
    ("http_502_html", answers(502, "<html>Bad gateway</html>", "text/html"), IN_DOUBT),
    ("http_503", error(503, -1008, "Server is currently overloaded."), IN_DOUBT),
    ("http_504", error(504, -1007, "Timeout waiting for response from backend server. Execution status unknown."), IN_DOUBT),
    ("http_500_with_white_listed_code", error(500, -1121, "Invalid symbol."), IN_DOUBT),
    ("unknown_error", error(400, -1000, "An unknown error occurred while processing the request."), IN_DOUBT),
    ("disconnected", error(400, -1001, "Internal error; unable to process your request. Please try again."), IN_DOUBT),
    ("unexpected_response", error(400, -1006, "An unexpected response was received. Execution status unknown."), IN_DOUBT),
    ("status_unknown", error(408, -1007, "Timeout waiting for response from backend server."), IN_DOUBT),
    ("html_200", answers(200, "<html>ok</html>", "text/html"), IN_DOUBT),
    ("empty_object_200", answers(200, {}), IN_DOUBT),
    ("empty_200", answers(200, ""), IN_DOUBT),
    ("list_200", answers(200, []), IN_DOUBT),
    ("broken_json_200", answers(200, '{"orderId": 77, '), IN_DOUBT),
    ("no_order_id", answers(200, {"clientOrderId": "co", "status": "NEW"}), IN_DOUBT),
    ("another_client_order_id", answers(200, order_row("somebody-elses")), IN_DOUBT),
    ("error_code_200", answers(200, {"code": -2010, "msg": "Account has insufficient balance for requested action."}), IN_DOUBT),
    ("redirect_302", answers(302, "", Location=ORDER), IN_DOUBT),
    ("redirect_307", answers(307, "", Location=ORDER), IN_DOUBT),
    ("html_400", answers(400, "<html>bad request</html>", "text/html"), IN_DOUBT),
    ("http_404", answers(404, "not here", "text/plain"), IN_DOUBT),
    ("http_409", error(409, -2021, "Order cancel-replace partially failed."), IN_DOUBT),
    ("duplicate", error(400, -2010, "Duplicate order sent."), IN_DOUBT),
    ("rejected_with_a_text_not_listed", error(400, -2010, "Something new."), IN_DOUBT),
    ("insufficient", error(400, -2010, "Account has insufficient balance for requested action."), ReasonCode.BALANCE_INSUFFICIENT),
    ("post_only_would_take", error(400, -2010, "Order would immediately match and take."), ReasonCode.EXCHANGE_REFUSED),
    ("market_closed", error(400, -2010, "Market is closed."), ReasonCode.EXCHANGE_UNAVAILABLE),
    ("filter_failure", error(400, -1013, "Filter failure: NOTIONAL"), ReasonCode.EXCHANGE_REFUSED),
    ("precision", error(400, -1111, "Parameter 'quantity' has too much precision."), ReasonCode.EXCHANGE_REFUSED),
    ("illegal_characters", error(400, -1100, "Illegal characters found in parameter 'price'."), ReasonCode.EXCHANGE_REFUSED),
    ("invalid_symbol", error(400, -1121, "Invalid symbol."), ReasonCode.SYMBOL_UNKNOWN),
    ("outside_window", error(400, -1021, "Timestamp for this request is outside of the recvWindow."), ReasonCode.EXCHANGE_UNAVAILABLE),
    ("bad_signature", error(400, -1022, "Signature for this request is not valid."), ReasonCode.API_KEY_UNKNOWN),
    ("bad_key_format", error(401, -2014, "API-key format invalid."), ReasonCode.API_KEY_UNKNOWN),
    ("key_refused", error(401, -2015, "Invalid API-key, IP, or permissions for action."), ReasonCode.API_KEY_PERMISSION),
    ("too_many_requests", error(429, -1003, "Too many requests."), ReasonCode.EXCHANGE_UNAVAILABLE),
    ("too_many_orders", error(429, -1015, "Too many new orders."), ReasonCode.EXCHANGE_UNAVAILABLE),
    ("banned", error(418, -1003, "Way too much request weight used; IP banned."), ReasonCode.EXCHANGE_UNAVAILABLE),
    ("firewall_403_html", answers(403, "<html>Forbidden</html>", "text/html"), ReasonCode.EXCHANGE_UNAVAILABLE),
]


@pytest.mark.parametrize(("played", "expected"), [row[1:] for row in PLAYED], ids=[row[0] for row in PLAYED])
async def test_submit_each_answer_has_its_outcome(played: Answer, expected: str) -> None:
    """Only a white-listed proof is a refusal; everything else is in doubt, and either way exactly one order request arrives."""
    async with running_venue() as venue, gateway_to(venue, timeout_ms=400) as gateway:
        venue.answers["POST", ORDER] = played
        outcome = await gateway.submit(submission())
        if expected == IN_DOUBT:
            assert isinstance(outcome, InDoubt), outcome
        else:
            assert isinstance(outcome, Refused), outcome
            assert outcome.reason_code == expected
        assert len(venue.arrivals) == 1, venue.arrivals
        assert len(outcome.detail) <= 300
        for secret in (API_KEY, SECRET, "signature=", venue.arrivals[0].body["signature"]):
            assert secret not in outcome.detail


async def test_submit_connection_refused_is_refused() -> None:
    """Nobody listens: no connection stood, so nothing was sent."""
    async with running_venue(keep_alive=False) as venue, gateway_to(venue) as gateway:
        await venue.stop()
        outcome = await gateway.submit(submission())
        assert outcome == Refused(ReasonCode.EXCHANGE_UNAVAILABLE, outcome.detail)
        assert venue.arrivals == []


async def test_submit_host_name_unknown_is_refused() -> None:
    """A host name that does not resolve: no connection stood, so nothing was sent."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        public = gateway._connection.public
        public.urls = {**public.urls, "api": {**public.urls["api"], "private": "http://venue.invalid/api/v3"}}
        outcome = await gateway.submit(submission())
        assert isinstance(outcome, Refused), outcome
        assert outcome.reason_code == ReasonCode.EXCHANGE_UNAVAILABLE


async def test_submit_connection_closed_before_reading_is_in_doubt() -> None:
    """The connection stood and was closed unread: the venue may have the bytes, so it is no proof."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        await venue.stop()
        accepted = 0

        async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal accepted
            accepted += 1
            writer.close()

        server = await asyncio.start_server(close, "127.0.0.1", venue.port)
        async with server:
            outcome = await gateway.submit(submission())
        assert isinstance(outcome, InDoubt), outcome
        assert accepted == 1


async def test_submit_idle_connection_closed_by_venue_sends_once() -> None:
    """A POST on a kept-alive connection that breaks is not repeated by the transport: one arrival, in doubt."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        assert isinstance(await gateway.submit(submission()), Confirmed)
        venue.answers["POST", ORDER] = drop
        assert isinstance(await gateway.submit(submission()), InDoubt)
        assert len(venue.orders_arrived()) == 2


async def test_submit_accepted_is_confirmed_as_the_venue_says() -> None:
    """The body carries the client order id, the exact amounts, and the answer becomes the order."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        order = submission()
        outcome = await gateway.submit(order)
        assert isinstance(outcome, Confirmed), outcome
        assert outcome.order.client_order_id == order.client_order_id
        assert outcome.order.exchange_order_id == "77"
        assert outcome.order.order_status is OrderStatus.NEW
        body = venue.arrivals[0].body
        assert body["newClientOrderId"] == order.client_order_id
        assert (body["side"], body["type"], body["timeInForce"]) == ("BUY", "LIMIT", "GTC")
        assert (Decimal(body["quantity"]), Decimal(body["price"])) == (order.quantity, order.price)


async def test_submit_filled_takes_fees_from_its_fills() -> None:
    """Two fills in one asset are one fee, and cum_quote is the venue's own figure."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        order = submission(order_type=OrderType.MARKET, price=None)
        fills = [
            {"price": "50000.00", "qty": "0.00150", "commission": "0.00000150", "commissionAsset": "BTC", "tradeId": 1},
            {"price": "50001.00", "qty": "0.00050", "commission": "0.00000050", "commissionAsset": "BTC", "tradeId": 2},
        ]
        row = {**order_row(order.client_order_id, status="FILLED", executed="0.00200", paid="100.00050"), "type": "MARKET", "fills": fills}
        venue.answers["POST", ORDER] = answers(200, row)
        outcome = await gateway.submit(order)
        assert isinstance(outcome, Confirmed), outcome
        assert outcome.order.order_status is OrderStatus.FILLED
        assert outcome.order.cum_quantity == Decimal("0.002")
        assert outcome.order.cum_quote == Decimal("100.0005")
        assert outcome.order.fees == (Fee("BTC", Decimal("0.000002")),)
        assert len(venue.arrivals) == 1


async def test_submit_filled_without_fills_takes_fees_from_the_trade_list() -> None:
    """An answer whose fills do not cover the executed quantity is completed from myTrades."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        order = submission()
        venue.answers["POST", ORDER] = answers(200, order_row(order.client_order_id, status="FILLED", executed="0.001", paid="50"))
        venue.answers["GET", "/api/v3/myTrades"] = answers(200, [trade_row()])
        outcome = await gateway.submit(order)
        assert isinstance(outcome, Confirmed), outcome
        assert outcome.order.fees == (Fee("BTC", Decimal("0.000001")),)


async def test_submit_filled_with_fees_unknown_is_in_doubt() -> None:
    """An execution whose fees the venue does not tell yet is left to the look-up, not booked without them."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        order = submission()
        venue.answers["POST", ORDER] = answers(200, order_row(order.client_order_id, status="FILLED", executed="0.001", paid="50"))
        outcome = await gateway.submit(order)
        assert isinstance(outcome, InDoubt), outcome
        assert len(venue.orders_arrived()) == 1


async def test_submit_immediate_or_cancel_without_a_match_is_confirmed_expired() -> None:
    """EXPIRED is an end that the venue accepted, not a refusal."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        order = submission(time_in_force=TimeInForce.IOC)
        venue.answers["POST", ORDER] = answers(200, order_row(order.client_order_id, status="EXPIRED"))
        outcome = await gateway.submit(order)
        assert isinstance(outcome, Confirmed), outcome
        assert outcome.order.order_status is OrderStatus.EXPIRED
        assert venue.arrivals[0].body["timeInForce"] == "IOC"


@pytest.mark.parametrize(("changes", "sent"), [
    ({"order_type": OrderType.LIMIT_MAKER}, {"type": "LIMIT_MAKER", "price": "50000", "quantity": "0.002"}),
    ({"order_type": OrderType.MARKET, "price": None, "side": Side.SELL}, {"type": "MARKET", "side": "SELL", "quantity": "0.002"}),
    ({"order_type": OrderType.MARKET, "price": None, "quantity": None, "quote_quantity": Decimal("100.25")}, {"quoteOrderQty": "100.25"}),
    ({"time_in_force": TimeInForce.FOK}, {"timeInForce": "FOK"}),
    ({"quantity": Decimal("0.00001"), "price": Decimal("999999.99")}, {"quantity": "0.00001", "price": "999999.99"}),
], ids=["limit_maker", "market_sell", "market_by_quote", "fill_or_kill", "smallest_step"])
async def test_submit_each_kind_of_order_is_on_the_wire_as_asked(changes: dict[str, object], sent: dict[str, str]) -> None:
    """ccxt's translation keeps every amount and word."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        assert isinstance(await gateway.submit(submission(**changes)), Confirmed)
        body = venue.arrivals[0].body
        assert {name: body[name] for name in sent} == sent


@pytest.mark.parametrize(("changes", "reason"), [
    ({"quantity": Decimal("0.0020001")}, ReasonCode.PRECISION_INVALID),
    ({"price": Decimal("50000.001")}, ReasonCode.PRECISION_INVALID),
    ({"order_type": OrderType.MARKET}, ReasonCode.PRECISION_INVALID),
    ({"quantity": Decimal("0.000001")}, ReasonCode.EXCHANGE_REFUSED),
    ({"price": None}, ReasonCode.EXCHANGE_REFUSED),
    ({"symbol": "DOGE/USDT"}, ReasonCode.SYMBOL_UNKNOWN),
    ({"order_type": OrderType.TRAILING_STOP}, ReasonCode.REQUEST_UNSUPPORTED),
    ({"exchange": "kraken"}, ReasonCode.EXCHANGE_UNKNOWN),
    ({"api_key_id": "key-2"}, ReasonCode.API_KEY_UNKNOWN),
    ({"client_order_id": "x" * 37}, ReasonCode.EXCHANGE_REFUSED),
    ({"client_order_id": "blank not allowed"}, ReasonCode.EXCHANGE_REFUSED),
    ({"submitting_at": datetime.now(UTC) - timedelta(minutes=1)}, ReasonCode.REQUEST_EXPIRED),
], ids=[
    "quantity_between_steps", "price_between_ticks", "market_with_a_price", "quantity_below_one_step",
    "limit_without_price", "unknown_symbol", "trailing_stop", "another_exchange", "unknown_key", "long_client_order_id",
    "blank_in_client_order_id", "receive_window_over",
])
async def test_submit_stopped_before_sending_is_refused(changes: dict[str, object], reason: ReasonCode) -> None:
    """What is stopped on this side is proven not sent, above all an amount that ccxt would have rounded."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        outcome = await gateway.submit(submission(**changes))
        assert isinstance(outcome, Refused), outcome
        assert outcome.reason_code == reason
        assert venue.arrivals == []


@pytest.mark.parametrize("ahead_seconds", [-3600, 0, 90])
async def test_submit_signs_the_recorded_intent_in_the_venues_time(ahead_seconds: int) -> None:
    """The signed timestamp is submitting_at plus the clock difference, however much later it is sent, and the receive window is ours."""
    async with (
        running_venue(clock_ahead=timedelta(seconds=ahead_seconds)) as venue,
        gateway_to(venue, receive_window=timedelta(seconds=4)) as gateway,
    ):
        order = submission(submitting_at=datetime.now(UTC) - timedelta(seconds=2))
        assert isinstance(await gateway.submit(order), Confirmed)
        body = venue.arrivals[0].body
        signed = datetime.fromtimestamp(int(body["timestamp"]) / 1_000, UTC)
        assert abs(signed - order.submitting_at - venue.clock_ahead) < timedelta(milliseconds=200)
        assert body["recvWindow"] == "4000"


async def test_submit_after_a_refused_timestamp_measures_the_clock_again() -> None:
    """A clock that moved is noticed: the next order is signed in the venue's new time."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.clock_ahead = timedelta(minutes=10)
        venue.answers["POST", ORDER] = error(400, -1021, "Timestamp for this request is outside of the recvWindow.")
        assert isinstance(await gateway.submit(submission()), Refused)
        del venue.answers["POST", ORDER]
        order = submission()
        assert isinstance(await gateway.submit(order), Confirmed)
        signed = datetime.fromtimestamp(int(venue.orders_arrived()[-1].body["timestamp"]) / 1_000, UTC)
        assert abs(signed - order.submitting_at - venue.clock_ahead) < timedelta(milliseconds=200)


async def test_submit_venue_asks_for_a_pause_the_next_order_waits_for_its_end() -> None:
    """After a 429 nothing is sent for the time that the venue asked for; an order whose receive window outlasts it is sent then."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["POST", ORDER] = answers(429, {"code": -1003, "msg": "Too many requests."}, **{"Retry-After": "1"})
        assert isinstance(await gateway.submit(submission()), Refused)
        del venue.answers["POST", ORDER]
        refused_at = datetime.now(UTC)
        assert isinstance(await gateway.submit(submission()), Confirmed)
        assert datetime.now(UTC) - refused_at > timedelta(seconds=0.9)


async def test_submit_pause_longer_than_the_receive_window_refuses_unsent() -> None:
    """A pause that outlasts the order's receive window refuses it without a request; look-ups and prices pause as well."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["POST", ORDER] = answers(418, {"code": -1003, "msg": "Banned."}, **{"Retry-After": "600"})
        assert isinstance(await gateway.submit(submission()), Refused)
        venue.arrivals.clear()
        outcome = await gateway.submit(submission())
        assert isinstance(outcome, Refused), outcome
        assert outcome.reason_code is ReasonCode.EXCHANGE_UNAVAILABLE
        assert isinstance(await gateway.look_up(reference()), LookUpFailed)
        with pytest.raises(VenueUnavailable):
            await gateway.quotes(["BTC/USDT"])
        assert venue.arrivals == []


async def test_submit_after_close_is_refused() -> None:
    """A closed gateway sends nothing and opens nothing."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        await gateway.close()
        outcome = await gateway.submit(submission())
        assert isinstance(outcome, Refused), outcome
        assert venue.arrivals == []


async def test_submit_credential_source_fails_raises_before_anything_is_sent() -> None:
    """The database behind the keys is not the venue: its error is the caller's to handle, and nothing was sent."""
    async with running_venue() as venue:
        async def credentials(_user_id: str, _api_key_id: str) -> Credentials:
            raise ConnectionError("no database")

        gateway = CcxtGateway("binance", credentials, base_url=venue.url, rate_limit=False)
        with pytest.raises(ConnectionError):
            await gateway.submit(submission())
        await gateway.close()
        assert venue.arrivals == []


async def test_submit_secret_in_the_venues_own_text_is_hidden() -> None:
    """Even a venue that echoes the key and the signed request does not get them into an outcome."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        async def echo(request: web.Request) -> web.StreamResponse:
            sent = venue.arrivals[-1]
            text = f"key {sent.headers['X-MBX-APIKEY']} secret {SECRET} url https://x/y?a=1&signature={sent.body['signature']}"
            return await error(400, -1000, text)(request)

        venue.answers["POST", ORDER] = echo
        outcome = await gateway.submit(submission())
        assert isinstance(outcome, InDoubt), outcome
        for secret in (API_KEY, SECRET, venue.arrivals[-1].body["signature"]):
            assert secret not in outcome.detail


BROKEN = [drop, hang, truncate, error(503, -1008, "Busy."), answers(502, "<html>", "text/html"), answers(200, "{")]


@pytest.mark.parametrize("played", BROKEN)
async def test_transport_errors_hold_no_query(played: Answer) -> None:
    """Binance signs in the query: not one exception of the chain shows it, whoever comes to log it."""
    async with running_venue() as venue, gateway_to(venue, timeout_ms=300) as gateway:
        venue.answers["GET", ORDER] = played
        account = gateway._connection.account(Credentials(API_KEY, SECRET))
        with pytest.raises(ccxt.BaseError) as raised:
            await account.fetch_order("77", "BTC/USDT")
        told: BaseException | None = raised.value
        while told is not None:
            assert "signature" not in f"{told!r} {told}"
            assert API_KEY not in f"{told!r} {told}"
            told = told.__cause__ or told.__context__


async def test_submit_logs_nothing_secret_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    """ccxt and aiohttp log at debug level; no key, secret or signature is in it."""
    with caplog.at_level("DEBUG"):
        async with running_venue() as venue, gateway_to(venue) as gateway:
            await gateway.submit(submission())
            venue.answers["GET", ORDER] = drop
            await gateway.look_up(reference())
            secrets = [API_KEY, SECRET, venue.arrivals[0].body["signature"], venue.arrivals[-1].query["signature"]]
    assert not [secret for secret in secrets if secret in caplog.text]


async def test_submit_second_request_inside_one_order_call_is_stopped() -> None:
    """Whatever a later ccxt does inside create_order: after one request nothing more of the call reaches the network."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        account = gateway._connection.account(Credentials(API_KEY, SECRET))
        token = current_call.set(Call(order=True))
        try:
            await account.fetch_order("77", "BTC/USDT")
            with pytest.raises(NotHandedOver):
                await account.fetch_order("77", "BTC/USDT")
        finally:
            current_call.reset(token)
        assert len(venue.arrivals) == 1


async def test_submit_accounts_never_share_a_key() -> None:
    """Concurrent orders of two users are each signed with their own key."""
    async with running_venue() as venue:
        async def credentials(user_id: str, _api_key_id: str) -> Credentials:
            return Credentials(f"key-of-{user_id}", f"secret-of-{user_id}")

        gateway = CcxtGateway("binance", credentials, base_url=venue.url, rate_limit=False)
        try:
            orders = [submission(user_id=user) for user in ("alice", "bob") * 10]
            assert all(isinstance(outcome, Confirmed) for outcome in await asyncio.gather(*map(gateway.submit, orders)))
        finally:
            await gateway.close()
        by_client_id = {order.client_order_id: order.user_id for order in orders}
        for arrival in venue.orders_arrived():
            assert arrival.headers["X-MBX-APIKEY"] == f"key-of-{by_client_id[arrival.body['newClientOrderId']]}"


async def test_submit_accounts_share_no_cookie() -> None:
    """What the venue sets for one account does not travel with the next one's request on the same connection."""
    # By name: a cookie jar takes nothing from a bare address.
    async with running_venue() as venue, gateway_to(venue, base_url=f"http://localhost:{venue.port}") as gateway:
        venue.answers["POST", ORDER] = answers(400, {"code": -1013, "msg": "No."}, **{"Set-Cookie": "who=alice"})
        for _ in range(2):
            await gateway.submit(submission())
        assert len(venue.arrivals) == 2
        assert "Cookie" not in venue.arrivals[1].headers


async def test_submit_more_than_the_concurrency_waits() -> None:
    """No more calls than allowed are at the venue at once, and all are answered."""
    async with running_venue() as venue, gateway_to(venue, concurrency=3) as gateway:
        inside = most = 0

        async def answer(request: object) -> object:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1
            body = venue.orders_arrived()[-1].body
            return await answers(200, order_row(body["newClientOrderId"]))(request)  # type: ignore[arg-type]

        venue.answers["POST", ORDER] = answer  # type: ignore[assignment]
        await asyncio.gather(*(gateway.submit(submission()) for _ in range(12)))
        assert most == 3
        assert len(venue.orders_arrived()) == 12


async def test_submit_before_the_venue_ever_answered_is_refused() -> None:
    """Without markets and a clock nothing is sent, and a queue of orders does not try to load once per order."""
    async with running_venue() as venue:
        venue.answers["GET", "/api/v3/exchangeInfo"] = answers(503, "", "text/plain")

        async def credentials(_user_id: str, _api_key_id: str) -> Credentials:
            return Credentials(API_KEY, SECRET)

        gateway = CcxtGateway("binance", credentials, base_url=venue.url, rate_limit=False)
        try:
            outcomes = [await gateway.submit(submission()) for _ in range(20)]
        finally:
            await gateway.close()
        assert {outcome.reason_code for outcome in outcomes} == {ReasonCode.EXCHANGE_UNAVAILABLE}  # type: ignore[union-attr]
        assert venue.orders_arrived() == []
        assert len(venue.arrivals) <= 4


async def test_submit_paused_between_intent_and_sending_sends_nothing() -> None:
    """A process that wakes up after the receive window sends no order, even where every earlier step is behind it."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        order = submission()
        later = replace(order, submitting_at=datetime.now(UTC) - timedelta(seconds=5, milliseconds=1))
        outcome = await gateway.submit(later)
        assert isinstance(outcome, Refused), outcome
        assert venue.arrivals == []


@pytest.mark.parametrize("amount", ["29.98600029", "100.251", "0.00000001", "5"])
async def test_submit_quote_quantity_leaves_exactly_as_asked(amount: str) -> None:
    """The venue takes a quote quantity with the places of its asset: it is not cut to the price tick of 0.01, nor anything else."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        await gateway.submit(submission(order_type=OrderType.MARKET, price=None, quantity=None, quote_quantity=Decimal(amount)))
        assert [arrival.body["quoteOrderQty"] for arrival in venue.orders_arrived()] == [amount]


async def test_submit_symbol_of_another_script_is_signed_as_it_is_sent() -> None:
    """The name is percent-encoded as UTF-8 before it is signed (Binance, "Request security"), and arrives as the exchange lists it."""
    row = {**EXCHANGE_INFO["symbols"][0], "symbol": "币安人生USDT", "baseAsset": "币安人生"}  # type: ignore[index]  # a list of rows
    bodies: list[str] = []

    async def taken(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.text())
        fields = dict(parse_qsl(bodies[0]))
        answer = {**order_row(fields["newClientOrderId"]), "symbol": fields["symbol"], "transactTime": 1_700_000_000_000, "fills": []}
        return web.json_response(answer)

    async with running_venue() as venue:
        venue.answers[("GET", "/api/v3/exchangeInfo")] = answers(200, {**EXCHANGE_INFO, "symbols": [row]})
        venue.answers[("POST", ORDER)] = taken
        async with gateway_to(venue) as gateway:
            outcome = await gateway.submit(submission(symbol="币安人生/USDT", market_id="币安人生USDT"))
    assert isinstance(outcome, Confirmed), outcome
    payload, _, signature = bodies[0].rpartition("&signature=")
    assert payload.isascii()
    assert dict(parse_qsl(payload))["symbol"] == "币安人生USDT"
    assert hmac.new(SECRET.encode(), payload.encode(), hashlib.sha256).hexdigest() == signature
