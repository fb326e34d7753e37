"""What leaves is what was recorded: every field of a signed request that moves money, changed one at a time, stops it before the network.

The requests are ccxt's own, as they arrive at a venue; the list of fields is read from them, so that a new field is covered when it comes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlencode

import pytest

from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.ccxt.transport import venue_class
from infra.exchange.venues.binance.venue import BINANCE
from infra.exchange.venues.wire import NotHandedOver, check_request, pairs_of
from pipeline.model.venue import OrderReference, Refused, Submission
from pipeline.model.withdrawal import WithdrawalSubmission
from schemas.orders import OrderType, Side, TimeInForce
from schemas.reasons import ReasonCode
from tests.integration.scripted_venue import (
    EXCHANGE_INFO,
    ORDER,
    ScriptedVenue,
    answers,
    gateway_to,
    order_row,
    reference,
    running_venue,
    submission,
    trade_row,
)

WITHDRAW = "/sapi/v1/capital/withdraw/apply"
# Decides nothing: the form of the answer. The signature is the venue's to judge, and stands for all the others.
FREE: Final = frozenset({"newOrderRespType", "signature"})
# A cancel is not signed with the time of an intent.
FREE_OF_CANCEL: Final = FREE | {"timestamp", "recvWindow"}
AMOUNTS: Final = frozenset({"quantity", "quoteOrderQty", "price", "amount"})


def payout(**changes: object) -> WithdrawalSubmission:
    values: dict[str, object] = {
        "withdrawal_id": "w1", "client_withdrawal_id": "cw" + "1" * 28, "exchange": "binance", "user_id": "alice", "api_key_id": "key-1",
        "asset": "USDT", "network": "TRX", "address": "TR7NHqjeKQxGTCi8q8ZY4pL8otSzgjLj6t", "address_tag": "77",
        "amount": Decimal("100.5"), "fee": Decimal("0.5"), "submitting_at": datetime.now(UTC),
        "expires_at": datetime.now(UTC) + timedelta(seconds=30), **changes,
    }
    return WithdrawalSubmission(**values)  # type: ignore[arg-type]  # a test's own values


@dataclass(frozen=True)
class Kind:
    """One kind of request: how it is made, and which of its fields decide nothing."""

    send: Callable[[CcxtGateway], Awaitable[Any]]
    method: str
    path: str
    free: frozenset[str] = FREE


KINDS: Final = {
    "limit": Kind(lambda gateway: gateway.submit(submission(time_in_force=TimeInForce.IOC)), "POST", ORDER),
    "limit_by_default": Kind(lambda gateway: gateway.submit(submission()), "POST", ORDER),
    "limit_maker": Kind(lambda gateway: gateway.submit(submission(order_type=OrderType.LIMIT_MAKER)), "POST", ORDER),
    "market": Kind(lambda gateway: gateway.submit(submission(order_type=OrderType.MARKET, side=Side.SELL, price=None)), "POST", ORDER),
    "market_by_value": Kind(
        lambda gateway: gateway.submit(
            submission(order_type=OrderType.MARKET, price=None, quantity=None, quote_quantity=Decimal("25.5"))
        ),
        "POST",
        ORDER,
    ),
    "cancel": Kind(lambda gateway: gateway.cancel(reference(exchange_order_id="77")), "DELETE", ORDER, FREE_OF_CANCEL),
    "cancel_by_client_id": Kind(lambda gateway: gateway.cancel(reference()), "DELETE", ORDER, FREE_OF_CANCEL),
    "withdrawal": Kind(lambda gateway: gateway.withdraw(payout()), "POST", WITHDRAW),
}

Pairs = list[tuple[str, str]]


def _signed_as(change: Callable[[Pairs], Pairs]) -> Callable[..., Any]:
    """ccxt's `sign`, whose finished request is changed as a defect would."""
    original = venue_class("binance").sign  # type: ignore[attr-defined]  # a class

    def sign(self: Any, *arguments: Any, **named: Any) -> Any:
        request = original(self, *arguments, **named)
        if request["body"]:
            return {**request, "body": urlencode(change(pairs_of(request["body"])))}
        head, _, query = request["url"].partition("?")
        return {**request, "url": f"{head}?{urlencode(change(pairs_of(query)))}"} if "signature" in query else request

    return sign


