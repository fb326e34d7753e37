"""Reason codes: the one enum that names every refusal, `CATEGORY_CONDITION`.

The table in docs/reason-codes.md is generated from it and from `MEANING`. `fix_ord_rej_reason` is FIX 5.0 tag 103 (OrdRejReason); 99 is
"other".
"""

import re
from enum import StrEnum
from typing import Final

_FORM: Final = re.compile(r"[A-Z]{1,32}(?:_[A-Z]{1,32}){1,5}")


class ReasonCode(StrEnum):
    """Why a request was not executed, or not executed again."""

    AUTH_TOKEN_MISSING = "AUTH_TOKEN_MISSING"
    AUTH_TOKEN_INVALID = "AUTH_TOKEN_INVALID"
    AUTH_TOKEN_EXPIRED = "AUTH_TOKEN_EXPIRED"
    AUTH_USER_MISMATCH = "AUTH_USER_MISMATCH"
    TOTP_MISSING = "TOTP_MISSING"
    TOTP_INVALID = "TOTP_INVALID"
    TOTP_REPLAYED = "TOTP_REPLAYED"
    TOTP_LOCKED = "TOTP_LOCKED"
    SESSION_UNKNOWN = "SESSION_UNKNOWN"
    SESSION_EXPIRED = "SESSION_EXPIRED"
    SESSION_REVOKED = "SESSION_REVOKED"
    SESSION_LIMIT_EXCEEDED = "SESSION_LIMIT_EXCEEDED"
    SESSION_SYMBOL_NOT_ALLOWED = "SESSION_SYMBOL_NOT_ALLOWED"
    SESSION_TOO_WIDE = "SESSION_TOO_WIDE"
    SESSIONS_EXCEEDED = "SESSIONS_EXCEEDED"
    API_KEY_UNKNOWN = "API_KEY_UNKNOWN"
    API_KEY_REVOKED = "API_KEY_REVOKED"
    API_KEY_EXPIRED = "API_KEY_EXPIRED"
    API_KEY_PERMISSION = "API_KEY_PERMISSION"
    USER_UNKNOWN = "USER_UNKNOWN"
    USER_INACTIVE = "USER_INACTIVE"
    USER_UNVERIFIED = "USER_UNVERIFIED"
    AMOUNT_BELOW_MINIMUM = "AMOUNT_BELOW_MINIMUM"
    AMOUNT_ABOVE_MAXIMUM = "AMOUNT_ABOVE_MAXIMUM"
    INVALID_DECIMAL = "INVALID_DECIMAL"
    PRICE_INVALID = "PRICE_INVALID"
    PRICE_OUT_OF_BAND = "PRICE_OUT_OF_BAND"
    PRICE_UNAVAILABLE = "PRICE_UNAVAILABLE"
    SYMBOL_INVALID = "SYMBOL_INVALID"
    SYMBOL_UNKNOWN = "SYMBOL_UNKNOWN"
    PRECISION_INVALID = "PRECISION_INVALID"
    DAILY_VOLUME_EXCEEDED = "DAILY_VOLUME_EXCEEDED"
    HOURLY_TRADES_EXCEEDED = "HOURLY_TRADES_EXCEEDED"
    COOLDOWN_ACTIVE = "COOLDOWN_ACTIVE"
    BALANCE_INSUFFICIENT = "BALANCE_INSUFFICIENT"
    DAILY_WITHDRAWAL_EXCEEDED = "DAILY_WITHDRAWAL_EXCEEDED"
    SUSPICIOUS_ACTIVITY = "SUSPICIOUS_ACTIVITY"
    ADDRESS_NOT_ALLOWED = "ADDRESS_NOT_ALLOWED"
    APPROVAL_NOT_ALLOWED = "APPROVAL_NOT_ALLOWED"
    APPROVAL_NOT_PENDING = "APPROVAL_NOT_PENDING"
    APPROVAL_REFUSED = "APPROVAL_REFUSED"
    POSITION_LIMIT_EXCEEDED = "POSITION_LIMIT_EXCEEDED"
    LOSS_LIMIT_EXCEEDED = "LOSS_LIMIT_EXCEEDED"
    OPEN_ORDERS_EXCEEDED = "OPEN_ORDERS_EXCEEDED"
    OPEN_DEPOSITS_EXCEEDED = "OPEN_DEPOSITS_EXCEEDED"
    EXPOSURE_EXCEEDED = "EXPOSURE_EXCEEDED"
    MESSAGE_RATE_EXCEEDED = "MESSAGE_RATE_EXCEEDED"
    SELF_TRADE = "SELF_TRADE"
    DUPLICATE_ORDER = "DUPLICATE_ORDER"
    TRADING_HALTED = "TRADING_HALTED"
    REDUCE_ONLY = "REDUCE_ONLY"
    REQUEST_STALE = "REQUEST_STALE"
    REQUEST_EXPIRED = "REQUEST_EXPIRED"
    REQUEST_UNSUPPORTED = "REQUEST_UNSUPPORTED"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    IDEMPOTENCY_IN_PROGRESS = "IDEMPOTENCY_IN_PROGRESS"
    SCHEMA_INVALID = "SCHEMA_INVALID"
    SCHEMA_VERSION_UNSUPPORTED = "SCHEMA_VERSION_UNSUPPORTED"
    EXCHANGE_UNKNOWN = "EXCHANGE_UNKNOWN"
    EXCHANGE_REFUSED = "EXCHANGE_REFUSED"
    EXCHANGE_UNAVAILABLE = "EXCHANGE_UNAVAILABLE"
    ORDER_NOT_FOUND = "ORDER_NOT_FOUND"
    ORDER_NOT_CANCELABLE = "ORDER_NOT_CANCELABLE"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    ORDER_NOT_EXECUTED = "ORDER_NOT_EXECUTED"

    @classmethod
    def _missing_(cls, value: object) -> "ReasonCode | None":
        """A code that a newer release has stored or published reads as itself, though it is none of the members: it decides nothing, and a
        copy of the request must get the answer that the first had."""
        if not isinstance(value, str) or not _FORM.fullmatch(value):
            return None
        newer = str.__new__(cls, value)
        newer._name_ = newer._value_ = value
        return newer


