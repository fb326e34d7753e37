"""The gateway against the simulated exchange in its own process: outcomes held against the exchange's own log."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.gateway import Credentials
from infra.exchange.market_data import MarketDataFeed
from pipeline.model.venue import Absent, Confirmed, Found, InDoubt, OrderReference, Refused, Submission
from schemas.orders import Mode, OrderStatus, OrderType, Side, TimeInForce
from schemas.reasons import ReasonCode
from tests.integration.scripted_venue import API_KEY, SECRET, submission

RECEIVE_WINDOW = timedelta(milliseconds=600)
VENUE_TIMEOUT = timedelta(milliseconds=400)


@dataclass
class Simulator:
    url: str
    http: aiohttp.ClientSession
    accounts: dict[str, Credentials] = field(default_factory=dict)

    async def admin(self, method: str, path: str, body: object = None) -> Any:
        async with self.http.request(method, f"{self.url}/simulator/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json(content_type=None)

    async def accepted(self) -> list[str]:
        """The client order ids that the exchange's own log says it accepted."""
        async with self.http.get(f"{self.url}/simulator/log") as response:
            rows = [json.loads(line) for line in (await response.text()).splitlines() if line.strip()]
        return [row["client_order_id"] for row in rows if "time_in_force" in row and "client_order_id" in row]


@asynccontextmanager
async def simulated(tmp_path: Path) -> AsyncIterator[tuple[Simulator, CcxtGateway]]:
    venue_timeout_ms = VENUE_TIMEOUT // timedelta(milliseconds=1)
    arguments = ["--data-dir", str(tmp_path), "--walk-ms", "0", "--parent-pipe", "--venue-timeout-ms", str(venue_timeout_ms)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulator", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        url = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))["url"]
        async with aiohttp.ClientSession() as http:
            simulator = Simulator(url, http)
            balances = {"BTC": "10", "USDT": "1000000"}
            await simulator.admin("POST", "accounts", [{"label": "alice", "api_key": API_KEY, "secret": SECRET, "balances": balances}])
            await simulator.admin("POST", "price", {"symbol": "BTCUSDT", "price": "50000.00"})

            async def credentials(_user_id: str, _api_key_id: str) -> Credentials:
                return Credentials(API_KEY, SECRET)

            gateway = CcxtGateway(
                "binance", credentials, base_url=url, timeout_ms=500, rate_limit=False,
                receive_window=RECEIVE_WINDOW, venue_timeout=VENUE_TIMEOUT,
            )
            try:
                await gateway.markets()
                yield simulator, gateway
            finally:
                await gateway.close()
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 10)


def reference_to(order: Submission) -> OrderReference:
    return OrderReference(
        mode=Mode.LIVE,
        order_id=order.order_id, client_order_id=order.client_order_id, exchange_order_id=None, exchange=order.exchange,
        user_id=order.user_id, api_key_id=order.api_key_id, symbol=order.symbol, submitting_at=order.submitting_at,
    )


async def after_the_horizon(gateway: CcxtGateway, order: Submission) -> object:
    """What a look-up says once the venue can no longer accept the order."""
    horizon = order.submitting_at + gateway.receive_window + gateway.venue_timeout
    await asyncio.sleep(max(0.0, (horizon - datetime.now(UTC)).total_seconds()))
    return await gateway.look_up(reference_to(order))


async def test_simulator_market_order_is_filled_with_its_fee(tmp_path: Path) -> None:
    """A market order is confirmed filled, and a look-up says the same, fees included."""
    async with simulated(tmp_path) as (simulator, gateway):
        order = submission(order_type=OrderType.MARKET, price=None)
        outcome = await gateway.submit(order)
        assert isinstance(outcome, Confirmed), outcome
        assert outcome.order.order_status is OrderStatus.FILLED
        assert outcome.order.cum_quantity == order.quantity
        assert [fee.asset for fee in outcome.order.fees] == ["BTC"]
        found = await gateway.look_up(reference_to(order))
        assert isinstance(found, Found), found
        assert found.order.fees == outcome.order.fees
        assert (found.order.cum_quote, found.order.exchange_order_id) == (outcome.order.cum_quote, outcome.order.exchange_order_id)
        assert await simulator.accepted() == [order.client_order_id]


async def test_simulator_resting_order_is_canceled(tmp_path: Path) -> None:
    """A limit order far from the price rests, is found, and is canceled once; a second cancel finds it canceled."""
    async with simulated(tmp_path) as (_, gateway):
        order = submission(price=Decimal("40000.00"))
        outcome = await gateway.submit(order)
        assert isinstance(outcome, Confirmed), outcome
        assert outcome.order.order_status is OrderStatus.NEW
        for _ in range(2):
            canceled = await gateway.cancel(reference_to(order))
            assert isinstance(canceled, Confirmed), canceled
            assert canceled.order.order_status is OrderStatus.CANCELED


