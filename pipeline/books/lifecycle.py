"""How an order, withdrawal, deposit or announcement goes from one form to its next.

A `Lifecycle` says what a kind is, and `advance` is the one way in which something of that kind begins or moves.

Invariants:
1. A status changes only along the table of its kind; anything else is a defect (InvariantViolation) and stops the batch.
2. Each form is told of in this order: the row to be written, its audit event, then its snapshot on `trade.state` where its kind has one.
3. The ledger's transfers of a batch are carried by one audit event each: that of the form that they led to. So whoever moves money
   for something moves it to its next form before anything else happens.
4. What changes without a word to anybody (`Tracked.keep`) changes no status.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, transfer_entry
from pipeline.model.invariants import InvariantViolation
from pipeline.model.tracked import Tracked
from schemas.audit import EventType


class Entity(Protocol):
    """What every kind has: whose it is, how it stands, and the trace of the request that asked for it."""

    @property
    def user_id(self) -> str: ...

    @property
    def status(self) -> StrEnum: ...

    @property
    def traceparent(self) -> str | None: ...


E = TypeVar("E", bound=Entity)


def _as_it_is(before: E | None, after: E) -> E:
    return after


@dataclass(frozen=True, slots=True)
class Lifecycle(Generic[E]):
    """A kind. `rows` is where a batch has those of it, `legal` which statuses may follow, `begins` what the first audit event names as the
    status before it.

    `fields` is what every audit event says of one, `snapshot` its value on the state topic, under its id as the key; None: it has none.
    `kept` gets a form and the one before it and returns it as it is kept; it raises InvariantViolation where the two do not agree.
    """

    name: str
    rows: Callable[[Changes], Tracked[E]]
    id_of: Callable[[E], str]
    legal: Callable[[E, E], frozenset[StrEnum]]
    fields: Callable[[E], dict[str, Value]]
    snapshot: Callable[[E], bytes] | None = None
    begins: StrEnum | None = None
    kept: Callable[[E | None, E], E] = _as_it_is

    def require_transition(self, before: E, after: E) -> None:
        """Raises InvariantViolation where one may not go from `before` to `after`."""
        if after.status not in self.legal(before, after):
            raise InvariantViolation(
                f"{self.name} {self.id_of(before)} cannot go from {before.status} to {after.status}. Nothing was written for its batch and "
                "what it holds stays held. This is a defect: run `orchestrator verify` and report it with this line."
            )

    def advance(
        self,
        before: E | None,
        after: E,
        event_type: EventType,
        changes: Changes,
        extra: Mapping[str, Value] | None = None,
    ) -> None:
        """Gives something of this kind its next form, or its first one, where `before` is None.

        Its event carries the transfers that were made for it: all that no event has carried yet. `extra` is what the event says beside the
        kind's fields. Raises InvariantViolation for a form that may not follow.
        """
        if before is not None:
            self.require_transition(before, after)
        after = self.kept(before, after)
        entity_id, rows = self.id_of(after), self.rows(changes)
        if before is None:
            rows.make(entity_id, after)
        else:
            rows.keep(entity_id, after)
        status_before = before.status if before is not None else self.begins
        fields: dict[str, Value] = {
            **self.fields(after),
            "status_before": status_before.value if status_before is not None else None,
            "transfers": [transfer_entry(transfer) for transfer in changes.ledger.take_untold()],
            **(extra or {}),
        }
        changes.audit(after.user_id, entity_id, event_type, fields, after.traceparent)
        if self.snapshot is not None:
            changes.publish(changes.topics.state, entity_id, self.snapshot(after), after.traceparent)
