"""Step 4, the user's exchange key: may it be used for this request?

Nothing here sees the key itself, which only the gateway decrypts.
"""

from typing import Final

from pipeline.gate.check import Check, Step, check
from pipeline.gate.context import ExchangeContext, TradeContext
from pipeline.model.refusal import Refusal
from schemas.reasons import ReasonCode

TRADE: Final = "trade"
WITHDRAW: Final = "withdraw"


@check(Step.API_KEY, ReasonCode.API_KEY_UNKNOWN, ReasonCode.API_KEY_PERMISSION)
def api_key_is_known(context: ExchangeContext) -> Refusal | None:
    """The user has stored this key, and it is for the request's exchange. No unit. Source: the stored keys, each bound to one user and one
    exchange."""
    key = context.api_key
    if key is None:
        return Refusal(
            ReasonCode.API_KEY_UNKNOWN,
            f"the user has no API key with this api_key_id. {context.untouched} Name another under a new key, or have this one stored.",
        )
    if key.exchange != context.request.exchange:
        text = f"this API key is for another exchange. {context.untouched} Name one of this exchange under a new key."
        return Refusal(ReasonCode.API_KEY_PERMISSION, text)
    return None


@check(Step.API_KEY, ReasonCode.API_KEY_REVOKED, ReasonCode.API_KEY_EXPIRED, ReasonCode.API_KEY_PERMISSION)
def api_key_is_usable(context: ExchangeContext) -> Refusal | None:
    """The key is active: neither revoked, nor expired, nor refused by its exchange. Unit: `expires_at` is the first moment at which it is.
    Source: its status, set by operators and by the exchange's own refusals. A status that nobody knows counts as expired."""
    key = context.api_key
    if key is None:
        return api_key_is_known(context)
    if key.status == "revoked":
        return Refusal(ReasonCode.API_KEY_REVOKED, f"this API key is revoked. {context.untouched} Have another stored.")
    if key.status == "refused":
        return Refusal(
            ReasonCode.API_KEY_PERMISSION,
            f"the exchange has refused this API key. {context.untouched} Have it checked with `orchestrator keys check`, or another one "
            "stored.",
        )
    if key.status != "active" or (key.expires_at is not None and context.now >= key.expires_at):
        return Refusal(ReasonCode.API_KEY_EXPIRED, f"this API key is expired. {context.untouched} Have another stored.")
    return None


@check(Step.API_KEY, ReasonCode.API_KEY_PERMISSION)
def api_key_may_trade(context: ExchangeContext) -> Refusal | None:
    """The key has the permission `trade`. No unit. Source: the permissions given when it was stored."""
    key = context.api_key
    if key is None:
        return api_key_is_known(context)
    if TRADE in key.permissions:
        return None
    text = f"this API key may not trade. {context.untouched} Name one that may under a new key, or have one stored."
    return Refusal(ReasonCode.API_KEY_PERMISSION, text)


@check(Step.API_KEY, ReasonCode.API_KEY_PERMISSION)
def api_key_may_withdraw(context: ExchangeContext) -> Refusal | None:
    """The key has the permission `withdraw`. No unit. Source: the permissions given when it was stored."""
    key = context.api_key
    if key is None:
        return api_key_is_known(context)
    if WITHDRAW in key.permissions:
        return None
    text = f"this API key may not withdraw. {context.untouched} Name one that may under a new key, or have one stored."
    return Refusal(ReasonCode.API_KEY_PERMISSION, text)


API_KEY: Final[tuple[Check[TradeContext], ...]] = (api_key_is_known, api_key_is_usable, api_key_may_trade)
