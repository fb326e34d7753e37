"""The gate of an announced deposit: may this user expect this much of an asset at this exchange?

An announcement moves no money: it only gets the answer when a deposit arrives. So it asks for no second factor, holds nothing, and no halt
stops it. Invariants:
1. Checks read an `AnnouncementContext` and change nothing; the first refusal is given.
2. What is not known refuses, it never passes.

Start with `ANNOUNCEMENT_CHECKS`.
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
from pipeline.model.api_key import ApiKeyState
from pipeline.model.refusal import Refusal
from pipeline.model.rules import Rules
from schemas.orders import Mode
from schemas.reasons import ReasonCode as R
from schemas.requests import DepositRequest

# What a refusal means for the money: nothing at all.
_STILL_CREDITED: Final = "Nothing was noted; a deposit that arrives is credited all the same."


@dataclass(frozen=True, eq=False)
class AnnouncementContext:
    """All that the checks of one announcement may look at.

    `appended_at` is the broker's time of the record, `now` the decision's, both UTC. `waiting` is how many announcements of the user wait
    already.
    """

    request: DepositRequest
    appended_at: datetime
    now: datetime
    rules: Rules
    account: AccountState
    api_key: ApiKeyState | None
    waiting: int


def announcement_expires_at(context: AnnouncementContext) -> datetime:
    """Until when it is waited for: the producer's own time, else the default after the broker's."""
    return context.request.expires_at or context.appended_at + context.rules.announcement_time


def announcement_is_fresh(context: AnnouncementContext) -> Refusal | None:
    """The record is not older than keys are kept, and its time is not over. Unit: time since the broker appended it."""
    refusal = stale_refusal(context.appended_at, context.now, context.rules)
    if refusal is not None:
        return refusal
    if context.now < announcement_expires_at(context):
        return None
    return Refusal(R.REQUEST_EXPIRED, f"its time was over before it was decided. {_STILL_CREDITED} Announce it under a new key.")


def announcement_mode_is_live(context: AnnouncementContext) -> Refusal | None:
    """Only real money arrives at an exchange. No unit."""
    if context.request.mode is Mode.LIVE:
        return None
    text = "simulated money arrives nowhere; `orchestrator balances fund-paper` gives it. Nothing was noted"
    return Refusal(R.REQUEST_UNSUPPORTED, f"{text}. Only mode live announces deposits.")


def announcement_exchange_is_offered(context: AnnouncementContext) -> Refusal | None:
    """This installation is connected to the exchange. No unit. Source: the setting `exchanges`."""
    if context.request.exchange in context.rules.exchanges:
        return None
    offered = ", ".join(sorted(context.rules.exchanges))
    return Refusal(R.EXCHANGE_UNKNOWN, f"exchange is not one of: {offered}. Nothing was noted. Name one of them under a new key.")


def user_may_announce(context: AnnouncementContext) -> Refusal | None:
    """The user exists, is verified and active. No unit. Source: the user's status, which operators set."""
    status = context.account.status
    if status == "active":
        return None
    if status is None:
        return Refusal(R.USER_UNKNOWN, "no such user. Nothing was noted. An operator can add it.")
    if status == "pending":
        return Refusal(R.USER_UNVERIFIED, f"the user waits for verification. {_STILL_CREDITED} An operator can verify it.")
    return Refusal(R.USER_INACTIVE, f"the user is {status}. {_STILL_CREDITED} Only an operator can change that.")


def announcement_key_is_usable(context: AnnouncementContext) -> Refusal | None:
    """The user has stored this key, for this exchange, and it is active: without one nobody sees what arrives. Unit: `expires_at` is the
    first moment at which it is not."""
    key = context.api_key
    if key is None:
        return Refusal(R.API_KEY_UNKNOWN, "the user has no API key with this api_key_id. Nothing was noted. Name another under a new key.")
    if key.exchange != context.request.exchange:
        return Refusal(R.API_KEY_PERMISSION, "this API key is for another exchange. Nothing was noted. Name one of this exchange.")
    if key.status == "revoked":
        return Refusal(R.API_KEY_REVOKED, "this API key is revoked. Nothing was noted. Have another stored.")
    if key.status == "refused":
        text = "the exchange has refused this API key. Nothing was noted. Have it checked, or another stored."
        return Refusal(R.API_KEY_PERMISSION, text)
    if key.status != "active" or (key.expires_at is not None and context.now >= key.expires_at):
        return Refusal(R.API_KEY_EXPIRED, "this API key is expired. Nothing was noted. Have another stored.")
    return None


