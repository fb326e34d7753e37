"""Arrivals: one record of `trade.requests` as it came, and whether its sender is proven.

Invariant: who sent a record is judged by its token alone, at the broker's append time, and before anything is locked or read for the user
that the record names: nobody without a token can make a user's rows busy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pipeline.authentication import Scope, TokenVerifier, authorization_of, scope_refusal, user_refusal
from pipeline.gate.context import Refusal
from schemas.orders import RequestType
from schemas.requests import Request, Unreadable, WithdrawalRequest, decode_request
from schemas.wire import SourceOffset

_TRACEPARENT_LENGTH: Final = 55


@dataclass(frozen=True, slots=True)
class Arrival:
    """One record of `trade.requests`, decoded. `appended_at` is the broker's time, UTC.

    `unproven` says why its sender is not known to be the user that it names; None when it is, or when this installation does not ask.
    `needs_second_factor`: whether this installation asks for one where real money is moved.
    """

    source: SourceOffset
    appended_at: datetime
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    decoded: Request | Unreadable
    unproven: Refusal | None = None
    needs_second_factor: bool = False

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
    return Arrival(
        arrival.source,
        arrival.appended_at,
        arrival.key,
        arrival.value,
        arrival.headers,
        arrival.decoded,
        _unproven(arrival, verifier),
        needs_second_factor=True,
    )


def _unproven(arrival: Arrival, verifier: TokenVerifier) -> Refusal | None:
    if arrival.claim_key is None:
        # It names nobody: there is nothing to prove, and nothing to be done for anybody.
        return None
    authorization = authorization_of(arrival.headers)
    token = authorization if isinstance(authorization, Refusal) else verifier.verify(authorization, arrival.appended_at)
    if isinstance(token, Refusal):
        return token
    wanted = Scope.WITHDRAW if isinstance(arrival.decoded, WithdrawalRequest) else Scope.TRADE
    return user_refusal(token, arrival.claim_key[0]) or scope_refusal(token, wanted)
