"""The benchmark of the gate runs with one command, measures requests that pass, and leaves nothing behind."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import orjson
import pytest

from bench.gate import Figures, Options, as_json, as_table, kept_rates, parse
from bench.gate_history import Size, build, hot_users, user_id_of
from bench.gate_requests import Issuer, batches_of, secret_of
from bench.gate_rows import TEN_CHECKS, BenchFailed, Gate, rows
from embedded.services import Endpoints
from infra.keyring import Keyring, master_keys, new_master_key
from infra.postgres.database import connect
from pipeline.gate.ladder import TRADE_GATE

_NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
_ROWS = ("0 checks", "10 checks", "all checks", "all checks, unknown tokens", "whole step")


async def test_bench_gate_short_run_writes_every_figure_of_every_row(servers: Endpoints, tmp_path: Path) -> None:
    """Every row at both sizes, with minimum, median and maximum of each figure; the databases are gone afterwards."""
    output = tmp_path / "gate.json"
    arguments = ("--users", "300", "--orders", "3000", "--times", "2", "--batch", "50", "--batches", "4", "--rounds", "1")
    bench = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.gate", *arguments, "--output", str(output)),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ORCHESTRATOR_DATABASE_URL": servers.database_url},
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
    assert [(row["name"], row["orders"]) for row in report["rows"]] == [(name, orders) for name in _ROWS for orders in (3_000, 6_000)]
    for row in report["rows"]:
        assert row["requests"] == 200
        for figure in ("requests_per_second", "requests_per_core_second", "own_cpu_us"):
            assert 0 < row[figure]["min"] <= row[figure]["median"] <= row[figure]["max"], (row["name"], figure)
    assert report["checks"] == len(TRADE_GATE.checks)
    assert set(report["kept"]) == set(_ROWS)
    assert all(name in printed.decode() for name in _ROWS)
    server = await asyncpg.connect(servers.database_url, timeout=10)
    try:
        # Only this run's own: others may run beside it.
        names = [line.partition(":")[0] for line in said.decode().splitlines() if line.startswith("bench_gate_")]
        assert len(names) == 2
        assert await server.fetchval("SELECT count(*) FROM pg_database WHERE datname = ANY($1)", names) == 0
    finally:
        await server.close(timeout=10)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE users SET status = 'frozen' WHERE user_id = $1", "USER_INACTIVE"),
        ("UPDATE api_keys SET status = 'revoked' WHERE user_id = $1", "API_KEY_REVOKED"),
        ("UPDATE second_factors SET locked = true WHERE user_id = $1", "TOTP_LOCKED"),
    ],
)
async def test_bench_gate_fails_when_a_request_is_refused(empty_database_url: str, change: str, said: str) -> None:
    """A user who may not trade ends each row that looks at it; before, every row passes the same requests."""
    keyring, issuer = Keyring(master_keys(new_master_key())), Issuer(_NOW)
    users = [user_id_of(rank, 60) for rank in range(60)]
    await build(empty_database_url, Size(60, 600), _NOW, keyring, ((user_id, secret_of(user_id)) for user_id in users))
    gate, measured = Gate.of(keyring, issuer), rows()
    first, second = batches_of(60, 30, 2, _NOW, issuer)
    database = await connect(empty_database_url, 1, 30)
    try:
        for row in measured.values():
            await row(database, gate, first)
        async with database.connection() as connection:
            await connection.execute(change, second.records[-1].key.decode())
        looked_at = [name for name in _ROWS[1:] if name != "10 checks" or not said.startswith("TOTP")]
        for name in looked_at:
            with pytest.raises(BenchFailed, match=said):
                await measured[name](database, gate, second)
    finally:
        await database.close()


async def test_bench_gate_history_is_as_large_as_asked_for(empty_database_url: str) -> None:
    """So many orders, and each hot user's on top in the newest day; nothing lies after the moment at which it ends."""
    await build(empty_database_url, Size(100, 1_200), _NOW, Keyring(master_keys(new_master_key())), ())
    connection = await asyncpg.connect(empty_database_url, timeout=10)
    try:
        hot = [user_id_of(rank, 100) for rank in range(hot_users(100))]
        assert len(hot) == 10
        assert await connection.fetchval("SELECT count(*) FROM orders") == 1_200 + 10 * 2_000
        assert await connection.fetchval("SELECT count(*) FROM orders WHERE decided_at > $1", _NOW) == 0
        days = "SELECT user_id, sum(trades) AS trades, sum(volume_usd) AS volume FROM user_days GROUP BY 1 ORDER BY 1"
        assert await connection.fetch(days) == await connection.fetch(
            "SELECT user_id, count(*) AS trades, sum(usd_value) AS volume FROM orders GROUP BY 1 ORDER BY 1"
        )
        newest = await connection.fetch("SELECT user_id, count(*) FROM orders WHERE source_offset > 1200 GROUP BY 1")
        assert {tuple(row) for row in newest} == {(user_id, 2_000) for user_id in hot}
    finally:
        await connection.close(timeout=10)


def test_bench_gate_batches_have_distinct_users_and_repeat() -> None:
    """Nobody is twice in a batch, one in 25 is hot, and the next run sends the same requests."""
    issuer = Issuer(_NOW)
    drawn = list(batches_of(1_000, 100, 3, _NOW, issuer))
    hot = {user_id_of(rank, 1_000).encode() for rank in range(hot_users(1_000))}
    for batch in drawn:
        users = {record.key for record in batch.records}
        assert len(users) == 100
        assert len(users & hot) == 4
    for batch, again in zip(drawn, batches_of(1_000, 100, 3, _NOW, issuer), strict=True):
        assert [record.value for record in batch.records] == [record.value for record in again.records]


def test_bench_gate_ten_checks_are_ten() -> None:
    """The first version's, each still one of the gate's."""
    assert len(TEN_CHECKS) == 10
    assert set(TEN_CHECKS) <= set(TRADE_GATE.checks)


def test_bench_gate_compares_histories_within_a_round() -> None:
    """A slow round makes both sizes slow; what the larger history leaves is taken within it."""

    def figures(orders: int, seconds: float) -> Figures:
        return Figures("all checks", orders, 1_000, seconds, seconds / 2, seconds / 4)

    rounds = [[figures(10, 1.0), figures(100, 1.25)], [figures(10, 4.0), figures(100, 8.0)], [figures(10, 2.0), figures(100, 2.0)]]
    per_second, per_core_second = kept_rates(rounds)["all checks"]
    assert (per_second.min, per_second.median, per_second.max) == (0.5, 0.8, 1.0)
    assert per_core_second == per_second
    options = Options(100, 10, 10, 5, 1, 3, Path("unused"))
    report = orjson.loads(as_json(rounds, options, {"cores": 2}))
    assert report["kept"] == {"all checks": {"requests_per_second": 0.8, "requests_per_core_second": 0.8}}
    assert report["rows"][0]["requests_per_second"] == {"min": 250, "median": 500, "max": 1_000}
    assert report["rows"][0]["requests_per_core_second"]["max"] == pytest.approx(1_000 / 0.75, abs=0.001)
    assert "| all checks | 100 | 125 / 500 / 800 |" in as_table(rounds, {"cores": 2})


@pytest.mark.parametrize("wrong", [("--times", "1"), ("--users", "900"), ("--batch", "0"), ("--rounds", "0")])
def test_bench_gate_refuses_options_that_measure_nothing(wrong: tuple[str, str]) -> None:
    """Status 2, as for every wrong command line."""
    with pytest.raises(SystemExit) as ended:
        parse(wrong)
    assert ended.value.code == 2
    assert replace(parse(()), output=Path()).batch == 500
