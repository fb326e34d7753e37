"""Every fault of the simulated exchange: what the client sees, and what the exchange's books say behind it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import aiohttp
import pytest

from simulator.faults import ACCEPTING, FaultKind
from simulator.options import SimulatorOptions
from simulator.process import SimulatorProcess, start
from tests.integration.simulator_client import ORDER, Answer, SimulatorClient, client_of, new_id, now_ms, until

# They share one simulated exchange.
pytestmark = pytest.mark.xdist_group("simulator_faults")

VENUE_TIMEOUT_MS = 400
DISCONNECTED = "disconnected"
TIMED_OUT = "timed out"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    process = start(SimulatorOptions(tmp_path_factory.mktemp("exchange"), walk_ms=0, venue_timeout_ms=VENUE_TIMEOUT_MS))
    yield process
    assert process.stop() == 0


@pytest.fixture
async def client(simulator: SimulatorProcess) -> AsyncIterator[SimulatorClient]:
    async with client_of(simulator.url) as made:
        await made.pin("40000")
        yield made
        await made.admin("DELETE", "faults")
        await made.assert_books_hold()


async def _sent(client: SimulatorClient, client_order_id: str, **parameters: Any) -> Answer | str:
    """The answer, or how the call failed."""
    try:
        async with asyncio.timeout(0.3):
            return await client.order(newClientOrderId=client_order_id, **parameters)
    except TimeoutError:
        return TIMED_OUT
    except aiohttp.ClientError:
        return DISCONNECTED


async def _is_accepted(client: SimulatorClient, client_order_id: str) -> bool:
    answer = await client.look_up(client_order_id)
    assert answer.code in (None, -2013)
    return answer.code is None


def _logged(simulator: SimulatorProcess, client_order_id: str) -> list[tuple[str, bool]]:
    lines = (simulator.options.data_dir / "faults.jsonl").read_text().splitlines()
    return [(row["kind"], row["accepted"]) for row in map(json.loads, lines) if row["client_order_id"] == client_order_id]


SEEN: dict[FaultKind, object] = {
    FaultKind.HANG_BEFORE_ACCEPT: TIMED_OUT,
    FaultKind.HANG_AFTER_ACCEPT: TIMED_OUT,
    FaultKind.DROP_BEFORE_ACCEPT: DISCONNECTED,
    FaultKind.DROP_AFTER_ACCEPT: DISCONNECTED,
    FaultKind.HTTP_500_BEFORE_ACCEPT: (500, -1001),
    FaultKind.HTTP_500_AFTER_ACCEPT: (500, -1001),
    FaultKind.HTTP_502_BEFORE_ACCEPT: (502, None),
    FaultKind.HTTP_502_AFTER_ACCEPT: (502, None),
    FaultKind.HTTP_503_BEFORE_ACCEPT: (503, -1000),
    FaultKind.HTTP_503_AFTER_ACCEPT: (503, -1000),
    FaultKind.HTTP_503_UNAVAILABLE: (503, -1000),
    FaultKind.HTTP_504_BEFORE_ACCEPT: (504, -1007),
    FaultKind.HTTP_504_AFTER_ACCEPT: (504, -1007),
    FaultKind.RATE_LIMIT: (429, -1003),
    FaultKind.TRUNCATED_BODY: DISCONNECTED,
    FaultKind.CUT_JSON: (200, None),
    FaultKind.HTML_200: (200, None),
    FaultKind.EMPTY_JSON_200: (200, None),
    FaultKind.DUPLICATE: (400, -2010),
    FaultKind.SLOW: (200, None),
    FaultKind.PARTIAL_FILL: (200, None),
    FaultKind.READ_LAG: (200, None),
}


@pytest.mark.parametrize("kind", list(FaultKind))
async def test_fault_shows_itself_and_its_name_says_whether_the_order_stands(
    simulator: SimulatorProcess, client: SimulatorClient, kind: FaultKind
) -> None:
    """One order meets the fault, the next one does not; books, fault log and count agree on what happened."""
    client_order_id, after = new_id(), new_id()
    count = (await client.admin("GET", "faults")).get(kind.value, 0)
    await client.faults({"kind": kind, "next_n": 1, "delay_ms": 50})
    seen = await _sent(client, client_order_id)
    assert ((seen.status, seen.code) if isinstance(seen, Answer) else seen) == SEEN[kind]
    is_accepted = kind in ACCEPTING or kind is FaultKind.SLOW
    if kind is FaultKind.READ_LAG:
        await asyncio.sleep(0.06)
    assert await _is_accepted(client, client_order_id) is is_accepted
    assert _logged(simulator, client_order_id) == [(kind.value, is_accepted)]
    assert (await client.admin("GET", "faults"))[kind.value] == count + 1
    clean = await _sent(client, after)
    assert isinstance(clean, Answer)
    assert clean.body["status"] == "FILLED"


async def test_read_lag_hides_an_order_and_its_trades_from_every_question_for_its_time(client: SimulatorClient) -> None:
    """The books have it, and no answer shows it: the order query says "unknown", the lists leave it out. Then all show it."""
    client_order_id = new_id()
    await client.faults({"kind": "read_lag", "next_n": 1, "delay_ms": 700}, {"kind": "drop_after_accept", "next_n": 1})
    assert await _sent(client, client_order_id) == DISCONNECTED

    async def seen() -> tuple[int | None, bool, int]:
        query = await client.signed("GET", "/api/v3/order", symbol="BTCUSDT", origClientOrderId=client_order_id)
        orders = (await client.signed("GET", "/api/v3/allOrders", symbol="BTCUSDT")).body
        ids = {order["orderId"] for order in orders if order["clientOrderId"] == client_order_id}
        trades = (await client.signed("GET", "/api/v3/myTrades", symbol="BTCUSDT")).body
        return query.code, bool(ids), sum(1 for trade in trades if trade["orderId"] in ids)

    assert await seen() == (-2013, False, 0)
    await asyncio.sleep(0.8)
    code, listed, trades = await seen()
    assert (code, listed) == (None, True)
    assert trades > 0


async def test_rate_limit_says_when_to_come_back(client: SimulatorClient) -> None:
    """429 carries Retry-After."""
    await client.faults({"kind": "rate_limit", "next_n": 1})
    answer = await client.order()
    assert answer.headers["Retry-After"] == "1"


async def test_unknown_error_reads_the_same_whether_accepted_or_not(client: SimulatorClient) -> None:
    """Binance's 503 "Unknown error" proves nothing: only the books tell the two apart."""
    answers = []
    for kind in ("http_503_before_accept", "http_503_after_accept"):
        await client.faults({"kind": kind, "next_n": 1})
        answers.append((await client.order()).body)
    assert answers[0] == answers[1] == {"code": -1000, "msg": "Unknown error, please check your request or try again later."}


