"""`python -m bench.gate`: what the gate costs, from a record as it lies on the topic to the decision, with a little history and with much.

Invariants:
1. This process and the database's process that serves it share one core; the database's other processes may use the others. Beside the
   time that passed stands the CPU time of both, which what else the machine does changes less.
2. Rounds are interleaved: every row runs at every size once before any runs again. Ratios are taken within a round.
3. A row gets the same batches at every size, and in each round others.
4. A run in which a request is not accepted fails the whole benchmark: a refusal ends the gate early.
5. What it makes is removed when it ends: the databases, and the server that was started for them with its files.

Start with `run_bench`. The history is that of bench/gate_history, the requests those of bench/gate_requests, the rows those of
bench/gate_rows.
"""

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import orjson
import psutil

from bench.gate_history import HOT_ORDERS, Size, build, hot_users, user_id_of
from bench.gate_requests import Issuer, Prepared, batches_of, secret_of
from bench.gate_rows import FULL, BenchFailed, Gate, Row, loaded, rows
from bench.report import Spread
from bench.run import machine
from embedded.data_dir import locked_data_directory
from embedded.database import EmbeddedDatabase
from embedded.errors import ServicesError
from infra.keyring import Keyring, master_keys, new_master_key
from infra.postgres.database import Database, connect
from infra.settings import Settings
from pipeline.gate.ladder import TRADE_GATE

_LATEST: Final = Path(__file__).parent / "latest-gate.json"
_TIMEOUT_SECONDS: Final = 60
# A database of 10 GB is given more than the embedded one's 256 MB of buffers: PostgreSQL's manual starts at a quarter of the memory, which
# is shared with others here.
_MEMORY_SHARE: Final = 6
# Building writes all of it at once: without these most of the time goes to checkpoints and to writing indexes twice.
_BUILDING: Final = {"max_wal_size": "16GB", "wal_level": "minimal", "max_wal_senders": "0"}
# Statements are planned anew for their first five runs.
_WARM_UP_BATCHES: Final = 8
# By day: the patterns of the night are not what is measured.
_NOW: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Options:
    """`times` is how much larger the second history is; `batches` how many each row takes in a round."""

    users: int
    orders: int
    times: int
    batch: int
    batches: int
    rounds: int
    output: Path


@dataclass(frozen=True, slots=True)
class Figures:
    """One run of one row at one size. `per_core_second` is how many requests a second of the shared core's time is enough for."""

    row: str
    orders: int
    requests: int
    seconds: float
    own_cpu_seconds: float
    database_cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def per_core_second(self) -> float:
        return self.requests / (self.own_cpu_seconds + self.database_cpu_seconds)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Reads the command line; a wrong option ends the process with status 2 and a message."""
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description="Measures what the gate costs.")
    parser.add_argument("--users", type=int, default=100_000, help="users with a history (default 100000)")
    parser.add_argument("--orders", type=int, default=1_000_000, help="orders of the smaller history (default 1000000)")
    parser.add_argument("--times", type=int, default=10, help="how many times larger the other history is (default 10)")
    parser.add_argument("--batch", type=int, default=500, help="requests in a batch (default 500)")
    parser.add_argument("--batches", type=int, default=20, help="batches that each row takes in a round (default 20)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each row is run at each size (default 3)")
    parser.add_argument("--output", type=Path, default=_LATEST, help="where the JSON goes")
    found = parser.parse_args(arguments)
    if min(found.orders, found.batch, found.batches, found.rounds) < 1 or found.times < 2 or found.users < 2 * found.batch:
        parser.error("--times must be 2 or more, --users twice --batch or more, and all others 1 or more")
    return Options(**vars(found))


@asynccontextmanager
async def _server(directory: Path) -> AsyncIterator[str]:
    """The address of the database that the settings name, else of an embedded one in this directory, as large as its data calls for.

    Raises a ServicesError when it does not start.
    """
    external = Settings().database_url
    if external is not None:
        yield external.get_secret_value()
        return
    memory = psutil.virtual_memory().total // _MEMORY_SHARE // 1_000_000
    settings = {"shared_buffers": f"{memory}MB", **_BUILDING}
    async with locked_data_directory(directory, progress=_say) as data:
        server = await EmbeddedDatabase.start(data, progress=_say, settings=settings)
        try:
            _say(f"the database has {memory:,} MB of buffers")
            yield server.address
        finally:
            await server.stop()


@asynccontextmanager
async def _history(server_url: str, size: Size, keyring: Keyring) -> AsyncIterator[Database]:
    """A database with such a history, dropped in the end; one connection to it, with a worker's settings."""
    name = f"bench_gate_{uuid4().hex[:10]}"
    url = urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    server = await asyncpg.connect(server_url, timeout=_TIMEOUT_SECONDS)
    try:
        await server.execute(f'CREATE DATABASE "{name}"')
        try:
            began_at = time.monotonic()
            users = (user_id_of(rank, size.users) for rank in range(size.users))
            await build(url, size, _NOW, keyring, ((user_id, secret_of(user_id)) for user_id in users))
            bytes_used = await server.fetchval("SELECT pg_database_size($1)", name)
            _say(
                f"{name}: {size.orders:,} orders of {size.users:,} users, and {HOT_ORDERS:,} more of each of {hot_users(size.users)} in "
                f"the newest day: {bytes_used / 1e6:,.0f} MB, built in {time.monotonic() - began_at:.0f} s"
            )
            database = await connect(url, 1, _TIMEOUT_SECONDS)
            try:
                yield database
            finally:
                await database.close()
        finally:
            await server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await server.close(timeout=_TIMEOUT_SECONDS)


