"""Looks: one order, account or exchange that cannot be looked at is left as it is, and the looks beside it go on.

What looks (reconciliation, the watches, trips) changes nothing itself, and looks again. So an error of this system's own at one of them,
such as a damaged row, costs that one its look, is counted and logged, and is no reason to end the worker and everybody's looks with it.

Invariant: what calls for a reaction of the process (out of reach, a violation that concerns a partition) is raised as it came, and by
itself where it came in a group of tasks: whoever waits for services names those errors, not groups.
"""

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final, TypeVar

import structlog

from agents.steps.isolation import record_failure
from infra.metrics import LOOKS_FAILED

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Looks repeat several times a second: each failure is told once in a while.
_TOLD_AGAIN_SECONDS: Final = 60.0
_TOLD_MAX: Final = 1_000
_told: dict[tuple[str, str], float] = {}


async def by_itself(what: str, subject: str, look: Callable[[], Awaitable[T]]) -> T | None:
    """Looks at one subject; None where that ends in an error of this system's own. `what` is who looks, for the metric."""
    try:
        return await look()
    except Exception as error:  # noqa: BLE001 — `record_failure` raises what is no look's failure
        failure = record_failure(error)
    LOOKS_FAILED.labels(what).inc()
    now = monotonic()
    if now - _told.get((what, subject), -_TOLD_AGAIN_SECONDS) >= _TOLD_AGAIN_SECONDS:
        if len(_told) >= _TOLD_MAX:
            _told.clear()
        _told[what, subject] = now
        told = f"{failure.error} in {failure.place}" + (f": {failure.text}" if failure.text else "")
        log.error("look_failed", what=what, subject=subject, error=told, money="it stays as it is, its funds held, and is looked at again")
    return None
