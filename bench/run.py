"""`python -m bench.run`: every row in turn, several rounds, one table, and `bench/latest.json`.

Invariants:
1. Rounds are interleaved: every row runs once before any runs again, so that what else the machine does falls on all of them.
2. Each run has its own topics, database and exchange (bench/stage), and is warmed up before anything is measured.
3. A run that answers a request twice, not at all or other than executed fails the whole benchmark.
4. Ratios are taken within a round, never across rounds.

Start with `run_bench`.
"""

import argparse
import asyncio
import logging
import os
import platform
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from bench.cost import measured
from bench.load import Answered, BenchFailed, Load, key_of_copy, key_of_final_result, open_load
from bench.report import Figures, as_json, as_table
from bench.stage import Stage, set_stage
from cli.local.supervision import WorkerPool, supervised_workers, worker_environment
from embedded.errors import ServicesError
from embedded.services import Endpoints, services
from infra.settings import Settings

_LATEST: Final = Path(__file__).parent / "latest.json"
_WARM_UP_REQUESTS: Final = 100
_LOG_LINES: Final = 15
# A row is paced only at what it can do with room to spare.
_HEADROOM: Final = 1.25


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to measure: `workers` processes of `module`. `share`: of the requests, so that all run about as long.

    `distance_ms`: how long a request to the exchange and its answer travel.
    """

    name: str
    module: str
    answered: Answered
    workers: int = 1
    share: float = 1.0
    distance_ms: int = 0


ROWS: Final = (
    Row("orchestrator", "agents", key_of_final_result),
    Row("orchestrator_2_workers", "agents", key_of_final_result, workers=2),
    Row("faust_at_least_once", "bench.baselines.faust_at_least_once", key_of_final_result, share=0.1),
    # A real exchange is not on the same machine: 20 ms is a data center of the same region, at the exchange's own door.
    Row("orchestrator_20_ms_away", "agents", key_of_final_result, distance_ms=20),
    Row("faust_at_least_once_20_ms_away", "bench.baselines.faust_at_least_once", key_of_final_result, share=0.05, distance_ms=20),
    Row("aiokafka_copy", "bench.baselines.aiokafka_copy", key_of_copy, share=4.0),
)


@dataclass(frozen=True, slots=True)
class Options:
    """`paces` in requests a second: the first is for every row, the others for those that can. `output` is where the JSON goes."""

    rounds: int
    requests: int
    paces: tuple[int, ...]
    paced_seconds: float
    rows: tuple[Row, ...]
    output: Path


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Reads the command line; a wrong option ends the process with status 2 and a message."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measures the orchestrator beside its baselines.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each row is run (default 3)")
    parser.add_argument("--requests", type=int, default=8_000, help="requests that saturate the orchestrator (default 8000)")
    parser.add_argument("--pace", type=int, nargs="+", default=[50, 200], help="requests a second for latencies (default 50 200)")
    parser.add_argument("--paced-seconds", type=float, default=10.0, help="how long each pace is held (default 10)")
    parser.add_argument("--rows", nargs="+", choices=names, default=names, help="which rows (default all)")
    parser.add_argument("--output", type=Path, default=_LATEST, help="where the JSON goes")
    found = parser.parse_args(arguments)
    if found.rounds < 1 or found.requests < 10 or min(found.pace) < 1 or found.paced_seconds * min(found.pace) < 1:
        parser.error("rounds and paces must be 1 or more, --requests 10 or more, and every pace must be held for a request or more")
    rows = tuple(row for row in ROWS if row.name in found.rows)
    return Options(found.rounds, found.requests, tuple(found.pace), found.paced_seconds, rows, found.output)


async def measure(row: Row, options: Options, endpoints: Endpoints, directory: Path) -> Figures:
    """One run of one row. Raises BenchFailed."""
    count = max(10, int(options.requests * row.share))
    async with (
        set_stage(endpoints, directory, row.distance_ms) as stage,
        open_load(stage, row.answered) as load,
        _workers(row, stage, directory, load) as pool,
    ):
        await load.saturate("warm-up", _WARM_UP_REQUESTS)
        async with measured(pool.processes) as cost:
            rate = await load.saturate("saturate", count)
        paced = {}
        for pace in options.paces:
            if pace == options.paces[0] or rate >= pace * _HEADROOM:
                paced[pace] = await load.pace(f"pace-{pace}", pace, options.paced_seconds)
    return Figures(row.name, count, rate, cost.cpu_seconds / count * 1000, cost.rss_mb, paced)


def endpoints_of(settings: Settings) -> Endpoints:
    """Where a stage's workers find their services."""
    if settings.kafka_bootstrap_servers is None or settings.database_url is None:
        raise ValueError("a stage has a broker and a database")
    return Endpoints(settings.kafka_bootstrap_servers, settings.database_url.get_secret_value())


@asynccontextmanager
async def _workers(row: Row, stage: Stage, directory: Path, load: Load) -> AsyncIterator[WorkerPool]:
    """The row's workers. One that ends fails the run at once: what was measured would be a start."""
    logs = directory / "logs"

    def said(text: str) -> None:
        # The pool speaks only when a worker has ended.
        found = sorted(logs.glob("*.log"))
        tails = [line for log in found for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES:]]
        load.fail(BenchFailed("\n".join([f"{row.name}: {text}", *tails])))

    environment = worker_environment(stage.settings, endpoints_of(stage.settings))
    async with supervised_workers(row.workers, (sys.executable, "-m", row.module), environment, logs, said) as pool:
        yield pool
        if load.failure is not None:
            raise load.failure


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_mb": psutil.virtual_memory().total // 1_000_000,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        # Above the number of cores other work was going on.
        "load_average_at_start": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


async def run_bench(options: Options) -> int:
    """Runs everything; returns the exit code: 0, 1 when a run failed, 3 when a service did not start."""
    # On a topic that is seconds old the client warns of leaders that are not elected yet, and asks again.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    about = machine()
    rounds: list[list[Figures]] = []
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as scratch:
        root = Path(scratch)
        # The database's own account must be able to reach its directory.
        root.chmod(0o711)
        settings = Settings().model_copy(update={"data_dir": root / "services"})
        try:
            async with services(settings, progress=_say) as endpoints:
                for number in range(1, options.rounds + 1):
                    rounds.append([])
                    for row in options.rows:
                        figures = await measure(row, options, endpoints, root / f"{number}-{row.name}")
                        _say(f"round {number}: {figures.line()}")
                        rounds[-1].append(figures)
        except ServicesError as error:
            _say(str(error))
            return 3
        except BenchFailed as error:
            _say(f"the benchmark failed: {error}")
            return 1
    report = as_json(rounds, about)
    options.output.write_bytes(report)
    print(as_table(rounds, about))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(run_bench(parse())))
