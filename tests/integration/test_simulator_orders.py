"""Orders at the simulated exchange: what fills, at which price, what stays, and what the account has afterwards."""

import asyncio
import csv
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from simulator.options import SimulatorOptions
from simulator.prices import TapeMode, Walk
from simulator.process import SimulatorProcess, start
from simulator.records import OrderAccepted, read_log
from simulator.symbols import make_symbols
from tests.integration.simulator_client import SimulatorClient, client_of, new_id, now_ms, until

# They share one simulated exchange.
pytestmark = pytest.mark.xdist_group("simulator_orders")

D = Decimal


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    process = start(SimulatorOptions(tmp_path_factory.mktemp("exchange"), walk_ms=0))
    yield process
    assert process.stop() == 0


@pytest.fixture
async def client(simulator: SimulatorProcess) -> AsyncIterator[SimulatorClient]:
    async with client_of(simulator.url, {"USDT": "10000000", "BTC": "100"}) as made:
        await made.pin("40000")
        yield made
        await made.assert_books_hold()


async def test_market_buy_pays_the_price_and_the_fee_from_what_it_receives(client: SimulatorClient) -> None:
    """0.5 BTC at 40,000: 20,000 USDT less, 0.5 BTC minus 0.1 % more, as the FULL answer and the balances both say."""
    answer = (await client.order("BUY", "0.5")).body
    assert (answer["status"], answer["executedQty"], answer["cummulativeQuoteQty"]) == ("FILLED", "0.50000000", "20000.00000000")
    [fill] = answer["fills"]
    assert (fill["price"], fill["commission"], fill["commissionAsset"]) == ("40000.00000000", "0.00050000", "BTC")
    balances = await client.balances()
    assert balances["USDT"] == (D(9980000), D(0))
    assert balances["BTC"] == (D("100.4995"), D(0))


async def test_market_sell_takes_the_fee_in_quote(client: SimulatorClient) -> None:
    """The received asset pays the fee, on a sale the quote asset."""
    answer = (await client.order("SELL", "0.5")).body
    assert (answer["fills"][0]["commission"], answer["fills"][0]["commissionAsset"]) == ("20.00000000", "USDT")
    assert (await client.balances())["USDT"][0] == D("10019980")


async def test_market_order_by_quote_quantity_never_spends_more_than_it(client: SimulatorClient) -> None:
    """100 USDT at 39,999.97 buy whole steps for at most 100 USDT, and less than one step's value is left."""
    await client.pin("39999.97")
    answer = (await client.order("BUY", None, quoteOrderQty="100")).body
    spent = D(answer["cummulativeQuoteQty"])
    assert D(100) - D("39999.97") * D("0.000001") < spent <= D(100)
    assert answer["origQuoteOrderQty"] == "100.00000000"
    assert answer["origQty"] == answer["executedQty"]


@pytest.mark.parametrize(("side", "direction"), [("BUY", 1), ("SELL", -1)])
async def test_large_market_order_fills_in_parts_at_worse_prices(client: SimulatorClient, side: str, direction: int) -> None:
    """Beyond the depth at the best price the next levels are used: three fills, each worse than the one before."""
    fills = (await client.order(side, "12")).body["fills"]
    prices = [D(fill["price"]) for fill in fills]
    assert len(fills) == 3
    assert prices[0] == 40000
    assert all((later - earlier) * direction > 0 for earlier, later in itertools.pairwise(prices))
    assert sum(D(fill["qty"]) for fill in fills) == 12


async def test_limit_that_crosses_fills_at_the_better_price(client: SimulatorClient) -> None:
    """A buy limit of 41,000 at a price of 40,000 pays 40,000, and nothing stays locked."""
    answer = (await client.limit("41000", quantity="1")).body
    assert (answer["status"], answer["cummulativeQuoteQty"]) == ("FILLED", "40000.00000000")
    assert (await client.balances())["USDT"] == (D(9960000), D(0))


