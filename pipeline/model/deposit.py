"""A deposit's life: its fields, the one table of legal transitions, and what an exchange's history can say about it.

A deposit is one entry of an exchange's history of deposits. What makes it another than all others is the exchange, the transaction, the
asset, the address, and the number of the output within that transaction. Where an exchange shows no such number (Binance), its own id of
the entry stands for it: a transaction that pays one address twice has two entries.

Invariants:
1. A status changes only along `TRANSITIONS`; anything else is a defect (InvariantViolation) and stops the batch.
2. A deposit is credited once: `credited` is reached from the three statuses before it alone, and left only to `reversed`, which is the end.
3. An older word never undoes a newer one: words are compared by when the exchange was asked.

Start with `next_status`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final

from pipeline.model.tracked import Tracked
from schemas.orders import AnnouncementStatus, DepositStatus, Mode
from schemas.reasons import ReasonCode
from schemas.wire import SourceOffset

_S = DepositStatus

# What an exchange's history can show.
VENUE_STATES: Final = frozenset({_S.DETECTED, _S.CONFIRMING, _S.CREDITED, _S.REJECTED})

TRANSITIONS: Final[dict[DepositStatus, frozenset[DepositStatus]]] = {
    _S.DETECTED: frozenset({_S.CONFIRMING, _S.CREDITED, _S.REJECTED}),
    _S.CONFIRMING: frozenset({_S.CREDITED, _S.REJECTED}),
    # rejected by the exchange and recovered by its user there
    _S.REJECTED: frozenset({_S.CREDITED}),
    _S.CREDITED: frozenset({_S.REVERSED}),
    _S.REVERSED: frozenset(),
}


ANNOUNCEMENT_TRANSITIONS: Final[dict[AnnouncementStatus, frozenset[AnnouncementStatus]]] = {
    AnnouncementStatus.EXPECTED: frozenset({AnnouncementStatus.COMPLETED, AnnouncementStatus.FAILED}),
    AnnouncementStatus.COMPLETED: frozenset(),
    AnnouncementStatus.FAILED: frozenset(),
}


def next_status(before: DepositStatus, told: DepositStatus) -> DepositStatus | None:
    """Where the exchange's word takes a deposit; None where it says nothing new.

    A credited one that is shown as rejected was taken back. One that is shown as on its way again was not: an exchange's copies of its
    books do not always show the same.
    """
    if before is _S.CREDITED:
        return _S.REVERSED if told is _S.REJECTED else None
    return told if told in TRANSITIONS[before] else None


@dataclass(frozen=True, slots=True)
class Deposit:
    """One deposit as the database keeps it. `amount` in units of `asset`.

    `output_index` tells outputs of one transaction to one address apart. `api_key_id` is the key with which it was first seen. `advanced`
    is what the house paid when it was taken back and its user had spent it. `arrived_at` is the exchange's time; `looked_up_at` is when the
    exchange was asked for the newest word that changed anything. Times are UTC.
    """

    deposit_id: str
    exchange: str
    transaction_id: str
    asset: str
    address: str
    output_index: str
    exchange_deposit_id: str
    user_id: str
    api_key_id: str
    network: str
    address_tag: str | None
    amount: Decimal
    status: DepositStatus
    advanced: Decimal
    arrived_at: datetime
    looked_up_at: datetime
    detected_at: datetime
    updated_at: datetime
    credited_at: datetime | None
    reversed_at: datetime | None

    @property
    def traceparent(self) -> None:
        """Nobody asked for it."""
        return None


@dataclass(frozen=True, slots=True)
class Announcement:
    """A deposit that a producer expects, as the database keeps it. What is None was not named and fits anything.

    `deposit_id` and `exchange_deposit_id` are those of the deposit that arrived. `source` is the record that asked for it.
    """

    announcement_id: str
    user_id: str
    idempotency_key: str
    request_id: str
    source: SourceOffset
    mode: Mode
    exchange: str
    api_key_id: str
    asset: str
    amount: Decimal
    network: str | None
    address: str | None
    address_tag: str | None
    status: AnnouncementStatus
    reason_code: ReasonCode | None
    reason: str | None
    deposit_id: str | None
    exchange_deposit_id: str | None
    expires_at: datetime
    requested_at: datetime
    decided_at: datetime
    updated_at: datetime
    executed_at: datetime | None
    traceparent: str | None

    def fits(self, deposit: Deposit) -> bool:
        """Whether it announces this deposit: the same user, exchange, asset and amount, and all else that it names."""
        named = (
            (self.network, deposit.network),
            (self.address, deposit.address),
            (self.address_tag, deposit.address_tag),
        )
        mine = self.user_id, self.exchange, self.asset, self.amount
        theirs = deposit.user_id, deposit.exchange, deposit.asset, deposit.amount
        return mine == theirs and all(wanted in (None, there) for wanted, there in named)


class DisputeKind(StrEnum):
    """Why a deposit is not credited by itself: a person must look.

    `foreign`: another user has it. `changed`: its amount, or what it is about, is another than before. `twin`: an equal amount of the same
    transaction to the same address was credited already. `returned`: it was taken back and is shown as credited again.
    """

    FOREIGN = "foreign"
    CHANGED = "changed"
    TWIN = "twin"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True)
class Dispute:
    """What is noted of it, once: which deposit, reported for whom, and what does not fit."""

    deposit_id: str
    user_id: str
    kind: DisputeKind
    what: str

    @property
    def key(self) -> tuple[str, str, DisputeKind]:
        return self.user_id, self.deposit_id, self.kind


@dataclass(frozen=True, slots=True)
class VenueDeposit:
    """A deposit as the exchange's own history shows it. `amount` in units of `asset`; `completed_at` is None where it does not say."""

    exchange_deposit_id: str
    transaction_id: str
    asset: str
    network: str
    address: str
    address_tag: str | None
    amount: Decimal
    status: DepositStatus
    arrived_at: datetime
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class VenueDeposits:
    """A part of the history. `unreadable` says what is wrong with those entries that could not be read."""

    rows: Sequence[VenueDeposit]
    unreadable: Sequence[str] = ()


@dataclass(slots=True)
class DepositBook:
    """The deposits, announcements and disputes of one batch, as loaded and as decided.

    `opened_at`, by user and exchange, is when the newest opening balance was taken over, or the user was added: what was credited at the
    exchange before that is part of it. `watched_from`, by user and key, is when the key was stored: what its account got before that is no
    business of this system.
    """

    deposits: Tracked[Deposit] = field(default_factory=Tracked)
    announcements: Tracked[Announcement] = field(default_factory=Tracked)
    disputes: set[tuple[str, str, DisputeKind]] = field(default_factory=set)
    disputes_made: list[Dispute] = field(default_factory=list)
    opened_at: dict[tuple[str, str], datetime] = field(default_factory=dict)
    watched_from: dict[tuple[str, str], datetime] = field(default_factory=dict)
    # How users stand whose deposits may be taken back.
    user_status: dict[str, str] = field(default_factory=dict)

    def expected(self) -> list[Announcement]:
        """Announcements that still wait, the oldest first."""
        waiting = [one for one in self.announcements.values() if one.status is AnnouncementStatus.EXPECTED]
        return sorted(waiting, key=lambda one: (one.requested_at, one.announcement_id))
