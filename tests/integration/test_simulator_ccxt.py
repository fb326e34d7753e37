"""ccxt's own Binance client against the simulated exchange: it must not be able to tell the difference."""

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import urlparse

import ccxt.async_support
import pytest

from simulator.options import SimulatorOptions
from simulator.process import SimulatorProcess, start
from tests.integration.simulator_client import SimulatorClient, client_of, new_id, now_ms

# They share one simulated exchange.
pytestmark = pytest.mark.xdist_group("simulator_ccxt")

D = Decimal


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    process = start(SimulatorOptions(tmp_path_factory.mktemp("exchange"), walk_ms=0))
    yield process
    assert process.stop() == 0


@pytest.fixture
async def client(simulator: SimulatorProcess) -> AsyncIterator[SimulatorClient]:
    async with client_of(simulator.url) as made:
        await made.pin("40000")
        yield made


@pytest.fixture
async def binance(client: SimulatorClient) -> AsyncIterator[Any]:
    exchange = ccxt.async_support.binance(
        {
            "apiKey": client.api_key,
            "secret": client.secret,
            "timeout": 5_000,
            "enableRateLimit": False,
            "options": {"defaultType": "spot", "fetchMarkets": {"types": ["spot"]}, "fetchMargins": False, "fetchCurrencies": False},
        }
    )
    exchange.number = str
    exchange.urls["api"] = {
        name: client.url + urlparse(value).path if isinstance(value, str) else value for name, value in exchange.urls["api"].items()
    }
    yield exchange
    await exchange.close()


async def test_ccxt_loads_the_markets_with_their_steps_and_limits(binance: Any) -> None:
    """Five spot markets; precision and limits are what the filters say."""
    markets = await binance.load_markets()
    assert set(markets) == {"BTC/USDT", "ETH/USDT", "SOL/USDT", "BNB/USDT", "ETH/BTC"}
    market = markets["BTC/USDT"]
    assert (market["spot"], market["active"]) == (True, True)
    assert (D(market["precision"]["amount"]), D(market["precision"]["price"])) == (D("0.000001"), D("0.01"))
    assert D(market["limits"]["cost"]["min"]) == 5


async def test_ccxt_reads_tickers_and_time(binance: Any) -> None:
    """One, several and all tickers, bids and asks, last prices, the book and the clock."""
    ticker = await binance.fetch_ticker("BTC/USDT")
    assert (D(ticker["last"]), D(ticker["bid"]) < D(ticker["ask"])) == (D(40000), True)
    assert set(await binance.fetch_tickers(["BTC/USDT", "ETH/BTC"])) == {"BTC/USDT", "ETH/BTC"}
    assert len(await binance.fetch_bids_asks()) == 5
    assert len(await binance.fetch_last_prices()) == 5
    assert (await binance.fetch_order_book("BTC/USDT"))["bids"]
    assert abs(await binance.fetch_time() - now_ms()) < 5_000


async def test_ccxt_creates_a_market_order_and_finds_it_by_its_client_order_id(binance: Any) -> None:
    """Filled at once, with its fee, and the look-up by origClientOrderId and the trades agree."""
    client_order_id = new_id()
    order = await binance.create_order("BTC/USDT", "market", "buy", "0.1", None, {"newClientOrderId": client_order_id})
    assert (order["status"], order["clientOrderId"], D(order["filled"]), D(order["cost"])) == ("closed", client_order_id, D("0.1"), D(4000))
    assert [(fee["currency"], D(fee["cost"])) for fee in order["fees"]] == [("BTC", D("0.0001"))]
    found = await binance.fetch_order(None, "BTC/USDT", {"origClientOrderId": client_order_id})
    assert (found["id"], found["status"], D(found["average"])) == (order["id"], "closed", D(40000))
    [trade] = await binance.fetch_my_trades("BTC/USDT", params={"orderId": order["id"]})
    assert (trade["order"], trade["side"], D(trade["amount"]), D(trade["fee"]["cost"])) == (order["id"], "buy", D("0.1"), D("0.0001"))
    assert [t["id"] for t in await binance.fetch_my_trades("BTC/USDT", since=now_ms() - 60_000)] == [trade["id"]]


async def test_ccxt_creates_a_market_order_by_cost(binance: Any) -> None:
    """quoteOrderQty through ccxt's own way."""
    await binance.load_markets()
    order = await binance.create_order("BTC/USDT", "market", "buy", "0", None, {"quoteOrderQty": "100", "clientOrderId": new_id()})
    assert (order["status"], D(order["cost"])) == ("closed", D(100))