async def test_limit_rests_locks_its_money_and_fills_when_the_price_comes(client: SimulatorClient) -> None:
    """NEW with its cost locked; filled at its own price as maker once the price is below it."""
    client_order_id = new_id()
    answer = (await client.limit("39000", quantity="1", newClientOrderId=client_order_id)).body
    assert (answer["status"], answer["fills"]) == ("NEW", [])
    assert (await client.balances())["USDT"] == (D(9961000), D(39000))
    assert [row["clientOrderId"] for row in (await client.signed("GET", "/api/v3/openOrders", symbol="BTCUSDT")).body] == [client_order_id]
    await client.pin("38500")
    found = (await client.look_up(client_order_id)).body
    assert (found["status"], found["cummulativeQuoteQty"]) == ("FILLED", "39000.00000000")
    assert (await client.balances())["USDT"] == (D(9961000), D(0))
    [trade] = (await client.signed("GET", "/api/v3/myTrades", symbol="BTCUSDT", orderId=found["orderId"])).body
    assert (trade["isMaker"], trade["isBuyer"], trade["commission"]) == (True, True, "0.00100000")


@pytest.mark.parametrize(
    ("tif", "quantity", "price", "status", "executed"),
    [
        ("IOC", "1", "39000", "EXPIRED", "0"),
        ("IOC", "1", "40000", "FILLED", "1"),
        # 5 BTC stand at 40,000.00; the next level is five ticks away.
        ("IOC", "8", "40000", "EXPIRED", "5"),
        ("FOK", "1", "39000", "EXPIRED", "0"),
        ("FOK", "1", "40000", "FILLED", "1"),
        ("FOK", "8", "40000", "EXPIRED", "0"),
        ("FOK", "8", "40000.05", "FILLED", "8"),
        ("GTC", "8", "40000", "PARTIALLY_FILLED", "5"),
    ],
)
async def test_time_in_force_decides_what_happens_to_the_rest(
    client: SimulatorClient, tif: str, *, quantity: str, price: str, status: str, executed: str
) -> None:
    """IOC keeps what it got, FOK is all or nothing, GTC rests; only GTC keeps money locked."""
    answer = (await client.limit(price, quantity=quantity, tif=tif)).body
    assert (answer["status"], D(answer["executedQty"])) == (status, D(executed))
    assert ((await client.balances())["USDT"][1] > 0) == (status == "PARTIALLY_FILLED")


async def test_limit_maker_rests_and_is_answered_with_an_acknowledgement(client: SimulatorClient) -> None:
    """Its default answer is ACK: no status and no amounts."""
    answer = (await client.order("SELL", "0.1", type="LIMIT_MAKER", price="45000")).body
    assert set(answer) == {"symbol", "orderId", "orderListId", "clientOrderId", "transactTime"}


async def test_cancel_releases_the_lock_and_only_open_orders_can_be_canceled(client: SimulatorClient) -> None:
    """CANCELED once; then, and for ids nobody used, -2011."""
    client_order_id = new_id()
    await client.limit("39000", quantity="1", newClientOrderId=client_order_id)
    canceled = await client.signed("DELETE", "/api/v3/order", symbol="BTCUSDT", origClientOrderId=client_order_id)
    assert (canceled.body["status"], canceled.body["origClientOrderId"]) == ("CANCELED", client_order_id)
    assert (await client.balances())["USDT"] == (D(10000000), D(0))
    assert (await client.look_up(client_order_id)).body["status"] == "CANCELED"
    for name in (client_order_id, "never-used"):
        again = await client.signed("DELETE", "/api/v3/order", symbol="BTCUSDT", origClientOrderId=name)
        assert (again.status, again.code, again.body["msg"]) == (400, -2011, "Unknown order sent.")


async def test_cancel_of_all_open_orders_ends_those_of_the_symbol(client: SimulatorClient) -> None:
    """DELETE openOrders ends one symbol's orders, and refuses where there are none."""
    for price in ("39000", "39100"):
        await client.limit(price, quantity="0.1")
    assert len((await client.signed("DELETE", "/api/v3/openOrders", symbol="BTCUSDT")).body) == 2
    assert (await client.signed("DELETE", "/api/v3/openOrders", symbol="BTCUSDT")).code == -2011


