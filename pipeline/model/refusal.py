"""Why a request is not executed."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.reasons import ReasonCode


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not executed: the code for programs, the reason for people (what happened, what of the money, what to do)."""

    code: ReasonCode
    reason: str
