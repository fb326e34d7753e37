"""Everything one batch decides: stored in one database transaction, published in one Kafka transaction.

A step's decision functions write here and nowhere else. Invariants:
1. Orders, withdrawals, deposits and announcements change only as pipeline/books/lifecycle lets them.
2. A final result is given once per source and once per key: `answer` and `tell` refuse a second one in the same batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING

from pipeline.books.audit import AuditTrail, Value
from pipeline.books.cost import RealisedResult
from pipeline.books.ledger import Ledger, Transfer
from pipeline.model.conduct import Conduct
from pipeline.model.deposit import DepositBook
from pipeline.model.drift import StoredDrift
from pipeline.model.halts import Halt
from pipeline.model.invariants import InvariantViolation
from pipeline.model.order import Order
from pipeline.model.payee import Payee
from pipeline.model.second_factor import SecondFactor
from pipeline.model.session import Session
from pipeline.model.tracked import Tracked
from pipeline.model.venue import KeyVersion
from pipeline.model.withdrawal import Withdrawal
from schemas.audit import EventType
from schemas.commands import HaltScope
from schemas.orders import RequestType
from schemas.results import RESULT, Result, ResultStatus
from schemas.routing import Action, RoutedOrder
from schemas.topics import Topics
from schemas.wire import SourceOffset

if TYPE_CHECKING:
    from pipeline.model.quarantine import QuarantinedRecord


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """One record to publish. Partitioned by its key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A `(user_id, idempotency_key)` with the record that claimed it. `result` is its final answer, None while it runs.

    A key lives from the later of `claimed_at`, the time of the decision, and its request's end (`key_lives_from`), not from the record's
    time: so a record that was read late keeps its key as long as any other, and no copy that was appended while the request ran finds the
    key free. Copies appended within the key's lifetime get its answer, however late they are read.
    """

    user_id: str
    idempotency_key: str
    source: SourceOffset
    request_id: str
    request_type: RequestType | None
    fingerprint: str
    order_id: str | None
    claimed_at: datetime
    result: Result | None
    # None in rows of releases that did not keep it; their results say when they ended.
    ended_at: datetime | None = None

    @property
    def key_lives_from(self) -> datetime | None:
        """From when the key's lifetime counts, UTC: the latest of claim and end; None while the request runs or its end is not known, and
        then the key is not free for anybody. `infra.postgres.rows` says the same in SQL."""
        if self.result is None or self.result.status is ResultStatus.OPEN:
            # Open again: what counted as not executed stands at the exchange after all.
            return None
        # A rejection that was never executed ended when it was decided.
        decided_at = self.result.decided_at if self.result.status is ResultStatus.REJECTED else None
        known = [moment for moment in (self.ended_at, self.result.executed_at, decided_at) if moment is not None]
        return max(self.claimed_at, *known) if known else None


@dataclass(frozen=True, slots=True)
class PendingCancel:
    """A cancel request that waits for its order to end. `order_id` is the order meant.

    `attempt` counts how often it was queued, `attempts_sent` the calls for it that were handed to the exchange. From `expires_at` on, UTC,
    it is not sent any more.
    """

    source: SourceOffset
    order_id: str
    user_id: str
    idempotency_key: str
    request_id: str
    requested_at: datetime
    decided_at: datetime
    attempt: int
    traceparent: str | None
    attempts_sent: int = 0
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SetHalt:
    """A halt in force: who set it, by which command, when and why. `cancel_open`: what rests and would not pass is canceled."""

    halt: Halt
    reason: str
    set_by: str
    command_id: str
    set_at: datetime
    cancel_open: bool = False


@dataclass(frozen=True, slots=True)
class Proposal:
    """The first of two words on what is in doubt: who said what, by which command."""

    target_id: str
    operator: str
    command_id: str
    figures: str
    proposed_at: datetime


@dataclass(slots=True)
class Changes:
    """`now` is the time of the decision, UTC, the same for the whole batch. `actor` is who decides, for the audit trail."""

    topics: Topics
    now: datetime
    actor: str
    trail: AuditTrail
    ledger: Ledger
    orders: Tracked[Order] = field(default_factory=Tracked)
    withdrawals: Tracked[Withdrawal] = field(default_factory=Tracked)
    deposits: DepositBook = field(default_factory=DepositBook)
    # Orders and withdrawals of which another input partition's newest word is not published yet; see infra.postgres.step.
    unpublished: set[str] = field(default_factory=set)
    # What is known of users whose withdrawals may leave, by user; whoever is not there is no user.
    payees: dict[str, Payee] = field(default_factory=dict)
    claims: dict[tuple[str, str], Claim] = field(default_factory=dict)
    claimed: set[tuple[str, str]] = field(default_factory=set)
    # Final answers, by the key whose claim they end.
    finished: dict[tuple[str, str], Result] = field(default_factory=dict)
    # What corrects a final answer that was given before, by its key: a copy of the request is told this from now on.
    corrected: dict[tuple[str, str], Result] = field(default_factory=dict)
    cancels: dict[str, list[PendingCancel]] = field(default_factory=dict)
    cancels_made: list[PendingCancel] = field(default_factory=list)
    cancels_ended: list[PendingCancel] = field(default_factory=list)
    cancels_repeated: list[PendingCancel] = field(default_factory=list)
    # Users' conduct as loaded under their locks, and whose has moved.
    conduct: dict[str, Conduct] = field(default_factory=dict)
    conduct_moved: set[str] = field(default_factory=set)
    # Second factors that were tried, users that are frozen (with the reason), keys that the exchange refused (user, key id → reason).
    factors: dict[str, SecondFactor] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    # Sessions by id, which of them begin with this batch, and which have moved (used or ended).
    sessions: dict[str, Session] = field(default_factory=dict)
    sessions_begun: set[str] = field(default_factory=set)
    sessions_moved: set[str] = field(default_factory=set)
    keys_refused: dict[tuple[str, str], str] = field(default_factory=dict)
    # Words on what is in doubt that wait for a second operator, and which of them this batch has made.
    proposals: dict[str, Proposal] = field(default_factory=dict)
    proposals_made: set[str] = field(default_factory=set)
    # The keys as they are stored now, by (user, key id), of what may be sent.
    keys: dict[tuple[str, str], KeyVersion] = field(default_factory=dict)
    # (user, symbol) pairs that were traded for the first time.
    symbols_new: set[tuple[str, str]] = field(default_factory=set)
    # The stops in force, by scope and target, and which have moved (set, or gone from `halts`).
    halts: dict[tuple[HaltScope, str], SetHalt] = field(default_factory=dict)
    halts_moved: set[tuple[HaltScope, str]] = field(default_factory=set)
    # Differences from the exchanges' balances by (user, exchange) and asset; which (user, exchange, asset) have moved or are gone, and
    # which of those the database does not have yet.
    drifts: dict[tuple[str, str], dict[str, StoredDrift]] = field(default_factory=dict)
    drifts_moved: set[tuple[str, str, str]] = field(default_factory=set)
    drifts_made: set[tuple[str, str, str]] = field(default_factory=set)
    # What sales brought, to be counted against the loss limit.
    realised: list[RealisedResult] = field(default_factory=list)
    # Records that could not be decided (pipeline.isolation.quarantine).
    set_aside: list["QuarantinedRecord"] = field(default_factory=list)
    outputs: list[OutputRecord] = field(default_factory=list)
    _answered: set[SourceOffset] = field(default_factory=set)

    def publish(self, topic: str, key: str, value: bytes, traceparent: str | None, headers: tuple[tuple[str, bytes], ...] = ()) -> None:
        if traceparent is not None:
            headers = (*headers, ("traceparent", traceparent.encode()))
        self.outputs.append(OutputRecord(topic, key.encode(), value, headers))

    def bury(self, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...]) -> None:
        """Publishes a dead letter."""
        self.outputs.append(OutputRecord(self.topics.requests_dlq, key, value, headers))

    def answer(self, result: Result, traceparent: str | None) -> None:
        """Publishes a result. Raises InvariantViolation for a second final one of the same source."""
        source = result.source
        if result.final:
            if source in self._answered:
                raise InvariantViolation(f"record {source} would be answered twice; nothing was written. Report this as a defect.")
            self._answered.add(source)
        value = RESULT.dump_json(result)
        # CloudEvents wants an id per event: several answers before the final one may have the same status.
        part = "final" if result.final else f"{result.status.value}:{sha256(value).hexdigest()[:16]}"
        headers = (
            # CloudEvents 1.0, Kafka protocol binding, binary content mode.
            ("ce_specversion", b"1.0"),
            ("ce_id", f"{source}:{part}".encode()),
            ("ce_source", b"crypto-orchestrator"),
            ("ce_type", b"trade.result.v1"),
            ("content-type", b"application/json"),
        )
        self.publish(self.topics.results, result.request_id, value, traceparent, headers)

    def tell(self, result: Result, traceparent: str | None) -> None:
        """Says how a request stands that has claimed its key. The final answer, and what corrects it, is kept for replays.

        Raises InvariantViolation for a second end of one request.
        """
        key = result.user_id or "", result.idempotency_key or ""
        claim = self.claims.get(key)
        if result.corrects:
            self.corrected[key] = result
            if claim is not None:
                self.claims[key] = replace(claim, result=result)
        elif result.final:
            if key in self.finished:
                raise InvariantViolation(f"request {result.request_id} would end twice; nothing was written. This is a defect.")
            self.finished[key] = result
            if claim is not None:
                self.claims[key] = replace(claim, result=result, ended_at=self.now)
        self.answer(result, traceparent)

    def audit(
        self, account: str, order_id: str | None, event_type: EventType, fields: Mapping[str, Value], traceparent: str | None
    ) -> None:
        stated: dict[str, Value] = {"actor": self.actor, "ts_event": self.now, "traceparent": traceparent, **fields}
        row = self.trail.append(account, order_id, event_type, stated)
        self.publish(self.topics.audit, row.event_id, row.value, traceparent)

    def conduct_of(self, user_id: str) -> Conduct:
        """What is kept of a user's behaviour."""
        return self.conduct.get(user_id, Conduct())

    def move_conduct(self, user_id: str, conduct: Conduct) -> None:
        """Replaces what is kept of a user's behaviour."""
        if self.conduct.get(user_id) != conduct:
            self.conduct[user_id] = conduct
            self.conduct_moved.add(user_id)

    def move_cancel(self, before: PendingCancel, after: PendingCancel) -> None:
        """Replaces a cancel that waits by its next form."""
        pending = self.cancels[before.order_id]
        pending[pending.index(before)] = after
        # One row each: of two forms of one cancel the newest is stored.
        self.cancels_repeated = [other for other in self.cancels_repeated if other is not before]
        self.cancels_repeated.append(after)

    def route(self, action: Action, entity_id: str, attempt: int, of: Order | Withdrawal, traceparent: str | None) -> None:
        """Queues work for the execution agent of its exchange, in order per user. `of` is the order or withdrawal with that id."""
        routed = RoutedOrder(schema_version=1, action=action, order_id=entity_id, user_id=of.user_id, attempt=attempt)
        self.publish(self.topics.orders(of.exchange), routed.user_id, routed.model_dump_json().encode(), traceparent)


def transfer_entry(transfer: Transfer) -> dict[str, str]:
    """A transfer as audit events carry it (schemas/audit.py, TransferEntry)."""
    return {
        "transfer_id": transfer.transfer_id,
        "kind": transfer.kind.value,
        "debit_account": str(transfer.debit),
        "credit_account": str(transfer.credit),
        "asset": transfer.debit.asset,
        "amount": format(transfer.amount.normalize(), "f"),
    }
