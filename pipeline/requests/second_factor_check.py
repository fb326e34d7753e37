"""The trial of a one-time code: what it does to the factor's state, and what is audited of it.

Invariant: the state after a try goes with the batch, so that no step is accepted twice and no guess is forgotten.
"""

from collections.abc import Iterable
from datetime import datetime

from pipeline.books.audit import Value
from pipeline.books.changes import Changes
from pipeline.gate.context import AccountState
from pipeline.model.refusal import Refusal
from pipeline.model.second_factor import check_code, code_of
from schemas.audit import EventType


def second_factor_refusal(
    account: AccountState, headers: Iterable[tuple[str, bytes]], appended_at: datetime, traceparent: str | None, changes: Changes
) -> Refusal | None:
    """Tries the code of a record, of a request as of an operator's command; None when it is right."""
    code = code_of(headers)
    if isinstance(code, Refusal):
        return code
    refusal, after = check_code(account.factor, code, appended_at)
    if after is not None:
        if after.locked:
            fields: dict[str, Value] = {"user_id": account.user_id, "reason": "too many wrong codes", "reason_code": "TOTP_LOCKED"}
            changes.audit(account.user_id, None, EventType.USER_LOCKED_TOTP, fields, traceparent)
        account.factor = after
        changes.factors[account.user_id] = after
    return refusal
