"""The demo's deposits: somebody sends to the users' accounts at the simulated exchange while the requests are published.

Some were announced, before or after; some are listed late or twice, in changing order; some are taken back after they were credited.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final

from cli.local.demo_exchange import SimulatorAdmin

ASSET: Final = "USDT"
NETWORK: Final = "ETH"
# Where the demo's users get their deposits.
ADDRESS: Final = "0x71C7656EC7ab88b098defB751B7401B5f6d8976F"
# Binance's number for a deposit that is lost.
_REJECTED: Final = 2
# The exchange credits within half a second. Some have been seen as credited then, others have not.
_TAKEN_BACK_SECONDS: Final = (0.8, 2.5)
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class DemoDeposit:
    """A deposit that is sent when `after` requests are published. `listed_after_ms` and `listings` are how the exchange lists it."""

    after: int
    user_id: str
    amount: str
    listed_after_ms: int
    listings: int
    taken_back: bool


class DepositSender:
    """`api_keys` are the users' keys at the exchange, by which it knows their accounts."""

    def __init__(self, admin: SimulatorAdmin, deposits: Iterable[DemoDeposit], api_keys: Mapping[str, str]) -> None:
        self._admin = admin
        self._waiting = deque(sorted(deposits, key=_when))
        self._api_keys = api_keys
        self._to_take_back: deque[tuple[float, str]] = deque()
        self._taken_back = 0

    async def run(self, published: Callable[[], int]) -> None:
        """Sends everything in its turn; ends when all is sent and what was to be taken back is. Raises Retryable without the exchange."""
        await self._admin.shuffle_deposits()
        while self._waiting or self._to_take_back:
            while self._waiting and self._waiting[0].after <= published():
                await self._send(self._waiting.popleft())
            while self._to_take_back and self._to_take_back[0][0] <= monotonic():
                await self._admin.mark_deposit(self._to_take_back.popleft()[1], _REJECTED)
            await asyncio.sleep(_POLL_SECONDS)

    async def _send(self, deposit: DemoDeposit) -> None:
        fields = {
            "api_key": self._api_keys[deposit.user_id],
            "asset": ASSET,
            "network": NETWORK,
            "address": ADDRESS,
            "amount": deposit.amount,
            "listed_after_ms": deposit.listed_after_ms,
            "listings": deposit.listings,
        }
        deposit_id = await self._admin.send_deposit(fields)
        if deposit.taken_back:
            seconds = _TAKEN_BACK_SECONDS[self._taken_back % len(_TAKEN_BACK_SECONDS)]
            self._taken_back += 1
            self._to_take_back.append((monotonic() + deposit.listed_after_ms / 1000 + seconds, deposit_id))


def _when(deposit: DemoDeposit) -> int:
    return deposit.after
