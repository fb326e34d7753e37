"""One check of a gate that has a context of its own (withdrawals, announced deposits), and the order in which a step's checks are made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.gate.ladder import Step
from pipeline.model.refusal import Refusal
from schemas.reasons import ReasonCode

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class GateCheck(Generic[C]):
    """Its step, the codes it can give, the limits it goes by, and a sentence that says what holds when it passes."""

    step: Step
    function: Callable[[C], Refusal | None]
    codes: tuple[ReasonCode, ...]
    sentence: str
    limits: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.function.__name__


def first_refusal(checks: Sequence[GateCheck[C]], context: C, step: Step) -> Refusal | None:
    """The first check of a step that does not hold, or None when all hold."""
    for check in checks:
        if check.step is step:
            refusal = check.function(context)
            if refusal is not None:
                return refusal
    return None
