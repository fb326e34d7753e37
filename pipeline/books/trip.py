"""Trips: the halts that the system itself asks for.

Invariant: a trip only ever makes things stricter; only an operator resumes (pipeline/commands/halts). One that is older than
`TRIP_AGE_MAX` is ignored: it must not undo a resume that came after it was made. While its cause is there it is made again.

Start with `apply_trip`.
"""

from datetime import timedelta
from typing import Final

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, SetHalt
from pipeline.model.detail import DETAIL_MAX
from pipeline.model.halts import Halt
from pipeline.model.invariants import LocksMissing
from schemas.audit import EventType
from schemas.commands import TRIPS_ACCOUNT, HaltLevel, HaltScope, HaltTrip

# Longer than a report waits where workers keep up.
TRIP_AGE_MAX: Final = timedelta(seconds=10)


def halt_fields(scope: HaltScope, target: str, level: HaltLevel | None, reason: str) -> dict[str, Value]:
    """What every audit event about a halt says of it."""
    return {
        "halt_scope": scope.value,
        "halt_target": target or None,
        "halt_level": level.value if level is not None else None,
        "reason": reason,
    }


def apply_trip(trip: HaltTrip, changes: Changes) -> None:
    """Sets the halt that the system asks for, unless one at least as strict is there already. An operator's wish for cancels stays."""
    key = trip.scope, trip.target
    before = changes.halts.get(key)
    if changes.now - trip.tripped_at > TRIP_AGE_MAX:
        return
    if before is not None and (before.halt.level is HaltLevel.HALT or trip.level is HaltLevel.REDUCE):
        return
    halt = Halt(trip.scope, trip.target, trip.level)
    cancel_open = before is not None and before.cancel_open
    changes.halts[key] = SetHalt(halt, trip.reason, TRIPS_ACCOUNT, trip.trip_id, changes.now, cancel_open)
    changes.halts_moved.add(key)
    fields = halt_fields(trip.scope, trip.target, trip.level, trip.reason)
    changes.audit(TRIPS_ACCOUNT, None, EventType.HALT_SET, {**fields, "request_id": trip.trip_id}, None)


def require_halts_locked(changes: Changes, why: str) -> None:
    """Raises LocksMissing where the step has not locked the halts; it is then run again with their lock. `why` is what needs them."""
    if TRIPS_ACCOUNT not in changes.trail.heads:
        raise LocksMissing(f"{why}, and the halts are not locked")


def halt_user(user_id: str, cause: str, reason: str, changes: Changes) -> None:
    """Halts a user of whom a person must look at something; `cause` names it once and for all."""
    trip = HaltTrip(
        schema_version=1,
        trip_id=f"trip:{cause}",
        scope=HaltScope.USER,
        target=user_id,
        level=HaltLevel.HALT,
        reason=reason[:DETAIL_MAX],
        tripped_at=changes.now,
    )
    apply_trip(trip, changes)
