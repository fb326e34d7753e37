"""The gate of a session: may this user's codes be spared for so long, so many orders and so much money?

A session begins with a code, which is tried between the steps `safety` and `risk`; to revoke one takes a token alone. Invariants:
1. Checks read a `SessionContext` and change nothing; the first refusal is given.
2. A session is never wider than the installation lets one be.

Start with `SESSION_CHECKS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pipeline.gate.check import GateCheck, first_refusal
from pipeline.gate.context import AccountState
from pipeline.gate.ladder import Step
from pipeline.gate.safety import stale_refusal
from pipeline.gate.throttle import message_conforms
from pipeline.model.refusal import Refusal
from pipeline.model.rules import Rules
from pipeline.model.session import SESSIONS_MAX, Session, SessionBounds
from schemas.decimals import format_decimal
from schemas.reasons import ReasonCode as R
from schemas.requests import SessionRequest

_NOTHING: Final = "Nothing was begun or ended."


@dataclass(frozen=True, eq=False)
class SessionContext:
    """All that the checks may look at. `request` None: the session is begun with another request, as wide as it may be.

    `appended_at` is the broker's time of the record, `now` the decision's, both UTC. `is_authenticated`: whether this installation asks who
    sends. `session` is the one that is meant, where it has begun; `open_count` how many others of the user could confirm something.
    """

    request: SessionRequest | None
    appended_at: datetime
    now: datetime
    rules: Rules
    account: AccountState
    is_authenticated: bool
    session: Session | None
    open_count: int

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


def session_request_is_fresh(context: SessionContext) -> Refusal | None:
    """The record is not older than keys are kept, and its deadline, where it has one, has not passed. Unit: time since the broker appended
    it. Source: the contract (`expires_at`)."""
    refusal = stale_refusal(context.appended_at, context.now, context.rules)
    if refusal is not None:
        return refusal
    request = context.request
    if request is None or request.expires_at is None or context.now <= request.expires_at:
        return None
    return Refusal(R.REQUEST_EXPIRED, f"the deadline passed before it was decided. {_NOTHING} Send it under a new key.")


def sessions_are_offered(context: SessionContext) -> Refusal | None:
    """This installation asks for a second factor, and lets sessions stand for it. No unit. Source: the settings `authentication` and
    `session_minutes_max`."""
    if context.is_authenticated and context.rules.confirmation.session_time:
        return None
    why = "lets no session stand for the second factor" if context.is_authenticated else "asks for no second factor"
    return Refusal(R.REQUEST_UNSUPPORTED, f"this installation {why}. {_NOTHING}")


def user_may_begin(context: SessionContext) -> Refusal | None:
    """The user exists, is verified and active; who revokes a session need not be. No unit. Source: the user's status, which operators
    set."""
    status = context.account.status
    if status == "active" or (status is not None and context.revokes):
        return None
    if status is None:
        return Refusal(R.USER_UNKNOWN, f"no such user. {_NOTHING} An operator can add it.")
    if status == "pending":
        return Refusal(R.USER_UNVERIFIED, f"the user waits for verification. {_NOTHING} An operator can verify it.")
    return Refusal(R.USER_INACTIVE, f"the user is {status}. {_NOTHING} Only an operator can change that.")


def session_bounds_fit(context: SessionContext) -> Refusal | None:
    """The session ends after it begins, and is no wider than the installation lets one be. Units: time since the broker appended the
    record, orders, USD. Source: the settings `session_minutes_max`, `session_orders_max` and `session_amount_usd_max`."""
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


def session_rate_is_kept(context: SessionContext) -> Refusal | None:
    """These requests count for the user's message rate as trades do. Unit: messages per second, and messages. Source: the contract."""
    limits = context.account.limits
    # Who wants a session ended must not have to wait.
    if context.revokes or message_conforms(context.account.conduct, limits, context.now):
        return None
    text = f"more than {limits.messages_per_second_max} requests per second, with a burst of {limits.messages_burst_max}"
    return Refusal(R.MESSAGE_RATE_EXCEEDED, f"the user sends {text}. {_NOTHING} Send more slowly, this one under a new key.")


def sessions_are_within_count(context: SessionContext) -> Refusal | None:
    """With this one the user has no more sessions at once than allowed. Unit: sessions. Source: `SESSIONS_MAX`."""
    if context.revokes or context.open_count < SESSIONS_MAX:
        return None
    text = f"{context.open_count} sessions of the user are open, as many as allowed"
    return Refusal(R.SESSIONS_EXCEEDED, f"{text}. {_NOTHING} Revoke one, and begin this one under a new key.")


def revoked_session_is_known(context: SessionContext) -> Refusal | None:
    """A session that is to be revoked is one of the user's. No unit. Source: the sessions that have begun."""
    if not context.revokes or context.session is not None:
        return None
    return Refusal(R.SESSION_UNKNOWN, f"the user has no such session. {_NOTHING} Name it by session_id, or send a token with its sid.")


SESSION_CHECKS: Final[tuple[GateCheck[SessionContext], ...]] = (
    GateCheck(
        Step.SAFETY,
        session_request_is_fresh,
        (R.REQUEST_STALE, R.REQUEST_EXPIRED),
        "The record is no older than keys are kept (24 h), and its deadline (`expires_at`), where it has one, has not passed.",
    ),
    GateCheck(
        Step.SAFETY,
        sessions_are_offered,
        (R.REQUEST_UNSUPPORTED,),
        "This installation asks for a second factor, and lets sessions stand for it (`ORCHESTRATOR_SESSION_MINUTES_MAX` is not 0).",
    ),
    GateCheck(
        Step.SAFETY,
        user_may_begin,
        (R.USER_UNKNOWN, R.USER_UNVERIFIED, R.USER_INACTIVE),
        "The user exists, is verified, and neither frozen nor closed; who revokes need not be.",
    ),
    GateCheck(
        Step.SAFETY,
        session_bounds_fit,
        (R.SESSION_EXPIRED, R.SESSION_TOO_WIDE),
        "It ends after it begins, and is no wider than `ORCHESTRATOR_SESSION_MINUTES_MAX`, `…_ORDERS_MAX` and `…_AMOUNT_USD_MAX`.",
    ),
    GateCheck(
        Step.RISK,
        session_rate_is_kept,
        (R.MESSAGE_RATE_EXCEEDED,),
        "The user's requests keep the rate, with bursts up to a number; revoking always does.",
        ("messages_per_second_max", "messages_burst_max"),
    ),
    GateCheck(
        Step.RISK,
        sessions_are_within_count,
        (R.SESSIONS_EXCEEDED,),
        f"With this one the user has no more than {SESSIONS_MAX} sessions at once.",
    ),
    GateCheck(Step.RISK, revoked_session_is_known, (R.SESSION_UNKNOWN,), "A session that is revoked is one of the user's."),
)


def session_gate_refusal(context: SessionContext, step: Step) -> Refusal | None:
    """The first check of a step that does not hold, or None when all hold."""
    return first_refusal(SESSION_CHECKS, context, step)
