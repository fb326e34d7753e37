"""What the workers of a run cost: CPU seconds and resident memory of their processes, and of nothing else."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import psutil

_SAMPLE_SECONDS: Final = 0.25
_MEGABYTE: Final = 1_000_000


@dataclass(slots=True)
class Cost:
    """`cpu_seconds` are user and system time; `rss_mb` is the peak of the processes' sum, in megabytes. Complete when the block ends."""

    cpu_seconds: float = 0.0
    rss_mb: float = 0.0


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += times.user + times.system
    return total


@asynccontextmanager
async def measured(processes: Callable[[], Sequence[psutil.Process]]) -> AsyncIterator[Cost]:
    """Measures while the block runs. Raises psutil.NoSuchProcess when a worker ends meanwhile: its figures would be another's."""
    cost = Cost()
    workers = processes()

    async def sample() -> None:
        while True:
            cost.rss_mb = max(cost.rss_mb, sum(process.memory_info().rss for process in workers) / _MEGABYTE)
            await asyncio.sleep(_SAMPLE_SECONDS)

    before = _cpu_seconds(workers)
    sampler = asyncio.create_task(sample())
    try:
        yield cost
        cost.cpu_seconds = _cpu_seconds(workers) - before
    finally:
        sampler.cancel()
        with suppress(asyncio.CancelledError):
            await sampler
