"""Broker and database in containers (testcontainers), for machines that have a container engine.

Their data lives as long as the containers: until this process ends. A reaper container of the library removes them after `kill -9`.
"""

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

import docker.errors  # type: ignore[import-untyped]  # no type information is published with it
import requests
from testcontainers.core.container import DockerContainer

from embedded.errors import FixHostError, ReadLogError, RetryLaterError, ServicesError
from embedded.probes import broker_answers, database_answers

KAFKA_IMAGE = "apache/kafka:4.1.2"
DATABASE_IMAGE = "postgres:18"
# Includes the images' download.
_START_SECONDS_MAX = 600.0
_READY_SECONDS_MAX = 90.0
_STOP_SECONDS_MAX = 60.0
_POLL_SECONDS = 0.1
_WATCH_SECONDS = 2.0
_LOG_LINES_MAX = 20

_T = TypeVar("_T")

_KAFKA_ENVIRONMENT = {
    "KAFKA_NODE_ID": "1",
    "KAFKA_PROCESS_ROLES": "broker,controller",
    "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
    "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
    "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
    "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
}


class RunningContainer:
    """A running container and the address of the service in it. Made by `start_broker` and `start_database`."""

    def __init__(self, container: DockerContainer, address: str, answers: Callable[[], Awaitable[bool]]) -> None:
        self._container = container
        self._answers = answers
        self.address = address

    @classmethod
    async def start_broker(cls, *, progress: Callable[[str], None]) -> Self:
        """A broker whose clients reach it at the port of the host that it advertises.

        Raises FixHostError without an engine or image, RetryLaterError when it does not answer in time, ReadLogError when it ends.
        """
        progress(f"Starting a container of {KAFKA_IMAGE}…")
        container = await _new(KAFKA_IMAGE)
        host = await _blocking(KAFKA_IMAGE, container.get_docker_client().host)
        # The broker must know the host's port before it starts, so the port is chosen here and not by the engine.
        port = _free_port()
        container.with_bind_ports(9092, port)
        for name, value in {**_KAFKA_ENVIRONMENT, "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://{host}:{port}"}.items():
            container.with_env(name, value)
        return await cls._start(container, lambda: f"{host}:{port}", lambda address: broker_answers(*_host_and_port(address)))

    @classmethod
    async def start_database(cls, *, progress: Callable[[str], None]) -> Self:
        """A PostgreSQL with a password made for this start; the address is its URL. Raises as `start_broker` does."""
        progress(f"Starting a container of {DATABASE_IMAGE}…")
        password = secrets.token_urlsafe(24)
        container = await _new(DATABASE_IMAGE)
        container.with_exposed_ports(5432).with_env("POSTGRES_PASSWORD", password)
        container.with_command(["-c", "max_connections=200", "-c", "shared_buffers=256MB", "-c", "jit=off"])

        def url() -> str:
            host, port = container.get_container_host_ip(), container.get_exposed_port(5432)
            return f"postgresql://postgres:{password}@{host}:{port}/postgres"

        return await cls._start(container, url, database_answers)

    @classmethod
    async def _start(
        cls, container: DockerContainer, address_of: Callable[[], str], answers: Callable[[str], Awaitable[bool]]
    ) -> Self:
        image = container.image
        try:
            await _blocking(image, container.start)
            address = await _blocking(image, address_of)
            started = cls(container, address, lambda: answers(address))
            await started._until_ready()
        except BaseException:
            await asyncio.to_thread(container.stop)
            raise
        return started

    async def _until_ready(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _READY_SECONDS_MAX
        while not await self._answers():
            if not await self._is_running():
                raise await self._ended()
            if loop.time() >= deadline:
                raise RetryLaterError(
                    f"The container of {self._container.image} did not answer within {_READY_SECONDS_MAX:.0f} s and was removed; no order "
                    f"was accepted. Start again when the machine is less busy. The end of its log:\n{await self._log_tail()}"
                )
            # There is no event to wait for before the service answers: it is asked again.
            await asyncio.sleep(_POLL_SECONDS)

    async def _is_running(self) -> bool:
        def status() -> str:
            self._container.reload()
            return str(self._container.status)

        return await _blocking(self._container.image, status) in ("created", "running", "restarting")

    async def _log_tail(self) -> str:
        out, err = await _blocking(self._container.image, self._container.get_logs)
        return "\n".join((out + err).decode(errors="replace").splitlines()[-_LOG_LINES_MAX:])

    async def _ended(self) -> ReadLogError:
        return ReadLogError(
            f"The container of {self._container.image} ended by itself, and its data with it. Orders that an exchange has accepted are "
            f"still there: compare with the exchange before you start again. The end of its log says why:\n{await self._log_tail()}"
        )

    def let_go(self) -> None:
        """Containers have no pipe to us; `stop` removes them, or the reaper container when this process dies."""

    async def stop(self) -> None:
        """Remove the container and its data."""
        async with asyncio.timeout(_STOP_SECONDS_MAX):
            await asyncio.to_thread(self._container.stop)

    async def until_ended(self) -> ReadLogError:
        """Wait until the container has ended by itself; what to tell the operator."""
        while await self._is_running():  # noqa: ASYNC110 - the engine has no event for us to wait on
            await asyncio.sleep(_WATCH_SECONDS)
        return await self._ended()


async def _new(image: str) -> DockerContainer:
    return await _blocking(image, lambda: DockerContainer(image))


async def _blocking(image: str, call: Callable[[], _T]) -> _T:
    """Run a call of the container library in a thread; its errors become ours."""
    try:
        async with asyncio.timeout(_START_SECONDS_MAX):
            return await asyncio.to_thread(call)
    except TimeoutError:
        raise RetryLaterError(
            f"The container engine did not finish within {_START_SECONDS_MAX:.0f} s ({image}). No order was accepted. Look at the engine "
            "(`docker ps`) and start again."
        ) from None
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise _engine_failure(image, error) from error


def _engine_failure(image: str, error: Exception) -> ServicesError:
    if isinstance(error, docker.errors.ImageNotFound | docker.errors.APIError):
        return FixHostError(
            f"The container engine could not run {image}: {error}. Nothing was started and no order was accepted. Check that the image can "
            f"be pulled (`docker pull {image}`), or start without containers: ORCHESTRATOR_INFRA=embedded"
        )
    return FixHostError(
        f"ORCHESTRATOR_INFRA=containers needs a container engine, and none answers: {error}. Nothing was started and no order was "
        "accepted. Start Docker (`docker info` must work for this user), or start without containers: ORCHESTRATOR_INFRA=embedded"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
