"""The exchange goes away and comes back: nothing is waved through, what waits is executed or expires, and other work goes on."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import aiohttp
import asyncpg

from tests.fragile_servers import Line
from tests.installation import Installation, ended, installation, order
from tests.promises import assert_promises_hold

START_SECONDS_MAX = 120
ANSWER_SECONDS_MAX = 120


@asynccontextmanager
async def line_to_exchange(made: Installation) -> AsyncIterator[tuple[Line, dict[str, str]]]:
    """A line to the simulated exchange that can be cut, and what makes a worker use it."""
    target = urlsplit(made.simulator_url)
    async with Line(target.hostname or "", target.port or 0) as line:
        yield line, {"ORCHESTRATOR_EXCHANGE_URLS": json.dumps({"binance": f"http://127.0.0.1:{line.port}"})}


def soon(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


async def test_exchange_that_is_down_at_start_refuses_orders_and_nothing_else(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Orders are refused with their reason, other records are answered, the worker is alive but not ready; later the same worker trades."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made, line_to_exchange(made) as (line, environment):
        await line.cut()
        worker = made.start_worker(**environment)
        address = (await made.event(0, "worker_started", START_SECONDS_MAX))["health"]
        sent = await made.publish([order(1), b"not json"])
        finals = await made.final_results(sent, ANSWER_SECONDS_MAX)
        assert {result["reason_code"] for result in finals.values()} == {"EXCHANGE_UNAVAILABLE", "SCHEMA_INVALID"}
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{address}/livez") as response:
                assert response.status == 200
            async with session.get(f"{address}/readyz") as response:
                assert (await response.json())["problems"] == ["binance has not told its markets yet"]
        await line.fix()
        await until_ready(address)
        finals = await made.final_results(await made.publish([order(2)]), ANSWER_SECONDS_MAX)
        assert [result["status"] for result in finals.values() if result["idempotency_key"] == "key-2"] == ["executed"]
        assert worker.poll() is None
        assert len(made.accepted_orders()) == 1
        await assert_promises_hold(made)


async def until_ready(address: str) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{address}/readyz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.2)


async def test_exchange_that_goes_away_under_load_delays_orders_until_their_deadline(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Orders accepted before or in the outage wait, also through a worker's death, and meanwhile nothing is tried, written or put in doubt;
    those with time left are executed once, or, where the call was cut and the exchange has nothing of it, end as not executed; the others
    expire; later requests are refused as soon as the price is too old."""
    async with (
        # Prices stay valid longer than the test reads none, so that orders are accepted that cannot be sent.
        installation(kafka, database_url, unique_prefix, tmp_path, price_age_ms_max=8_000) as made,
        line_to_exchange(made) as (line, environment),
    ):
        environment["ORCHESTRATOR_PRICE_AGE_MS_MAX"] = "8000"
        first = made.start_worker(**environment)
        await made.final_results(await made.publish([order(0)]), START_SECONDS_MAX)
        # Cut in the middle of calls: some of these are in doubt.
        patient = await made.publish([order(number) for number in range(1, 33)])
        await line.cut()
        cut_at = monotonic()
        patient += await made.publish([order(number) for number in range(33, 41)])
        hasty = await made.publish([order(number, expires_at=soon(4)) for number in range(41, 45)])
        expired = await made.final_results(hasty, ANSWER_SECONDS_MAX)
        codes = {expired[record.partition, record.offset]["reason_code"] for record in hasty}
        assert codes <= {"REQUEST_EXPIRED", "EXCHANGE_UNAVAILABLE"}, codes
        # Whatever was under way has come to rest: it waits for the exchange, or its call was cut and it is in doubt.
        doubts, events = await at_rest(database_url, 45 - 4)
        first.kill()
        await ended(first, 10)
        made.start_worker(**environment)
        await made.event(1, "partitions_assigned", START_SECONDS_MAX)
        # Longer than several pauses between attempts.
        await asyncio.sleep(4)
        assert await at_rest(database_url, 45 - 4) == (doubts, events)
        await asyncio.sleep(max(0.0, cut_at + 9 - monotonic()))
        late = await made.publish([order(45)])
        refused = await made.final_results(late, ANSWER_SECONDS_MAX)
        assert refused[late[0].partition, late[0].offset]["reason_code"] in {"PRICE_UNAVAILABLE", "EXCHANGE_UNAVAILABLE"}
        await line.fix()
        finals = await made.final_results(patient, ANSWER_SECONDS_MAX)
        answers = [finals[record.partition, record.offset] for record in patient]
        ends = [(answer["status"], answer["reason_code"]) for answer in answers]
        assert set(ends) <= {("executed", None), ("rejected", "ORDER_NOT_EXECUTED")}, ends
        assert ends.count(("rejected", "ORDER_NOT_EXECUTED")) <= doubts, ends
        assert len(made.accepted_orders()) == 1 + ends.count(("executed", None))
        await assert_promises_hold(made)


async def at_rest(database_url: str, orders_min: int) -> tuple[int, int]:
    """(orders in doubt, audit events) as soon as so many orders were accepted and none of them is about to be sent."""
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        async with asyncio.timeout(60):
            while True:
                accepted, moving, doubts, events = await connection.fetchrow(
                    "SELECT count(*), count(*) FILTER (WHERE executed_at IS NULL AND status <> 'in_doubt' AND retry_at IS NULL), "
                    "count(*) FILTER (WHERE status = 'in_doubt'), (SELECT count(*) FROM audit_events) FROM orders"
                )
                if accepted >= orders_min and moving == 0:
                    return doubts, events
                await asyncio.sleep(0.2)
    finally:
        await connection.close()


async def test_exchange_that_is_slow_under_load_is_waited_for(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Answers that come later than the worker waits for them leave orders in doubt, which look-ups settle: those that the exchange took are
    executed once, those that it did not are not sent again."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        worker = made.start_worker()
        await made.event(0, "partitions_assigned", START_SECONDS_MAX)
        await made.faults(
            {"kind": "hang_after_accept", "next_n": 4, "path": "/api/v3/order"},
            {"kind": "hang_before_accept", "next_n": 4, "path": "/api/v3/order"},
            {"kind": "slow", "delay_ms": 700, "next_n": 8, "path": "/api/v3/order"},
        )
        sent = await made.publish([order(number) for number in range(32)])
        finals = await made.final_results(sent, ANSWER_SECONDS_MAX)
        ends = [(result["status"], result["reason_code"]) for result in finals.values()]
        assert set(ends) <= {("executed", None), ("rejected", "ORDER_NOT_EXECUTED")}, ends
        # Four calls hung before the exchange took anything in.
        assert ends.count(("rejected", "ORDER_NOT_EXECUTED")) == 4
        assert len(made.accepted_orders()) == 28
        assert worker.poll() is None
        await assert_promises_hold(made)
