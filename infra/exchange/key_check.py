"""What a venue says about an API key: may it be used, and for what.

Invariant: a key counts as refused only when the venue itself said so, in an answer that was read whole. Anything else, such as a time-out
or an answer that cannot be read, says nothing about the key.

Start with `read_answer`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from schemas.reasons import ReasonCode
from schemas.times import moment_of

# What a venue's refusal of any signed call proves about the key.
REFUSED: Final = frozenset({ReasonCode.API_KEY_UNKNOWN, ReasonCode.API_KEY_PERMISSION})
NO_SUCH_ENDPOINT: Final = 404


@dataclass(frozen=True, slots=True)
class KeyQuestion:
    """A signed read that tells what a key may do, by ccxt's name of the endpoint and the answer's own field names.

    `is_of_key`: the answer is about the key itself; else about its account, and proves of the key only that the venue takes it.
    """

    call: str
    trade: str
    withdraw: str
    ip_restricted: str | None = None
    trading_until: str | None = None
    is_of_key: bool = True


@dataclass(frozen=True, slots=True)
class KeyAccepted:
    """The venue takes the key. `permissions` holds `trade` and `withdraw` as the venue grants them, to the key or, where it tells no more,
    to its account (`is_of_key` False). None: the venue does not say."""

    permissions: frozenset[str]
    is_of_key: bool
    is_ip_restricted: bool | None = None
    trading_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeyRefused:
    """The venue refuses the key. `detail` is in its words and holds no secret."""

    reason: ReasonCode
    detail: str


@dataclass(frozen=True, slots=True)
class KeyUnanswered:
    """Nothing is known about the key: ask again."""

    detail: str


KeyAnswer = KeyAccepted | KeyRefused | KeyUnanswered


def read_answer(question: KeyQuestion, answer: Any) -> KeyAccepted | None:
    """What a venue's answer says; None where it is not what the venue's documentation says it is."""
    if not isinstance(answer, dict):
        return None
    granted = {name: answer.get(field) for name, field in (("trade", question.trade), ("withdraw", question.withdraw))}
    if not all(isinstance(value, bool) for value in granted.values()):
        return None
    restricted = answer.get(question.ip_restricted) if question.ip_restricted else None
    until = answer.get(question.trading_until) if question.trading_until else None
    # Milliseconds since 1970, UTC.
    trading_until = moment_of(until, 1_000)
    if isinstance(until, int) and until > 0 and trading_until is None:
        return None
    return KeyAccepted(
        permissions=frozenset(name for name, value in granted.items() if value),
        is_of_key=question.is_of_key,
        is_ip_restricted=restricted if isinstance(restricted, bool) else None,
        trading_until=trading_until if until else None,
    )
