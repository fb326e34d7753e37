"""`/livez`, `/readyz` and `/metrics` of one worker, for supervisors and Prometheus.

Alive is judged by the age of the last poll, ready by what is needed to execute an order; both hold for an idle worker.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

_HEADERS: Final = {"Cache-Control": "no-store"}


class AddressTaken(Exception):
    """The address for health and metrics cannot be used."""


@dataclass(frozen=True, slots=True)
class Health:
    """`problems` empty: well. Each problem is one sentence."""

    problems: tuple[str, ...]


class HealthServer:
    """Serves until `stop`; `address` is known after `start`."""

    def __init__(self, host: str, port: int, livez: Callable[[], Health], readyz: Callable[[], Health]) -> None:
        self.address = ""
        self._host = host
        self._port = port
        self._livez = livez
        self._readyz = readyz
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Raises AddressTaken when somebody else listens there, or the host is not one of this machine."""
        application = web.Application()
        application.router.add_get("/livez", self._live)
        application.router.add_get("/readyz", self._ready)
        application.router.add_get("/metrics", _metrics)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise AddressTaken(
                f"{self._host}:{self._port} cannot be used for health and metrics: {error.strerror}. Nothing was read or sent. Choose "
                "others: ORCHESTRATOR_WEB_HOST, ORCHESTRATOR_WEB_PORT (0 takes a free one)."
            ) from error
        host, port = self._runner.addresses[0][:2]
        self.address = f"http://{host}:{port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _live(self, _: web.Request) -> web.Response:
        return _answer(self._livez())

    async def _ready(self, _: web.Request) -> web.Response:
        return _answer(self._readyz())


def _answer(health: Health) -> web.Response:
    body = {"status": "ok" if not health.problems else "failed", "problems": list(health.problems)}
    return web.json_response(body, status=200 if not health.problems else 503, headers=_HEADERS)


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST, **_HEADERS})
