"""Faults that the demo makes in its own workers: killed, asked to stop, and paused so long that their partitions move.

A paused worker wakes up as a zombie: it believes that it still owns what another has taken over. Times and kinds come from a seed.
"""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psutil

from cli.local.supervision import WorkerPool

# Longer than the session time-out and the database's limit for idle transactions, so that everything moves before the worker wakes up.
_PAUSE_SECONDS: Final = (12.0, 14.0)
_KINDS: Final = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)


class WorkerFaults:
    """`counts` has what was done to workers, under the names that the summary shows."""

    def __init__(self, pool: WorkerPool, seed: int, said: Callable[[str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._pool = pool
        self._random = random.Random(seed)
        self._said = said

    async def run(self, count: int, seconds: float) -> None:
        """Makes `count` faults spread over `seconds` (longer where a worker is not there yet); returns when every pause is over."""
        kinds = [_KINDS[number % len(_KINDS)] for number in range(count)]
        self._random.shuffle(kinds)
        share = seconds / max(count, 1)
        async with asyncio.TaskGroup() as group:
            for kind in kinds:
                before = self._random.uniform(0.2, 0.8) * share
                await asyncio.sleep(before)
                group.create_task(self._make(kind))
                await asyncio.sleep(share - before)

    async def _make(self, kind: signal.Signals) -> None:
        # Waited for in bounded time: a pool that has given up has no workers.
        for _ in range(100):
            running = [process for process in self._pool.processes() if _is_awake(process)]
            if running:
                await self._hit(self._random.choice(running), kind)
                return
            await asyncio.sleep(0.1)

    async def _hit(self, process: psutil.Process, kind: signal.Signals) -> None:
        self.counts[f"worker_{kind.name.lower()}"] += 1
        with suppress(psutil.NoSuchProcess):
            process.send_signal(kind)
            if kind is not signal.SIGSTOP:
                self._said(f"{kind.name} to worker process {process.pid}.")
                return
            seconds = self._random.uniform(*_PAUSE_SECONDS)
            self._said(f"SIGSTOP to worker process {process.pid} for {seconds:.0f} s.")
            try:
                await asyncio.sleep(seconds)
            finally:
                process.send_signal(signal.SIGCONT)


def _is_awake(process: psutil.Process) -> bool:
    try:
        return process.status() not in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False
