"""The acceptance horizon (invariant 1 of the package): until when a request can still be accepted.

A request carries its own time limits, so that a client that never got an answer can compute when the question is settled.
"""

from dataclasses import dataclass

from simulator import refusals


@dataclass(frozen=True, slots=True)
class Horizon:
    """What a request was signed with (`timestamp_ms`, `receive_window_ms`), and when it arrived, in microseconds since 1970."""

    timestamp_ms: int
    receive_window_ms: int
    arrived_us: int

    def check(self, now_us: int, venue_timeout_ms: int) -> None:
        """Raises Refusal after the venue's own time-out or outside the receive window. Call it last, right before the acceptance."""
        if now_us - self.arrived_us > venue_timeout_ms * 1000:
            raise refusals.backend_timeout()
        if now_us // 1000 - self.timestamp_ms > self.receive_window_ms:
            raise refusals.outside_window()
