"""Sessions: how one begins, is used and is revoked. What it confirms is decided in pipeline/model/session and
pipeline/requests/confirmation.

A session begins by a request of type `session`, or with any other request whose record has the header `x-session: start`; a fresh code is
tried in both. Invariants:
1. The code is used for the session as for anything else: once (pipeline/model/second_factor).
2. A session that begins takes the place of an older one of the same `sid`, which confirms nothing more.
3. Every begin and every end that somebody asks for is audited; an end in time, or by use, is told by the bounds in the event of the begin.

Start at `take_in_session` and `begin_with_request`.
"""

from collections.abc import Callable, Iterable
from typing import Final

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, Claim
from pipeline.gate.check import Step
from pipeline.gate.sessions import SESSION_GATE, SessionContext, bounds_of
from pipeline.gate.throttle import after_message
from pipeline.model.refusal import Refusal
from pipeline.model.session import Session, open_count
from pipeline.requests.intake_state import IntakeState
from pipeline.requests.passage import through_the_gate
from pipeline.requests.record import Arrival
from pipeline.requests.rejection import reject, request_id_in
from pipeline.requests.second_factor_check import second_factor_refusal
from schemas.audit import ConfirmedBy, EventType
from schemas.orders import Mode, RequestType
from schemas.reasons import ReasonCode
from schemas.requests import SessionRequest
from schemas.results import Result, ResultStatus
from schemas.wire import SCHEMA_VERSION

HEADER: Final = "x-session"
_START: Final = b"start"
_REVOKED: Final = "its user revoked it"
_REPLACED: Final = "a new one with the same `sid` took its place"


def asks_for_session(arrival: Arrival) -> bool | Refusal:
    """Whether the record's `x-session` header asks for a session; a refusal for one that says something else."""
    values = {value.strip().lower() for name, value in arrival.headers if name == HEADER or name.lower() == HEADER}
    if not values:
        return False
    if values == {_START}:
        return True
    return Refusal(ReasonCode.SCHEMA_INVALID, "the `x-session` header must be `start`; nothing was executed, and the key is still free")


def sessions_named(arrivals: Iterable[Arrival]) -> tuple[list[str], list[str]]:
    """What must be loaded for a batch: the ids of the sessions that its records name, and the users who begin one."""
    named: set[str] = set()
    beginning: set[str] = set()
    for arrival in arrivals:
        token, decoded = arrival.token, arrival.decoded
        if token is None:
            continue
        if token.session_id is not None:
            named.add(token.session_id)
        if isinstance(decoded, SessionRequest) and decoded.session_id is not None:
            named.add(decoded.session_id)
        if isinstance(decoded, SessionRequest) or asks_for_session(arrival):
            beginning.add(token.user_id)
    return sorted(named), sorted(beginning)


def take_in_session(
    arrival: Arrival, request: SessionRequest, claim: Callable[[], Claim], state: IntakeState, changes: Changes
) -> None:
    """Begins or revokes a session, or refuses to. `claim` claims the request's key, once it is clear that it may."""
    account = state.accounts[request.user_id]
    meant = request.session_id or (arrival.token.session_id if arrival.token is not None else None)
    context = _context(arrival, request, meant, state, changes)
    through_the_gate(
        arrival,
        account,
        Mode.LIVE,
        safety=SESSION_GATE.refusal(context, Step.SAFETY),
        claim=claim,
        behind=lambda claimed, _: _behind_the_second_factor(arrival, context, meant, claimed, changes),
        changes=changes,
        asks_code=not request.revoke,
    )


def begin_with_request(arrival: Arrival, user_id: str, state: IntakeState, changes: Changes) -> Refusal | None:
    """Begins the session that another request asks for by its header, as wide as it may be; a refusal, and nothing begun, where it cannot
    be. The code is then spent, whatever becomes of the request itself."""
    account = state.accounts[user_id]
    token = arrival.token
    context = _context(arrival, None, token.session_id if token is not None else None, state, changes)
    refusal = SESSION_GATE.refusal(context, Step.SAFETY) or SESSION_GATE.refusal(context, Step.RISK)
    if refusal is None:
        refusal = second_factor_refusal(account, arrival.headers, arrival.appended_at, arrival.traceparent, changes)
    if refusal is None:
        _begin(arrival, context, request_id_in(arrival, arrival.claim_key), changes)
    elif refusal.code is not ReasonCode.MESSAGE_RATE_EXCEEDED:
        account.conduct = after_message(account.conduct, account.limits, arrival.appended_at, changes.now)
        changes.move_conduct(user_id, account.conduct)
    return refusal