async def test_client_order_id_is_unique_among_open_orders_only(client: SimulatorClient) -> None:
    """The trap: while open it is refused as a duplicate; once the first is filled the same id makes a second order."""
    client_order_id = new_id()
    first = (await client.limit("39000", quantity="0.1", newClientOrderId=client_order_id)).body
    duplicate = await client.order(newClientOrderId=client_order_id)
    assert (duplicate.status, duplicate.code, duplicate.body["msg"]) == (400, -2010, "Duplicate order sent.")
    await client.pin("38000")
    second = (await client.order(newClientOrderId=client_order_id)).body
    assert second["orderId"] != first["orderId"]
    assert (await client.look_up(client_order_id)).body["orderId"] == second["orderId"]
    by_first_id = await client.signed("GET", "/api/v3/order", symbol="BTCUSDT", orderId=first["orderId"])
    assert by_first_id.body["status"] == "FILLED"


async def test_look_up_of_an_unknown_order_is_2013(client: SimulatorClient) -> None:
    """Not found has its own code, and another account's order is not found either."""
    unknown = await client.look_up("never-used")
    assert (unknown.status, unknown.code, unknown.body["msg"]) == (400, -2013, "Order does not exist.")
    order = (await client.order()).body
    async with client_of(client.url) as other:
        assert (await other.look_up(order["clientOrderId"])).code == -2013


async def test_trades_can_be_paged_by_id_and_by_time(client: SimulatorClient) -> None:
    """Oldest first; fromId and startTime go forward from there, without them the newest come."""
    for _ in range(4):
        await client.order()
    every = (await client.signed("GET", "/api/v3/myTrades", symbol="BTCUSDT")).body
    ids = [row["id"] for row in every]
    assert len(ids) == 4
    assert ids == sorted(ids)
    newest = (await client.signed("GET", "/api/v3/myTrades", symbol="BTCUSDT", limit=2)).body
    assert [row["id"] for row in newest] == ids[-2:]
    onward = (await client.signed("GET", "/api/v3/myTrades", symbol="BTCUSDT", fromId=ids[1], limit=2)).body
    assert [row["id"] for row in onward] == ids[1:3]
    timed = (await client.signed("GET", "/api/v3/myTrades", symbol="BTCUSDT", startTime=every[0]["time"])).body
    assert [row["id"] for row in timed] == ids


async def test_orders_can_be_paged_by_id_and_by_time(client: SimulatorClient) -> None:
    """allOrders knows one symbol's orders of any status; orderId and startTime go forward, endTime is the last millisecond shown."""
    made = [(await client.order()).body["orderId"] for _ in range(2)]
    async with asyncio.timeout(60):
        begin = now_ms()
        while now_ms() <= begin + 1:
            await asyncio.sleep(0.001)
    made += [(await client.limit("30000")).body["orderId"] for _ in range(2)]
    await client.order(symbol="ETHUSDT", quantity="0.01")

    async def ids(**parameters: int) -> list[int]:
        return [row["orderId"] for row in (await client.signed("GET", "/api/v3/allOrders", symbol="BTCUSDT", **parameters)).body]

    assert await ids() == made
    assert await ids(limit=3) == made[1:]
    assert await ids(orderId=made[1], limit=2) == made[1:3]
    assert await ids(startTime=begin + 1) == made[2:]
    assert await ids(endTime=begin) == made[:2]
    assert await ids(startTime=begin + 60_000) == []


