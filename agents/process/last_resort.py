"""Ends the process: with a message where that is possible, and in any case.

Invariants:
1. `end_process` returns to nobody and waits for nothing without a limit: not for a log that nobody reads, not for threads, not for
   connections. A worker that lost its claim or stands still can only do harm by tidying up.
2. An event loop that has stopped cannot notice it: `LoopWatch` does, from a thread of its own, and where even threads cannot run (a call
   into C that keeps the interpreter's lock) the C runtime's timer ends the process with `RUNTIME_EXIT_CODE`.
3. A process that was paused as a whole (SIGSTOP, a suspended machine) is not blamed for that: time is counted in the thread's own turns.
   Only the C timer knows no turns; it ends what was paused for longer than its limit, whose partitions have long moved.
"""

import asyncio
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final, NoReturn

import structlog

log = structlog.get_logger(__name__)

# What faulthandler ends a process with; it cannot be chosen.
RUNTIME_EXIT_CODE: Final = 1
_BEAT_SECONDS: Final = 1.0
# How long the message may take; a pipe that nobody reads would take for ever.
_MESSAGE_SECONDS_MAX: Final = 2.0
_RUNTIME_MARGIN_SECONDS: Final = 5.0
_STACK_FRAMES_MAX: Final = 12


def end_process(code: int, event: str, **fields: Any) -> NoReturn:
    """Writes one line to the log, within a time limit, and ends the process with this exit code."""

    def say() -> None:
        log.error(event, exit_code=code, **fields)
        sys.stderr.flush()
        sys.stdout.flush()

    speaker = threading.Thread(target=say, name="last words", daemon=True)
    speaker.start()
    speaker.join(_MESSAGE_SECONDS_MAX)
    os._exit(code)


class LoopWatch:
    """Watches the event loop that it is started in. `ended_with` is called in another thread with what the loop's thread was doing."""

    def __init__(self, stall_seconds_max: float, ended_with: Callable[[float, list[str]], NoReturn]) -> None:
        self._limit = stall_seconds_max
        self._ended_with = ended_with
        self._beats = 0
        self._next: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._loop_thread = 0

    def start(self) -> None:
        """Call it in the loop's own thread."""
        self._loop_thread = threading.get_ident()
        self._beat()
        threading.Thread(target=self._watch, name="loop watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        if self._next is not None:
            self._next.cancel()
        faulthandler.cancel_dump_traceback_later()

    def _beat(self) -> None:
        self._beats += 1
        faulthandler.dump_traceback_later(self._limit + _RUNTIME_MARGIN_SECONDS, exit=True)
        self._next = asyncio.get_running_loop().call_later(_BEAT_SECONDS, self._beat)

    def _watch(self) -> None:
        seen, silent_seconds = self._beats, 0.0
        while not self._stopped.wait(_BEAT_SECONDS):
            if self._beats != seen:
                seen, silent_seconds = self._beats, 0.0
                continue
            silent_seconds += _BEAT_SECONDS
            if silent_seconds > self._limit:
                frame = sys._current_frames().get(self._loop_thread)
                stack = traceback.format_stack(frame, _STACK_FRAMES_MAX) if frame is not None else []
                self._ended_with(silent_seconds, [line.strip() for line in stack])
