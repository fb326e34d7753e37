"""The outcome of checking one promise: how much was looked at, how often it is broken, and places to look."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

# Kept, so that two looks can be compared; how many are shown is up to whoever shows them. Work under way between two reads is as much as
# the system does in that time, so this is far above any such figure; what is beyond it counts as broken.
EXAMPLES_KEPT_MAX: Final = 100_000
EXAMPLES_SHOWN: Final = 5


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

    @property
    def shown(self) -> tuple[str, ...]:
        """The first few examples."""
        return self.examples[:EXAMPLES_SHOWN]


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
        if len(self.examples) < EXAMPLES_KEPT_MAX:
            self.examples.append(example)

    def finding(self) -> Finding:
        return Finding(self.name, self.claim, self.checked, self.breaches, tuple(self.examples))


def skipped(name: str, claim: str, why: str) -> Finding:
    """A promise that could not be checked: it neither holds nor is broken."""
    return Finding(name, claim, 0, skipped=why)


def still_broken(before: Sequence[Finding], now: Sequence[Finding]) -> list[Finding]:
    """The findings of now, less the breaches that an earlier look did not have in the same words: those were work under way."""
    seen = {finding.name: set(finding.examples) for finding in before}
    found: list[Finding] = []
    for finding in now:
        known = seen.get(finding.name, set())
        lasting = tuple(example for example in finding.examples if example in known)
        # Beyond what is kept nothing can be compared, so it counts.
        uncompared = finding.breaches - len(finding.examples)
        found.append(replace(finding, breaches=len(lasting) + uncompared, examples=lasting))
    return found
