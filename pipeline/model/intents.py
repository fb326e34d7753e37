"""What this run of a step meant to send, and what it provably did not."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NotSent:
    """Proven: this process did not hand the order to the network (its turn came too late in the receive window)."""

    detail: str


# Intents that this run of a step has stored, by id and attempt: (order or withdrawal id, attempt).
OwnIntents = Collection[tuple[str, int]]
