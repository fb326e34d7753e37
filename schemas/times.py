"""Times: the one bound that every moment keeps which comes from outside, whoever tells it.

A request, a token, the command line or an exchange may name any moment that its own software can write. What this system takes is what
every store and client of it can carry and give back unchanged: PostgreSQL's `timestamptz` through asyncpg (which takes the last
microsecond of the year 9999 for `infinity`, and gives that back without a zone), Python, .NET (years 1 to 9999), Java, JavaScript (signed
milliseconds since 1970), and JSON in RFC 3339 (four digits of the year), in every zone from -12:00 to +14:00.

Invariants:
1. `EARLIEST` <= moment < `END`, in UTC. The last year is left out, so that a sum with a day, a leeway or a zone still is a moment.
2. What is finer than a microsecond is cut off, never rounded: nothing is moved across the bound.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
END: Final = datetime(9999, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
MICROSECONDS_END: Final = (END - EARLIEST) // _MICROSECOND
BOUND_TOLD: Final = "must lie between the years 1970 and 9998 in UTC"


class OutOfBounds(ValueError):
    """A moment that not every store and client can carry. Its text says what the bound is."""

    def __init__(self) -> None:
        super().__init__(BOUND_TOLD)


def bounded(value: datetime) -> datetime:
    """The moment in UTC. Raises OutOfBounds, also for one without a zone: whose clock it is would be a guess."""
    if value.tzinfo is None:
        raise OutOfBounds
    try:
        moment = value.astimezone(UTC)
    except OverflowError:
        raise OutOfBounds from None
    if not EARLIEST <= moment < END:
        raise OutOfBounds
    return moment


def moment_of(amount: object, per_second: int) -> datetime | None:
    """The moment of a whole number of seconds (`per_second` 1), milliseconds (1_000) or microseconds since 1970, as exchanges tell times.

    None for anything else, and for a moment out of bounds: whoever needs it says that the answer is unreadable.
    """
    if type(amount) is not int or not 0 <= amount * 1_000_000 // per_second < MICROSECONDS_END:
        return None
    return EARLIEST + timedelta(microseconds=amount * 1_000_000 // per_second)
