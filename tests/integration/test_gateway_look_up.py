"""What `look_up` and `cancel` read in a venue's books, over real HTTP."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from aiohttp import web

from pipeline.model.identifiers import client_order_id_of
from pipeline.model.venue import Absent, Confirmed, Fee, Found, InDoubt, LookUpFailed, OrderTerms, Refused
from schemas.orders import OrderStatus, OrderType, Side
from schemas.reasons import ReasonCode
from tests.integration.scripted_venue import (
    API_KEY,
    ORDER,
    SECRET,
    Answer,
    answers,
    drop,
    error,
    gateway_to,
    hang,
    in_turn,
    order_row,
    reference,
    running_venue,
    trade_row,
    truncate,
)

ALL_ORDERS = "/api/v3/allOrders"
MY_TRADES = "/api/v3/myTrades"
NOT_FOUND = error(400, -2013, "Order does not exist.")


async def test_look_up_open_order_is_found_by_client_order_id() -> None:
    """The question carries the client order id; an order without executions needs no trade list."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        outcome = await gateway.look_up(reference(client_order_id="co-9"))
        assert isinstance(outcome, Found), outcome
        assert outcome.order.order_status is OrderStatus.NEW
        assert outcome.order.fees == ()
        assert [arrival.query["origClientOrderId"] for arrival in venue.arrivals] == ["co-9"]
        assert "orderId" not in venue.arrivals[0].query


async def test_look_up_with_exchange_order_id_asks_for_that_alone() -> None:
    """A canceled order may have lost our client order id, and a venue that is given both ids refuses the pair then."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        outcome = await gateway.look_up(reference(client_order_id="co-9", exchange_order_id="77"))
        assert isinstance(outcome, Found), outcome
        assert outcome.order.client_order_id == "co-9"
        assert venue.arrivals[0].query["orderId"] == "77"
        assert "origClientOrderId" not in venue.arrivals[0].query


async def test_look_up_with_exchange_order_id_answered_with_another_order_fails() -> None:
    """The venue's id is what decides when it is known."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        assert isinstance(await gateway.look_up(reference(exchange_order_id="78")), LookUpFailed)


async def test_look_up_executed_order_has_fees_per_asset_from_its_trades() -> None:
    """Fees come from the trade list, summed per asset; other orders' trades do not count."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = answers(200, order_row("co-1", status="PARTIALLY_FILLED", executed="0.003", paid="150.5"))
        venue.answers["GET", MY_TRADES] = answers(200, [
            trade_row(trade_id=1, quantity="0.001", fee="0.0000010", asset="BTC"),
            trade_row(trade_id=2, quantity="0.001", fee="0.0000015", asset="BTC"),
            trade_row(trade_id=3, quantity="0.001", fee="0.00001", asset="BNB"),
            trade_row(trade_id=4, order_id=78, quantity="5", fee="9"),
        ])
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, Found), outcome
        assert outcome.order.order_status is OrderStatus.PARTIALLY_FILLED
        assert (outcome.order.cum_quantity, outcome.order.cum_quote) == (Decimal("0.003"), Decimal("150.5"))
        assert outcome.order.fees == (Fee("BNB", Decimal("0.00001")), Fee("BTC", Decimal("0.0000025")))
        assert outcome.order.updated_at == datetime.fromtimestamp(1_700_000_000.5, UTC)


async def test_look_up_trades_not_complete_yet_fails() -> None:
    """Trades that do not add up to the executed quantity would book too little fee: the question is asked again later."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = answers(200, order_row("co-1", status="FILLED", executed="0.003", paid="150"))
        venue.answers["GET", MY_TRADES] = answers(200, [trade_row(quantity="0.001")])
        assert isinstance(await gateway.look_up(reference()), LookUpFailed)