REFUSED: list[tuple[str, dict[str, object], ReasonCode]] = [
    ("insufficient", {"quantity": Decimal(100)}, ReasonCode.BALANCE_INSUFFICIENT),
    ("post_only_would_take", {"order_type": OrderType.LIMIT_MAKER, "price": Decimal("60000.00")}, ReasonCode.EXCHANGE_REFUSED),
    ("below_notional", {"quantity": Decimal("0.00001")}, ReasonCode.EXCHANGE_REFUSED),
]


@pytest.mark.parametrize(("changes", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_simulator_refusals_are_proven(tmp_path: Path, changes: dict[str, object], reason: ReasonCode) -> None:
    """The exchange's refusal has its reason code, and its log knows no order."""
    async with simulated(tmp_path) as (simulator, gateway):
        outcome = await gateway.submit(submission(**changes))
        assert isinstance(outcome, Refused), outcome
        assert outcome.reason_code is reason
        assert await simulator.accepted() == []


FAULTS = [
    "hang_before_accept", "hang_after_accept", "drop_before_accept", "drop_after_accept", "http_500_before_accept", "http_500_after_accept",
    "http_502_before_accept", "http_502_after_accept", "http_503_before_accept", "http_503_after_accept", "http_503_unavailable",
    "http_504_before_accept", "http_504_after_accept", "truncated_body", "cut_json", "html_200", "empty_json_200", "duplicate",
]
EXECUTED_BY_NATURE = {"truncated_body", "cut_json", "html_200", "empty_json_200", "duplicate"}


async def test_simulator_every_fault_is_in_doubt_and_the_look_up_tells_the_truth(tmp_path: Path) -> None:
    """Each fault leaves the order in doubt; after the horizon the look-up is Found exactly where the exchange's log has the order."""
    async with simulated(tmp_path) as (simulator, gateway):
        orders = {kind: submission(order_type=OrderType.MARKET, price=None) for kind in FAULTS}
        rules = [{"kind": kind, "next_n": 1, "client_order_id": order.client_order_id} for kind, order in orders.items()]
        await simulator.admin("POST", "faults", rules)
        for order in orders.values():
            sent = replace(order, submitting_at=datetime.now(UTC))
            outcome = await gateway.submit(sent)
            assert isinstance(outcome, InDoubt), outcome
        last = sent
        await after_the_horizon(gateway, last)
        accepted = await simulator.accepted()
        assert len(accepted) == len(set(accepted))
        for kind, order in orders.items():
            found = await gateway.look_up(reference_to(order))
            expected = Found if order.client_order_id in accepted else Absent
            assert type(found) is expected, (kind, found)
        executed = {kind for kind, order in orders.items() if order.client_order_id in accepted}
        assert executed == {kind for kind in FAULTS if kind.endswith("after_accept") or kind in EXECUTED_BY_NATURE}


async def test_simulator_rate_limit_is_refused(tmp_path: Path) -> None:
    """429 is proven not accepted."""
    async with simulated(tmp_path) as (simulator, gateway):
        await simulator.admin("POST", "faults", [{"kind": "rate_limit", "next_n": 1}])
        outcome = await gateway.submit(submission())
        assert isinstance(outcome, Refused), outcome
        assert outcome.reason_code is ReasonCode.EXCHANGE_UNAVAILABLE
        assert await simulator.accepted() == []


async def test_simulator_stalled_past_the_horizon_is_in_doubt_and_then_absent(tmp_path: Path) -> None:
    """An exchange that stalls past the horizon leaves the order in doubt, and the look-up after it proves that it was never accepted."""
    async with simulated(tmp_path) as (simulator, gateway):
        await simulator.admin("POST", "faults", [{"kind": "slow", "next_n": 1, "delay_ms": 2_000}])
        order = submission(time_in_force=TimeInForce.IOC, side=Side.SELL)
        assert isinstance(await gateway.submit(order), InDoubt)
        assert isinstance(await after_the_horizon(gateway, order), Absent)


async def test_simulator_market_data_has_markets_and_prices(tmp_path: Path) -> None:
    """A feed on the simulator knows every symbol's rules and price."""
    async with simulated(tmp_path) as (_, gateway):
        feed = MarketDataFeed(gateway, timedelta(milliseconds=50))
        assert await feed.poll()
        assert feed.snapshot.quotes["BTC/USDT"].price == Decimal(50_000)
        assert set(feed.snapshot.quotes) == set(feed.snapshot.markets)
