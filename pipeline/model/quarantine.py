"""A record that could not be decided, and why (`pipeline.isolation.quarantine` sets it aside)."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from schemas.wire import SourceOffset

# The chain of what concerns no single user's state: records set aside, and what operators did with them. No user id begins so.
QUARANTINE_ACCOUNT: Final = "@quarantine"


class Stage(StrEnum):
    """How far a step came with a record."""

    DECODE = "decode"
    LOAD = "load"
    DECIDE = "decide"
    STORE = "store"
    CALL = "call"
    CONCLUDE = "conclude"


class QuarantineState(StrEnum):
    """`retried`: published again as a new record. `dropped`: dealt with otherwise."""

    OPEN = "open"
    RETRIED = "retried"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record could not be decided: the error's class, the place in this code, and its text where that is our own."""

    stage: Stage
    error: str
    place: str
    text: str

    def __str__(self) -> str:
        told = f": {self.text}" if self.text else ""
        return f"{self.error} at {self.stage}, {self.place}{told}"


@dataclass(frozen=True, slots=True)
class Named:
    """What a record is about, as far as it can be read: its user, and an order, withdrawal, deposit, halt or command.

    `is_made_again`: this system makes such a record by itself, again and again, until it is applied.
    """

    user_id: str = ""
    subject: str = ""
    is_made_again: bool = False


@dataclass(frozen=True, slots=True)
class InputRecord:
    """A record as it was read, headers without values counting as empty. `appended_at` is its timestamp on the topic, UTC."""

    source: SourceOffset
    appended_at: datetime
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """One row of the quarantine. `value_bytes` is the size of the whole value; `value` may be its beginning."""

    quarantine_id: str
    source: SourceOffset
    appended_at: datetime
    key: bytes | None
    value: bytes | None
    value_bytes: int
    headers: tuple[tuple[str, bytes], ...]
    failure: Failure
    named: Named
    # Nothing of the user could be loaded, so nothing was said of an order or a key.
    sparing: bool
