"""Missing records of an input partition: what counts as a gap, and where a partition goes on once its loss is accepted.

A gap is never seen in the offsets of the records themselves: markers of transactions take offsets too. It is seen in where the reader
stands and where the log begins and ends.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gap:
    """A partition whose next record is not there. It stands at `position`; the log has records from `log_start` to before `log_end`."""

    position: int
    log_start: int
    log_end: int

    @property
    def resume_at(self) -> int:
        """Where reading can go on: at the log's first record, or at its end where that lies before the position."""
        return self.log_start if self.position < self.log_start else self.log_end

    @property
    def lost(self) -> tuple[int, int]:
        """The offsets that are missing, from the first to before the last."""
        return min(self.position, self.resume_at), max(self.position, self.resume_at)

    def __str__(self) -> str:
        first, last = self.lost
        if self.position < self.log_start:
            return (
                f"the records from {first} to {last - 1} are missing: the log begins at {self.log_start} now. They were deleted before "
                "they were read: by retention, or by hand"
            )
        return (
            f"the log ends at {self.log_end}, before {self.position}, where its reader stands: records that were acknowledged have "
            f"vanished from {first} on. A broker that was behind has become leader, or the topic was made anew"
        )


def gap_of(position: int, log_start: int, log_end: int) -> Gap | None:
    """The gap of a partition that stands at `position`, None where its next record is there or is yet to come."""
    return None if log_start <= position <= log_end else Gap(position, log_start, log_end)
