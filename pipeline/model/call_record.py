"""How an exchange answers what is sent to it: the outcomes of the newest calls, and when they say that it loses answers.

A single interruption (a network that breaks, an exchange that restarts, a worker that is killed) can put a whole batch in doubt at once,
and is over in seconds. An exchange that truly loses answers does so again and again. So what counts is the share of the newest calls, and
that their doubts are spread over several batches.
"""

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

# As many calls as are looked back at, and for how long: what is older says nothing about now.
CALLS_MAX: Final = 200
_WINDOW: Final = timedelta(minutes=10)
# One interruption is in one batch, or in two where it falls between them.
_BATCHES_MIN: Final = 3


@dataclass(frozen=True, slots=True)
class BatchOfCalls:
    """What became of the calls of one batch: how many there were, and how many ended without an answer that proves anything."""

    at: datetime
    calls: int
    in_doubt: int


@dataclass(slots=True)
class CallRecord:
    """The newest batches of calls to one exchange, the oldest first."""

    batches: deque[BatchOfCalls] = field(default_factory=deque)

    def note(self, batch: BatchOfCalls) -> None:
        """Adds a batch; forgets what is no longer among the newest calls."""
        if batch.calls == 0:
            return
        self.batches.append(batch)
        while len(self.batches) > 1 and sum(known.calls for known in self.batches) - self.batches[0].calls >= CALLS_MAX:
            self.batches.popleft()

    def forget(self) -> None:
        """Begins anew: whoever lets the exchange be traded at again gives it another chance."""
        self.batches.clear()

    def lost_answers(self, now: datetime, doubts_min: int) -> tuple[int, int] | None:
        """(in doubt, calls) where the exchange loses answers: at least `doubts_min`, half of the calls, over three batches or more."""
        newest = [batch for batch in self.batches if now - batch.at <= _WINDOW]
        doubts, calls = sum(batch.in_doubt for batch in newest), sum(batch.calls for batch in newest)
        spread = sum(batch.in_doubt > 0 for batch in newest)
        if doubts < doubts_min or spread < _BATCHES_MIN or 2 * doubts < calls:
            return None
        return doubts, calls
