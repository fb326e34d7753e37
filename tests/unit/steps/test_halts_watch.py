"""The halts as a worker knows them: never older than they may be, and unknown rather than guessed."""

import asyncio

import pytest

from agents.steps.halt_watch import AGE_SECONDS_MAX, POLL_SECONDS, HaltWatch
from pipeline.model.halts import NO_HALTS, Halt, HaltBook
from pipeline.model.invariants import Retryable
from schemas.commands import HaltLevel, HaltScope

HALTED = HaltBook(frozenset({Halt(HaltScope.ALL, "", HaltLevel.HALT)}))


class Source:
    """A database and a clock, both in the test's hands."""

    def __init__(self) -> None:
        self.now = 100.0
        self.book: HaltBook | Exception = NO_HALTS
        self.asked = 0
        self.answers: list[asyncio.Future[HaltBook]] | None = None

    async def read(self) -> HaltBook:
        self.asked += 1
        if self.answers is not None:
            answer: asyncio.Future[HaltBook] = asyncio.get_running_loop().create_future()
            self.answers.append(answer)
            return await answer
        if isinstance(self.book, Exception):
            raise self.book
        return self.book

    def watch(self) -> HaltWatch:
        return HaltWatch(self.read, lambda: self.now)


async def _level(watch: HaltWatch) -> HaltLevel | None:
    return await watch.level_for("binance", "BTC/USDT", "alice")


async def test_what_is_known_is_used_until_it_is_too_old() -> None:
    """Up to its age limit nobody is asked; a moment later the database is."""
    source = Source()
    watch = source.watch()
    assert await _level(watch) is None
    source.book = HALTED
    source.now += AGE_SECONDS_MAX
    assert await _level(watch) is None
    assert source.asked == 1
    source.now += 0.001
    assert await _level(watch) is HaltLevel.HALT


def test_age_leaves_most_of_a_second_to_the_rest() -> None:
    """A halt is in force within a second: the command's transaction and the call under way take their part of it."""
    assert POLL_SECONDS < AGE_SECONDS_MAX <= 0.3


async def test_halts_that_cannot_be_read_are_not_guessed() -> None:
    """Nothing known yet, or only what is too old: whoever asks is told that nobody can say."""
    source = Source()
    source.book = Retryable("away")
    watch = source.watch()
    with pytest.raises(Retryable):
        await _level(watch)
    source.book = NO_HALTS
    assert await _level(watch) is None
    source.book = Retryable("away")
    source.now += AGE_SECONDS_MAX + 0.001
    with pytest.raises(Retryable):
        await _level(watch)


async def test_slow_answer_does_not_replace_a_newer_one() -> None:
    """Of two questions at once the older one may be answered last."""
    source = Source()
    source.answers = []
    watch = source.watch()
    first = asyncio.create_task(watch.refresh())
    await asyncio.sleep(0)
    source.now += 0.1
    second = asyncio.create_task(watch.refresh())
    await asyncio.sleep(0)
    source.answers[1].set_result(HALTED)
    await second
    source.answers[0].set_result(NO_HALTS)
    await first
    assert await _level(watch) is HaltLevel.HALT


async def test_orders_that_ask_at_once_share_one_question() -> None:
    """A batch costs one round trip."""
    source = Source()
    watch = source.watch()
    await asyncio.gather(*(_level(watch) for _ in range(50)))
    assert source.asked == 1
