"""The order in which every request about money is judged, whatever its type."""

from collections.abc import Callable

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, Claim
from pipeline.gate.context import AccountState
from pipeline.gate.throttle import after_failure, after_message
from pipeline.model.refusal import Refusal
from pipeline.requests.confirmation import BY_CODE, NOT_ASKED, Confirmation
from pipeline.requests.record import Arrival
from pipeline.requests.rejection import refuse_unclaimed, reject
from pipeline.requests.second_factor_check import second_factor_refusal
from schemas.audit import ConfirmedBy
from schemas.orders import Mode
from schemas.reasons import ReasonCode


def through_the_gate(
    arrival: Arrival,
    account: AccountState,
    mode: Mode,
    *,
    safety: Refusal | None,
    claim: Callable[[], Claim],
    behind: Callable[[Claim, Confirmation], ReasonCode | None],
    changes: Changes,
    asks_code: bool = True,
    way: Callable[[], Confirmation | Refusal] = lambda: BY_CODE,
) -> None:
    """The order in which every request about money is judged, whatever its type, and what it does to its user's conduct.

    `safety` is what the safety validation says; `behind` takes the steps behind the second factor, and returns why they refused.
    `asks_code`: whether the request moves money, so that it needs the second factor where this installation asks for one. `way` says what
    is to confirm it then, where that need not be a code of its own.
    """
    is_real = mode is Mode.LIVE
    code: ReasonCode | None
    is_confirmed = not (arrival.needs_second_factor and is_real)
    confirmation = NOT_ASKED if is_confirmed or not asks_code else None
    if safety is not None:
        reject(arrival, claim(), safety, changes)
        code = safety.code
    elif isinstance(found := confirmation or _confirmed(arrival, account, way, changes), Refusal):
        refuse_unclaimed(arrival, found, changes)
        code = found.code
    else:
        is_confirmed = is_confirmed or found is not NOT_ASKED
        code = behind(claim(), found)
    conduct = account.conduct
    # Messages load the system in either mode.
    if code is not ReasonCode.MESSAGE_RATE_EXCEEDED:
        conduct = after_message(conduct, account.limits, arrival.appended_at, changes.now)
    # Who has a stolen token and no code must not be able to begin its owner's cooldown; nor is a failure with simulated money a reason to
    # pause real trading.
    if code is not None and is_real and is_confirmed:
        conduct = after_failure(conduct, account.limits, code, changes.now)
    account.conduct = conduct
    changes.move_conduct(account.user_id, conduct)


def _confirmed(
    arrival: Arrival, account: AccountState, way: Callable[[], Confirmation | Refusal], changes: Changes
) -> Confirmation | Refusal:
    if arrival.is_confirmed:
        return BY_CODE
    found = way()
    if isinstance(found, Refusal) or found.by is not ConfirmedBy.CODE:
        return found
    return second_factor_refusal(account, arrival.headers, arrival.appended_at, arrival.traceparent, changes) or found


def confirmation_fields(confirmation: Confirmation) -> dict[str, Value]:
    """What the audit event of an acceptance says of it."""
    fields: dict[str, Value] = {}
    if confirmation.by is not None:
        fields["confirmed_by"] = confirmation.by.value
    if confirmation.session is not None:
        fields["session_id"] = confirmation.session.session_id
    return fields
