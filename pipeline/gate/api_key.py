"""Step 4, the user's exchange key: may it be used for this order?

Nothing here sees the key itself, which only the gateway decrypts.
"""

from typing import Final

from pipeline.gate.context import TradeContext
from pipeline.gate.safety import UNTOUCHED
from pipeline.model.refusal import Refusal
from schemas.reasons import ReasonCode

TRADE: Final = "trade"


def api_key_is_known(context: TradeContext) -> Refusal | None:
    """The user has stored a key under `api_key_id`, and it is for the order's exchange. No unit. Source: the stored keys, each bound to one
    user and one exchange."""
    key = context.api_key
    if key is None:
        return Refusal(
            ReasonCode.API_KEY_UNKNOWN,
            f"the user has no API key with this api_key_id. {UNTOUCHED} Name another under a new key, or have this one stored.",
        )
    if key.exchange != context.request.exchange:
        return Refusal(
            ReasonCode.API_KEY_PERMISSION, f"this API key is for another exchange. {UNTOUCHED} Name one of this exchange under a new key."
        )
    return None


def api_key_is_usable(context: TradeContext) -> Refusal | None:
    """The key is active and not expired. Unit: `expires_at` is the first moment at which it is. Source: its status, set by operators and by
    the exchange's own refusals. A status that nobody knows counts as expired."""
    key = context.api_key
    if key is None:
        return api_key_is_known(context)
    if key.status == "revoked":
        return Refusal(ReasonCode.API_KEY_REVOKED, f"this API key is revoked. {UNTOUCHED} Have another stored.")
    if key.status == "refused":
        return Refusal(
            ReasonCode.API_KEY_PERMISSION,
            f"the exchange has refused this API key. {UNTOUCHED} Have it checked with `orchestrator keys check`, or another stored.",
        )
    if key.status != "active" or (key.expires_at is not None and context.now >= key.expires_at):
        return Refusal(ReasonCode.API_KEY_EXPIRED, f"this API key is expired. {UNTOUCHED} Have another stored.")
    return None


def api_key_may_trade(context: TradeContext) -> Refusal | None:
    """The key has the permission `trade`. No unit. Source: the permissions given when it was stored."""
    key = context.api_key
    if key is None:
        return api_key_is_known(context)
    if TRADE in key.permissions:
        return None
    return Refusal(
        ReasonCode.API_KEY_PERMISSION, f"this API key may not trade. {UNTOUCHED} Name one that may under a new key, or have one stored."
    )