@asynccontextmanager
async def _venue() -> AsyncIterator[tuple[ScriptedVenue, CcxtGateway]]:
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["POST", WITHDRAW] = answers(200, {"id": "x1"})
        yield venue, gateway


def _of(venue: ScriptedVenue, kind: Kind) -> list[dict[str, str]]:
    return [arrived.body or arrived.query for arrived in venue.arrivals if (arrived.method, arrived.path) == (kind.method, kind.path)]


@pytest.mark.parametrize("name", KINDS)
async def test_request_with_any_field_changed_dropped_doubled_or_added_never_leaves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side, symbol, type, time in force, amounts, ids, times, asset, network, address, tag: each by itself, and what nobody asked for."""
    kind = KINDS[name]
    async with _venue() as (venue, gateway):
        await kind.send(gateway)
        (whole,) = _of(venue, kind)
        deciding = [field for field in whole if field not in kind.free]
        assert len(deciding) >= 3
        changes: dict[str, Callable[[Pairs], Pairs]] = {"added": lambda pairs: [*pairs, ("icebergQty", "1")]}
        for field in deciding:
            changes[f"{field} changed"] = lambda pairs, field=field: [
                (key, _other(field, value) if key == field else value) for key, value in pairs
            ]
            changes[f"{field} dropped"] = lambda pairs, field=field: [pair for pair in pairs if pair[0] != field]
            changes[f"{field} doubled"] = lambda pairs, field=field: [*pairs, (field, dict(pairs)[field])]
        for what, change in changes.items():
            venue.arrivals.clear()
            with monkeypatch.context() as patched:
                patched.setattr(venue_class("binance"), "sign", _signed_as(change))
                outcome = await kind.send(gateway)
            assert _of(venue, kind) == [], what
            assert isinstance(outcome, Refused), (what, outcome)
            is_amount = what.split()[0] in AMOUNTS and not what.endswith("doubled")
            assert outcome.reason_code is (ReasonCode.PRECISION_INVALID if is_amount else ReasonCode.EXCHANGE_REFUSED), what
            assert not outcome.by_venue


def _other(field: str, value: str) -> str:
    return {"BUY": "SELL", "SELL": "BUY", "IOC": "GTC", "GTC": "FOK", "BTCUSDT": "ETHUSDT", "ETH": "BSC"}.get(value) or (
        str(Decimal(value) + Decimal("0.01")) if field in AMOUNTS else value[:-1] + ("1" if value[-1] != "1" else "2")
    )


# What a submission says beside the request itself: whose it is, and what it is called here. The account is in the request as its key, and
# `sent_with` says which version of that key the intent named: the gateway sends nothing with another one (tests of key versions).
BOOKKEEPING: Final = frozenset(
    {"mode", "order_id", "withdrawal_id", "exchange", "user_id", "api_key_id", "sent_with", "market_id", "expires_at", "submitting_at"}
)
OTHERS: Final[dict[str, object]] = {
    "client_order_id": "co-other", "client_withdrawal_id": "cw-other", "side": Side.SELL, "order_type": OrderType.LIMIT_MAKER,
    "quantity": Decimal("0.003"), "quote_quantity": Decimal(5), "price": Decimal(49_999), "time_in_force": TimeInForce.FOK, "asset": "USDC",
    "network": "ETH", "address": "TYDmtuWL8bsyjvcauUTerpfYyVhFtBjqyo", "address_tag": "78", "amount": Decimal(1), "fee": Decimal(1),
}  # fmt: skip


@pytest.mark.parametrize("kind", [Submission, WithdrawalSubmission])
def test_every_field_of_a_record_that_decides_is_in_the_request(kind: type) -> None:
    """Each field of the recorded order or withdrawal, read from its class, changes what its request must say: none is left out."""
    for field in fields(kind):
        if field.name in BOOKKEEPING:
            continue
        if kind is Submission:
            one = submission(time_in_force=TimeInForce.IOC)
            # The symbol is the market's own name on the wire.
            other = one if field.name == "symbol" else replace(one, **{field.name: OTHERS[field.name]})
            forms = [BINANCE.order_form(one, "BTCUSDT", 1, 5_000, "k")]
            forms += [BINANCE.order_form(other, "ETHUSDT" if field.name == "symbol" else "BTCUSDT", 1, 5_000, "k")]
        else:
            assert BINANCE.withdrawals is not None
            paid = payout()
            forms = [
                BINANCE.withdrawals.form(each, 1, 5_000, "k")
                for each in (paid, replace(paid, **{field.name: OTHERS[field.name]}))
            ]
        assert forms[0].fields != forms[1].fields, field.name


def test_request_to_another_endpoint_or_account_is_stopped() -> None:
    """The same fields mean something else elsewhere, and another key is another account."""
    form = BINANCE.order_form(submission(), "BTCUSDT", 1, 5_000, "the-key")
    body = urlencode({name: str(value) for name, value in form.fields.items() if value is not None})
    url, headers = "https://api.binance.com/api/v3/order", {"X-MBX-APIKEY": "the-key"}
    check_request(form, "POST", url, headers, body)
    for method, other_url, other_headers in (
        ("POST", url + "/test", headers), ("POST", "https://api.binance.com/sapi/v1/margin/order", headers), ("PUT", url, headers),
        ("POST", url, {"X-MBX-APIKEY": "another"}), ("POST", url, {}), ("POST", url + "?side=SELL", headers),
    ):  # fmt: skip
        with pytest.raises(NotHandedOver):
            check_request(form, method, other_url, other_headers, body)


@pytest.mark.parametrize(("left_ms", "window"), [(30_000, "5000"), (2_000, "2000"), (100, "100")])
async def test_receive_window_ends_at_the_deadline(left_ms: int, window: str) -> None:
    """The venue itself refuses what arrives after the deadline: the window that is signed is what is left of it."""
    intent = datetime.now(UTC) + timedelta(milliseconds=400)
    left = timedelta(milliseconds=left_ms)
    async with _venue() as (venue, gateway):
        await gateway.submit(submission(submitting_at=intent, expires_at=intent + left))
        await gateway.withdraw(payout(submitting_at=intent, expires_at=intent + left))
        assert [arrived.body["recvWindow"] for arrived in venue.arrivals if arrived.method == "POST"] == [window, window]
        venue.answers["DELETE", ORDER] = answers(200, order_row("co-1-c", status="CANCELED"))
        await gateway.cancel(reference(cancel_before=datetime.now(UTC) + left + timedelta(seconds=1)))
        (signed,) = [int(arrived.query["recvWindow"]) for arrived in venue.arrivals if arrived.method == "DELETE"]
        assert signed <= min(left_ms + 1_000, 5_000)


async def test_request_with_too_little_left_or_past_its_deadline_is_not_sent() -> None:
    """Less than 100 ms is no time to be taken in, and a deadline that passes in a queue counts: nothing arrives, and it is said why."""
    now = datetime.now(UTC)
    for intent, expires in ((now, now + timedelta(milliseconds=99)), (now - timedelta(seconds=2), now - timedelta(seconds=1))):
        async with _venue() as (venue, gateway):
            outcomes = [
                await gateway.submit(submission(submitting_at=intent, expires_at=expires)),
                await gateway.withdraw(payout(submitting_at=intent, expires_at=expires)),
                await gateway.cancel(reference(cancel_before=expires)),
            ]
            assert [getattr(outcome, "reason_code", outcome) for outcome in outcomes] == [ReasonCode.REQUEST_EXPIRED] * 3
            assert not [arrived for arrived in venue.arrivals if arrived.method in {"POST", "DELETE"}]


@pytest.mark.parametrize("name", ["order", "cancel"])
async def test_deadline_that_passes_while_the_connection_is_made_stops_the_request(name: str) -> None:
    """The last look is where the first byte is next: behind the connection, which may stand late."""
    intent = datetime.now(UTC)
    late = False

    def clock() -> datetime:
        return intent + timedelta(seconds=31) if late else datetime.now(UTC)

    async with running_venue(keep_alive=False) as venue, gateway_to(venue, clock=clock) as gateway:
        connector = gateway._connection._http.connector  # type: ignore[union-attr]
        resolve = connector._resolve_host  # type: ignore[union-attr]

        async def slow(*arguments: Any, **named: Any) -> Any:
            nonlocal late
            late = True
            return await resolve(*arguments, **named)

        connector._resolve_host = slow  # type: ignore[method-assign,union-attr,assignment]
        deadline = intent + timedelta(seconds=30)
        if name == "order":
            outcome = await gateway.submit(submission(submitting_at=intent, expires_at=deadline))
        else:
            outcome = await gateway.cancel(reference(cancel_before=deadline))  # type: ignore[assignment]
        assert late
        # Stopped on this side: it is not the exchange that has turned it away.
        assert outcome == Refused(ReasonCode.REQUEST_EXPIRED, getattr(outcome, "detail", ""))
        assert not [arrived for arrived in venue.arrivals if arrived.method in {"POST", "DELETE"}]


def _delisted() -> dict[str, object]:
    kept = [row for row in EXCHANGE_INFO["symbols"] if row["symbol"] != "BTCUSDT"]  # type: ignore[attr-defined]  # a list of rows
    return {**EXCHANGE_INFO, "symbols": kept}


async def _forgetting(venue: ScriptedVenue, gateway: CcxtGateway) -> None:
    """The venue's list drops BTC/USDT, and the gateway reads it again."""
    venue.answers["GET", "/api/v3/exchangeInfo"] = answers(200, _delisted())
    assert "BTC/USDT" not in await gateway.markets()
    venue.arrivals.clear()


