"""Audit events: the records of `trade.audit`, one per state change.

Invariants:
1. `seq` counts 1, 2, 3 … per `account`; `prev_hash` is the hash of `seq - 1` (64 zeros before the first).
2. `hash` is SHA-256 over the canonical form of all other fields (JSON, sorted keys, no blanks, UTF-8): anyone can check it from the topic.
3. `event_id` is the record's key, `order_id:seq` or `account:seq`: unique, so compaction removes only exact re-emissions.
"""

from enum import StrEnum
from typing import Final

from schemas.commands import HaltLevel, HaltScope
from schemas.decimals import DecimalString
from schemas.orders import AnnouncementStatus, DepositStatus, OrderStatus, OrderType, Side, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.wire import Timestamp, WireModel

GENESIS_HASH: Final = "0" * 64


class EventType(StrEnum):
    REQUEST_REJECTED = "REQUEST_REJECTED"
    REQUEST_REPLAYED = "REQUEST_REPLAYED"
    ORDER_ACCEPTED = "ORDER_ACCEPTED"
    ORDER_SUBMITTED = "ORDER_SUBMITTED"
    ORDER_ACKNOWLEDGED = "ORDER_ACKNOWLEDGED"
    ORDER_PARTIALLY_FILLED = "ORDER_PARTIALLY_FILLED"
    ORDER_FILLED = "ORDER_FILLED"
    ORDER_CANCELED = "ORDER_CANCELED"
    ORDER_EXPIRED = "ORDER_EXPIRED"
    ORDER_REFUSED = "ORDER_REFUSED"
    ORDER_IN_DOUBT = "ORDER_IN_DOUBT"
    ORDER_RESOLVED = "ORDER_RESOLVED"
    ORDER_RESULT_CORRECTED = "ORDER_RESULT_CORRECTED"
    ORDER_REQUEUED = "ORDER_REQUEUED"
    CANCEL_ACCEPTED = "CANCEL_ACCEPTED"
    CANCEL_EXECUTED = "CANCEL_EXECUTED"
    CANCEL_REFUSED = "CANCEL_REFUSED"
    USER_ADDED = "USER_ADDED"
    USER_VERIFIED = "USER_VERIFIED"
    USER_FROZEN = "USER_FROZEN"
    USER_UNFROZEN = "USER_UNFROZEN"
    USER_CLOSED = "USER_CLOSED"
    USER_ENROLLED_TOTP = "USER_ENROLLED_TOTP"
    USER_UNLOCKED_TOTP = "USER_UNLOCKED_TOTP"
    USER_LOCKED_TOTP = "USER_LOCKED_TOTP"
    USER_CLEARED_COOLDOWN = "USER_CLEARED_COOLDOWN"
    KEY_ADDED = "KEY_ADDED"
    KEY_CHECKED = "KEY_CHECKED"
    KEY_ROTATED = "KEY_ROTATED"
    KEY_REVOKED = "KEY_REVOKED"
    KEY_REFUSED = "KEY_REFUSED"
    LIMIT_CHANGED = "LIMIT_CHANGED"
    PAPER_FUNDED = "PAPER_FUNDED"
    BALANCES_IMPORTED = "BALANCES_IMPORTED"
    BALANCE_DRIFT_FOUND = "BALANCE_DRIFT_FOUND"
    BALANCE_DRIFT_GONE = "BALANCE_DRIFT_GONE"
    HALT_SET = "HALT_SET"
    HALT_LIFTED = "HALT_LIFTED"
    COMMAND_REFUSED = "COMMAND_REFUSED"
    OPERATOR_DECIDED = "OPERATOR_DECIDED"
    APPROVAL_REQUESTED = "APPROVAL_REQUESTED"
    APPROVAL_GIVEN = "APPROVAL_GIVEN"
    APPROVAL_REFUSED = "APPROVAL_REFUSED"
    OFFSETS_LOSS_ACCEPTED = "OFFSETS_LOSS_ACCEPTED"
    WITHDRAWAL_ACCEPTED = "WITHDRAWAL_ACCEPTED"
    WITHDRAWAL_APPROVED = "WITHDRAWAL_APPROVED"
    WITHDRAWAL_REFUSED = "WITHDRAWAL_REFUSED"
    WITHDRAWAL_SUBMITTED = "WITHDRAWAL_SUBMITTED"
    WITHDRAWAL_REQUEUED = "WITHDRAWAL_REQUEUED"
    WITHDRAWAL_IN_DOUBT = "WITHDRAWAL_IN_DOUBT"
    WITHDRAWAL_RESOLVED = "WITHDRAWAL_RESOLVED"
    WITHDRAWAL_RESULT_CORRECTED = "WITHDRAWAL_RESULT_CORRECTED"
    WITHDRAWAL_PROCESSING = "WITHDRAWAL_PROCESSING"
    WITHDRAWAL_COMPLETED = "WITHDRAWAL_COMPLETED"
    WITHDRAWAL_FAILED = "WITHDRAWAL_FAILED"
    DEPOSIT_ANNOUNCED = "DEPOSIT_ANNOUNCED"
    DEPOSIT_ARRIVED = "DEPOSIT_ARRIVED"
    DEPOSIT_EXPIRED = "DEPOSIT_EXPIRED"
    DEPOSIT_DETECTED = "DEPOSIT_DETECTED"
    DEPOSIT_CONFIRMING = "DEPOSIT_CONFIRMING"
    DEPOSIT_CREDITED = "DEPOSIT_CREDITED"
    DEPOSIT_REJECTED = "DEPOSIT_REJECTED"
    DEPOSIT_REVERSED = "DEPOSIT_REVERSED"
    DEPOSIT_DISPUTED = "DEPOSIT_DISPUTED"
    ADDRESS_ADDED = "ADDRESS_ADDED"
    ADDRESS_REMOVED = "ADDRESS_REMOVED"
    RECORD_SET_ASIDE = "RECORD_SET_ASIDE"
    RECORD_RETRIED = "RECORD_RETRIED"
    RECORD_DROPPED = "RECORD_DROPPED"
    SESSION_STARTED = "SESSION_STARTED"
    SESSION_ENDED = "SESSION_ENDED"