def announcement_rate_is_kept(context: AnnouncementContext) -> Refusal | None:
    """Announcements count for the user's message rate as trades do. Unit: messages per second, and messages."""
    limits = context.account.limits
    if message_conforms(context.account.conduct, limits, context.now):
        return None
    text = f"more than {limits.messages_per_second_max} requests per second, with a burst of {limits.messages_burst_max}"
    return Refusal(R.MESSAGE_RATE_EXCEEDED, f"the user sends {text}. {_STILL_CREDITED} Send more slowly, this one under a new key.")


def announced_amount_is_positive(context: AnnouncementContext) -> Refusal | None:
    """The amount is above zero. Unit: the asset."""
    if context.request.amount > 0:
        return None
    return Refusal(R.AMOUNT_BELOW_MINIMUM, "amount must be above zero. Nothing was noted. Send another under a new key.")


def announcements_are_within_count(context: AnnouncementContext) -> Refusal | None:
    """With this one no more announcements of the user wait than allowed. Unit: announcements. Source: `announcements_max`."""
    if context.waiting < context.rules.announcements_max:
        return None
    text = f"{context.waiting} announced deposits of the user have not arrived yet, as many as allowed"
    return Refusal(R.OPEN_DEPOSITS_EXCEEDED, f"{text}. {_STILL_CREDITED} Wait until some have arrived or expired, and use a new key.")


ANNOUNCEMENT_CHECKS: Final[tuple[GateCheck[AnnouncementContext], ...]] = (
    GateCheck(
        Step.SAFETY,
        announcement_is_fresh,
        (R.REQUEST_STALE, R.REQUEST_EXPIRED),
        "The record is no older than keys are kept (24 h), and its time (`expires_at`, else 7 days) is not over.",
    ),
    GateCheck(Step.SAFETY, announcement_mode_is_live, (R.REQUEST_UNSUPPORTED,), "It is real money that is to arrive."),
    GateCheck(
        Step.SAFETY, announcement_exchange_is_offered, (R.EXCHANGE_UNKNOWN,), "This installation is connected to the exchange."
    ),
    GateCheck(
        Step.SAFETY,
        user_may_announce,
        (R.USER_UNKNOWN, R.USER_UNVERIFIED, R.USER_INACTIVE),
        "The user exists, is verified, and neither frozen nor closed.",
    ),
    GateCheck(
        Step.API_KEY,
        announcement_key_is_usable,
        (R.API_KEY_UNKNOWN, R.API_KEY_PERMISSION, R.API_KEY_REVOKED, R.API_KEY_EXPIRED),
        "The user has stored this key, for this exchange, and it is active.",
    ),
    GateCheck(
        Step.RISK,
        announcement_rate_is_kept,
        (R.MESSAGE_RATE_EXCEEDED,),
        "The user's requests keep the rate, with bursts up to a number.",
        ("messages_per_second_max", "messages_burst_max"),
    ),
    GateCheck(Step.RISK, announced_amount_is_positive, (R.AMOUNT_BELOW_MINIMUM,), "The amount is above zero."),
    GateCheck(
        Step.RISK,
        announcements_are_within_count,
        (R.OPEN_DEPOSITS_EXCEEDED,),
        "No more than 100 announced deposits of the user wait, this one included.",
    ),
)

# What an acceptance lists as passed.
ANNOUNCEMENT_PASSED: Final = [check.name for check in ANNOUNCEMENT_CHECKS]


def announcement_refusal(context: AnnouncementContext, step: Step) -> Refusal | None:
    """The first check of a step that does not hold, or None when all hold."""
    return first_refusal(ANNOUNCEMENT_CHECKS, context, step)
