"""A check, declared on the function that makes it, and a gate: the checks that one type of request passes, in their order."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, TypeVar

from pipeline.model.refusal import Refusal
from schemas.reasons import ReasonCode

C = TypeVar("C")
# A check of what every request has is a check of each type of request.
C_contra = TypeVar("C_contra", contravariant=True)

# What is not there cannot be held: the hold in the ledger (pipeline/books/ledger) is the last check of what holds anything.
HOLD: Final = "balance_covers_the_hold"
# A full stop in front of the next sentence, or at the end.
_SENTENCE: Final = re.compile(r"(.*?)\.(?: (?=[A-Z`])|$)")


class Step(StrEnum):
    """The gate's part of the ten steps of a trade: 1 safety validation, 4 API key, 5 risk (`risk` and then `suspicion`, for which a refusal
    is not enough: its user must be frozen), 6 exchange connection."""

    SAFETY = "safety"
    API_KEY = "api_key"
    RISK = "risk"
    SUSPICION = "suspicion"
    CONNECTION = "connection"


@dataclass(frozen=True, slots=True)
class Check(Generic[C_contra]):
    """One check: its step, the function that makes it, the codes that it can give, and the fields of `Limits` that it goes by."""

    step: Step
    function: Callable[[C_contra], Refusal | None]
    codes: tuple[ReasonCode, ...]
    limits: tuple[str, ...]

    def __call__(self, context: C_contra) -> Refusal | None:
        """Why the request is refused; None when the check holds."""
        return self.function(context)

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def sentence(self) -> str:
        """What holds when it passes: the first sentence of the function's docstring. Raises ValueError without one."""
        found = _SENTENCE.match(" ".join((self.function.__doc__ or "").split()))
        if found is None:
            raise ValueError(f"the check {self.name} does not say in a sentence what holds when it passes")
        return f"{found[1]}."


def check(
    step: Step, *codes: ReasonCode, limits: tuple[str, ...] = ()
) -> Callable[[Callable[[C], Refusal | None]], Check[C]]:
    """Declares a function to be a check."""
    return lambda function: Check(step, function, codes, limits)


class Gate(Generic[C]):
    """The checks of one type of request. Within a step they are made in the order in which they are given; the first that does not hold
    gives the answer, so a request that passes a step has passed each of its checks."""

    def __init__(self, *checks: Check[C]) -> None:
        self.checks = checks
        self._functions = {step: tuple(one.function for one in checks if one.step is step) for step in Step}

    def refusal(self, context: C, step: Step) -> Refusal | None:
        """The first refusal of a step; None when all its checks hold."""
        for function in self._functions[step]:
            refusal = function(context)
            if refusal is not None:
                return refusal
        return None

    def passed(self, *besides: Step) -> list[str]:
        """The names of the checks, as an acceptance lists them, without those of the steps `besides`."""
        return [one.name for one in self.checks if one.step not in besides]
