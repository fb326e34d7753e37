"""Keeps a number of workers running: starts them, starts a new one where one ends, stops them all."""

from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from infra.embedded.services import Endpoints
from infra.settings import Settings


@asynccontextmanager
async def supervised_workers(
    count: int, argv: tuple[str, ...], environment: Mapping[str, str], logs: Path, said: Callable[[str], None]
) -> AsyncIterator["WorkerPool"]:
    """Runs `count` workers while the block runs. `logs` is the directory of their log files, `said` gets sentences for people."""
    raise NotImplementedError
    yield


class WorkerPool:
    """The workers of `supervised_workers`; `await pool.failed()` returns why no worker can run any more, and else never returns."""


def worker_environment(settings: Settings, endpoints: Endpoints) -> dict[str, str]:
    """The environment variables of a worker that shall run with these settings against these services."""
    raise NotImplementedError
