"""Sessions: one code of the second factor that confirms the trades that follow it, within bounds.

A session stands for a user and the `sid` of the user's tokens (pipeline/requests/authentication). Invariants:
1. What is used never exceeds what is allowed, of orders and of US dollars. The counts are stored with the acceptance that moves them, under
   the user's lock.
2. It confirms what the broker appended between its start and its end. What revokes it counts at once, whenever a record was appended.
3. It ends with its user's standing: a change of the user's status or second factor raises the user's `session_generation`, and a session
   of an older one confirms nothing. So it does when the key that signed its first token is trusted no more.
4. Nothing of the token is kept but a digest of user and `sid`.

What may begin one is judged in pipeline/gate/sessions, and done in pipeline/requests/sessions. Start at `session_refusal`.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from pipeline.model.invariants import InvariantViolation
from pipeline.model.refusal import Refusal
from schemas.decimals import format_decimal
from schemas.reasons import ReasonCode as R

SESSION_CLAIM_LENGTH_MAX: Final = 256
# Of one user at once. Each begins with a code, of which there is one per 30 seconds.
SESSIONS_MAX: Final = 32
# The partitions of a topic have leaders of their own, whose clocks differ: an order that was sent behind the answer to its session's start
# may have been appended before it.
CLOCK_LEEWAY: Final = timedelta(seconds=5)
_START: Final = "Send it again with the current code in `x-totp`, or begin a session"


@dataclass(frozen=True, slots=True)
class Session:
    """One session. Amounts in US dollars, times UTC; `symbols` None: every one. `started_at` is the append time of the record that began
    it.

    `ended_at` and `ended_because` tell of a session that was revoked or replaced; one whose time is over has neither.
    """

    session_id: str
    user_id: str
    issuer_key: str
    generation: int
    request_id: str
    started_at: datetime
    expires_at: datetime
    amount_usd_max: Decimal
    orders_max: int
    symbols: frozenset[str] | None
    amount_usd_used: Decimal = Decimal(0)
    orders_used: int = 0
    ended_at: datetime | None = None
    ended_because: str | None = None

    def using(self, usd_value: Decimal) -> "Session":
        """The session after one more order worth so much. Raises InvariantViolation where it does not cover the order: ask before."""
        if not self.covers(usd_value):
            raise InvariantViolation(
                f"session {self.session_id} would confirm more than it may; nothing was written. This is a defect."
            )
        return replace(self, amount_usd_used=self.amount_usd_used + usd_value, orders_used=self.orders_used + 1)

    def covers(self, usd_value: Decimal) -> bool:
        """Whether one more order worth so much keeps both bounds."""
        return self.orders_used < self.orders_max and self.amount_usd_used + usd_value <= self.amount_usd_max

    def is_open(self, generation: int, at: datetime) -> bool:
        """Whether it could confirm anything at this time, for a user of this generation."""
        return self.ended_at is None and self.generation == generation and at < self.expires_at and self.orders_used < self.orders_max

    def ended(self, at: datetime, because: str) -> "Session":
        """The session, revoked or replaced. One that has ended keeps its first end."""
        return self if self.ended_at is not None else replace(self, ended_at=max(at, self.started_at), ended_because=because)


@dataclass(frozen=True, slots=True)
class SessionBounds:
    """What a session may confirm: until when, how many orders, US dollars, and which symbols (None: every one)."""

    expires_at: datetime
    orders_max: int
    amount_usd_max: Decimal
    symbols: frozenset[str] | None

    def __str__(self) -> str:
        which = "every symbol" if self.symbols is None else ", ".join(sorted(self.symbols))
        amount = format_decimal(self.amount_usd_max)
        return f"until {self.expires_at.isoformat(timespec='seconds')}, {self.orders_max} orders, {amount} USD, {which}"


def session_id_of(user_id: str, claim: str) -> str:
    """The id of the session that a user's tokens with this `sid` name. Nobody can tell the claim from it."""
    # Lengths first: no two pairs of texts give the same bytes.
    text = f"session\\0{len(user_id)}\\0{user_id}\\0{claim}"
    return "s" + hashlib.sha256(text.encode()).hexdigest()[:32]


def session_refusal(
    session: Session | None, *, symbol: str, usd_value: Decimal, generation: int, issuer_keys: Collection[str], at: datetime
) -> Refusal | None:
    """Why a session does not confirm an order worth `usd_value` US dollars, None when it does. `at` is the order's append time, UTC;
    `generation` that of the user now, `issuer_keys` the fingerprints of the keys that are trusted now."""
    if session is None or at < session.started_at - CLOCK_LEEWAY:
        return _refused(R.SESSION_UNKNOWN, f"no session with the token's `sid` has begun. {_START} (docs: authentication)")
    if session.ended_at is not None:
        return _refused(R.SESSION_REVOKED, f"the session has ended: {session.ended_because}. {_START} anew")
    if session.generation != generation:
        return _refused(
            R.SESSION_REVOKED, f"the session ended when its user's status or second factor changed. {_START} anew"
        )
    if session.issuer_key not in issuer_keys:
        return _refused(R.SESSION_REVOKED, f"the key that signed the session's first token is not trusted any more. {_START} anew")
    if at >= session.expires_at:
        return _refused(R.SESSION_EXPIRED, f"the session ended at {session.expires_at.isoformat(timespec='seconds')}. {_START} anew")
    if session.symbols is not None and symbol not in session.symbols:
        return _refused(R.SESSION_SYMBOL_NOT_ALLOWED, "the session was begun for other symbols. Send this one with a code of its own")
    if not session.covers(usd_value):
        left = f"{session.orders_max - session.orders_used} orders and "
        left += f"{format_decimal(session.amount_usd_max - session.amount_usd_used)} USD are left of the session"
        return _refused(R.SESSION_LIMIT_EXCEEDED, f"{left}, the order is worth {format_decimal(usd_value)} USD. {_START} anew")
    return None


def open_count(sessions: Iterable[Session], user_id: str, generation: int, at: datetime) -> int:
    """How many sessions of a user could confirm something at this time."""
    return sum(1 for session in sessions if session.user_id == user_id and session.is_open(generation, at))


def _refused(code: R, text: str) -> Refusal:
    return Refusal(code, f"{text}. Nothing was executed, and the key is still free.")