async def _pinned(database: Database) -> psutil.Process:
    """The database's process that serves this connection, pinned with this one to the machine's last core.

    Raises BenchFailed where this process may not do so: two cores would be measured for one.
    """
    async with database.connection() as held:
        process = psutil.Process(await held.fetchval("SELECT pg_backend_pid()"))
    core = max(os.sched_getaffinity(0))
    try:
        for pid in (0, process.pid):
            os.sched_setaffinity(pid, {core})
    except OSError as error:
        raise BenchFailed(f"the database's process {process.pid} cannot be pinned to core {core}: {error}") from error
    return process


async def _measure(name: str, row: Row, orders: int, database: Database, gate: Gate, batches: Sequence[Prepared]) -> Figures:
    process = await _pinned(database)
    theirs_before = process.cpu_times()
    own_before, began_at = time.process_time(), time.perf_counter()
    for batch in batches:
        await row(database, gate, batch)
    seconds, own = time.perf_counter() - began_at, time.process_time() - own_before
    theirs = process.cpu_times()
    theirs_seconds = theirs.user - theirs_before.user + theirs.system - theirs_before.system
    return Figures(name, orders, sum(len(batch.records) for batch in batches), seconds, own, theirs_seconds)


async def _read_once(database: Database, options: Options, gate: Gate) -> None:
    """Reads what the gate looks at for every user, so that the database has it in its buffers, as one has that was in use for a while."""
    users = [user_id_of(rank, options.users) for rank in range(options.users)]
    for begin in range(0, len(users), options.batch):
        await loaded(database, gate, users[begin : begin + options.batch], set(), _NOW)


async def _run(options: Options, server_url: str) -> list[list[Figures]]:
    issuer = Issuer(_NOW)
    count = options.batches * options.rounds + _WARM_UP_BATCHES
    batches = list(batches_of(options.users, options.batch, count, _NOW, issuer))
    keyring = Keyring(master_keys(new_master_key()))
    gate = Gate.of(keyring, issuer)
    measured = rows()
    rounds: list[list[Figures]] = []
    async with AsyncExitStack() as stack:
        databases: dict[int, Database] = {}
        for orders in (options.orders, options.orders * options.times):
            databases[orders] = await stack.enter_async_context(_history(server_url, Size(options.users, orders), keyring))
        for batch in batches:
            for record in batch.records:
                # A token is used until it expires: by the time that a request comes, it was seen before.
                gate.verifier.verify(dict(record.headers)["authorization"], batch.now)
        # As a worker does.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        for orders, database in databases.items():
            await _read_once(database, options, gate)
            for name, row in measured.items():
                await _measure(name, row, orders, database, gate, batches[:_WARM_UP_BATCHES])
        for number in range(options.rounds):
            begin = _WARM_UP_BATCHES + number * options.batches
            rounds.append([])
            for name, row in measured.items():
                for orders, database in databases.items():
                    figures = await _measure(name, row, orders, database, gate, batches[begin : begin + options.batches])
                    _say(f"round {number + 1}: {name}, {orders:,} orders: {figures.per_second:,.0f}/s")
                    rounds[-1].append(figures)
    return rounds