async def test_look_up_more_trades_than_a_page_reads_them_all() -> None:
    """A full page of trades is followed by the next one, from the trade after its last."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = answers(200, order_row("co-1", status="FILLED", executed="1.001", paid="50050"))
        first = [trade_row(trade_id=number, quantity="0.001") for number in range(1, 1_001)]
        venue.answers["GET", MY_TRADES] = in_turn(answers(200, first), answers(200, [trade_row(trade_id=1_001, quantity="0.001")]))
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, Found), outcome
        assert outcome.order.fees == (Fee("BTC", Decimal("0.001001")),)
        assert [arrival.query.get("fromId") for arrival in venue.arrivals if arrival.path == MY_TRADES] == [None, "1001"]


@pytest.mark.parametrize(("status", "executed", "expected"), [
    ("NEW", "0", OrderStatus.NEW), ("PARTIALLY_FILLED", "0.001", OrderStatus.PARTIALLY_FILLED), ("FILLED", "0.001", OrderStatus.FILLED),
    ("CANCELED", "0", OrderStatus.CANCELED), ("CANCELED", "0.001", OrderStatus.CANCELED), ("PENDING_CANCEL", "0", OrderStatus.NEW),
    ("REJECTED", "0", OrderStatus.REJECTED), ("EXPIRED", "0", OrderStatus.EXPIRED), ("EXPIRED_IN_MATCH", "0.001", OrderStatus.EXPIRED),
])
async def test_look_up_each_status_has_its_word(status: str, executed: str, expected: OrderStatus) -> None:
    """Binance's statuses in FIX's words."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        paid = "0" if executed == "0" else "50"
        venue.answers["GET", ORDER] = answers(200, order_row("co-1", status=status, executed=executed, paid=paid))
        venue.answers["GET", MY_TRADES] = answers(200, [trade_row()])
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, Found), outcome
        assert outcome.order.order_status is expected


@pytest.mark.parametrize("answer", [
    answers(200, order_row("co-1", status="SOMETHING_NEW")),
    answers(200, order_row("somebody-elses")),
    answers(200, {}),
    answers(200, []),
    answers(200, "<html>ok</html>", "text/html"),
    answers(200, {**order_row("co-1", status="FILLED", executed="0.001"), "cummulativeQuoteQty": "-1"}),
    answers(200, {**order_row("co-1"), "executedQty": "nonsense"}),
    error(500, -1000, "An unknown error occurred."),
    error(400, -2026, "Order was canceled or expired with no executed qty over 90 days ago and has been archived."),
    error(401, -2015, "Invalid API-key, IP, or permissions for action."),
    error(429, -1003, "Too many requests."),
    hang, drop, truncate,
], ids=[
    "unknown_status", "another_order", "empty_object", "list", "html", "negative_value", "unreadable_amount", "http_500", "archived",
    "key_refused", "too_many_requests", "hang", "drop", "truncated",
])
async def test_look_up_without_a_clear_answer_fails(answer: Answer) -> None:
    """Only a readable order or the venue's own "does not exist" is an answer; nothing secret gets into the text."""
    async with running_venue() as venue, gateway_to(venue, timeout_ms=400) as gateway:
        venue.answers["GET", ORDER] = answer
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, LookUpFailed), outcome
        for secret in (API_KEY, SECRET, venue.arrivals[0].query["signature"]):
            assert secret not in outcome.detail


async def test_look_up_absent_in_every_source_is_absent() -> None:
    """`Absent` needs the order list and the trade list as well, and says when the look-up began."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = NOT_FOUND
        before = datetime.now(UTC)
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, Absent), outcome
        # By the exchange's clock, which is read in milliseconds and known to within the time of one call.
        within = timedelta(seconds=1)
        assert before - within <= outcome.looked_up_at <= datetime.now(UTC) + within
        assert [arrival.path for arrival in venue.arrivals] == [ORDER, ALL_ORDERS, MY_TRADES]


async def test_look_up_not_found_but_listed_is_found() -> None:
    """An order that the order endpoint denies and the list shows is there."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = NOT_FOUND
        venue.answers["GET", ALL_ORDERS] = answers(200, [order_row("other", order_id=5), order_row("co-1", order_id=6)])
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, Found), outcome
        assert outcome.order.exchange_order_id == "6"


async def test_look_up_not_found_but_traded_is_found() -> None:
    """A trade whose order is in no list leads to the order, and the order's client order id decides."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = in_turn(NOT_FOUND, answers(200, order_row("co-1", status="FILLED", executed="0.001", paid="50")))
        venue.answers["GET", MY_TRADES] = answers(200, [trade_row()])
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, Found), outcome
        assert outcome.order.order_status is OrderStatus.FILLED
        assert [arrival.query.get("orderId") for arrival in venue.arrivals if arrival.path == ORDER] == [None, "77"]


async def test_look_up_traded_order_that_cannot_be_read_fails() -> None:
    """A trade that nothing explains is no proof of absence."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = NOT_FOUND
        venue.answers["GET", MY_TRADES] = answers(200, [trade_row()])
        assert isinstance(await gateway.look_up(reference()), LookUpFailed)


