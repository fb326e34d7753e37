"""The gate of a session: may this user's codes be spared for so long, so many orders and so much money?

A session begins with a code, which is tried between the steps `safety` and `risk`; to revoke one takes a token alone. Invariants:
1. Checks read a `SessionContext` and change nothing; the first refusal is given.
2. A session is never wider than the installation lets one be.

Start with `SESSION_GATE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from pipeline.gate.check import Gate, Step, check
from pipeline.gate.context import RequestContext
from pipeline.gate.risk import message_rate_is_kept
from pipeline.gate.safety import request_is_fresh, user_is_active
from pipeline.model.refusal import Refusal
from pipeline.model.session import SESSIONS_MAX, Session, SessionBounds
from schemas.decimals import format_decimal
from schemas.reasons import ReasonCode as R
from schemas.requests import SessionRequest

_NOTHING: Final = "Nothing was begun or ended."


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionContext(RequestContext):
    """All that the checks may look at. `request` None: the session is begun with another request, as wide as it may be.

    `is_authenticated`: whether this installation asks who
    sends. `session` is the one that is meant, where it has begun; `open_count` how many others of the user could confirm something.
    """

    request: SessionRequest | None
    is_authenticated: bool
    session: Session | None
    open_count: int

    untouched: ClassVar = _NOTHING

    @property
    def is_late(self) -> bool:
        return self.request is not None and self.request.expires_at is not None and self.now > self.request.expires_at

    @property
    def revokes(self) -> bool:
        return self.request is not None and self.request.revoke


def bounds_of(context: SessionContext) -> SessionBounds:
    """What the session may confirm: as its request says, else as much as the installation lets one."""
    rules, request = context.rules.confirmation, context.request
    widest = SessionBounds(
        context.appended_at + rules.session_time, rules.session_orders_max, rules.session_amount_usd_max, None
    )
    if request is None:
        return widest
    return SessionBounds(
        request.session_expires_at or widest.expires_at,
        widest.orders_max if request.orders_max is None else request.orders_max,
        widest.amount_usd_max if request.amount_max_usd is None else request.amount_max_usd,
        None if request.symbols is None else frozenset(request.symbols),
    )


@check(Step.SAFETY, R.REQUEST_UNSUPPORTED)
def sessions_are_offered(context: SessionContext) -> Refusal | None:
    """This installation asks for a second factor, and lets sessions stand for it (`ORCHESTRATOR_SESSION_MINUTES_MAX` is not 0). No unit.
    Source: the settings `authentication` and `session_minutes_max`."""
    if context.is_authenticated and context.rules.confirmation.session_time:
        return None
    why = "lets no session stand for the second factor" if context.is_authenticated else "asks for no second factor"
    return Refusal(R.REQUEST_UNSUPPORTED, f"this installation {why}. {_NOTHING}")


@check(Step.SAFETY, R.SESSION_EXPIRED, R.SESSION_TOO_WIDE)
def session_bounds_fit(context: SessionContext) -> Refusal | None:
    """It ends after it begins, and is no wider than `ORCHESTRATOR_SESSION_MINUTES_MAX`, `…_ORDERS_MAX` and `…_AMOUNT_USD_MAX`. Units: time
    since the broker appended the record, orders, USD. Source: the settings `session_minutes_max`, `session_orders_max` and
    `session_amount_usd_max`."""
    if context.revokes:
        return None
    rules, bounds = context.rules.confirmation, bounds_of(context)
    if bounds.expires_at <= context.appended_at:
        return Refusal(R.SESSION_EXPIRED, f"session_expires_at is not after the broker's time of the record. {_NOTHING} Use a new key.")
    if bounds.expires_at > context.appended_at + rules.session_time:
        what = f"it would last longer than {rules.session_time}"
    elif bounds.orders_max > rules.session_orders_max:
        what = f"it would confirm more than {rules.session_orders_max} orders"
    elif bounds.amount_usd_max > rules.session_amount_usd_max:
        what = f"it would confirm more than {format_decimal(rules.session_amount_usd_max)} USD"
    else:
        return None
    return Refusal(R.SESSION_TOO_WIDE, f"{what}, the most that this installation lets a session. {_NOTHING} Ask for less under a new key.")


@check(Step.RISK, R.SESSIONS_EXCEEDED)
def sessions_are_within_count(context: SessionContext) -> Refusal | None:
    """With this one the user has no more than 32 sessions at once. Unit: sessions. Source: `SESSIONS_MAX`."""
    if context.revokes or context.open_count < SESSIONS_MAX:
        return None
    text = f"{context.open_count} sessions of the user are open, as many as allowed"
    return Refusal(R.SESSIONS_EXCEEDED, f"{text}. {_NOTHING} Revoke one, and begin this one under a new key.")


@check(Step.RISK, R.SESSION_UNKNOWN)
def revoked_session_is_known(context: SessionContext) -> Refusal | None:
    """A session that is revoked is one of the user's. No unit. Source: the sessions that have begun."""
    if not context.revokes or context.session is not None:
        return None
    return Refusal(R.SESSION_UNKNOWN, f"the user has no such session. {_NOTHING} Name it by session_id, or send a token with its sid.")


SESSION_GATE: Final[Gate[SessionContext]] = Gate(
    request_is_fresh,
    sessions_are_offered,
    user_is_active,
    session_bounds_fit,
    message_rate_is_kept,
    sessions_are_within_count,
    revoked_session_is_known,
)