def _spreads(runs: Sequence[Figures]) -> dict[str, Spread]:
    requests = runs[0].requests
    return {
        "requests_per_second": Spread.of([run.per_second for run in runs]),
        "requests_per_core_second": Spread.of([run.per_core_second for run in runs]),
        "own_cpu_us": Spread.of([run.own_cpu_seconds / requests * 1e6 for run in runs]),
        "database_cpu_us": Spread.of([run.database_cpu_seconds / requests * 1e6 for run in runs]),
    }


def kept_rates(rounds: Sequence[Sequence[Figures]]) -> dict[str, tuple[Spread, Spread]]:
    """What is left of each row's rate with the larger history, as a fraction of that with the smaller one, within each round: of the
    requests per second, and of those per second of the core's time."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for figures in rounds:
        few, many = min(one.orders for one in figures), max(one.orders for one in figures)
        by_row = {(one.row, one.orders): one for one in figures}
        for name in dict.fromkeys(one.row for one in figures):
            small, large = by_row[name, few], by_row[name, many]
            per_second, per_core_second = found.setdefault(name, ([], []))
            per_second.append(large.per_second / small.per_second)
            per_core_second.append(large.per_core_second / small.per_core_second)
    return {name: (Spread.of(seconds), Spread.of(cores)) for name, (seconds, cores) in found.items()}


def as_json(rounds: Sequence[Sequence[Figures]], options: Options, about: Mapping[str, str | int | float]) -> bytes:
    """`rows` with `name`, `orders`, `requests` and figures of `min, median, max`; `kept` by row, the medians; `machine`; `options`."""
    table = [
        {"name": runs[0].row, "orders": runs[0].orders, "requests": runs[0].requests, **_spreads(runs)}
        for runs in zip(*rounds, strict=True)
    ]
    kept = {
        name: {"requests_per_second": seconds.median, "requests_per_core_second": cores.median}
        for name, (seconds, cores) in kept_rates(rounds).items()
    }
    given = {name: value for name, value in asdict(options).items() if name != "output"}
    report = {"rows": table, "kept": kept, "checks": len(TRADE_GATE.checks), "options": given, "machine": about}
    return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def as_table(rounds: Sequence[Sequence[Figures]], about: Mapping[str, str | int | float]) -> str:
    """Markdown, so that it can be quoted as it is."""
    heads = ("row", "orders", "requests/s", "requests per second of the core", "µs of CPU here", "µs in the database")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    for runs in zip(*rounds, strict=True):
        found = _spreads(runs)
        cells = [spread.text() for spread in found.values()]
        lines.append(f"| {runs[0].row} | {runs[0].orders:,} | {' | '.join(cells)} |")
    lines += ["", f"Minimum / median / maximum of {len(rounds)} interleaved rounds; \"all checks\" are {len(TRADE_GATE.checks)}."]
    lines += ["; ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())]
    for name, (seconds, cores) in kept_rates(rounds).items():
        lines.append(f"- {name}: the larger history leaves {seconds.text(2)} of the rate, {cores.text(2)} by CPU time")
    return "\n".join(lines)


async def run_bench(options: Options) -> int:
    """Runs everything; returns the exit code: 0, 1 when a run failed, 3 when the database did not start."""
    about = machine()
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as scratch:
        root = Path(scratch)
        # The database's own account must be able to reach its directory.
        root.chmod(0o711)
        try:
            async with _server(root / "services") as url:
                rounds = await _run(options, url)
        except ServicesError as error:
            _say(str(error))
            return 3
        except BenchFailed as error:
            _say(f"the benchmark failed: {error}")
            return 1
        finally:
            os.sched_setaffinity(0, cores)
    about["load_average_at_end"] = round(os.getloadavg()[0], 2)
    options.output.write_bytes(as_json(rounds, options, about))
    print(as_table(rounds, about))
    rate = median(one.per_second for figures in rounds for one in figures if one.row == FULL and one.orders == options.orders)
    _say(f"the whole gate with {options.orders:,} orders: {rate:,.0f} requests a second")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(run_bench(parse())))
