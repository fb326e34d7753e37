"""Announcements: what a producer expects to arrive, and what it is answered when it does or does not.

Invariants:
1. An announcement is completed by one deposit, and a deposit completes one announcement at most: the oldest that fits.
2. It moves no money, and what arrives is credited with or without it (pipeline/deposits/settlement).

Start with `take_in_announcement`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Final

from pipeline.books.audit import Value
from pipeline.books.changes import Changes, Claim
from pipeline.books.lifecycle import Lifecycle
from pipeline.gate.announcements import ANNOUNCEMENT_GATE, AnnouncementContext
from pipeline.gate.check import Step
from pipeline.model.deposit import ANNOUNCEMENT_TRANSITIONS, Announcement, Deposit, DepositBook
from pipeline.model.invariants import InvariantViolation
from pipeline.requests.intake_state import IntakeState
from pipeline.requests.passage import through_the_gate
from pipeline.requests.record import Arrival
from pipeline.requests.rejection import reject
from schemas.audit import EventType
from schemas.deposits import AnnouncementReport
from schemas.orders import AnnouncementStatus, DepositStatus, RequestType
from schemas.reasons import ReasonCode
from schemas.requests import DepositRequest
from schemas.results import Result, ResultStatus
from schemas.wire import SCHEMA_VERSION

_A = AnnouncementStatus

def take_in_announcement(
    arrival: Arrival, request: DepositRequest, claim: Callable[[], Claim], state: IntakeState, changes: Changes
) -> None:
    """Accepts or refuses the announcement of a deposit. It moves no money, and asks for no second factor."""
    account = state.accounts[request.user_id]
    waiting = [one for one in changes.deposits.expected() if one.user_id == request.user_id]
    context = AnnouncementContext(
        request=request,
        appended_at=arrival.appended_at,
        now=changes.now,
        rules=state.rules,
        account=account,
        api_key=state.api_keys.get((request.user_id, request.api_key_id)),
        waiting=len(waiting),
    )
    through_the_gate(
        arrival,
        account,
        request.mode,
        safety=ANNOUNCEMENT_GATE.refusal(context, Step.SAFETY),
        claim=claim,
        behind=lambda claimed, _: _announce(arrival, context, claimed, changes),
        changes=changes,
        asks_code=False,
    )


def _announce(arrival: Arrival, context: AnnouncementContext, claimed: Claim, changes: Changes) -> ReasonCode | None:
    """The key, the risk and the acceptance, in their order; returns why it was refused, None when it was accepted."""
    refusal = ANNOUNCEMENT_GATE.refusal(context, Step.API_KEY) or ANNOUNCEMENT_GATE.refusal(context, Step.RISK)
    if refusal is not None:
        reject(arrival, claimed, refusal, changes)
        return refusal.code
    announcement = _announcement_of(arrival, claimed, context)
    ANNOUNCEMENT_LIFE.advance(None, announcement, EventType.DEPOSIT_ANNOUNCED, changes, {"checks": ANNOUNCEMENT_GATE.passed()})
    changes.tell(result_of_announcement(announcement), announcement.traceparent)
    arrived = _arrived_before(announcement, changes.deposits)
    if arrived is not None:
        complete(announcement, arrived, changes)
    return None


def _announcement_of(arrival: Arrival, claim: Claim, context: AnnouncementContext) -> Announcement:
    request = context.request
    return Announcement(
        announcement_id=claim.order_id or "",
        user_id=request.user_id,
        idempotency_key=request.idempotency_key,
        request_id=claim.request_id,
        source=arrival.source,
        mode=request.mode,
        exchange=request.exchange,
        api_key_id=request.api_key_id,
        asset=request.asset,
        amount=request.amount,
        network=request.network,
        address=request.address,
        address_tag=request.address_tag,
        status=_A.EXPECTED,
        reason_code=None,
        reason=None,
        deposit_id=None,
        exchange_deposit_id=None,
        expires_at=context.expires_at,
        requested_at=arrival.appended_at,
        decided_at=context.now,
        updated_at=context.now,
        executed_at=None,
        traceparent=arrival.traceparent,
    )


def _arrived_before(announcement: Announcement, book: DepositBook) -> Deposit | None:
    """The deposit that it comes too late for: the oldest credited one that fits and that no other announcement has taken. `book` holds
    those of the user that count."""
    taken = {one.deposit_id for one in book.announcements.values()}
    credited = [one for one in book.deposits.values() if one.status is DepositStatus.CREDITED and one.deposit_id not in taken]
    return min((one for one in credited if announcement.fits(one)), key=_by_credit, default=None)


def _by_credit(deposit: Deposit) -> tuple[str, str]:
    return deposit.credited_at.isoformat() if deposit.credited_at is not None else "", deposit.deposit_id


def complete(announcement: Announcement, deposit: Deposit, changes: Changes) -> None:
    """The final answer of an announcement whose deposit has arrived."""
    after = replace(
        announcement,
        status=_A.COMPLETED,
        deposit_id=deposit.deposit_id,
        exchange_deposit_id=deposit.exchange_deposit_id,
        updated_at=changes.now,
        executed_at=changes.now,
    )
    _end(announcement, after, EventType.DEPOSIT_ARRIVED, changes, {"transaction_id": deposit.transaction_id})


def apply_announcement_report(report: AnnouncementReport, changes: Changes) -> None:
    """Ends an announcement whose time is over. One that has ended, or has time left, stays as it is."""
    announcement = changes.deposits.announcements.get(report.announcement_id)
    if announcement is None:
        text = f"a report names announcement {report.announcement_id}, which is not in the database; nothing was written."
        raise InvariantViolation(text)
    if announcement.status is not _A.EXPECTED or changes.now < announcement.expires_at:
        return
    after = replace(
        announcement,
        status=_A.FAILED,
        reason_code=ReasonCode.REQUEST_EXPIRED,
        reason="no deposit arrived in time that fits what was announced. One that arrives later is credited all the same",
        updated_at=changes.now,
        executed_at=changes.now,
    )
    _end(announcement, after, EventType.DEPOSIT_EXPIRED, changes, {})


def _end(before: Announcement, after: Announcement, event_type: EventType, changes: Changes, extra: Mapping[str, Value]) -> None:
    ANNOUNCEMENT_LIFE.advance(before, after, event_type, changes, extra)
    changes.tell(result_of_announcement(after), after.traceparent)


def _fields(announcement: Announcement) -> dict[str, Value]:
    """What every audit event about an announcement says of it."""
    return {
        "user_id": announcement.user_id,
        "request_id": announcement.request_id,
        "idempotency_key": announcement.idempotency_key,
        "exchange_order_id": announcement.exchange_deposit_id,
        "quantity": announcement.amount,
        "asset": announcement.asset,
        "network": announcement.network,
        "address": announcement.address,
        "address_tag": announcement.address_tag,
        "status_after": announcement.status.value,
        "reason_code": announcement.reason_code.value if announcement.reason_code else None,
        "reason": announcement.reason,
        "exchange": announcement.exchange,
        "evidence": [f"deposit {announcement.deposit_id}"] if announcement.deposit_id is not None else [],
        "real_money": True,
    }


ANNOUNCEMENT_LIFE: Final[Lifecycle[Announcement]] = Lifecycle(
    name="announcement",
    rows=lambda changes: changes.deposits.announcements,
    id_of=lambda announcement: announcement.announcement_id,
    legal=lambda before, _: ANNOUNCEMENT_TRANSITIONS[before.status],
    fields=_fields,
)


_RESULT_STATUS: Final[dict[AnnouncementStatus, tuple[ResultStatus, bool]]] = {
    _A.EXPECTED: (ResultStatus.ACCEPTED, False),
    _A.COMPLETED: (ResultStatus.COMPLETED, True),
    _A.FAILED: (ResultStatus.FAILED, True),
}


def result_of_announcement(announcement: Announcement) -> Result:
    """The answer that an announcement's status stands for: final when it is over."""
    status, final = _RESULT_STATUS[announcement.status]
    return Result(
        schema_version=SCHEMA_VERSION,
        request_id=announcement.request_id,
        idempotency_key=announcement.idempotency_key,
        user_id=announcement.user_id,
        type=RequestType.DEPOSIT,
        mode=announcement.mode,
        status=status,
        reason_code=announcement.reason_code,
        reason=announcement.reason,
        order_id=announcement.announcement_id,
        client_order_id=None,
        exchange_order_id=announcement.exchange_deposit_id,
        order_status=announcement.status,
        filled_quantity=announcement.amount if announcement.status is _A.COMPLETED else Decimal(0),
        average_price=None,
        fee=None,
        fee_asset=None,
        remaining_quantity=None,
        final=final,
        replayed=False,
        duplicate_of=None,
        requested_at=announcement.requested_at,
        decided_at=announcement.decided_at,
        executed_at=announcement.executed_at,
        source=announcement.source,
    )


