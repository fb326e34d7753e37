"""Operators: who asks for a change of administration, proven or claimed, and what the audit trail says of them.

Invariants:
1. A `VerifiedOperator` is made here alone, from a token that holds, whose subject is an active operator: no name can be typed into one.
2. A code counts as in pipeline/model/second_factor: its step is accepted once, and the factor's state after the try must be stored
   whatever came of it.
3. The actor of an event is the token's subject. Where nobody could be asked, it is `UNVERIFIED`, and the event says who claimed to be whom
   (`claimed_operator`), from which system account and by which role of the database.

Start with `judge_operator`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pipeline.books.audit import Value
from pipeline.model.invariants import InvariantViolation
from pipeline.model.refusal import Refusal
from pipeline.model.second_factor import SecondFactor, check_code
from pipeline.requests.authentication import Scope, Token, TokenVerifier, scope_refusal
from schemas.reasons import ReasonCode

# The actor of what was changed while nobody could be asked for a proof. No user id begins so.
UNVERIFIED: Final = "@unverified"

_JUDGED: Final = object()


class VerifiedOperator:
    """An operator whose token and code were verified; `user_id` is the token's subject."""

    __slots__ = ("_user_id",)

    def __init__(self, user_id: str, judged: object) -> None:
        if judged is not _JUDGED:
            raise InvariantViolation("an operator was named without being verified; nothing was written. This is a defect.")
        self._user_id = user_id

    @property
    def user_id(self) -> str:
        return self._user_id

    @property
    def name(self) -> str:
        """As listings and columns show who changed something."""
        return self._user_id

    def facts(self) -> dict[str, Value]:
        """What an audit event says of who acted."""
        return {"actor": self._user_id}

    def __repr__(self) -> str:
        return f"VerifiedOperator({self._user_id})"


@dataclass(frozen=True, slots=True)
class ClaimedOperator:
    """Who says to act, where nobody can be asked for a proof: the name as given, and the facts beside it."""

    claimed: str
    system_user: str
    database_role: str

    @property
    def name(self) -> str:
        """As listings and columns show who changed something."""
        return f"{self.claimed} (claimed)"

    def facts(self) -> dict[str, Value]:
        """What an audit event says of who acted."""
        return {
            "actor": UNVERIFIED,
            "claimed_operator": self.claimed,
            "system_user": self.system_user,
            "database_role": self.database_role,
        }


Operator = VerifiedOperator | ClaimedOperator


@dataclass(frozen=True, slots=True)
class OperatorAccount:
    """What is stored of a token's subject. `status` None: there is no such user."""

    role: str | None
    status: str | None
    factor: SecondFactor | None


def operator_token(authorization: bytes | None, verifier: TokenVerifier, at: datetime) -> Token | Refusal:
    """The token of an `authorization` header, if it holds at `at` and is for operators."""
    token = verifier.verify(authorization, at)
    if isinstance(token, Refusal):
        return token
    return scope_refusal(token, Scope.OPERATE) or token


def operator_refusal(role: str | None, status: str | None) -> Refusal | None:
    """Refuses whoever is no active operator."""
    if role == "operator" and status == "active":
        return None
    return Refusal(ReasonCode.USER_INACTIVE, "the sender is no active operator; nothing was changed")


def judge_operator(
    token: Token, account: OperatorAccount, code: bytes | None, at: datetime
) -> tuple[VerifiedOperator | Refusal, SecondFactor | None]:
    """The operator that a token and a fresh code prove at `at` (UTC), or why they do not; and the factor's state after the try, None where
    it did not change. That state is to be stored in either case."""
    refusal = operator_refusal(account.role, account.status)
    if refusal is not None:
        return refusal, None
    refused, after = check_code(account.factor, code, at)
    return refused or VerifiedOperator(token.user_id, _JUDGED), after
