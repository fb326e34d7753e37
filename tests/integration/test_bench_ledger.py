"""The benchmark of the ledger runs with one command, compares what is the same on both sides, and leaves nothing behind."""

import asyncio
import itertools
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import asyncpg
import orjson
import pytest

from bench import ledger as bench
from bench.ledger import DECIDED, FLOOR, STORED, BenchFailed, Figures, Options, Traded, parse, times_the_floor
from embedded.services import Endpoints


async def test_bench_ledger_short_run_writes_every_row(servers: Endpoints, tmp_path: Path) -> None:
    """Every row for one user and for many, with minimum, median and maximum, and the ratios; the database is gone afterwards."""
    output = tmp_path / "ledger.json"
    arguments = ("--users", "30", "--batch", "20", "--batches", "2", "--rounds", "2", "--output", str(output))
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.ledger", *arguments),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ORCHESTRATOR_DATABASE_URL": servers.database_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(120):
            printed, said = await running.communicate()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    assert running.returncode == 0, said.decode()
    report = orjson.loads(output.read_bytes())
    assert [(row["users"], row["name"]) for row in report["rows"]] == list(itertools.product((1, 30), (FLOOR, STORED, DECIDED)))
    for row in report["rows"]:
        assert row["orders"] == 40
        for figure in ("holds_per_second", "fills_per_second", "transfers_per_second"):
            assert 0 < row[figure]["min"] <= row[figure]["median"] <= row[figure]["max"], (row["name"], figure)
    assert [(one["users"], one["name"]) for one in report["times_the_floor"]] == list(itertools.product((1, 30), (STORED, DECIDED)))
    assert FLOOR in printed.decode()
    server = await asyncpg.connect(servers.database_url, timeout=10)
    try:
        # Only this run's own: others may run beside it.
        names = [line.partition(":")[0] for line in said.decode().splitlines() if line.startswith("bench_ledger_")]
        assert len(names) == 1
        assert await server.fetchval("SELECT count(*) FROM pg_database WHERE datname = ANY($1)", names) == 0
    finally:
        await server.close(timeout=10)


async def test_bench_ledger_fails_when_a_side_writes_less(servers: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """A floor that leaves out what it must move would be compared with more than itself."""
    everything = bench._moved

    def less(transfers: object) -> list[tuple[str, str, str, str, Decimal, Decimal]]:
        return everything(transfers)[1:]  # type: ignore[arg-type]

    monkeypatch.setattr(bench, "_moved", less)
    with pytest.raises(BenchFailed, match="accounts in floor_balances are not what their transfers make them"):
        await bench._run(Options(30, 20, 1, 1, Path()), servers.database_url)


def test_bench_ledger_ratios_are_taken_within_a_round() -> None:
    """A round in which the machine was busy is compared with itself."""
    rounds = [
        [Figures(FLOOR, 1, 10, 1, 1), Figures(STORED, 1, 10, 1, 2)],
        [Figures(FLOOR, 1, 10, 10, 10), Figures(STORED, 1, 10, 10, 20)],
    ]
    assert times_the_floor(rounds)[STORED, 1].min == times_the_floor(rounds)[STORED, 1].max == 1.5


@pytest.mark.parametrize("wrong", [("--rounds", "0"), ("--users", "10", "--batch", "11")])
def test_bench_ledger_refuses_options_that_measure_nothing(wrong: tuple[str, ...]) -> None:
    """Each row needs a user per order, and a round."""
    with pytest.raises(SystemExit):
        parse(wrong)


def test_bench_order_releases_exactly_what_it_did_not_pay() -> None:
    """So that nothing is held in the end, on either side."""
    order = Traded("o", "u")
    assert order.held > order.paid > 0
    assert order.received > order.fee > 0
