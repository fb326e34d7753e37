"""Watches: each keeps its own time, whatever becomes of the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka.errors import KafkaConnectionError
from structlog.testing import capture_logs

from agents.watches.watch import Watch, keep
from infra.metrics import LOOKS_FAILED
from pipeline.model.invariants import MustStop, Retryable


@asynccontextmanager
async def running(*watches: Watch) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(keep(watch)) for watch in watches]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Rounds:
    """Counts rounds, and is told when there were enough."""

    def __init__(self, enough: int) -> None:
        self.made = 0
        self._enough = enough
        self.were_enough = asyncio.Event()

    async def round(self) -> None:
        self.made += 1
        if self.made == self._enough:
            self.were_enough.set()


async def test_exchange_that_hangs_holds_up_no_other() -> None:
    """One exchange's round does not end; another's goes on in its pace, and the first begins no second one over it."""
    hanging = Rounds(2)

    async def hangs() -> None:
        await hanging.round()
        await asyncio.Event().wait()

    other = Rounds(20)
    async with running(Watch("reconciliation", 0.001, hangs, "slow"), Watch("reconciliation", 0.001, other.round, "quick")):
        await asyncio.wait_for(other.were_enough.wait(), 30)
        assert hanging.made == 1


@pytest.mark.parametrize("away", [Retryable("the database is out of reach"), KafkaConnectionError()])
async def test_watch_that_waits_holds_up_no_other_and_says_so_once(away: Exception) -> None:
    """A service that is away for many rounds is told once, and so is its return; another watch goes on meanwhile."""
    tries, back = Rounds(10), Rounds(1)

    async def is_away() -> None:
        await tries.round()
        if not tries.were_enough.is_set():
            raise away
        await back.round()

    other = Rounds(20)
    with capture_logs() as logs:
        async with running(Watch("deposits", 0.001, is_away, "binance"), Watch("trips", 0.001, other.round)):
            await asyncio.wait_for(asyncio.gather(other.were_enough.wait(), back.were_enough.wait()), 30)
    assert [(line["event"], line["watch"]) for line in logs] == [
        ("watch_waits", "deposits binance"),
        ("watch_goes_on", "deposits binance"),
    ]


async def test_round_that_fails_by_an_error_of_its_own_is_counted_and_made_again() -> None:
    """It is no reason to end the worker, and no reason to wait for a service."""
    before = LOOKS_FAILED.labels("balances")._value.get()
    rounds = Rounds(3)

    async def fails() -> None:
        await rounds.round()
        raise KeyError("a damaged row")

    async with running(Watch("balances", 0.001, fails, "binance")):
        await asyncio.wait_for(rounds.were_enough.wait(), 30)
    assert LOOKS_FAILED.labels("balances")._value.get() >= before + 2


async def test_round_that_fails_by_an_error_of_its_own_is_no_return_of_a_service() -> None:
    """A watch that waits goes on when a round was made, not when one failed in another way."""
    kinds, back = iter([Retryable("away"), KeyError("a damaged row"), Retryable("away")]), Rounds(1)

    async def fails_in_turn() -> None:
        error = next(kinds, None)
        if error is not None:
            raise error
        await back.round()

    with capture_logs() as logs:
        async with running(Watch("deposits", 0.001, fails_in_turn, "binance")):
            await asyncio.wait_for(back.were_enough.wait(), 30)
    assert [line["event"] for line in logs if line["event"].startswith("watch_")] == ["watch_waits", "watch_goes_on"]


async def test_what_calls_for_a_reaction_of_the_process_ends_the_watch() -> None:
    """What must end the worker is raised as it came."""

    async def ends() -> None:
        raise MustStop("the database stands elsewhere")

    with pytest.raises(MustStop):
        await asyncio.wait_for(keep(Watch("trips", 0.001, ends)), 30)


async def test_watch_keeps_its_pace_or_the_pause_that_its_round_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pace counts from the beginning of a round; a pause that a round names from its end; one that begins late waits first."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            await asyncio.Event().wait()

    answers = iter([None, 7.0])

    async def round_() -> float | None:
        return next(answers)

    monkeypatch.setattr("agents.watches.watch.monotonic", iter([100.0, 101.5, 200.0, 200.0]).__next__)
    monkeypatch.setattr("agents.watches.watch.asyncio.sleep", sleep)
    task = asyncio.create_task(keep(Watch("balances", 5.0, round_, begins_late=True)))
    while len(pauses) < 3:
        await _turn()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert pauses == [5.0, 3.5, 7.0]


async def _turn() -> None:
    """Lets others run, without the clock that the test replaces."""
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(done.set_result, None)
    await done
