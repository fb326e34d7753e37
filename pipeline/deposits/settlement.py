"""Deposits: what an exchange's word does to a deposit and its user's funds.

What has arrived at an exchange is its fact: it is credited whatever stops are in force and however its user stands.

Invariants:
1. A deposit is credited once: its transfers' ids are derived from what makes it another than all others, and its status leaves `credited`
   only to be reversed.
2. Words may come twice, late and in any order: what is not newer than what is known changes nothing.
3. A deposit that is taken back is reversed by a new transfer. What its user has no longer free is advanced by the house: nothing goes
   negative, no hold is touched, and the user is frozen.
4. What does not fit what is known is disputed, once: audited, its user halted, nothing credited.
5. What is credited completes the oldest announcement that fits it (pipeline/deposits/announcements).

Start with `verdict_on` and `apply_deposit_report`.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from pipeline.books.audit import Value
from pipeline.books.changes import Changes
from pipeline.books.cost import trim_cost
from pipeline.books.ledger import AccountKey, book_of, clearing
from pipeline.books.lifecycle import Lifecycle
from pipeline.books.trip import halt_user, require_halts_locked
from pipeline.deposits.announcements import complete
from pipeline.model.deposit import TRANSITIONS, Deposit, DepositBook, Dispute, DisputeKind, next_status
from pipeline.model.identifiers import deposit_id_of
from schemas.audit import EventType
from schemas.decimals import format_decimal
from schemas.deposits import DEPOSIT_STATE, DepositReport, DepositState
from schemas.orders import DepositStatus, Mode
from schemas.wire import SCHEMA_VERSION

_S = DepositStatus
# Of what moves no money.
_EVENT_OF_STATUS: Final = {
    _S.DETECTED: EventType.DEPOSIT_DETECTED,
    _S.CONFIRMING: EventType.DEPOSIT_CONFIRMING,
    _S.REJECTED: EventType.DEPOSIT_REJECTED,
}


@dataclass(frozen=True, slots=True)
class Move:
    """The deposit takes this status next. `before` is None for one that was not known."""

    before: Deposit | None
    after: DepositStatus


def deposit_id_in(report: DepositReport) -> str:
    """The id of the deposit that a report is about. Where the exchange shows no number of the output, its own id of the entry stands for
    it."""
    return deposit_id_of(report.exchange, report.transaction_id, report.asset, report.address, report.exchange_deposit_id)


def verdict_on(report: DepositReport, book: DepositBook) -> Move | Dispute | None:
    """What a word is worth: a step of its deposit, a dispute, or None when it says nothing new.

    `book` must hold every deposit with its entry's id or of its transaction at that exchange, and the disputes noted for its user.
    """
    deposit_id = deposit_id_in(report)
    entry = report.exchange, report.exchange_deposit_id
    known = next((one for one in book.deposits.values() if (one.exchange, one.exchange_deposit_id) == entry), None)
    problem = _problem(report, known, deposit_id)
    if problem is None:
        if known is not None and report.looked_up_at < known.looked_up_at:
            return None
        if known is not None and known.status is _S.REVERSED and report.deposit_status is _S.CREDITED:
            problem = DisputeKind.RETURNED, "the exchange took it back, and shows it as credited again"
        else:
            after = _next(report, known, book)
            if after is not _S.CREDITED:
                return None if after is None else Move(known, after)
            twin = next((one for one in book.deposits.values() if _is_twin(report, one)), None)
            if twin is None:
                return Move(known, after)
            problem = DisputeKind.TWIN, f"the same transaction paid as much to the same address as {twin.exchange_deposit_id}"
    kind, what = problem
    dispute = Dispute(deposit_id, report.user_id, kind, what)
    return None if dispute.key in book.disputes else dispute


def _problem(report: DepositReport, known: Deposit | None, deposit_id: str) -> tuple[DisputeKind, str] | None:
    if known is None:
        return None
    if known.user_id != report.user_id:
        # Two users with keys of one account at the exchange.
        return DisputeKind.FOREIGN, "it is in another user's account already"
    if known.deposit_id != deposit_id:
        return DisputeKind.CHANGED, f"it is about another transaction, asset or address than before ({known.deposit_id})"
    if known.amount != report.amount:
        before, now = format_decimal(known.amount), format_decimal(report.amount)
        return DisputeKind.CHANGED, f"its amount was {before} {known.asset}, and is shown as {now} now"
    return None


def _next(report: DepositReport, known: Deposit | None, book: DepositBook) -> DepositStatus | None:
    is_over = report.deposit_status in {_S.CREDITED, _S.REJECTED}
    if known is None:
        over_at = report.completed_at or report.arrived_at
        watched_from = book.watched_from.get((report.user_id, report.api_key_id))
        is_before = watched_from is None or over_at <= watched_from or _is_part_of_opening(report, over_at, book)
        return None if is_over and is_before else report.deposit_status
    after = next_status(known.status, report.deposit_status)
    if after is _S.CREDITED and report.completed_at is not None and _is_part_of_opening(report, report.completed_at, book):
        return None
    return after


def _is_part_of_opening(report: DepositReport, over_at: datetime, book: DepositBook) -> bool:
    """Whether what came of it was there when the opening balance was taken over."""
    opened_at = book.opened_at.get((report.user_id, report.exchange))
    return opened_at is None or over_at <= opened_at


def _is_twin(report: DepositReport, other: Deposit) -> bool:
    mine = report.exchange, report.transaction_id, report.asset, report.address, report.address_tag, report.amount
    theirs = other.exchange, other.transaction_id, other.asset, other.address, other.address_tag, other.amount
    return mine == theirs and report.exchange_deposit_id != other.exchange_deposit_id and other.status is _S.CREDITED


def apply_deposit_report(report: DepositReport, changes: Changes) -> None:
    """Applies what an exchange's history shows of a deposit. What is not news changes nothing."""
    match verdict_on(report, changes.deposits):
        case None:
            return
        case Dispute() as dispute:
            _dispute(dispute, report, changes)
        case Move(before, after):
            deposit = _deposit_of(report, after, changes) if before is None else before
            match after:
                case DepositStatus.CREDITED:
                    _credit(before, deposit, report, changes)
                case DepositStatus.REVERSED:
                    _reverse(deposit, report, changes)
                case _:
                    moved = replace(deposit, status=after, looked_up_at=report.looked_up_at, updated_at=changes.now)
                    DEPOSIT_LIFE.advance(before, moved, _EVENT_OF_STATUS[after], changes)


