"""What a worker tells supervisors and Prometheus."""

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agents.process.worker import ExitCode
from infra.health import AddressTaken, Health, HealthServer
from tests.fragile_servers import free_port
from tests.installation import ended, installation, order

START_SECONDS_MAX = 120


async def get(address: str, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"{address}{path}") as response:
        return response.status, await response.text()


async def test_health_server_tells_problems_by_status_and_text() -> None:
    """200 and 503 are for machines, the sentences for people; nothing is cached, and other paths do not exist."""
    problems: list[str] = []
    server = HealthServer("127.0.0.1", 0, lambda: Health(()), lambda: Health(tuple(problems)))
    await server.start()
    try:
        assert await get(server.address, "/livez") == (200, '{"status": "ok", "problems": []}')
        assert await get(server.address, "/readyz") == (200, '{"status": "ok", "problems": []}')
        problems.append("the broker has not answered for 20 s")
        assert await get(server.address, "/readyz") == (503, '{"status": "failed", "problems": ["the broker has not answered for 20 s"]}')
        assert (await get(server.address, "/"))[0] == 404
    finally:
        await server.stop()


async def test_health_server_whose_port_is_taken_says_what_to_set() -> None:
    """The address and the two settings are named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = HealthServer("127.0.0.1", port, lambda: Health(()), lambda: Health(()))
        with pytest.raises(AddressTaken, match=rf"127\.0\.0\.1:{port} .* ORCHESTRATOR_WEB_PORT"):
            await server.start()


async def test_worker_whose_port_is_taken_ends_with_the_code_for_settings(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """It ends before it has read anything, and another start would end the same way."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            worker = made.start_worker(ORCHESTRATOR_WEB_PORT=str(taken.getsockname()[1]))
            assert await ended(worker, START_SECONDS_MAX) == ExitCode.SETTINGS, made.worker_log(0)
        end = made.end(0)
        assert end["error"] == "AddressTaken"


async def test_metrics_count_what_was_done(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """After ten orders and an unreadable record: records and outputs by topic, batches, nothing behind, nothing in doubt, what runs."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        port = free_port()
        made.start_worker(ORCHESTRATOR_WEB_PORT=str(port))
        sent = await made.publish([*(order(number) for number in range(10)), b"not json"])
        await made.final_results(sent, START_SECONDS_MAX)
        topics = made.topics
        async with asyncio.timeout(30):
            while True:
                found = samples((await get(f"http://127.0.0.1:{port}", "/metrics"))[1])
                behind = [value for (name, _), value in found.items() if name == "orchestrator_records_behind"]
                if len(behind) == 8 and not any(behind) and ("orchestrator_orders_in_doubt", ("binance",)) in found:
                    break
                await asyncio.sleep(0.2)
        assert found["orchestrator_records_total", (topics.requests,)] == 11
        assert found["orchestrator_records_total", (topics.orders("binance"),)] == 10
        assert found["orchestrator_outputs_total", (topics.requests_dlq,)] == 1
        assert found["orchestrator_outputs_total", (topics.orders("binance"),)] == 10
        results = len(await made.results())
        assert found["orchestrator_outputs_total", (topics.results,)] == results
        assert found["orchestrator_batch_seconds_count", (topics.requests,)] >= 1
        assert found["orchestrator_partitions_assigned", ()] == 8
        assert found["orchestrator_orders_in_doubt", ("binance",)] == 0
        assert [value for (name, _), value in found.items() if name == "orchestrator_build_info"] == [1]


async def test_orders_in_doubt_are_told(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """While an order's outcome is not proven, the gauges show it and for how long, and looks that prove nothing are counted."""
    # A horizon longer than the test: the order stays in doubt.
    async with installation(kafka, database_url, unique_prefix, tmp_path, venue_timeout_ms=60_000) as made:
        await made.faults({"kind": "http_500_before_accept", "next_n": 1})
        port = free_port()
        made.start_worker(ORCHESTRATOR_WEB_PORT=str(port))
        await made.event(0, "worker_started", START_SECONDS_MAX)
        await made.publish([order(1)])
        async with asyncio.timeout(60):
            while True:
                found = samples((await get(f"http://127.0.0.1:{port}", "/metrics"))[1])
                in_doubt = found.get(("orchestrator_orders_in_doubt", ("binance",))) == 1
                if in_doubt and found.get(("orchestrator_looks_unproven_total", ("order",)), 0) > 0:
                    break
                await asyncio.sleep(0.2)
        assert found["orchestrator_withdrawals_in_doubt", ("binance",)] == 0
        assert found["orchestrator_doubt_age_seconds", ("binance",)] > 0


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample of a Prometheus page by name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