@pytest.mark.parametrize("path", [ALL_ORDERS, MY_TRADES])
async def test_look_up_other_source_silent_fails(path: str) -> None:
    """Without the second source "does not exist" proves nothing."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = NOT_FOUND
        venue.answers["GET", path] = error(503, -1008, "Server is currently overloaded.")
        assert isinstance(await gateway.look_up(reference()), LookUpFailed)


async def test_look_up_two_orders_with_the_id_fails() -> None:
    """A client order id is unique among open orders only; of two orders none is picked."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = NOT_FOUND
        venue.answers["GET", ALL_ORDERS] = answers(200, [order_row("co-1", order_id=5), order_row("co-1", order_id=6)])
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, LookUpFailed)
        assert "5, 6" in outcome.detail


async def test_look_up_order_canceled_by_us_is_found_under_the_cancels_id() -> None:
    """The id that our own cancel leaves on an order leads to it, even where the venue's id was never stored."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = NOT_FOUND
        venue.answers["GET", ALL_ORDERS] = answers(200, [order_row("co-1-c", status="CANCELED")])
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, Found), outcome
        assert outcome.order.client_order_id == "co-1"


@pytest.mark.parametrize(("client_order_id", "status", "expected"), [
    ("aB3dE5fG7hJ9kL1mN3pQ5r", "CANCELED", LookUpFailed),
    ("aB3dE5fG7hJ9kL1mN3pQ5r", "FILLED", Absent),
    ("aB3dE5fG7hJ9kL1mN3pQ5r", "EXPIRED", Absent),
    (client_order_id_of("another"), "CANCELED", Absent),
    (client_order_id_of("another") + "-c", "CANCELED", Absent),
], ids=["canceled_elsewhere", "filled", "expired", "ours_under_its_own_id", "ours_canceled_by_us"])
async def test_look_up_canceled_order_under_a_foreign_id_is_no_absence(client_order_id: str, status: str, expected: type) -> None:
    """Binance replaces the client order id of an order that is canceled: one canceled elsewhere may be ours, so absence is not proven."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = NOT_FOUND
        venue.answers["GET", ALL_ORDERS] = answers(200, [order_row(client_order_id, status=status, executed="1", paid="1")])
        outcome = await gateway.look_up(reference(client_order_id=client_order_id_of("ours")))
        assert type(outcome) is expected, outcome


async def test_look_up_with_intent_time_searches_its_acceptance_window() -> None:
    """The lists are asked for the time in which the venue can have accepted the order: by its clock, and as if this machine's had been set
    to it since the intent."""
    async with running_venue(clock_ahead=timedelta(hours=2)) as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = NOT_FOUND
        intent = datetime.now(UTC) - timedelta(minutes=10)
        assert isinstance(await gateway.look_up(reference(submitting_at=intent)), Absent)
        for arrival in venue.arrivals[1:]:
            asked = [datetime.fromtimestamp(int(arrival.query[name]) / 1_000, UTC) for name in ("startTime", "endTime")]
            begin, end = asked[0], asked[1] - venue.clock_ahead
            assert timedelta(seconds=59) < intent - begin < timedelta(seconds=61)
            assert timedelta(seconds=74) < end - intent < timedelta(seconds=76)


def _listed(number: int, at: datetime, **fields: object) -> dict[str, object]:
    return {**order_row(f"web_{number}", order_id=1_000 + number), "time": int(at.timestamp() * 1_000), **fields}


def _pages(rows: Sequence[dict[str, object]]) -> Answer:
    """A list as Binance gives it: from `startTime` on, a thousand at most, oldest first."""

    async def answer(request: web.Request) -> web.StreamResponse:
        begin = int(request.query["startTime"])
        return web.json_response([row for row in rows if int(str(row["time"])) >= begin][:1_000])

    return answer


@pytest.mark.parametrize(("count", "proves"), [(999, True), (1_000, True), (4_321, True), (12_000, False)])
async def test_look_up_reads_a_long_list_to_its_end_within_a_bound(count: int, proves: bool) -> None:
    """Other orders of the account do not keep a doubt alive; a list that goes on behind the bound is no proof of absence."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        intent = datetime.now(UTC)
        venue.answers["GET", ORDER] = NOT_FOUND
        venue.answers["GET", ALL_ORDERS] = _pages([_listed(number, intent + timedelta(milliseconds=number)) for number in range(count)])
        outcome = await gateway.look_up(reference(submitting_at=intent))
        assert isinstance(outcome, Absent if proves else LookUpFailed), outcome
        if not proves:
            assert "may not show every one" in outcome.detail


async def test_look_up_finds_an_order_behind_the_first_page() -> None:
    """The last of two thousand."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        intent = datetime.now(UTC)
        rows = [_listed(number, intent + timedelta(milliseconds=number)) for number in range(2_000)]
        venue.answers["GET", ORDER] = NOT_FOUND
        venue.answers["GET", ALL_ORDERS] = _pages([*rows, _listed(2_000, intent + timedelta(seconds=3), clientOrderId="co-1")])
        outcome = await gateway.look_up(reference(submitting_at=intent))
        assert isinstance(outcome, Found), outcome
        assert outcome.order.exchange_order_id == "3000"


