"""What a venue says about an API key: may it be used, and for what.

Invariant: a key counts as refused only when the venue itself said so, in an answer that was read whole. Anything else, such as a time-out
or an answer that cannot be read, says nothing about the key.

Start with `KeyAnswer`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from schemas.reasons import ReasonCode

# What a venue's refusal of any signed call proves about the key.
REFUSED: Final = frozenset({ReasonCode.API_KEY_UNKNOWN, ReasonCode.API_KEY_PERMISSION})
NO_SUCH_ENDPOINT: Final = 404


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