def _deposit_of(report: DepositReport, status: DepositStatus, changes: Changes) -> Deposit:
    return Deposit(
        deposit_id=deposit_id_in(report),
        exchange=report.exchange,
        transaction_id=report.transaction_id,
        asset=report.asset,
        address=report.address,
        output_index=report.exchange_deposit_id,
        exchange_deposit_id=report.exchange_deposit_id,
        user_id=report.user_id,
        api_key_id=report.api_key_id,
        network=report.network,
        address_tag=report.address_tag,
        amount=report.amount,
        status=status,
        advanced=Decimal(0),
        arrived_at=report.arrived_at,
        looked_up_at=report.looked_up_at,
        detected_at=changes.now,
        updated_at=changes.now,
        credited_at=None,
        reversed_at=None,
    )


def account_of_deposit(deposit: Deposit) -> AccountKey:
    """The account that gets it: real money, always."""
    return AccountKey(deposit.user_id, deposit.exchange, book_of(Mode.LIVE), deposit.asset)


def _clearing(deposit: Deposit) -> AccountKey:
    return clearing(deposit.exchange, book_of(Mode.LIVE), deposit.asset)


def _credit(before: Deposit | None, deposit: Deposit, report: DepositReport, changes: Changes) -> None:
    transfer_id = f"{deposit.deposit_id}:credit"
    changes.ledger.post(transfer_id, deposit.deposit_id, _clearing(deposit), account_of_deposit(deposit), deposit.amount)
    credited = replace(
        deposit, status=_S.CREDITED, looked_up_at=report.looked_up_at, updated_at=changes.now, credited_at=changes.now
    )
    DEPOSIT_LIFE.advance(before, credited, EventType.DEPOSIT_CREDITED, changes)
    announced = next((one for one in changes.deposits.expected() if one.fits(credited)), None)
    if announced is not None:
        complete(announced, credited, changes)


