"""The simulated exchange's door: signatures, receive windows, filters and Binance's refusals, over real HTTP."""

import hmac
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import pytest

from simulator.options import SimulatorOptions
from simulator.process import SimulatorProcess, start
from tests.integration.simulator_client import ORDER, SimulatorClient, client_of, new_id, now_ms

# They share one simulated exchange.
pytestmark = pytest.mark.xdist_group("simulator_wire")


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    process = start(SimulatorOptions(tmp_path_factory.mktemp("exchange"), walk_ms=0))
    yield process
    assert process.stop() == 0


@pytest.fixture
async def client(simulator: SimulatorProcess) -> AsyncIterator[SimulatorClient]:
    async with client_of(simulator.url) as made:
        yield made


def _signature(secret: str, payload: str) -> str:
    return hmac.digest(secret.encode(), payload.encode(), "sha256").hex()


async def test_signature_over_query_and_body_together_is_accepted(client: SimulatorClient) -> None:
    """Binance signs query + body without a separator; parameters of both count."""
    query = "symbol=BTCUSDT&side=BUY"
    body = f"type=MARKET&quantity=0.001&timestamp={now_ms()}"
    signature = _signature(client.secret, query + body)
    headers = {"X-MBX-APIKEY": client.api_key, "Content-Type": "application/x-www-form-urlencoded"}
    answer = await client.raw("POST", ORDER, query=query, body=f"{body}&signature={signature}", headers=headers)
    assert (answer.status, answer.body["status"]) == (200, "FILLED")


async def test_signature_covers_the_percent_encoded_bytes_as_sent(client: SimulatorClient) -> None:
    """The signature is over the raw bytes, not over the decoded text: `%42TCUSDT` is BTCUSDT to the exchange but not to the hash."""
    query = f"symbol=%42TCUSDT&origClientOrderId=none&timestamp={now_ms()}"
    headers = {"X-MBX-APIKEY": client.api_key}
    good = await client.raw("GET", ORDER, query=f"{query}&signature={_signature(client.secret, query)}", headers=headers)
    decoded = _signature(client.secret, query.replace("%42", "B"))
    bad = await client.raw("GET", ORDER, query=f"{query}&signature={decoded}", headers=headers)
    assert (good.code, bad.code) == (-2013, -1022)


async def test_signature_of_another_payload_is_refused_and_nothing_is_accepted(client: SimulatorClient) -> None:
    """One changed byte makes -1022, and no order."""
    client_order_id = new_id()
    text = client.sign({"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.001", "newClientOrderId": client_order_id})
    headers = {"X-MBX-APIKEY": client.api_key, "Content-Type": "application/x-www-form-urlencoded"}
    answer = await client.raw("POST", ORDER, body=text.replace("quantity=0.001", "quantity=0.009"), headers=headers)
    assert (answer.status, answer.code) == (400, -1022)
    assert (await client.look_up(client_order_id)).code == -2013


@pytest.mark.parametrize(("api_key", "code"), [(None, -2014), ("with blank", -2014), ("unknown-key", -2015)])
async def test_api_key_absent_malformed_or_unknown_is_refused_with_401(client: SimulatorClient, api_key: str | None, code: int) -> None:
    """-2014 for a key that cannot be one, -2015 for one that nobody has."""
    headers = {} if api_key is None else {"X-MBX-APIKEY": api_key}
    answer = await client.raw("GET", "/api/v3/account", query=client.sign({}), headers=headers)
    assert (answer.status, answer.code) == (401, code)


@pytest.mark.parametrize(
    ("offset_ms", "window_ms", "code"),
    [
        (-6_000, 5_000, -1021),
        (-6_000, None, -1021),
        (-4_000, 5_000, None),
        (-50_000, 60_000, None),
        (+3_000, 5_000, -1021),
        (+700, 5_000, None),
        (0, 60_001, -1131),
    ],
)
async def test_receive_window_follows_binances_rule(
    client: SimulatorClient, offset_ms: int, window_ms: int | None, code: int | None
) -> None:
    """`timestamp < serverTime + 1000 && serverTime - timestamp <= recvWindow`, recvWindow 5,000 if not sent and 60,000 at most."""
    times = {"timestamp": now_ms() + offset_ms, "recvWindow": window_ms}
    for answer in (await client.order(**times), await client.signed("GET", "/api/v3/account", **times)):
        assert answer.code == code
        assert answer.status == (200 if code is None else 400)


