"""What is kept of a user's behaviour between requests (`pipeline.gate.throttle` moves it)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Conduct:
    """What the account's lock row keeps of a user's behaviour; `conduct` moves it.

    `message_clock` is the generic cell rate algorithm's "theoretical arrival time" (ITU-T I.371, annex A): the time at which the messages
    let through so far would be used up at the allowed rate.
    """

    failures_in_row: int = 0
    failed_at: datetime | None = None
    message_clock: datetime | None = None