class ConfirmedBy(StrEnum):
    """What confirmed that its user means a request: a one-time `code` of its own, a `session` that one began, or the word of the token's
    `issuer`."""

    CODE = "code"
    SESSION = "session"
    ISSUER = "issuer"


class TransferEntry(WireModel):
    """A ledger transfer that the same database transaction wrote."""

    transfer_id: str
    kind: str
    debit_account: str
    credit_account: str
    asset: str
    amount: DecimalString


class AuditEvent(WireModel):
    """One state change with everything that the same database transaction did for it.

    What operators do names the `command` and the id of what it is about (`target_id`), with their words as they gave them
    (`operator_reason`) and the second operator of two (`approved_by`). `actor` is who was proven to act. `claimed_operator` is the name
    that somebody gave where no proof could be asked for, beside the account of the system and the role of the database it came from.
    """

    schema_version: int
    event_id: str
    order_id: str | None
    account: str
    seq: int
    event_type: EventType
    ts_event: Timestamp
    ts_recorded: Timestamp
    actor: str
    user_id: str | None
    request_id: str | None
    client_order_id: str | None
    exchange_order_id: str | None
    symbol: str | None
    side: Side | None
    order_type: OrderType | None
    quantity: DecimalString | None
    price: DecimalString | None
    status_before: OrderStatus | WithdrawalStatus | DepositStatus | AnnouncementStatus | None
    status_after: OrderStatus | WithdrawalStatus | DepositStatus | AnnouncementStatus | None
    reason_code: ReasonCode | None
    reason: str | None
    exchange: str | None
    fee: DecimalString | None
    fee_asset: str | None
    filled_quantity: DecimalString | None
    filled_quote: DecimalString | None
    asset: str | None
    network: str | None
    address: str | None
    address_tag: str | None
    transaction_id: str | None
    checks: tuple[str, ...]
    transfers: tuple[TransferEntry, ...]
    evidence: tuple[str, ...]
    halt_scope: HaltScope | None
    halt_target: str | None
    halt_level: HaltLevel | None
    real_money: bool
    warning: str | None
    software_version: str
    traceparent: str | None
    prev_hash: str
    hash: str
    # Left out where they say nothing.
    idempotency_key: str | None = None
    command: str | None = None
    target_id: str | None = None
    operator_reason: str | None = None
    approved_by: str | None = None
    claimed_operator: str | None = None
    system_user: str | None = None
    database_role: str | None = None
    confirmed_by: ConfirmedBy | None = None
    session_id: str | None = None