async def test_withdrawal_and_deposit_move_money_once_and_show_in_the_history(client: SimulatorClient) -> None:
    """A withdrawal leaves at once and completes; one to a failing address is paid back; a deposit is credited later."""
    good = await client.signed(
        "POST", "/sapi/v1/capital/withdraw/apply", coin="USDT", amount="100", address="Taddress", network="TRX", withdrawOrderId="w-1"
    )
    failing = await client.signed("POST", "/sapi/v1/capital/withdraw/apply", coin="USDT", amount="50", address="FAILaddress", network="TRX")
    assert (await client.balances())["USDT"][0] == D(9999850)
    deposit = await client.admin("POST", "deposits", {"api_key": client.api_key, "asset": "USDT", "amount": "7"})
    poor = await client.signed("POST", "/sapi/v1/capital/withdraw/apply", coin="USDT", amount="100000000", address="Taddress")
    assert poor.code == -4026

    async def withdrawals_ended() -> bool:
        rows = (await client.signed("GET", "/sapi/v1/capital/withdraw/history", coin="USDT")).body
        history = {row["id"]: row["status"] for row in rows}
        assert history[good.body["id"]] in (4, 6)
        assert history[failing.body["id"]] in (4, 5)
        return 4 not in history.values()

    await until(withdrawals_ended)
    [named] = (await client.signed("GET", "/sapi/v1/capital/withdraw/history", withdrawOrderId="w-1")).body
    assert (named["id"], named["amount"]) == (good.body["id"], "100.00000000")

    async def deposit_credited() -> bool:
        [row] = (await client.signed("GET", "/sapi/v1/capital/deposit/hisrec", coin="USDT")).body
        assert (row["txId"], row["amount"]) == (deposit["txId"], "7.00000000")
        return bool(row["status"] == 1)

    await until(deposit_credited)
    assert (await client.balances())["USDT"] == (D(9999907), D(0))


async def test_deposit_that_is_taken_back_is_owed_by_who_has_spent_it(client: SimulatorClient) -> None:
    """It leaves the free balance whatever is left there; what is owed is no breach of the books, and stays so after a restart's count."""
    deposit = await client.admin("POST", "deposits", {"api_key": client.api_key, "asset": "ETH", "amount": "3", "held": True})
    await client.admin("POST", "deposits/mark", {"id": deposit["id"], "status": 8})
    assert "ETH" not in await client.balances() or (await client.balances())["ETH"][0] == 0
    await client.admin("POST", "deposits/credit", {"id": deposit["id"]})
    assert (await client.balances())["ETH"] == (D(3), D(0))
    spent = await client.signed("POST", "/sapi/v1/capital/withdraw/apply", coin="ETH", amount="2", address="0xa", network="ETH")
    assert spent.status == 200
    assert (await client.admin("POST", "deposits/mark", {"id": deposit["id"], "status": 7}))["status"] == 7
    assert (await client.balances())["ETH"] == (D(-2), D(0))
    # Once is enough, and nothing brings it back.
    await client.admin("POST", "deposits/mark", {"id": deposit["id"], "status": 2})
    await client.admin("POST", "deposits/credit", {"id": deposit["id"]})
    assert (await client.balances())["ETH"] == (D(-2), D(0))
    await client.assert_books_hold()


TAPE_PRICES = ("39432.48", "39439.44", "39439.22", "39439.06", "39440.00")


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    path = tmp_path / "tape.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("timestamp", "trade_id", "price", "quantity", "side"))
        for number, price in enumerate(TAPE_PRICES):
            writer.writerow((f"2021-01-08T00:00:00.{number:03d}Z", 700 + number, price, "0.001", "buy"))
    return path


async def test_tape_per_order_gives_each_accepted_order_the_next_row(tmp_path: Path, tape: Path) -> None:
    """Row N goes to the Nth accepted order, refused ones take none, the log names the row, and a restart goes on where it was."""
    options = SimulatorOptions(tmp_path / "exchange", walk_ms=0, tape=tape, tape_mode=TapeMode.PER_ORDER)
    simulator = start(options)
    async with client_of(simulator.url) as client:
        prices = [(await client.order()).body["fills"][0]["price"] for _ in range(2)]
        assert (await client.order("SELL", "50")).code == -2010
        simulator.kill()
        simulator = start(options)
        client.url = simulator.url
        prices += [(await client.order()).body["fills"][0]["price"] for _ in range(2)]
        # An order that rests takes a row too.
        await client.limit("30000")
    assert simulator.stop() == 0
    assert [D(price) for price in prices] == [D(price) for price in TAPE_PRICES[:4]]
    accepted = [record for record in read_log(simulator.log_path) if isinstance(record, OrderAccepted)]
    assert [(record.tape_row, record.tape_trade_id, record.tape_price) for record in accepted] == [
        (number, str(700 + number), D(price)) for number, price in enumerate(TAPE_PRICES)
    ]


