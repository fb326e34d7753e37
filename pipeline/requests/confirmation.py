"""Which way a trade with real money is confirmed: a code of its own, a session, or the issuer's word.

Invariants:
1. A code that is there decides, right or wrong: nothing else is asked, and no session is used.
2. Only an installation that says so takes the issuer's word (`ConfirmationRules.amr_confirming`), and only a young one.
3. Whatever is not confirmed in one of the three ways is refused.

Start at `way_of`, the one place where this is decided.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from pipeline.model.refusal import Refusal
from pipeline.model.rules import ConfirmationRules
from pipeline.model.session import Session, session_refusal
from pipeline.requests.authentication import Token
from schemas.audit import ConfirmedBy
from schemas.reasons import ReasonCode


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How a request is confirmed; `by` None where this installation asks for nothing. `session` is the one that confirms, else None."""

    by: ConfirmedBy | None
    session: Session | None = None


NOT_ASKED: Final = Confirmation(None)
BY_CODE: Final = Confirmation(ConfirmedBy.CODE)
_NO_CODE: Final = Refusal(ReasonCode.TOTP_MISSING, "no code is there")
# A session that was never begun, or is over in time, takes nothing away from what else confirms.
_SAYS_NOTHING: Final = frozenset({ReasonCode.TOTP_MISSING, ReasonCode.SESSION_UNKNOWN, ReasonCode.SESSION_EXPIRED})


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be confirmed: an order in `symbol` worth `usd_value` US dollars, appended at `at` (UTC), and whether a code is with it.

    `generation` is the user's `session_generation`, `issuer_keys` are the fingerprints of the keys that are trusted now; `is_enrolled`:
    whether the user has a second factor at all.
    """

    has_code: bool
    is_enrolled: bool
    symbol: str
    usd_value: Decimal
    at: datetime
    generation: int
    issuer_keys: frozenset[str]


def way_of(asked: Asked, token: Token | None, session: Session | None, rules: ConfirmationRules) -> Confirmation | Refusal:
    """How the order is confirmed, or why it is not. By a code: whether it is right is to be tried yet. `session` is the one that the
    token's `sid` names, where there is one."""
    if asked.has_code:
        return BY_CODE
    refusal: Refusal = _NO_CODE
    if token is not None and token.session_id is not None and asked.is_enrolled:
        found = session_refusal(
            session,
            symbol=asked.symbol,
            usd_value=asked.usd_value,
            generation=asked.generation,
            issuer_keys=asked.issuer_keys,
            at=asked.at,
        )
        if found is None:
            return Confirmation(ConfirmedBy.SESSION, session)
        refusal = found
    # Whoever has revoked a session, or bounded it, means the token that names it: the issuer's word in that token must not undo this.
    if refusal.code in _SAYS_NOTHING and token is not None and has_issuers_word(token, rules, asked.at):
        return Confirmation(ConfirmedBy.ISSUER)
    # The trial of the code that is not there says whether one is enrolled at all, and whether it is locked.
    return BY_CODE if refusal is _NO_CODE else refusal


def has_issuers_word(token: Token, rules: ConfirmationRules, at: datetime) -> bool:
    """Whether the token says that its issuer has asked the user for a second factor (`amr`, RFC 8176), and lately (`auth_time`, OpenID
    Connect Core, section 2). False in an installation that does not take its word."""
    if not rules.amr_confirming & token.authenticated_by or token.authenticated_at is None:
        return False
    return at - rules.auth_age_max - rules.token_leeway <= token.authenticated_at <= at + rules.token_leeway
