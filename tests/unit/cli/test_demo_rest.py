"""When the demo counts as being at rest, so that nothing is said any more when its workers stop."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cli.local import demo_load
from cli.local.demo_load import Rest
from pipeline.model.invariants import Retryable

_Look = bool | Retryable


class _Looks(Rest):
    """Sees one thing after another, and the last one for ever."""

    __slots__ = ("looked", "looks")

    def __init__(self, looks: Sequence[_Look], paused: Callable[[], int]) -> None:
        nothing: Any = None
        super().__init__(nothing, "", nothing, Path(), 0, paused)
        self.looks = looks
        self.looked = 0

    async def _nothing_is_under_way(self, answered: Callable[[int], None]) -> bool:
        look = self.looks[min(self.looked, len(self.looks) - 1)]
        self.looked += 1
        if isinstance(look, Retryable):
            raise look
        return look


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look every hundredth of a second, and rest after a tenth."""
    monkeypatch.setattr(demo_load, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(demo_load, "_REST_SECONDS", 0.1)


async def test_rest_is_what_is_seen_for_a_while() -> None:
    """What looks quiet once may be a moment between two reports of one worker."""
    looks = _Looks([True, True, False, Retryable("no coordinator"), True], lambda: 0)
    assert await looks.reached(10, lambda _: None)
    assert looks.looked > 6


async def test_rest_is_not_reached_while_a_worker_is_paused() -> None:
    """It wakes up and reports what it had looked up before: nobody would read that after the others have stopped."""
    looks = _Looks([True], lambda: 1)
    assert not await looks.reached(0.3, lambda _: None)
    assert looks.why_not == "1 workers are paused"


async def test_rest_is_reached_after_the_last_worker_has_gone_on() -> None:
    """The time begins anew when the last one wakes up."""
    paused = iter([1, 1, 1])
    looks = _Looks([True], lambda: next(paused, 0))
    assert await looks.reached(10, lambda _: None)
    assert looks.looked > 5


async def test_rest_that_is_never_reached_ends_in_time() -> None:
    """The reason of the last look is kept."""
    looks = _Looks([False, Retryable("the broker is out of reach")], lambda: 0)
    assert not await looks.reached(0.2, lambda _: None)
    assert looks.why_not == "the broker is out of reach"
