"""Arrivals: one record of `trade.requests` as it came, and whether its sender is proven.

Invariant: who sent a record is judged by its token alone, at the broker's append time, and before anything is locked or read for the user
that the record names: nobody without a token can make a user's rows busy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from pipeline.model.refusal import Refusal
from pipeline.requests.authentication import (
    Scope,
    Token,
    TokenVerifier,
    authorization_of,
    scope_refusal,
    session_claim_refusal,
    user_refusal,
)
from schemas.orders import RequestType
from schemas.requests import Request, SessionRequest, Unreadable, WithdrawalRequest, decode_request
from schemas.wire import SourceOffset

_TRACEPARENT_LENGTH: Final = 55


@dataclass(frozen=True, slots=True)
class Arrival:
    """One record of `trade.requests`, decoded. `appended_at` is the broker's time, UTC.

    `unproven` says why its sender is not known to be the user that it names; None when it is, or when this installation does not ask.
    `needs_second_factor`: whether this installation asks for one where real money is moved. `token` is what proves the sender, None where
    nothing does or nobody asks. `is_confirmed`: its code was tried already, for the session that it began, and was right.
    """

    source: SourceOffset
    appended_at: datetime
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    decoded: Request | Unreadable
    unproven: Refusal | None = None
    needs_second_factor: bool = False
    token: Token | None = None
    is_confirmed: bool = False

    @property
    def claim_key(self) -> tuple[str, str] | None:
        """The user and idempotency key that it names; None when it names none."""
        if self.decoded.user_id is None or self.decoded.idempotency_key is None:
            return None
        return self.decoded.user_id, self.decoded.idempotency_key

    @property
    def proven_key(self) -> tuple[str, str] | None:
        """The user and idempotency key for which it may speak."""
        return self.claim_key if self.unproven is None else None

    @property
    def request_type(self) -> RequestType | None:
        return None if isinstance(self.decoded, Unreadable) else RequestType(self.decoded.type)

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context, passed on when it has the standard's length and alphabet; anything else is dropped."""
        for name, value in self.headers:
            if name == "traceparent" and len(value) == _TRACEPARENT_LENGTH and set(value) <= set(b"0123456789abcdef-"):
                return value.decode()
        return None


def arrive(
    source: SourceOffset, appended_at: datetime, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]
) -> Arrival:
    """Decodes one record. Never raises for what a producer may have sent. A header without a value, which Kafka allows, counts as empty."""
    return Arrival(source, appended_at, key, value, tuple((name, text or b"") for name, text in headers), decode_request(value))


def authenticated(arrival: Arrival, verifier: TokenVerifier) -> Arrival:
    """The arrival with its sender judged: its token must be valid at append time, name the same user, and have the scope it needs."""
    found = _proof_of(arrival, verifier)
    refusal, token = (found, None) if isinstance(found, Refusal) else (None, found)
    return replace(arrival, unproven=refusal, needs_second_factor=True, token=token)


def _proof_of(arrival: Arrival, verifier: TokenVerifier) -> Token | Refusal | None:
    if arrival.claim_key is None:
        # It names nobody: there is nothing to prove, and nothing to be done for anybody.
        return None
    authorization = authorization_of(arrival.headers)
    token = authorization if isinstance(authorization, Refusal) else verifier.verify(authorization, arrival.appended_at)
    if isinstance(token, Refusal):
        return token
    wanted = Scope.WITHDRAW if isinstance(arrival.decoded, WithdrawalRequest) else Scope.TRADE
    refusal = user_refusal(token, arrival.claim_key[0]) or scope_refusal(token, wanted)
    if refusal is None and isinstance(arrival.decoded, SessionRequest) and arrival.decoded.session_id is None:
        refusal = session_claim_refusal(token)
    return refusal or token