async def test_slow_past_the_venue_timeout_is_answered_at_the_timeout_and_not_accepted(client: SimulatorClient) -> None:
    """-1007 with 504 after the venue's time-out, and no order even later."""
    await client.faults({"kind": "slow", "next_n": 1, "delay_ms": 5_000})
    client_order_id = new_id()
    begin = now_ms()
    answer = await client.order(newClientOrderId=client_order_id)
    assert (answer.status, answer.code) == (504, -1007)
    assert VENUE_TIMEOUT_MS <= now_ms() - begin < 3_000
    assert not await _is_accepted(client, client_order_id)


async def test_slow_past_the_receive_window_is_not_accepted(client: SimulatorClient) -> None:
    """In time on arrival but not at acceptance: -1021. This is what makes a look-up after the horizon conclusive."""
    await client.faults({"kind": "slow", "next_n": 1, "delay_ms": 300})
    client_order_id = new_id()
    answer = await client.order(newClientOrderId=client_order_id, recvWindow=200)
    assert (answer.status, answer.code) == (400, -1021)
    assert not await _is_accepted(client, client_order_id)


async def test_slow_order_whose_client_has_left_is_accepted_all_the_same(client: SimulatorClient) -> None:
    """An exchange does not notice that nobody waits any more: the order still lands."""
    await client.faults({"kind": "slow", "next_n": 1, "delay_ms": 350})
    client_order_id = new_id()
    assert await _sent(client, client_order_id) == TIMED_OUT
    await until(lambda: _is_accepted(client, client_order_id))


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({}, "EXPIRED"),
        ({"quantity": None, "quoteOrderQty": "1000"}, "EXPIRED"),
        ({"type": "LIMIT", "timeInForce": "IOC", "price": "40000"}, "EXPIRED"),
        ({"type": "LIMIT", "timeInForce": "GTC", "price": "40000"}, "PARTIALLY_FILLED"),
    ],
)
async def test_partial_fill_trades_half_and_ends_or_rests_as_on_binance(
    client: SimulatorClient, parameters: dict[str, Any], status: str
) -> None:
    """What cannot rest expires with what it has; a GTC order stays open."""
    await client.faults({"kind": "partial_fill", "next_n": 1})
    answer = (await client.order(**parameters)).body
    assert answer["status"] == status
    assert Decimal(answer["executedQty"]) > 0
    if "quoteOrderQty" not in parameters:
        assert answer["executedQty"] == "0.00050000"
    locked = (await client.balances())["USDT"][1]
    assert (locked > 0) == (status == "PARTIALLY_FILLED")


