"""The gate of a trade: its checks in the order in which they are made, by which code, documents and audit trail go.

Between the steps stand those that are no check of a `TradeContext`: the second factor before `api_key`, the hold in the ledger at the end.
Every code that a check can give is declared on it, and every other code of the gate stands in `GIVEN_ELSEWHERE`.
"""

from collections.abc import Mapping
from typing import Final

from pipeline.gate.api_key import API_KEY
from pipeline.gate.check import HOLD, Gate, Step
from pipeline.gate.connection import CONNECTION
from pipeline.gate.context import TradeContext
from pipeline.gate.risk import RISK
from pipeline.gate.safety import SAFETY
from pipeline.gate.surveillance import SURVEILLANCE
from pipeline.model.refusal import Refusal
from schemas.orders import Mode
from schemas.reasons import ReasonCode as R

TRADE_GATE: Final[Gate[TradeContext]] = Gate(*SAFETY, *API_KEY, *RISK, *SURVEILLANCE, *CONNECTION)
# What a check that needs a price gives without one.
UNPRICED: Final = (R.EXCHANGE_UNAVAILABLE, R.SYMBOL_UNKNOWN, R.PRICE_UNAVAILABLE)
# A simulated order uses no key, and says nothing about its user's conduct with money.
_NOT_FOR_PAPER: Final = (Step.API_KEY, Step.SUSPICION)
# What an acceptance lists as passed.
PASSED_IN: Final[Mapping[Mode, list[str]]] = {
    Mode.LIVE: [*TRADE_GATE.passed(), HOLD],
    Mode.PAPER: [*TRADE_GATE.passed(*_NOT_FOR_PAPER), HOLD],
}

# Every reason code that no check of `CHECKS` gives, and what gives it.
GIVEN_ELSEWHERE: Final[Mapping[R, str]] = {
    R.AUTH_TOKEN_MISSING: "token check, before anything else",
    R.AUTH_TOKEN_INVALID: "token check, before anything else",
    R.AUTH_TOKEN_EXPIRED: "token check, before anything else",
    R.AUTH_USER_MISMATCH: "token check, before anything else",
    R.TOTP_MISSING: "second factor, between the steps `safety` and `api_key`",
    R.TOTP_INVALID: "second factor, between the steps `safety` and `api_key`",
    R.TOTP_REPLAYED: "second factor, between the steps `safety` and `api_key`",
    R.TOTP_LOCKED: "second factor, between the steps `safety` and `api_key`",
    **dict.fromkeys(
        (R.SESSION_UNKNOWN, R.SESSION_EXPIRED, R.SESSION_REVOKED, R.SESSION_LIMIT_EXCEEDED, R.SESSION_SYMBOL_NOT_ALLOWED),
        "second factor, where a session is to confirm, between the steps `safety` and `api_key`",
    ),
    R.SESSION_TOO_WIDE: "requests that begin a session",
    R.SESSIONS_EXCEEDED: "requests that begin a session",
    R.INVALID_DECIMAL: "reading of the record",
    R.SCHEMA_INVALID: "reading of the record",
    R.SCHEMA_VERSION_UNSUPPORTED: "reading of the record",
    R.IDEMPOTENCY_KEY_REUSED: "look-up of the idempotency key",
    R.IDEMPOTENCY_IN_PROGRESS: "look-up of the idempotency key",
    R.BALANCE_INSUFFICIENT: "the hold in the ledger, behind all checks",
    R.DAILY_WITHDRAWAL_EXCEEDED: "withdrawals",
    R.ADDRESS_NOT_ALLOWED: "withdrawals",
    R.OPEN_DEPOSITS_EXCEEDED: "announced deposits",
    R.APPROVAL_NOT_ALLOWED: "an operator's decision about a withdrawal",
    R.APPROVAL_NOT_PENDING: "an operator's decision about a withdrawal",
    R.APPROVAL_REFUSED: "an operator's decision about a withdrawal",
    R.EXCHANGE_REFUSED: "the exchange's own answer to the order",
    R.ORDER_NOT_EXECUTED: "the proof that an order in doubt is not at its exchange",
    R.INTERNAL_ERROR: "setting a record aside that could not be decided",
    R.ORDER_NOT_FOUND: "cancels",
    R.ORDER_NOT_CANCELABLE: "cancels",
}


def refusal_of(context: TradeContext, step: Step) -> Refusal | None:
    """The first check of a step that does not hold, or None when all hold or the step is none for the request's mode."""
    if context.is_simulated and step in _NOT_FOR_PAPER:
        return None
    return TRADE_GATE.refusal(context, step)
