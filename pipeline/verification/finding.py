"""The outcome of checking one promise: how much was looked at, how often it is broken, and up to `EXAMPLES_MAX` places to look."""

from dataclasses import dataclass, field
from typing import Final

EXAMPLES_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """`name` is stable and for programs, `claim` is the promise as a sentence. `skipped` says why nothing could be checked."""

    name: str
    claim: str
    checked: int
    breaches: int = 0
    examples: tuple[str, ...] = ()
    skipped: str | None = None

    @property
    def holds(self) -> bool:
        return self.breaches == 0


@dataclass(slots=True)
class Check:
    """Collects what one promise's check sees; `finding` is its outcome."""

    name: str
    claim: str
    checked: int = 0
    breaches: int = 0
    examples: list[str] = field(default_factory=list)

    def breach(self, example: str) -> None:
        self.breaches += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(example)

    def finding(self) -> Finding:
        return Finding(self.name, self.claim, self.checked, self.breaches, tuple(self.examples))


def skipped(name: str, claim: str, why: str) -> Finding:
    """A promise that could not be checked: it neither holds nor is broken."""
    return Finding(name, claim, 0, skipped=why)
