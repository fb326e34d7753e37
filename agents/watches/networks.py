"""What each exchange pays out over which networks, and its fees: asked now and then, so that intake never has to.

An exchange may tell it to none but an account of its own (Binance), so it is asked with a stored key that may withdraw; where there is no
such key nobody can withdraw either. Invariant: what is told keeps the time at which it was asked for, and intake refuses by age.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog

from agents.watches.looks import by_itself
from agents.watches.watch import PauseSeconds, Watch
from infra.exchange.gateway import VenueUnavailable, WithdrawalGateway
from pipeline.model.invariants import Retryable
from pipeline.model.withdrawal import Network

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 1.0
# A fifth of how long a fee counts as known.
_AGAIN_SECONDS: Final = 600.0
_FAILED_SECONDS_MAX: Final = 60.0


class NetworkFeed:
    """`keys` gives (user id, key id) of keys to ask with, the best first."""

    def __init__(
        self, exchange: str, gateway: WithdrawalGateway, keys: Callable[[], Awaitable[Sequence[tuple[str, str]]]]
    ) -> None:
        self._exchange = exchange
        self._gateway = gateway
        self._keys = keys
        self.snapshot: Mapping[tuple[str, str], Network] = {}
        self._pause_seconds = _LOOK_SECONDS

    @property
    def watch(self) -> Watch:
        return Watch("networks", _LOOK_SECONDS, self.round, self._exchange)

    async def round(self) -> PauseSeconds:
        """Asks; returns the seconds until it is asked again. The first answer is sought often, as nothing is paid out before it; a refusal
        slows that down. Raises Retryable while the database is out of reach."""
        match await self.look():
            case True:
                self._pause_seconds = _AGAIN_SECONDS
            case VenueUnavailable() as refused:
                pause_seconds = self._pause_seconds
                self._pause_seconds = min(pause_seconds * 2, _FAILED_SECONDS_MAX) if pause_seconds < _AGAIN_SECONDS else _LOOK_SECONDS
                log.debug("networks_unknown", exchange=self._exchange, error=str(refused))
            case _:
                self._pause_seconds = _LOOK_SECONDS
        return self._pause_seconds

    async def first_look(self, timeout_seconds: float) -> None:
        """Asks once before a worker takes anything in, for so long at most: what it does not know it would refuse."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await by_itself("networks", self._exchange, self.look)
        except (TimeoutError, Retryable) as error:
            log.debug("networks_unknown", exchange=self._exchange, error=str(error))

    async def look(self) -> bool | VenueUnavailable:
        """Asks once; False where there is no key to ask with, and what the exchange said where no key got an answer: that is no failure of
        a look. Raises Retryable."""
        failure: VenueUnavailable | None = None
        for user_id, api_key_id in await self._keys():
            try:
                found = await self._gateway.withdrawal_networks(user_id, api_key_id)
            except VenueUnavailable as error:
                failure = error
                continue
            if found and not self.snapshot:
                log.info("networks_known", exchange=self._exchange, networks=len(found))
            self.snapshot = found
            return True
        return failure or False