def _context(
    arrival: Arrival, request: SessionRequest | None, meant: str | None, state: IntakeState, changes: Changes
) -> SessionContext:
    account = state.accounts[arrival.decoded.user_id or ""]
    known = changes.sessions.get(meant or "")
    generation, at = account.session_generation, arrival.appended_at
    others = open_count((one for one in changes.sessions.values() if one.session_id != meant), account.user_id, generation, at)
    return SessionContext(
        request=request,
        appended_at=arrival.appended_at,
        now=changes.now,
        rules=state.rules,
        account=account,
        is_authenticated=arrival.needs_second_factor,
        session=known if known is not None and known.user_id == account.user_id else None,
        open_count=others,
    )


def _behind_the_second_factor(
    arrival: Arrival, context: SessionContext, meant: str | None, claimed: Claim, changes: Changes
) -> ReasonCode | None:
    refusal = SESSION_GATE.refusal(context, Step.RISK)
    if refusal is not None:
        reject(arrival, claimed, refusal, changes)
        return refusal.code
    if context.revokes and context.session is not None:
        _end(context.session, arrival, claimed.request_id, _REVOKED, changes)
        told = "the session is revoked"
    else:
        told = f"the session confirms trades {bounds_of(context)}"
        _begin(arrival, context, claimed.request_id, changes)
    changes.tell(_completed(arrival, claimed, meant, told, changes), arrival.traceparent)
    return None


def _begin(arrival: Arrival, context: SessionContext, request_id: str, changes: Changes) -> None:
    token = arrival.token
    if token is None or token.session_id is None:
        # The token was judged when the record arrived (pipeline/requests/record).
        return
    if context.session is not None and context.session.is_open(context.account.session_generation, arrival.appended_at):
        _end(context.session, arrival, request_id, _REPLACED, changes)
    bounds = bounds_of(context)
    session = Session(
        session_id=token.session_id,
        user_id=context.account.user_id,
        issuer_key=token.issuer_key,
        generation=context.account.session_generation,
        request_id=request_id,
        started_at=arrival.appended_at,
        expires_at=bounds.expires_at,
        amount_usd_max=bounds.amount_usd_max,
        orders_max=bounds.orders_max,
        symbols=bounds.symbols,
    )
    changes.sessions[session.session_id] = session
    changes.sessions_begun.add(session.session_id)
    fields = _fields(session, request_id)
    fields |= {"reason": f"confirms trades {bounds}", "confirmed_by": ConfirmedBy.CODE.value}
    changes.audit(session.user_id, None, EventType.SESSION_STARTED, fields, arrival.traceparent)


def _end(session: Session, arrival: Arrival, request_id: str, because: str, changes: Changes) -> None:
    ended = session.ended(arrival.appended_at, because)
    if ended is session:
        return
    changes.sessions[session.session_id] = ended
    changes.sessions_moved.add(session.session_id)
    fields = _fields(session, request_id)
    fields["reason"] = f"{because}; it had confirmed {session.orders_used} orders"
    changes.audit(session.user_id, None, EventType.SESSION_ENDED, fields, arrival.traceparent)


def _fields(session: Session, request_id: str) -> dict[str, Value]:
    return {"user_id": session.user_id, "request_id": request_id, "session_id": session.session_id}


def _completed(arrival: Arrival, claim: Claim, session_id: str | None, reason: str, changes: Changes) -> Result:
    return Result(
        schema_version=SCHEMA_VERSION,
        request_id=claim.request_id,
        idempotency_key=claim.idempotency_key,
        user_id=claim.user_id,
        type=RequestType.SESSION,
        status=ResultStatus.COMPLETED,
        reason_code=None,
        reason=reason,
        order_id=session_id,
        client_order_id=None,
        exchange_order_id=None,
        order_status=None,
        filled_quantity=None,
        average_price=None,
        fee=None,
        fee_asset=None,
        remaining_quantity=None,
        final=True,
        replayed=False,
        duplicate_of=None,
        requested_at=arrival.appended_at,
        decided_at=changes.now,
        executed_at=None,
        source=arrival.source,
    )