@pytest.mark.parametrize("market_id", ["BTCUSDT", None])
@pytest.mark.parametrize("exchange_order_id", ["77", None])
async def test_order_of_a_delisted_market_is_looked_up_and_canceled(market_id: str | None, exchange_order_id: str | None) -> None:
    """Its market is not in the venue's list any more: it is asked for by what was stored with it, and its fills are read with fees."""
    known: OrderReference = reference(market_id=market_id, exchange_order_id=exchange_order_id)
    client_order_id = known.client_order_id
    async with _venue() as (venue, gateway):
        await _forgetting(venue, gateway)
        venue.answers["GET", ORDER] = answers(200, order_row(client_order_id, status="PARTIALLY_FILLED", executed="0.001", paid="50"))
        venue.answers["GET", "/api/v3/myTrades"] = answers(200, [trade_row()])
        found = await gateway.look_up(known)
        assert found.order.cum_quantity == Decimal("0.001"), found  # type: ignore[union-attr]
        assert [fee.asset for fee in found.order.fees] == ["BTC"]  # type: ignore[union-attr]
        venue.answers["DELETE", ORDER] = answers(200, order_row(f"{client_order_id}-c", status="CANCELED", executed="0.001", paid="50"))
        venue.answers["GET", ORDER] = answers(200, order_row(f"{client_order_id}-c", status="CANCELED", executed="0.001", paid="50"))
        canceled = await gateway.cancel(known)
        assert canceled.order.order_status == "canceled", canceled  # type: ignore[union-attr]
        assert {arrived.query["symbol"] for arrived in venue.arrivals} == {"BTCUSDT"}
        # Nothing new is offered there.
        refused = await gateway.submit(submission())
        assert isinstance(refused, Refused) and refused.reason_code is ReasonCode.SYMBOL_UNKNOWN
        assert "BTC/USDT" not in await gateway.markets()


async def test_order_whose_market_got_another_name_is_asked_for_by_its_own() -> None:
    """What was stored with the order wins over the venue's list of today."""
    async with _venue() as (venue, gateway):
        await gateway.look_up(reference(market_id="OLDUSDT"))
        await gateway.cancel(reference(market_id="OLDUSDT"))
        assert {arrived.query["symbol"] for arrived in venue.arrivals} == {"OLDUSDT"}
        outcome = await gateway.submit(replace(submission(), market_id="OLDUSDT"))
        assert isinstance(outcome, Refused) and not venue.orders_arrived()


