"""The gate of an announced deposit: may this user expect this much of an asset at this exchange?

An announcement moves no money: it only gets the answer when a deposit arrives. So it asks for no second factor, holds nothing, and no halt
stops it. Invariants:
1. Checks read an `AnnouncementContext` and change nothing; the first refusal is given.
2. What is not known refuses, it never passes.

Start with `ANNOUNCEMENT_GATE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final

from pipeline.gate.api_key import api_key_is_known, api_key_is_usable
from pipeline.gate.check import Gate, Step, check
from pipeline.gate.context import ExchangeContext
from pipeline.gate.risk import message_rate_is_kept
from pipeline.gate.safety import exchange_is_offered, request_is_fresh, user_is_active
from pipeline.model.refusal import Refusal
from schemas.orders import Mode
from schemas.reasons import ReasonCode as R
from schemas.requests import DepositRequest

# What a refusal means for the money: nothing at all.
_STILL_CREDITED: Final = "Nothing was noted; a deposit that arrives is credited all the same."


@dataclass(frozen=True, eq=False, kw_only=True)
class AnnouncementContext(ExchangeContext):
    """All that the checks of one announcement may look at. `waiting` is how many announcements of the user wait already."""

    request: DepositRequest
    waiting: int

    untouched: ClassVar = _STILL_CREDITED

    @property
    def expires_at(self) -> datetime:
        """Until when it is waited for: the producer's own time, else the default after the broker's."""
        return self.request.expires_at or self.appended_at + self.rules.announcement_time

    @property
    def is_late(self) -> bool:
        return self.now >= self.expires_at


@check(Step.SAFETY, R.REQUEST_UNSUPPORTED)
def announcement_mode_is_live(context: AnnouncementContext) -> Refusal | None:
    """It is real money that is to arrive. No unit."""
    if context.request.mode is Mode.LIVE:
        return None
    text = "simulated money arrives nowhere; `orchestrator balances fund-paper` gives it. Nothing was noted"
    return Refusal(R.REQUEST_UNSUPPORTED, f"{text}. Only mode live announces deposits.")


@check(Step.RISK, R.AMOUNT_BELOW_MINIMUM)
def announced_amount_is_positive(context: AnnouncementContext) -> Refusal | None:
    """The amount is above zero. Unit: the asset."""
    if context.request.amount > 0:
        return None
    return Refusal(R.AMOUNT_BELOW_MINIMUM, "amount must be above zero. Nothing was noted. Send another under a new key.")


@check(Step.RISK, R.OPEN_DEPOSITS_EXCEEDED)
def announcements_are_within_count(context: AnnouncementContext) -> Refusal | None:
    """No more than 100 announced deposits of the user wait, this one included. Unit: announcements. Source: `announcements_max`."""
    if context.waiting < context.rules.announcements_max:
        return None
    text = f"{context.waiting} announced deposits of the user have not arrived yet, as many as allowed"
    return Refusal(R.OPEN_DEPOSITS_EXCEEDED, f"{text}. {_STILL_CREDITED} Wait until some have arrived or expired, and use a new key.")


ANNOUNCEMENT_GATE: Final[Gate[AnnouncementContext]] = Gate(
    request_is_fresh,
    announcement_mode_is_live,
    exchange_is_offered,
    user_is_active,
    api_key_is_known,
    api_key_is_usable,
    message_rate_is_kept,
    announced_amount_is_positive,
    announcements_are_within_count,
)