async def test_tape_step_sets_the_next_rows_price_and_fills_what_it_crosses(tmp_path: Path, tape: Path) -> None:
    """Nothing moves without a step; a resting order fills when a step's price reaches it."""
    simulator = start(SimulatorOptions(tmp_path / "exchange", walk_ms=0, tape=tape, tape_mode=TapeMode.STEP))
    async with client_of(simulator.url) as client:
        resting = (await client.limit("39439.44", side="SELL")).body
        assert (await client.order()).body["fills"][0]["price"] == "39432.48000000"
        assert (await client.admin("POST", "tape/step"))["row"] == 1
        assert (await client.look_up(resting["clientOrderId"])).body["status"] == "FILLED"
        assert (await client.order()).body["fills"][0]["price"] == "39439.44000000"
        assert (await client.admin("POST", "tape/step", {"rows": 3}))["price"] == "39440.00"
    assert simulator.stop() == 0


async def test_tape_by_the_clock_moves_by_itself(tmp_path: Path, tape: Path) -> None:
    """At normal speed the five rows of four milliseconds pass, and begin again."""
    simulator = start(SimulatorOptions(tmp_path / "exchange", walk_ms=0, tape=tape, tape_mode=TapeMode.CLOCK))
    async with client_of(simulator.url) as client:

        async def began_again() -> bool:
            return bool((await client.admin("GET", "tape"))["row"] >= len(TAPE_PRICES))

        await until(began_again)
    assert simulator.stop() == 0


def test_walk_is_the_same_for_the_same_seed_and_differs_for_another() -> None:
    """A walk is a function of seed, symbol and step; it stays on ticks and within a tenth of its start."""
    symbols = make_symbols(D(5))

    def walked(name: str, seed: int) -> list[Decimal]:
        walk = Walk(symbols[name], seed)
        price, prices = symbols[name].start_price, []
        for _ in range(5_000):
            price = walk.step(price)
            prices.append(price)
        return prices

    for name, symbol in symbols.items():
        first = walked(name, 1)
        assert first == walked(name, 1)
        assert first != walked(name, 2)
        assert len(set(first)) > 10
        assert all(symbol.is_on_tick(price) and abs(price / symbol.start_price - 1) <= D("0.1001") for price in first)


async def test_prices_move_by_themselves_unless_pinned(tmp_path: Path) -> None:
    """An unpinned symbol's price changes; a pinned one's does not; set free, it moves again."""
    simulator = start(SimulatorOptions(tmp_path / "exchange", walk_ms=5))
    async with client_of(simulator.url) as client:

        async def price(symbol: str) -> str:
            return (await client.raw("GET", "/api/v3/ticker/price", query=f"symbol={symbol}")).body["price"]

        await client.pin("1200", "ETHUSDT")
        begin = {symbol: await price(symbol) for symbol in ("SOLUSDT", "BTCUSDT")}

        async def moved(symbol: str) -> bool:
            return await price(symbol) != begin[symbol]

        await until(lambda: moved("SOLUSDT"))
        await until(lambda: moved("BTCUSDT"))
        begin["ETHUSDT"] = await price("ETHUSDT")
        assert begin["ETHUSDT"] == "1200.00000000"
        await client.pin(None, "ETHUSDT")
        await until(lambda: moved("ETHUSDT"))
    assert simulator.stop() == 0


async def test_resting_order_fills_in_steps_where_the_option_says_so(tmp_path: Path) -> None:
    """With --fill-steps 2 the first crossing fills half, the next the rest."""
    simulator = start(replace(SimulatorOptions(tmp_path / "exchange", walk_ms=0), fill_steps=2))
    async with client_of(simulator.url) as client:
        await client.pin("40000")
        resting = (await client.limit("39000", quantity="0.5")).body
        states = []
        for price in ("38999", "38998"):
            await client.pin(price)
            found = (await client.look_up(resting["clientOrderId"])).body
            states.append((found["status"], D(found["executedQty"])))
        assert states == [("PARTIALLY_FILLED", D("0.25")), ("FILLED", D("0.5"))]
        await client.assert_books_hold()
    assert simulator.stop() == 0