async def test_ccxt_creates_fetches_and_cancels_a_limit_order(binance: Any) -> None:
    """Open with its cost in `used`, listed, canceled by its client order id, and listed no more."""
    client_order_id = new_id()
    order = await binance.create_order("BTC/USDT", "limit", "buy", "0.1", "39000", {"clientOrderId": client_order_id, "timeInForce": "GTC"})
    assert (order["status"], D(order["remaining"])) == ("open", D("0.1"))
    balance = await binance.fetch_balance()
    assert (D(balance["USDT"]["free"]), D(balance["USDT"]["used"])) == (D(96100), D(3900))
    assert [row["clientOrderId"] for row in await binance.fetch_open_orders("BTC/USDT")] == [client_order_id]
    canceled = await binance.cancel_order(None, "BTC/USDT", {"origClientOrderId": client_order_id})
    # As on Binance, `clientOrderId` of the answer names the cancel itself.
    assert (canceled["status"], canceled["info"]["origClientOrderId"]) == ("canceled", client_order_id)
    assert await binance.fetch_open_orders("BTC/USDT") == []
    assert [row["status"] for row in await binance.fetch_orders("BTC/USDT")] == ["canceled"]


async def test_ccxt_raises_its_own_exceptions_for_the_refusals(client: SimulatorClient, binance: Any) -> None:
    """Each refusal is the exception that ccxt makes of Binance's words."""
    await binance.load_markets()
    with pytest.raises(ccxt.InsufficientFunds):
        await binance.create_order("BTC/USDT", "market", "sell", "50")
    with pytest.raises(ccxt.OrderNotFound):
        await binance.fetch_order(None, "BTC/USDT", {"origClientOrderId": "never-used"})
    with pytest.raises(ccxt.OrderNotFound):
        await binance.cancel_order(None, "BTC/USDT", {"origClientOrderId": "never-used"})
    with pytest.raises(ccxt.InvalidNonce):
        await binance.create_order("BTC/USDT", "market", "buy", "0.1", None, {"timestamp": now_ms() - 20_000})
    client_order_id = new_id()
    await binance.create_order("BTC/USDT", "limit", "buy", "0.1", "39000", {"clientOrderId": client_order_id})
    with pytest.raises(ccxt.InvalidOrder, match="Duplicate order sent"):
        await binance.create_order("BTC/USDT", "market", "buy", "0.1", None, {"clientOrderId": client_order_id})
    await client.faults({"kind": "rate_limit", "next_n": 1})
    with pytest.raises(ccxt.DDoSProtection):
        await binance.create_order("BTC/USDT", "market", "buy", "0.1")
    await client.faults({"kind": "http_503_after_accept", "next_n": 1})
    with pytest.raises(ccxt.OperationFailed):
        await binance.create_order("BTC/USDT", "market", "buy", "0.1")
    binance.secret = "wrong"
    with pytest.raises(ccxt.AuthenticationError):
        await binance.fetch_balance()


async def test_ccxt_withdraws_and_reads_deposits_and_currencies(client: SimulatorClient, binance: Any) -> None:
    """withdraw, fetch_withdrawals, fetch_deposits, fetch_currencies and fetch_trading_fee."""
    await binance.load_markets()
    binance.options["fetchCurrencies"] = True
    currencies = await binance.fetch_currencies()
    assert set(currencies) == {"BTC", "ETH", "SOL", "BNB", "USDT"}
    made = await binance.withdraw("USDT", "25", "Taddress12345678", {"network": "TRX", "withdrawOrderId": "w-ccxt"})
    [found] = await binance.fetch_withdrawals("USDT", params={"withdrawOrderId": "w-ccxt"})
    assert (found["id"], D(found["amount"]), found["status"] in ("pending", "ok")) == (made["id"], D(25), True)
    deposit = await client.admin("POST", "deposits", {"api_key": client.api_key, "asset": "BTC", "amount": "0.5"})
    [seen] = await binance.fetch_deposits("BTC")
    assert (seen["txid"], D(seen["amount"])) == (deposit["txId"], D("0.5"))
    held = {"api_key": client.api_key, "asset": "ETH", "amount": "2", "held": True, "address": "0xa", "address_tag": "7"}
    deposit = await client.admin("POST", "deposits", held)
    [seen] = await binance.fetch_deposits("ETH")
    assert (seen["id"], seen["status"], seen["address"], seen["tag"]) == (deposit["id"], "pending", "0xa", "7")
    await client.admin("POST", "deposits/credit", {"id": deposit["id"]})
    [seen] = await binance.fetch_deposits("ETH")
    assert seen["status"] == "ok"
    fee = await binance.fetch_trading_fee("BTC/USDT")
    assert D(fee["taker"]) == D("0.001")
