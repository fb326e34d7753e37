"""A withdrawal's life: its fields, the one table of legal transitions, and what an exchange is asked and can prove about it.

Invariants:
1. A status changes only along `TRANSITIONS`; anything else is a defect (InvariantViolation) and stops the batch.
2. A terminal status is left by a correction alone (`CORRECTIONS`): the exchange shows after all what counted as proven not to be there.
3. `in_doubt` is reached from `submitting` only and left only with proof: the exchange's history shows it, or does not show it long after
   it could have been accepted. A withdrawal that was once in doubt is never `accepted` again, so it is never sent again.
4. What needs approval is `accepted` only after an operator, who is not its user, has approved it.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from pipeline.model.venue import InDoubt, KeyVersion, Refused
from schemas.orders import Mode, WithdrawalStatus
from schemas.reasons import ReasonCode
from schemas.wire import SourceOffset

_S = WithdrawalStatus

TERMINAL: Final = frozenset({_S.COMPLETED, _S.FAILED, _S.REJECTED})
# What an exchange's history can show.
VENUE_STATES: Final = frozenset({_S.PROCESSING, _S.COMPLETED, _S.FAILED})

TRANSITIONS: Final[dict[WithdrawalStatus, frozenset[WithdrawalStatus]]] = {
    _S.RECEIVED: frozenset({_S.PENDING_APPROVAL, _S.ACCEPTED, _S.REJECTED}),
    # rejected: an operator refused it, or nobody approved it in time
    _S.PENDING_APPROVAL: frozenset({_S.ACCEPTED, _S.REJECTED}),
    # rejected: its deadline passed, or a halt came, before it was sent
    _S.ACCEPTED: frozenset({_S.SUBMITTING, _S.REJECTED}),
    # accepted again: proven not sent
    _S.SUBMITTING: VENUE_STATES | {_S.IN_DOUBT, _S.ACCEPTED, _S.REJECTED},
    # rejected: proven that the exchange does not have it
    _S.IN_DOUBT: VENUE_STATES | {_S.REJECTED},
    _S.PROCESSING: frozenset({_S.COMPLETED, _S.FAILED}),
    _S.COMPLETED: frozenset(),
    _S.FAILED: frozenset(),
    _S.REJECTED: frozenset(),
}

# Of a withdrawal that counted as not executed and is watched (`Withdrawal.watched_until`): the exchange has it after all.
CORRECTIONS: Final[dict[WithdrawalStatus, frozenset[WithdrawalStatus]]] = {_S.REJECTED: frozenset({_S.PROCESSING, _S.COMPLETED})}


def legal_after(before: "Withdrawal", after: "Withdrawal") -> frozenset[WithdrawalStatus]:
    """The statuses that a withdrawal may go to from `before`, where `after` is what it would become."""
    legal = TRANSITIONS[before.status]
    if before.watched_until is not None and after.corrected_at is not None:
        legal |= CORRECTIONS.get(before.status, frozenset())
    return legal


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """One withdrawal as the database keeps it.

    `amount` is what is to arrive and `fee` what the exchange keeps on top, both in units of `asset`: as known at acceptance, and from
    `completed` on as the exchange's history has them. `hold_amount` is what is still held. `usd_value` is what amount and fee were worth
    together at acceptance. `approved_by` is the operator who approved it. `attempt` counts intents, from 0 before the first. `source` is
    the record that asked for it. Times are UTC.

    `first_submitting_at` is the first attempt's intent: the exchange's history is asked from there on, whatever came after. `absent_since`
    is when, by the exchange's clock, the first look in doubt began that did not find it. `watched_until`: it counted as proven not to be
    executed and is looked up until then all the same; `corrected_at`: it was found. `retry_at`: it is accepted, its last attempt reached
    nothing, and it is queued again then (pipeline/model/retries).
    """

    withdrawal_id: str
    client_withdrawal_id: str
    exchange_withdrawal_id: str | None
    transaction_id: str | None
    user_id: str
    idempotency_key: str
    request_id: str
    source: SourceOffset
    mode: Mode
    exchange: str
    api_key_id: str
    asset: str
    network: str
    address: str
    address_tag: str | None
    amount: Decimal
    fee: Decimal
    status: WithdrawalStatus
    reason_code: ReasonCode | None
    reason: str | None
    hold_amount: Decimal
    usd_value: Decimal
    approved_by: str | None
    attempt: int
    fencing_epoch: int
    work_partition: int
    submitting_at: datetime | None
    expires_at: datetime
    requested_at: datetime
    decided_at: datetime
    updated_at: datetime
    executed_at: datetime | None
    traceparent: str | None
    first_submitting_at: datetime | None = None
    absent_since: datetime | None = None
    watched_until: datetime | None = None
    corrected_at: datetime | None = None
    key_version: int | None = None
    account_id: str | None = None
    retry_at: datetime | None = None

    @property
    def sent_from(self) -> datetime | None:
        """From when on the exchange may have it; None while it was never sent."""
        return self.first_submitting_at or self.submitting_at

    @property
    def sent_with(self) -> KeyVersion | None:
        """The account of the newest intent; None where a worker made it that did not keep it."""
        return None if self.key_version is None else KeyVersion(self.key_version, self.account_id)

    @property
    def total(self) -> Decimal:
        """What leaves the account."""
        return self.amount + self.fee


@dataclass(frozen=True, slots=True)
class AllowedAddress:
    """An address on a user's list. `address_tag` is '' where it has none. It may be used some time after `added_at`."""

    network: str
    address: str
    address_tag: str
    added_at: datetime


@dataclass(frozen=True, slots=True)
class Network:
    """How an exchange pays one asset out over one network, in units of the asset. `observed_at` is when it was asked, UTC.

    `amount_min` and `amount_max` bound, and `amount_step` divides, what leaves the account, fee included.
    """

    asset: str
    network: str
    enabled: bool
    fee: Decimal
    amount_min: Decimal
    amount_max: Decimal | None
    amount_step: Decimal
    observed_at: datetime


@dataclass(frozen=True, slots=True)
class WithdrawalSubmission:
    """One withdrawal to send. `amount` arrives, `fee` is kept by the exchange, in units of `asset`. `submitting_at` and `expires_at`, from
    which on it must not be taken any more, are UTC."""

    withdrawal_id: str
    client_withdrawal_id: str
    exchange: str
    user_id: str
    api_key_id: str
    asset: str
    network: str
    address: str
    address_tag: str | None
    amount: Decimal
    fee: Decimal
    submitting_at: datetime
    expires_at: datetime
    sent_with: KeyVersion | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """The exchange accepted the withdrawal, under this id of its own."""

    exchange_withdrawal_id: str


WithdrawalOutcome = Taken | Refused | InDoubt


@dataclass(frozen=True, slots=True)
class WithdrawalHistory:
    """An account's withdrawals that carry a client id of ours, whole, as of `looked_up_at`: when the reading began, by the venue's own
    clock, UTC."""

    looked_up_at: datetime
    rows: "tuple[VenueWithdrawal, ...]"


@dataclass(frozen=True, slots=True)
class VenueWithdrawal:
    """A withdrawal as the exchange's own history shows it. `amount` is what it pays out, `fee` what it keeps, in units of `asset`.

    `detail` is the exchange's own word on a failure.
    """

    client_withdrawal_id: str
    exchange_withdrawal_id: str
    status: WithdrawalStatus
    asset: str
    network: str
    address: str
    amount: Decimal
    fee: Decimal
    transaction_id: str | None
    detail: str | None