async def test_accepting_fault_is_kept_for_the_next_order_where_the_exchange_refuses(client: SimulatorClient) -> None:
    """A refused order gets its refusal, uncounted; the rule waits for an order that is accepted."""
    await client.faults({"kind": "drop_after_accept", "next_n": 1})
    count = (await client.admin("GET", "faults")).get("drop_after_accept", 0)
    poor = await client.order("BUY", "9")
    assert poor.code == -2010
    assert (await client.admin("GET", "faults")).get("drop_after_accept", 0) == count
    assert await _sent(client, new_id()) == DISCONNECTED


async def test_rule_with_probability_is_repeatable_by_its_seed(client: SimulatorClient) -> None:
    """The same seed hits the same orders; about half of them at one half."""
    hits = []
    for _ in range(2):
        await client.faults({"kind": "rate_limit", "probability": 0.5, "seed": 7})
        hits.append([(await client.order()).status for _ in range(30)])
    assert hits[0] == hits[1]
    assert 5 < hits[0].count(429) < 25


async def test_rule_applies_to_its_own_path_method_and_client_order_id_only(client: SimulatorClient) -> None:
    """A rule for look-ups leaves orders alone, a rule for one id leaves the others alone."""
    client_order_id = new_id()
    await client.faults({"kind": "http_502_before_accept", "next_n": 1, "method": "GET", "path": ORDER})
    assert (await client.order(newClientOrderId=client_order_id)).status == 200
    assert (await client.look_up(client_order_id)).status == 502
    named = new_id()
    await client.faults({"kind": "rate_limit", "next_n": 1, "client_order_id": named})
    assert (await client.order()).status == 200
    assert (await client.order(newClientOrderId=named)).status == 429


async def test_rule_that_cannot_be_is_refused(client: SimulatorClient) -> None:
    """An unknown kind, a rule without extent or an unknown field is a 400 that names it."""
    for rule in ({"kind": "earthquake", "next_n": 1}, {"kind": "slow"}, {"kind": "slow", "next_n": 1, "typo": 1}):
        answer = await client.raw("POST", "/simulator/faults", body=json.dumps([rule]))
        assert answer.status == 400


async def test_hanging_requests_do_not_hold_up_the_others_or_the_stop(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fifty requests hang; a look-up is answered meanwhile; SIGTERM ends the process cleanly within its bound."""
    process = start(SimulatorOptions(tmp_path_factory.mktemp("hanging"), walk_ms=0))
    async with client_of(process.url) as client:
        await client.faults({"kind": "hang_after_accept", "next_n": 50})
        ids = [new_id() for _ in range(50)]
        orders = [asyncio.create_task(client.order(newClientOrderId=name)) for name in ids]

        async def all_hang() -> bool:
            return bool((await client.admin("GET", "faults")).get("hang_after_accept", 0) == 50)

        await until(all_hang)
        assert await _is_accepted(client, ids[0])
        status = await asyncio.to_thread(process.stop, 8)
        results = await asyncio.gather(*orders, return_exceptions=True)
    assert status == 0
    assert all(isinstance(result, aiohttp.ClientError) for result in results)
