"""The check before an order is handed to the network: behind every queue of the gateway, and what it says is what counts."""

import asyncio

import pytest

from pipeline.model.invariants import Retryable
from pipeline.model.venue import Confirmed, Refused
from schemas.reasons import ReasonCode
from tests.integration.scripted_venue import ORDER, gateway_to, hang, running_venue, submission

_HALTED = Refused(ReasonCode.TRADING_HALTED, "trading was halted before its turn came")


async def test_order_is_not_handed_over_when_the_check_before_it_refuses() -> None:
    """The venue sees nothing; without a refusal it gets the order."""

    async def halted() -> Refused | None:
        return _HALTED

    async def free() -> Refused | None:
        return None

    async with running_venue() as venue, gateway_to(venue) as gateway:
        outcome = await gateway.submit(submission(), halted)
        assert isinstance(outcome, Refused)
        assert outcome.reason_code is ReasonCode.TRADING_HALTED
        assert not venue.orders_arrived()
        assert isinstance(await gateway.submit(submission(), free), Confirmed)
        assert len(venue.orders_arrived()) == 1


async def test_order_is_not_handed_over_when_nobody_can_say() -> None:
    """What the look raises comes to the caller, which knows then that nothing was sent."""

    async def unknown() -> Refused | None:
        raise Retryable("the halts in force are not known")

    async with running_venue() as venue, gateway_to(venue) as gateway:
        with pytest.raises(Retryable, match="halts in force"):
            await gateway.submit(submission(), unknown)
        assert not venue.orders_arrived()


async def test_pre_send_check_comes_after_the_wait_for_a_slot() -> None:
    """A halt that comes while an order waits behind another call stops it."""
    is_halted = False

    async def look() -> Refused | None:
        return _HALTED if is_halted else None

    async with running_venue() as venue, gateway_to(venue, concurrency=1, timeout_ms=1_000) as gateway:
        await gateway.quotes(["BTC/USDT"])
        venue.answers["POST", ORDER] = hang
        first = asyncio.create_task(gateway.submit(submission(), look))
        async with asyncio.timeout(60):
            while not venue.orders_arrived():
                await asyncio.sleep(0.01)
        second = asyncio.create_task(gateway.submit(submission(), look))
        await asyncio.sleep(0.05)
        is_halted = True
        outcome = await second
        await first
        assert isinstance(outcome, Refused)
        assert outcome.reason_code is ReasonCode.TRADING_HALTED
        assert len(venue.orders_arrived()) == 1