def _reverse(deposit: Deposit, report: DepositReport, changes: Changes) -> None:
    """Takes back what the exchange took back, from what is free: what is held is promised to an order or a withdrawal already."""
    account = account_of_deposit(deposit)
    available = max(changes.ledger.balance(account).available, Decimal(0))
    advanced = max(deposit.amount - available, Decimal(0))
    changes.ledger.charge(f"{deposit.deposit_id}:reverse", deposit.deposit_id, account, _clearing(deposit), deposit.amount)
    trim_cost(account, changes.ledger)
    taken_back = replace(
        deposit,
        status=_S.REVERSED,
        advanced=advanced,
        looked_up_at=report.looked_up_at,
        updated_at=changes.now,
        reversed_at=changes.now,
    )
    text = "the exchange has taken it back"
    if advanced > 0:
        text += f"; {format_decimal(advanced)} {deposit.asset} of it were not free any more and are advanced by the house"
    DEPOSIT_LIFE.advance(deposit, taken_back, EventType.DEPOSIT_REVERSED, changes, {"reason": text})
    if advanced > 0:
        _freeze(taken_back, text, changes)


def _freeze(deposit: Deposit, text: str, changes: Changes) -> None:
    """Freezes the user until an operator has looked. One who is not active cannot trade anyway."""
    user_id = deposit.user_id
    if changes.deposits.user_status.get(user_id) != "active" or user_id in changes.frozen:
        return
    changes.frozen[user_id] = "a deposit was taken back"
    fields: dict[str, Value] = {
        "user_id": user_id,
        "reason": f"deposit {deposit.deposit_id}: {text}. Open orders stay as they are and can be canceled",
        "exchange": deposit.exchange,
        "asset": deposit.asset,
        "quantity": deposit.advanced,
        "real_money": True,
    }
    changes.audit(user_id, None, EventType.USER_FROZEN, fields, None)


def _dispute(dispute: Dispute, report: DepositReport, changes: Changes) -> None:
    """Notes what does not fit, and halts the user: nobody knows what is true of the account until a person has looked.

    Raises LocksMissing where the halts are not locked.
    """
    require_halts_locked(changes, f"deposit {dispute.deposit_id} does not fit")
    changes.deposits.disputes.add(dispute.key)
    changes.deposits.disputes_made.append(dispute)
    fields: dict[str, Value] = {
        "user_id": report.user_id,
        "exchange": report.exchange,
        "exchange_order_id": report.exchange_deposit_id,
        "transaction_id": report.transaction_id,
        "quantity": report.amount,
        "asset": report.asset,
        "network": report.network,
        "address": report.address,
        "address_tag": report.address_tag,
        "reason": f"{dispute.what}; nothing was credited for it",
        "evidence": [f"deposit {dispute.deposit_id}", f"dispute {dispute.kind}", f"shown as {report.deposit_status}"],
        "real_money": True,
    }
    # Under the account: for a deposit of another user the key `deposit_id:seq` may be taken by that user's event.
    changes.audit(report.user_id, None, EventType.DEPOSIT_DISPUTED, fields, None)
    cause = f"deposit:{dispute.deposit_id}:{dispute.kind}"
    halt_user(report.user_id, cause, f"deposit {dispute.deposit_id}: {dispute.what}", changes)


def deposit_fields(deposit: Deposit) -> dict[str, Value]:
    """What every audit event about a deposit says of it."""
    return {
        "user_id": deposit.user_id,
        "exchange_order_id": deposit.exchange_deposit_id,
        "quantity": deposit.amount,
        "asset": deposit.asset,
        "network": deposit.network,
        "address": deposit.address,
        "address_tag": deposit.address_tag,
        "transaction_id": deposit.transaction_id,
        "status_after": deposit.status.value,
        "exchange": deposit.exchange,
        "real_money": True,
    }


def deposit_state(deposit: Deposit) -> DepositState:
    """The snapshot that dashboards read."""
    return DepositState(
        schema_version=SCHEMA_VERSION,
        deposit_id=deposit.deposit_id,
        exchange_deposit_id=deposit.exchange_deposit_id,
        transaction_id=deposit.transaction_id,
        user_id=deposit.user_id,
        exchange=deposit.exchange,
        asset=deposit.asset,
        network=deposit.network,
        address=deposit.address,
        address_tag=deposit.address_tag,
        amount=deposit.amount,
        deposit_status=deposit.status,
        advanced=deposit.advanced,
        detected_at=deposit.detected_at,
        updated_at=deposit.updated_at,
    )


DEPOSIT_LIFE: Final[Lifecycle[Deposit]] = Lifecycle(
    name="deposit",
    rows=lambda changes: changes.deposits.deposits,
    id_of=lambda deposit: deposit.deposit_id,
    legal=lambda before, _: TRANSITIONS[before.status],
    fields=deposit_fields,
    snapshot=lambda deposit: DEPOSIT_STATE.dump_json(deposit_state(deposit)),
)
