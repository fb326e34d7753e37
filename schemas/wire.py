"""What every record on the wire has in common: where it came from, how times and models are written.

Invariant: times are UTC with microseconds and end in `Z` (RFC 3339), so that they sort as text.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Final

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, PlainSerializer

from schemas.times import bounded

SCHEMA_VERSION: Final = 1


# Every record and event of a batch repeats the few times of the batch.
@lru_cache(maxsize=1_024)
def format_time(value: datetime) -> str:
    """RFC 3339 in UTC with microseconds: `2026-11-24T06:46:59.000001Z`. Raises ValueError for a time without a zone."""
    if value.tzinfo is None:
        raise ValueError("a time without a zone cannot be written: pass UTC")
    return value.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


# Read within the bound of schemas.times: what one worker has written, every other, its database and every client can carry.
Timestamp = Annotated[AwareDatetime, AfterValidator(bounded), PlainSerializer(format_time, return_type=str, when_used="json")]


@dataclass(frozen=True, slots=True, order=True)
class SourceOffset:
    """The input record that an output answers: its topic, partition and offset."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class WireModel(BaseModel):
    """A record value: frozen, and closed to fields that the contract does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class InternalModel(WireModel):
    """A record that only our own agents write: what a newer release adds to it is no reason for an older one to stop.

    So a field that is added has a default and is left out while it is unset, and a field that decides about money is never only added: the
    older worker would go by what it knows.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)