ORDER_REFUSALS: list[tuple[dict[str, Any], int, str]] = [
    ({"symbol": "NOPEUSDT"}, -1121, "Invalid symbol."),
    ({"symbol": None}, -1102, "symbol"),
    ({"side": "HOLD"}, -1117, "Invalid side."),
    ({"type": "ICEBERG"}, -1116, "Invalid orderType."),
    ({"quantity": None}, -1102, "quantity"),
    ({"quantity": "-1"}, -1100, "quantity"),
    ({"quantity": "1e-3"}, -1100, "quantity"),
    ({"quantity": "0.123456789"}, -1111, "quantity"),
    ({"quantity": "0.0000001"}, -1013, "LOT_SIZE"),
    ({"quantity": "0.0010001"}, -1013, "LOT_SIZE"),
    ({"quantity": "500"}, -1013, "MARKET_LOT_SIZE"),
    ({"quantity": "0.0001"}, -1013, "NOTIONAL"),
    ({"price": "30000"}, -1106, "price"),
    ({"quoteOrderQty": "10"}, -1128, "Combination"),
    ({"quantity": None, "quoteOrderQty": "4"}, -1013, "NOTIONAL"),
    ({"newClientOrderId": "has blank"}, -1100, "newClientOrderId"),
    ({"newClientOrderId": "x" * 37}, -1100, "newClientOrderId"),
    ({"type": "LIMIT", "price": "30000"}, -1102, "timeInForce"),
    ({"type": "LIMIT", "timeInForce": "GTC"}, -1102, "price"),
    ({"type": "LIMIT", "timeInForce": "DAY", "price": "30000"}, -1115, "timeInForce"),
    ({"type": "LIMIT", "timeInForce": "GTC", "price": "30000.001"}, -1013, "PRICE_FILTER"),
    ({"type": "LIMIT", "timeInForce": "GTC", "price": "2000000"}, -1013, "PRICE_FILTER"),
    ({"type": "LIMIT", "timeInForce": "GTC", "price": "100"}, -1013, "PERCENT_PRICE_BY_SIDE"),
    ({"type": "LIMIT", "timeInForce": "GTC", "price": "30000", "quantity": "0.0001"}, -1013, "NOTIONAL"),
    ({"type": "LIMIT_MAKER", "price": "50000"}, -2010, "immediately match"),
    ({"quantity": "20", "side": "SELL"}, -2010, "insufficient balance"),
    ({"quantity": "5"}, -2010, "insufficient balance"),
]


@pytest.mark.parametrize(("changes", "code", "text"), ORDER_REFUSALS)
async def test_order_that_breaks_a_rule_is_refused_with_binances_code(
    client: SimulatorClient, changes: dict[str, Any], code: int, text: str
) -> None:
    """Each rule has its code, HTTP 400, and changes nothing."""
    before = await client.balances()
    answer = await client.order(**changes)
    assert (answer.status, answer.code) == (400, code)
    assert text in answer.body["msg"]
    assert await client.balances() == before
    assert (await client.signed("GET", "/api/v3/allOrders", symbol="BTCUSDT")).body == []


async def test_public_endpoints_answer_without_a_key(client: SimulatorClient) -> None:
    """Time, markets and tickers of one, several and all symbols."""
    assert (await client.raw("GET", "/api/v3/ping")).body == {}
    assert abs((await client.raw("GET", "/api/v3/time")).body["serverTime"] - now_ms()) < 5_000
    info = (await client.raw("GET", "/api/v3/exchangeInfo")).body
    steps = {row["symbol"]: {f["filterType"]: f for f in row["filters"]} for row in info["symbols"]}
    assert set(steps) == {"BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT", "ETHBTC"}
    assert Decimal(steps["BTCUSDT"]["LOT_SIZE"]["stepSize"]) == Decimal("0.000001")
    assert Decimal(steps["BTCUSDT"]["NOTIONAL"]["minNotional"]) == 5
    for path in ("price", "24hr", "bookTicker"):
        one = (await client.raw("GET", f"/api/v3/ticker/{path}", query="symbol=ETHUSDT")).body
        some = (await client.raw("GET", f"/api/v3/ticker/{path}", query="symbols=%5B%22ETHUSDT%22,%22ETHBTC%22%5D")).body
        every = (await client.raw("GET", f"/api/v3/ticker/{path}")).body
        assert (one["symbol"], len(some), len(every)) == ("ETHUSDT", 2, 5)
    assert (await client.raw("GET", "/api/v3/depth", query="symbol=BTCUSDT&limit=5")).body["bids"]
    assert (await client.raw("GET", "/api/v3/ticker/price", query="symbol=NOPE")).code == -1121
    assert (await client.raw("GET", "/api/v3/nothing")).status == 404


async def test_account_posted_again_keeps_its_balances(client: SimulatorClient) -> None:
    """Opening an account is idempotent: a second POST neither resets nor adds."""
    await client.order("BUY", "0.01")
    before = await client.balances()
    again = {"label": "other", "api_key": client.api_key, "secret": client.secret, "balances": {"USDT": "5"}}
    await client.admin("POST", "accounts", [again])
    assert await client.balances() == before


async def test_admin_refuses_a_wrong_request_without_repeating_its_secret(client: SimulatorClient) -> None:
    """A refused account does not show the secret that came with it."""
    wrong = '[{"label":"u","api_key":"k","secret":"top-secret-value","balances":{"USDT":1.5}}]'
    answer = await client.raw("POST", "/simulator/accounts", body=wrong)
    assert answer.status == 400
    assert "balances" in answer.body["msg"]
    assert "top-secret-value" not in str(answer.body)
