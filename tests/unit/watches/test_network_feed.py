"""The feed of networks: an exchange that does not tell them is asked more and more seldom, and that is no failure of a look."""

import asyncio
from typing import cast

import pytest

from agents.watches import watch
from agents.watches.networks import NetworkFeed
from infra.exchange.gateway import VenueUnavailable, WithdrawalGateway
from infra.metrics import LOOKS_FAILED


class _Silent:
    """Stands in for an exchange that tells nobody its networks: what a feed does then does not depend on why."""

    async def withdrawal_networks(self, user_id: str, api_key_id: str) -> dict[tuple[str, str], object]:
        raise VenueUnavailable("the wallet endpoint is in maintenance")


async def _keys() -> list[tuple[str, str]]:
    return [("alice", "key-1"), ("bob", "key-2")]


async def test_network_feed_asks_more_seldom_after_each_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses double up to a minute, and nothing is counted as a failed look."""
    pauses: list[float] = []
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            enough.set()
            await asyncio.Event().wait()

    failed = LOOKS_FAILED.labels("networks")
    before = failed._value.get()
    feed = NetworkFeed("binance", cast("WithdrawalGateway", _Silent()), _keys)
    monkeypatch.setattr(watch.asyncio, "sleep", sleep)
    async with asyncio.timeout(60):
        running = asyncio.create_task(watch.keep(feed.watch))
        await enough.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    assert failed._value.get() == before