_FIX_OTHER: Final = 99
# FIX 5.0 SP2, tag 103: 1 unknown symbol, 2 exchange closed, 3 order exceeds limit, 4 too late to enter, 5 unknown order, 6 duplicate
# order, 8 stale order, 11 unsupported order characteristic, 12 surveillance option, 13 incorrect quantity, 15 unknown account, 16 price
# exceeds current price band, 18 invalid price increment.
_FIX_ORD_REJ_REASON: Final[dict[ReasonCode, int]] = {
    ReasonCode.SYMBOL_INVALID: 1,
    ReasonCode.SYMBOL_UNKNOWN: 1,
    ReasonCode.TRADING_HALTED: 2,
    ReasonCode.EXCHANGE_UNAVAILABLE: 2,
    ReasonCode.AMOUNT_ABOVE_MAXIMUM: 3,
    ReasonCode.DAILY_VOLUME_EXCEEDED: 3,
    ReasonCode.HOURLY_TRADES_EXCEEDED: 3,
    ReasonCode.BALANCE_INSUFFICIENT: 3,
    ReasonCode.DAILY_WITHDRAWAL_EXCEEDED: 3,
    ReasonCode.POSITION_LIMIT_EXCEEDED: 3,
    ReasonCode.LOSS_LIMIT_EXCEEDED: 3,
    ReasonCode.OPEN_ORDERS_EXCEEDED: 3,
    ReasonCode.EXPOSURE_EXCEEDED: 3,
    ReasonCode.SESSION_LIMIT_EXCEEDED: 3,
    ReasonCode.REQUEST_EXPIRED: 4,
    ReasonCode.ORDER_NOT_FOUND: 5,
    ReasonCode.DUPLICATE_ORDER: 6,
    ReasonCode.IDEMPOTENCY_KEY_REUSED: 6,
    ReasonCode.IDEMPOTENCY_IN_PROGRESS: 6,
    ReasonCode.REQUEST_STALE: 8,
    ReasonCode.REQUEST_UNSUPPORTED: 11,
    ReasonCode.SUSPICIOUS_ACTIVITY: 12,
    ReasonCode.SELF_TRADE: 12,
    ReasonCode.AMOUNT_BELOW_MINIMUM: 13,
    ReasonCode.INVALID_DECIMAL: 13,
    ReasonCode.USER_UNKNOWN: 15,
    ReasonCode.API_KEY_UNKNOWN: 15,
    ReasonCode.PRICE_OUT_OF_BAND: 16,
    ReasonCode.PRECISION_INVALID: 18,
}


def fix_ord_rej_reason(code: ReasonCode) -> int:
    """The FIX tag 103 value nearest to a code; 99 ("other") where FIX has none."""
    return _FIX_ORD_REJ_REASON.get(code, _FIX_OTHER)


