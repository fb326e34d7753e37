"""The intake agent: when a batch of `trade.requests` is decided. What is decided stands in pipeline/intake.

One database transaction: fence, lock the users' chains, load, decide, store.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from aiokafka import ConsumerRecord

from agents.steps.batch import StepContext
from agents.steps.isolation import at
from agents.steps.step import Batch
from infra.postgres.deposits import expected_announcements, unclaimed_deposits
from infra.postgres.gate import Unsealed, accounts, api_keys, halt_book
from infra.postgres.rows import ORDERS
from infra.postgres.sessions import sessions
from infra.postgres.step import StepTransaction
from infra.postgres.withdrawals import addresses, withdrawn
from pipeline.books.audit import AuditTrail
from pipeline.books.changes import Changes, OutputRecord
from pipeline.books.ledger import Ledger
from pipeline.gate.context import AccountState
from pipeline.gate.limits import Limits
from pipeline.intake import decide, give_up
from pipeline.isolation.quarantine import quarantine_id_of, told
from pipeline.model.crash_points import CrashPoint
from pipeline.model.deposit import DepositBook
from pipeline.model.quarantine import InputRecord, Named, Stage
from pipeline.model.refusal import Refusal
from pipeline.model.venue import MarketData
from pipeline.model.withdrawal import AllowedAddress, Network
from pipeline.requests.authentication import TokenVerifier
from pipeline.requests.intake_state import IntakeState
from pipeline.requests.record import Arrival, arrive, authenticated
from pipeline.requests.rejection import answer_unproven, request_id_in
from pipeline.requests.sessions import sessions_named
from schemas.reasons import ReasonCode
from schemas.requests import CancelRequest, DepositRequest, TradeRequest, Unreadable, WithdrawalRequest
from schemas.wire import SourceOffset

ACTOR: Final = "intake"

Networks = Mapping[str, Mapping[tuple[str, str], Network]]


class IntakeStep:
    """`market_data` gives what is known of each exchange at the moment of the call; `verifier` None where nobody is asked who sends
    (a sandbox); `unseal` decrypts second factors. `networks` gives how each exchange pays out, as far as it has told."""

    def __init__(
        self,
        context: StepContext,
        market_data: Callable[[], Mapping[str, MarketData]],
        networks: Callable[[], Networks],
        verifier: TokenVerifier | None,
        limits: Limits,
        unseal: Unsealed,
        batch_size_max: int,
    ) -> None:
        self.batch_size_max = batch_size_max
        self._context = context
        self._market_data = market_data
        self._networks = networks
        self._verifier = verifier
        self._limits = limits
        self._unseal = unseal

    def named(self, record: ConsumerRecord) -> Named:
        arrival = self._arrival_of(record)
        if (key := arrival.proven_key) is None:
            return Named()
        return Named(key[0], f"request {request_id_in(arrival, key)}")

    async def set_aside(self, transaction: StepTransaction, batch: Batch, record: InputRecord, *, sparing: bool) -> Changes:
        """Answers the record, under its key where the key and its user can be read; else by its source alone, which names nobody."""
        told_of = told(quarantine_id_of(record), "nothing was executed and no funds were moved. Send it again under a new key")
        arrival = self._arrival_or_bytes(batch.records[0], record)
        key = arrival.proven_key
        if sparing or key is None:
            changes = await self._context.isolation.bare_changes(transaction, ACTOR)
            answer_unproven(arrival, Refusal(ReasonCode.INTERNAL_ERROR, told_of), changes)
            return changes
        changes = await self._context.isolation.bare_changes(transaction, ACTOR, key[0])
        changes.claims = await transaction.claims([key])
        give_up(arrival, told_of, self._context.rules, changes)
        return changes

    def _arrival_or_bytes(self, record: ConsumerRecord, as_kept: InputRecord) -> Arrival:
        """The record's arrival; where it cannot be read, one that names nobody."""
        try:
            return self._arrival_of(record)
        # It may be what could not be decided about it.
        except Exception:  # noqa: BLE001 — whatever it was is told as the record's failure
            unread = Unreadable(ReasonCode.INTERNAL_ERROR, "it could not be read", None, None, None, dead_letter=True)
            return Arrival(as_kept.source, as_kept.appended_at, as_kept.key, as_kept.value, as_kept.headers, unread)

    def _arrival_of(self, record: ConsumerRecord) -> Arrival:
        # The topic's timestamp type is LogAppendTime: this is the broker's clock, in milliseconds.
        appended_at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=record.timestamp)
        source = SourceOffset(record.topic, record.partition, record.offset)
        arrival = arrive(source, appended_at, record.key, record.value, record.headers)
        return arrival if self._verifier is None else authenticated(arrival, self._verifier)

    async def run(self, batch: Batch) -> tuple[OutputRecord, ...]:
        at(Stage.DECODE)
        arrivals = [self._arrival_of(record) for record in batch.records]

        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            at(Stage.LOAD)
            changes = await self._decide(step, arrivals)
            at(Stage.STORE)
            await step.store(changes, changes.now - self._context.rules.key_lifetime)
            outputs = await step.finish(batch.next_offset, changes.outputs, changes.now)
            self._context.reached(CrashPoint.BEFORE_INTAKE_COMMIT, batch.partition.topic)
            return outputs

        outputs = await self._context.runner.run(batch, attempt)
        self._context.reached(CrashPoint.AFTER_INTAKE_COMMIT, batch.partition.topic)
        return outputs

    async def _decide(self, step: StepTransaction, arrivals: list[Arrival]) -> Changes:
        keys = {key for arrival in arrivals if (key := arrival.proven_key) is not None}
        targets = {
            (decoded.user_id, decoded.target_idempotency_key)
            for arrival in arrivals
            if arrival.unproven is None and isinstance(decoded := arrival.decoded, CancelRequest)
        }
        symbols = {
            (decoded.user_id, decoded.symbol)
            for arrival in arrivals
            if arrival.unproven is None and isinstance(decoded := arrival.decoded, TradeRequest)
        }
        users = sorted({user_id for user_id, _ in keys})
        locked = await step.lock_accounts(users)
        # Read the clock behind the locks: what another step decided for the same user is then never later than this.
        now = self._context.clock()
        claims = await step.claims(keys | targets)
        states = await accounts(step.connection, users, symbols, locked.conduct, self._limits, self._unseal, now)
        keys_stored = await api_keys(step.connection, users)
        balances = await step.balances(users)
        allowed = await self._load_withdrawing(step, arrivals, states, now)
        order_ids = [claim.order_id for key in targets if (claim := claims.get(key)) is not None and claim.order_id is not None]
        orders = await step.orders(order_ids)
        cancels = await step.pending_cancels(order_ids) if order_ids else {}
        changes = Changes(
            topics=self._context.topics,
            now=now,
            actor=ACTOR,
            trail=AuditTrail(locked.heads, now),
            ledger=Ledger(balances),
            orders=orders,
            claims=claims,
            cancels=cancels,
            conduct=locked.conduct,
            deposits=await self._load_depositing(step, arrivals, now),
            sessions=await sessions(step.connection, *sessions_named(arrivals), now),
            unpublished=await step.unpublished(ORDERS, order_ids, self._context.topics.orders_prefix),
        )
        state = IntakeState(
            accounts=states,
            api_keys=keys_stored,
            market_data=self._market_data(),
            halts=await halt_book(step.connection),
            rules=self._context.rules,
            networks=self._networks(),
            addresses=allowed,
            issuer_keys=self._verifier.issuer_keys() if self._verifier is not None else frozenset(),
        )
        at(Stage.DECIDE)
        decide(arrivals, state, changes)
        return changes

    async def _load_withdrawing(
        self, step: StepTransaction, arrivals: list[Arrival], states: dict[str, AccountState], now: datetime
    ) -> dict[str, tuple[AllowedAddress, ...]]:
        """What only withdrawals need: the addresses of those who ask for one, and what counts for their limit of a day, which it notes."""
        asking = {
            arrival.decoded.user_id for arrival in arrivals if arrival.unproven is None and isinstance(arrival.decoded, WithdrawalRequest)
        }
        users = sorted(asking)
        if not users:
            return {}
        for user_id, counted in (await withdrawn(step.connection, users, now)).items():
            states[user_id].usage.withdrawn_24h_usd = counted.total_usd
        return await addresses(step.connection, users)

    async def _load_depositing(self, step: StepTransaction, arrivals: list[Arrival], now: datetime) -> DepositBook:
        """What only announced deposits need: those of the same users that wait, and deposits that came before their announcement."""
        asking = {
            arrival.decoded.user_id for arrival in arrivals if arrival.unproven is None and isinstance(arrival.decoded, DepositRequest)
        }
        users = sorted(asking)
        if not users:
            return DepositBook()
        came_since = now - self._context.rules.announcement_delay
        return DepositBook(
            deposits=await unclaimed_deposits(step.connection, users, came_since),
            announcements=await expected_announcements(step.connection, users),
        )