async def test_look_up_with_a_full_page_of_one_moment_fails() -> None:
    """A page that cannot be read on behind is no proof of absence."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        intent = datetime.now(UTC)
        venue.answers["GET", ORDER] = NOT_FOUND
        venue.answers["GET", ALL_ORDERS] = _pages([_listed(number, intent) for number in range(1_000)])
        assert isinstance(await gateway.look_up(reference(submitting_at=intent)), LookUpFailed)


TERMS = OrderTerms(Side.BUY, OrderType.LIMIT, Decimal("0.001"), None, Decimal(50_000))
BY_VALUE = OrderTerms(Side.BUY, OrderType.MARKET, None, Decimal(50), None)


@pytest.mark.parametrize(
    ("terms", "fields", "may_be"),
    [
        (TERMS, {}, True),
        (TERMS, {"price": "50000.000"}, True),
        (None, {"side": "SELL"}, True),
        (TERMS, {"side": "SELL"}, False),
        (TERMS, {"type": "MARKET"}, False),
        (TERMS, {"origQty": "0.002"}, False),
        (TERMS, {"price": "50000.01"}, False),
        (TERMS, {"price": "nonsense"}, True),
        (replace(TERMS, order_type=OrderType.LIMIT_MAKER), {"type": "LIMIT_MAKER"}, True),
        (BY_VALUE, {"type": "MARKET", "price": "0.00", "origQuoteOrderQty": "50.00"}, True),
        (BY_VALUE, {"type": "MARKET", "price": "0.00", "origQuoteOrderQty": "51.00"}, False),
    ],
)
async def test_order_canceled_elsewhere_blocks_the_proof_only_where_it_may_be_the_one(
    terms: OrderTerms | None, fields: dict[str, object], may_be: bool
) -> None:
    """A cancel elsewhere replaces the client order id: the same terms within the same minute may be ours, other terms cannot."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        intent = datetime.now(UTC)
        venue.answers["GET", ORDER] = NOT_FOUND
        venue.answers["GET", ALL_ORDERS] = _pages([_listed(1, intent, status="CANCELED", **{"origQty": "0.00100000", **fields})])
        outcome = await gateway.look_up(replace(reference(submitting_at=intent), terms=terms))
        assert isinstance(outcome, LookUpFailed if may_be else Absent), outcome


async def test_look_up_that_finds_nothing_says_when_by_the_venues_clock() -> None:
    """Whoever compares two looks must not depend on how this machine's clock is set."""
    async with running_venue(clock_ahead=timedelta(hours=-2)) as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = NOT_FOUND
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, Absent), outcome
        assert abs(outcome.looked_up_at - (datetime.now(UTC) + venue.clock_ahead)) < timedelta(seconds=2)


@pytest.mark.parametrize("step", [timedelta(hours=-1), timedelta(minutes=3)])
async def test_look_up_asks_for_the_venues_clock_again_when_this_machines_was_set(step: timedelta) -> None:
    """What was measured before says nothing any more; where the venue does not tell its clock then, nothing is proven."""
    set_by = timedelta(0)

    def clock() -> datetime:
        return datetime.now(UTC) + set_by

    async with running_venue() as venue, gateway_to(venue, clock=clock) as gateway:
        venue.answers["GET", ORDER] = NOT_FOUND
        assert isinstance(await gateway.look_up(reference()), Absent)
        set_by = step
        outcome = await gateway.look_up(reference())
        assert isinstance(outcome, Absent), outcome
        assert abs(outcome.looked_up_at - datetime.now(UTC)) < timedelta(seconds=2)
        set_by = 2 * step
        venue.answers["GET", "/api/v3/time"] = error(503, -1008, "Server is currently overloaded.")
        assert isinstance(await gateway.look_up(reference()), LookUpFailed)