# What each code means for the one who sent the request, and what to do. Nothing was executed for any of them unless it says so.
MEANING: Final[dict[ReasonCode, str]] = {
    ReasonCode.AUTH_TOKEN_MISSING: "The record has no `authorization` header. Send a token with it.",
    ReasonCode.AUTH_TOKEN_INVALID: "The token is malformed, not signed by a trusted key, not valid yet, for another audience, or lacks "
    "the scope that the request needs: `reason` says which. Get a new one.",
    ReasonCode.AUTH_TOKEN_EXPIRED: "The token was expired when the broker appended the record. Get a new one and send the request again.",
    ReasonCode.AUTH_USER_MISMATCH: "`user_id` is not the token's `sub`. Nobody trades for somebody else.",
    ReasonCode.TOTP_MISSING: "Real money needs a second factor: have one enrolled, and send its current code in `x-totp`, or begin a "
    "session with it.",
    ReasonCode.TOTP_INVALID: "The second factor's code is wrong for the time at which the broker appended the record.",
    ReasonCode.TOTP_REPLAYED: "This code, or a later one, was used already. Wait for the next.",
    ReasonCode.TOTP_LOCKED: "Too many wrong codes came: the user's second factor is locked until an operator unlocks it.",
    ReasonCode.SESSION_UNKNOWN: "The record has no code, and no session has begun with the token's `sid`. Begin one, or send a code.",
    ReasonCode.SESSION_EXPIRED: "The session was over when the broker appended the record. Begin one anew, or send a code.",
    ReasonCode.SESSION_REVOKED: "The session was revoked, replaced, or ended when its user's status or second factor changed, or with the "
    "key of the token that began it: `reason` says which. Begin one anew, or send a code.",
    ReasonCode.SESSION_LIMIT_EXCEEDED: "The session has confirmed as many orders, or as many US dollars, as it may. Begin one anew, or "
    "send a code.",
    ReasonCode.SESSION_SYMBOL_NOT_ALLOWED: "The session was begun for other symbols. Send a code with the order.",
    ReasonCode.SESSION_TOO_WIDE: "The session would last longer, or confirm more, than this installation lets one. Ask for less.",
    ReasonCode.SESSIONS_EXCEEDED: "The user has as many sessions at once as allowed. Revoke one, or wait until one is over.",
    ReasonCode.API_KEY_UNKNOWN: "The user has no exchange key under this `api_key_id`.",
    ReasonCode.API_KEY_REVOKED: "The exchange key was revoked here. Store another.",
    ReasonCode.API_KEY_EXPIRED: "The exchange key's time is over. Store another.",
    ReasonCode.API_KEY_PERMISSION: "The exchange key is for another exchange, or the exchange does not let it do this.",
    ReasonCode.USER_UNKNOWN: "No user has this `user_id`.",
    ReasonCode.USER_INACTIVE: "The user exists but may not trade (pending, frozen or closed). An operator can change that.",
    ReasonCode.USER_UNVERIFIED: "The user's identity was not verified yet.",
    ReasonCode.AMOUNT_BELOW_MINIMUM: "The order is worth less than the smallest that this installation or the exchange takes.",
    ReasonCode.AMOUNT_ABOVE_MAXIMUM: "The order is worth more than the largest that this installation or the exchange takes.",
    ReasonCode.INVALID_DECIMAL: "A money field is no plain decimal string: a JSON number, a sign, an exponent, or too many digits.",
    ReasonCode.PRICE_INVALID: "The price must be above zero.",
    ReasonCode.PRICE_OUT_OF_BAND: "The price is too far from the market's, or outside of what the exchange takes.",
    ReasonCode.PRICE_UNAVAILABLE: "No market price of known age is at hand, so the order cannot be valued. Try again under a new key.",
    ReasonCode.SYMBOL_INVALID: "`symbol` is not of the form `BASE/QUOTE` in capitals, or not in Unicode's normal form C.",
    ReasonCode.SYMBOL_UNKNOWN: "The exchange does not list the symbol; `reason` names the listed one that it looks like, if any.",
    ReasonCode.PRECISION_INVALID: "Price or quantity is not a multiple of the exchange's step for this symbol, or `quote_quantity` "
    "has more decimal places than the exchange takes.",
    ReasonCode.DAILY_VOLUME_EXCEEDED: "With this order the user would trade more in 24 hours than allowed.",
    ReasonCode.HOURLY_TRADES_EXCEEDED: "The user has made as many trades in the last hour as allowed.",
    ReasonCode.COOLDOWN_ACTIVE: "After failures in a row the user must wait; sales into US dollars and cancels pass. "
    "docs/checks.md says what counts.",
    ReasonCode.BALANCE_INSUFFICIENT: "The available funds do not cover what the order would hold.",
    ReasonCode.DAILY_WITHDRAWAL_EXCEEDED: "With this withdrawal the user would withdraw more in 24 hours than allowed.",
    ReasonCode.SUSPICIOUS_ACTIVITY: "The request fits a pattern of misuse. An operator looks at it.",
    ReasonCode.ADDRESS_NOT_ALLOWED: "The withdrawal address is none of its network, not on the user's list, or not for long enough.",
    ReasonCode.APPROVAL_NOT_ALLOWED: "A withdrawal is approved by an operator who is not its user, while its user is active.",
    ReasonCode.APPROVAL_NOT_PENDING: "No withdrawal of this id waits for approval.",
    ReasonCode.APPROVAL_REFUSED: "An operator refused the withdrawal. Held funds are free again.",
    ReasonCode.POSITION_LIMIT_EXCEEDED: "With this order the user would hold more of the asset than allowed.",
    ReasonCode.LOSS_LIMIT_EXCEEDED: "The user's losses have reached the limit.",
    ReasonCode.OPEN_ORDERS_EXCEEDED: "The user has as many open orders as allowed, by count or by value.",
    ReasonCode.OPEN_DEPOSITS_EXCEEDED: "The user has announced as many deposits that have not arrived as allowed.",
    ReasonCode.EXPOSURE_EXCEEDED: "With this order the user's open orders at this exchange would be worth more than allowed.",
    ReasonCode.MESSAGE_RATE_EXCEEDED: "The user sends more requests per second than allowed. Send more slowly.",
    ReasonCode.SELF_TRADE: "The order would trade with the same user's own order.",
    ReasonCode.DUPLICATE_ORDER: "An order with the same content was sent a moment ago under another key.",
    ReasonCode.TRADING_HALTED: "Trading is halted for this user, symbol, exchange or everybody.",
    ReasonCode.REDUCE_ONLY: "Only orders that make a position smaller are taken now.",
    ReasonCode.REQUEST_STALE: "The record is older than the 24 hours for which keys are kept, so whether it was executed before is not "
    "known any more. Send it again under a new key if you still mean it.",
    ReasonCode.REQUEST_EXPIRED: "The deadline (`expires_at`, or the default) passed before it was sent, before a withdrawal was "
    "approved, or before an announced deposit arrived. Held funds are free again.",
    ReasonCode.REQUEST_UNSUPPORTED: "This version does not offer this type, mode or order type.",
    ReasonCode.IDEMPOTENCY_KEY_REUSED: "The key was used for another payload, which stands; nothing was executed for this. Use a new key.",
    ReasonCode.IDEMPOTENCY_IN_PROGRESS: "The first request with this key still runs and will be answered itself (`duplicate_of` names it).",
    ReasonCode.SCHEMA_INVALID: "The record is no request: `reason` names the fields.",
    ReasonCode.SCHEMA_VERSION_UNSUPPORTED: "`schema_version` is not one that this version reads.",
    ReasonCode.EXCHANGE_UNKNOWN: "This installation is not connected to the exchange.",
    ReasonCode.EXCHANGE_REFUSED: "The exchange provably refused the order; `reason` is its own text. Held funds are free again.",
    ReasonCode.EXCHANGE_UNAVAILABLE: "The exchange could not be reached, is closed, or has suspended the symbol, and provably took no "
    "order. Held funds are free again. "
    "Try again under a new key.",
    ReasonCode.ORDER_NOT_FOUND: "`target_idempotency_key` names no order of this user.",
    ReasonCode.ORDER_NOT_CANCELABLE: "The order is over already, or the exchange did not cancel it.",
    ReasonCode.INTERNAL_ERROR: "An error inside this system kept the record from being decided; it was set aside, and nothing was sent. "
    "Held funds are free again. Operators see it under the id that `reason` names; send the request again under a new key.",
    ReasonCode.ORDER_NOT_EXECUTED: "It was not known whether the exchange had the order or the withdrawal, and now it is proven that it "
    "did not. Held funds are free again, and it is not sent again by itself: send it under a new key if you still mean it. Should it show "
    "up within 24 hours all the same, a result with `corrects: true` follows.",
}
