"""Servers that end by themselves while somebody works with them."""

import asyncio

import pytest

from embedded.errors import ReadLogError
from embedded.services import Running, Service, _ended_by_itself


class _Ending:
    """A server that ends when it is told to."""

    address = "nowhere"

    def __init__(self, name: str, ends: asyncio.Event) -> None:
        self._name = name
        self._ends = ends

    def let_go(self) -> None:
        raise AssertionError("it has ended already")

    async def stop(self) -> None:
        raise AssertionError("it has ended already")

    async def until_ended(self) -> ReadLogError:
        await self._ends.wait()
        return ReadLogError(f"the {self._name} ended by itself")


async def test_servers_that_end_at_the_same_moment_are_told_of_and_not_taken_for_a_cancellation() -> None:
    """Both guards killed, or a machine out of memory: the block ends with the error that says what to do, and the task is not cancelled."""
    ends = asyncio.Event()
    running: dict[Service, Running] = {"kafka": _Ending("broker", ends), "database": _Ending("database", ends)}
    with pytest.raises(ReadLogError, match="ended by itself"):
        async with asyncio.timeout(60), _ended_by_itself(running):
            ends.set()
            await asyncio.sleep(60)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
