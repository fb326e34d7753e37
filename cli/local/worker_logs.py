"""Where workers answer for their health: read from their logs, since each takes a free port when it starts.

Start with `HealthAddresses`.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import aiohttp
import orjson

_EVENT: Final = b'"worker_started"'
_PROBE_SECONDS_MAX: Final = 2.0


class HealthAddresses:
    """Follows the logs of workers 1 to `count`. `found` is the newest address of each that has told one."""

    def __init__(self, logs: Path, count: int) -> None:
        self._logs = {number: logs / f"worker-{number}.log" for number in range(1, count + 1)}
        # What an earlier run wrote is skipped.
        self._read_to = {number: _size(log) for number, log in self._logs.items()}
        self.found: dict[int, str] = {}

    def read(self) -> None:
        """Takes in what the logs have gained."""
        for number, log in self._logs.items():
            size = _size(log)
            if size < self._read_to[number]:
                # It was begun afresh when it had grown too long.
                self._read_to[number] = 0
            if size == self._read_to[number]:
                continue
            with log.open("rb") as file:
                file.seek(self._read_to[number])
                gained = file.read(size - self._read_to[number])
            whole = gained.rfind(b"\n") + 1
            self._read_to[number] += whole
            for line in gained[:whole].splitlines():
                if _EVENT in line:
                    self._take(number, line)

    def _take(self, number: int, line: bytes) -> None:
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            return
        if event.get("event") == "worker_started" and isinstance(event.get("health"), str):
            self.found[number] = event["health"]

    async def all_ready(self) -> bool:
        """Whether every worker answers that it is ready."""
        await asyncio.to_thread(self.read)
        if len(self.found) < len(self._logs):
            return False
        return await all_ready(tuple(self.found.values()))


async def all_ready(addresses: Sequence[str]) -> bool:
    """Whether the workers at these addresses all answer that they are ready."""
    timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS_MAX)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        return all(await asyncio.gather(*(_is_ready(http, address) for address in addresses)))


async def _is_ready(http: aiohttp.ClientSession, address: str) -> bool:
    try:
        async with http.get(f"{address}/readyz") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0
