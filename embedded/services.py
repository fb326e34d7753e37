"""The one way to get a broker and a database: embedded, in containers, or just the addresses of ones that run elsewhere.

1. What `services` started is stopped when its block is left, however it is left; and by the guards when this process dies.
2. When an embedded server ends by itself inside the block, the block is cancelled and `services` raises ReadLogError: nobody goes on
   talking to a server that is gone.
3. Both servers start at the same time; when one cannot start, the other is stopped and the error is the one to show.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from embedded.broker import EmbeddedBroker
from embedded.data_dir import DataDirectory, locked_data_directory
from embedded.database import EmbeddedDatabase
from embedded.errors import ReadLogError, ServicesError
from infra.settings import Settings

Service = Literal["kafka", "database"]
_TITLES: dict[Service, str] = {"kafka": "broker", "database": "database"}


@dataclass(frozen=True)
class Endpoints:
    """Where the services are. `database_url` is a `postgresql://` URL and can hold a password: it is not shown."""

    kafka_bootstrap_servers: str
    database_url: str = field(repr=False)


class Running(Protocol):
    """A service that was started here. `until_ended` returns what to tell the operator when it ends by itself."""

    @property
    def address(self) -> str: ...

    def let_go(self) -> None: ...

    async def stop(self) -> None: ...

    async def until_ended(self) -> ReadLogError: ...


@asynccontextmanager
async def services(settings: Settings, *, progress: Callable[[str], None]) -> AsyncIterator[Endpoints]:
    """Start what `settings.service_mode` says, give the addresses, and stop it again.

    Raises a ServicesError whose text is for the operator; with all services external it does nothing and cannot fail.
    """
    async with AsyncExitStack() as stack:
        modes = {settings.service_mode("kafka"), settings.service_mode("database")}
        directory: DataDirectory | None = None
        if "embedded" in modes:
            directory = await stack.enter_async_context(locked_data_directory(settings.data_dir, progress=progress))
        running: dict[Service, Running] = {}
        try:
            await _start_all(settings, directory, running, progress)
            addresses = {name: service.address for name, service in running.items()}
            external_url = "" if settings.database_url is None else settings.database_url.get_secret_value()
            endpoints = Endpoints(addresses.get("kafka", settings.kafka_bootstrap_servers or ""), addresses.get("database", external_url))
            async with _ended_by_itself(running):
                yield endpoints
        finally:
            await _stop_all(running)


async def _start_all(
    settings: Settings, directory: DataDirectory | None, running: dict[Service, Running], progress: Callable[[str], None]
) -> None:
    async def start(service: Service) -> None:
        started = time.monotonic()
        running[service] = await _start(service, settings, directory, progress)
        progress(f"The {_TITLES[service]} is ready ({time.monotonic() - started:.1f} s).")

    try:
        async with asyncio.TaskGroup() as group:
            for service in _TITLES:
                if settings.service_mode(service) != "external":
                    group.create_task(start(service))
    except BaseExceptionGroup as failures:
        known = failures.subgroup(ServicesError)
        if known is None:
            raise
        raise _first(known) from None


async def _start(service: Service, settings: Settings, directory: DataDirectory | None, progress: Callable[[str], None]) -> Running:
    if directory is None or settings.service_mode(service) == "containers":
        # Only who asks for containers pays for loading that library.
        from embedded.containers import RunningContainer  # noqa: PLC0415

        start_container = RunningContainer.start_broker if service == "kafka" else RunningContainer.start_database
        return await start_container(progress=progress)
    if service == "kafka":
        return await EmbeddedBroker.start(directory, settings.cache_dir, port=settings.kafka_port, progress=progress)
    return await EmbeddedDatabase.start(directory, progress=progress)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error is enough for the operator: after it is fixed, the next start shows the other, if it is still there."""
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


@asynccontextmanager
async def _ended_by_itself(running: dict[Service, Running]) -> AsyncIterator[None]:
    """Cancel the block when a server ends, and raise its error in place of the cancellation (as `asyncio.timeout` does for time)."""
    block = asyncio.current_task()
    endings: list[ReadLogError] = []

    async def watch(service: Running) -> None:
        endings.append(await service.until_ended())
        # Once, also where both end at the same moment: a block that is cancelled twice stays cancelled, and its error would not be told.
        if block is not None and len(endings) == 1:
            block.cancel()

    watchers = [asyncio.create_task(watch(service)) for service in running.values()]
    try:
        yield
    except asyncio.CancelledError:
        if endings and block is not None and block.uncancel() == 0:
            raise endings[0] from None
        raise
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


async def _stop_all(running: dict[Service, Running]) -> None:
    # First tell all of them, so that they stop together, and stop even when this wait is cut short.
    for service in running.values():
        service.let_go()
    await asyncio.gather(*(service.stop() for service in running.values()))