async def test_look_up_unknown_key_fails() -> None:
    """Without the key the books cannot be read; that is no absence."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        assert isinstance(await gateway.look_up(reference(api_key_id="key-2")), LookUpFailed)
        assert venue.arrivals == []


@pytest.mark.parametrize("known", ["77", None])
async def test_cancel_open_order_is_confirmed_as_the_books_show_it(known: str | None) -> None:
    """One DELETE, then the books by the venue's id: the order as it is now, with the fees of what was executed. The cancel leaves an id on
    the order that can be recognised."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["DELETE", ORDER] = answers(200, {**order_row("cancel-id", status="CANCELED"), "origClientOrderId": "co-1"})
        venue.answers["GET", ORDER] = answers(200, order_row("co-1-c", status="CANCELED", executed="0.001", paid="50"))
        venue.answers["GET", MY_TRADES] = answers(200, [trade_row()])
        outcome = await gateway.cancel(reference(exchange_order_id=known))
        assert isinstance(outcome, Confirmed), outcome
        assert outcome.order.order_status is OrderStatus.CANCELED
        assert outcome.order.client_order_id == "co-1"
        assert outcome.order.cum_quantity == Decimal("0.001")
        assert outcome.order.fees == (Fee("BTC", Decimal("0.000001")),)
        sent = venue.orders_arrived("DELETE")
        assert len(sent) == 1
        assert (sent[0].query.get("origClientOrderId"), sent[0].query.get("orderId")) == (None if known else "co-1", known)
        assert sent[0].query["newClientOrderId"] == "co-1-c"
        asked = next(arrival for arrival in venue.arrivals if arrival.method == "GET" and arrival.path == ORDER)
        assert asked.query["orderId"] == "77"


async def test_cancel_canceled_order_that_shows_the_cancels_id_is_confirmed_under_ours() -> None:
    """A venue may show a canceled order under the cancel's own client order id; the order is still ours."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", ORDER] = answers(200, order_row("made-up-by-the-venue", status="CANCELED"))
        outcome = await gateway.cancel(reference())
        assert isinstance(outcome, Confirmed), outcome
        assert outcome.order.client_order_id == "co-1"


GONE = error(400, -2011, "Unknown order sent.")

CANCELS: list[tuple[str, Answer, Answer, object]] = [
    ("filled_first", GONE, answers(200, order_row("co-1", status="FILLED", executed="0.001", paid="50")), ReasonCode.ORDER_NOT_CANCELABLE),
    ("canceled_before", GONE, answers(200, order_row("co-1", status="CANCELED")), Confirmed),
    ("expired_before", GONE, answers(200, order_row("co-1", status="EXPIRED")), Confirmed),
    ("never_there", GONE, NOT_FOUND, ReasonCode.ORDER_NOT_FOUND),
    ("gone_but_open", GONE, answers(200, order_row("co-1")), InDoubt),
    ("gone_and_unreadable", GONE, error(503, -1008, "Server is currently overloaded."), InDoubt),
    ("confirmed_but_open", answers(200, order_row("x", status="CANCELED")), answers(200, order_row("co-1")), InDoubt),
    ("confirmed_but_absent", answers(200, order_row("x", status="CANCELED")), NOT_FOUND, InDoubt),
    ("turned_away", error(429, -1003, "Too many requests."), hang, ReasonCode.EXCHANGE_UNAVAILABLE),
    ("key_refused", error(401, -2015, "Invalid API-key, IP, or permissions for action."), hang, ReasonCode.API_KEY_PERMISSION),
    ("http_500", error(500, -1000, "An unknown error occurred."), hang, InDoubt),
    ("drop", drop, hang, InDoubt),
    ("hang", hang, hang, InDoubt),
    ("truncated", truncate, hang, InDoubt),
    ("redirect", answers(307, "", Location=ORDER), hang, InDoubt),
]


@pytest.mark.parametrize(("to_cancel", "to_look_up", "expected"), [row[1:] for row in CANCELS], ids=[row[0] for row in CANCELS])
async def test_cancel_each_answer_has_its_outcome(to_cancel: Answer, to_look_up: Answer, expected: object) -> None:
    """The books after the cancel decide; exactly one DELETE arrives, aiohttp's repeat of idempotent methods included."""
    async with running_venue() as venue, gateway_to(venue, timeout_ms=400) as gateway:
        await gateway.look_up(reference())
        venue.arrivals.clear()
        venue.answers["DELETE", ORDER] = to_cancel
        venue.answers["GET", ORDER] = to_look_up
        venue.answers["GET", MY_TRADES] = answers(200, [trade_row()] if expected is ReasonCode.ORDER_NOT_CANCELABLE else [])
        outcome = await gateway.cancel(reference())
        if isinstance(expected, ReasonCode):
            assert isinstance(outcome, Refused), outcome
            assert outcome.reason_code is expected
        else:
            assert type(outcome) is expected, outcome
        assert len(venue.orders_arrived("DELETE")) == 1
        if not isinstance(outcome, Confirmed):
            for secret in (API_KEY, SECRET, venue.orders_arrived("DELETE")[0].query["signature"]):
                assert secret not in outcome.detail
