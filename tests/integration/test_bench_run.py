"""The benchmark runs with one command and writes what the contract says."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from bench.load import BenchFailed, Latencies, key_of_final_result, percentile
from bench.report import Figures, as_json, as_table, ratios
from embedded.services import Endpoints

_ROWS = ("orchestrator", "faust_at_least_once", "aiokafka_copy")
_FIGURES = ("requests_per_second", "p50_ms", "p99_ms", "cpu_s_per_1000", "rss_mb")


class _Record:
    def __init__(self, **result: object) -> None:
        self.value = orjson.dumps(result)


async def test_bench_short_run_writes_every_figure_of_every_row(servers: Endpoints, tmp_path: Path) -> None:
    """Every row answers all its requests; the JSON has the contract's names, and minimum, median and maximum of each figure."""
    output = tmp_path / "latest.json"
    environment = {
        **os.environ,
        "ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS": servers.kafka_bootstrap_servers,
        "ORCHESTRATOR_DATABASE_URL": servers.database_url,
    }
    arguments = ("--rounds", "1", "--requests", "60", "--pace", "20", "--paced-seconds", "1", "--output", str(output), "--rows", *_ROWS)
    bench = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.run", *arguments),
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(240):
            printed, said = await bench.communicate()
    finally:
        if bench.returncode is None:
            bench.kill()
            await bench.wait()
    assert bench.returncode == 0, said.decode()
    report = orjson.loads(output.read_bytes())
    assert [row["name"] for row in report["rows"]] == list(_ROWS)
    for row in report["rows"]:
        for figure in _FIGURES:
            # The system counts a process's time in hundredths of a second: a short copy may take none.
            assert row[figure]["min"] > 0 or figure == "cpu_s_per_1000", (row["name"], figure)
            assert 0 <= row[figure]["min"] <= row[figure]["median"] <= row[figure]["max"], (row["name"], figure)
    assert report["ratios"]["orchestrator/faust_at_least_once"] > 0
    assert report["machine"]["cores"] == os.cpu_count()
    assert all(name in printed.decode() for name in _ROWS)


def _figures(name: str, rate: float, p50_ms: float) -> Figures:
    return Figures(name, 100, rate, 1.5, 200.0, {50: Latencies(p50_ms, 2 * p50_ms)})


def test_bench_ratios_compare_rows_of_the_same_round() -> None:
    """A slow round makes both rows slow; its ratio is taken within it."""
    rounds = [
        [_figures("orchestrator", 1_000, 20), _figures("faust_at_least_once", 100, 30)],
        [_figures("orchestrator", 400, 50), _figures("faust_at_least_once", 50, 60)],
        [_figures("orchestrator", 900, 25), _figures("faust_at_least_once", 75, 40)],
    ]
    spread = ratios(rounds)["orchestrator/faust_at_least_once"]
    assert (spread.min, spread.median, spread.max) == (8, 10, 12)
    report = orjson.loads(as_json(rounds, {"cores": 2}))
    assert report["ratios"] == {"orchestrator/faust_at_least_once": 10}
    assert report["rows"][0]["p99_ms"] == {"min": 40, "median": 50, "max": 100}
    assert "| orchestrator | 400 / 900 / 1,000 |" in as_table(rounds, {"cores": 2})


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0.1, 1)])
def test_bench_percentile_is_the_nearest_rank(percent: float, expected: int) -> None:
    """Of 1 … 100 the 99th percentile is 99, not something between two values."""
    assert percentile(range(1, 101), percent) == expected


def test_bench_counts_final_results_of_executed_orders_only() -> None:
    """Progress does not count as an answer, and a run of refusals is no benchmark."""
    assert key_of_final_result(_Record(final=False, status="accepted", idempotency_key="k")) is None
    assert key_of_final_result(_Record(final=True, status="executed", idempotency_key="k")) == "k"
    with pytest.raises(BenchFailed, match="rejected"):
        key_of_final_result(_Record(final=True, status="rejected", idempotency_key="k", reason="no price"))
