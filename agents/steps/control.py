"""The control agent: when commands of operators are applied. What a command does stands in pipeline/commands/halts.

A decision about a withdrawal is applied here too (pipeline/withdrawals/acceptance), under the lock of the withdrawal's user.

The halt is in force as soon as its transaction commits: intake reads the halts inside each batch's own transaction, and every worker's
`HaltWatch` reads them several times a second for what is about to be sent. Where a halt cancels what rests, `agents/watches/mass_cancel`
does so.
"""

from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Final

import structlog
from aiokafka import ConsumerRecord

from agents.steps.batch import StepContext
from agents.steps.isolation import at
from agents.steps.step import Batch
from infra.postgres.doubts import proposals
from infra.postgres.gate import Unsealed, accounts, halts
from infra.postgres.rows import ORDERS
from infra.postgres.step import StepTransaction
from infra.postgres.withdrawals import WITHDRAWALS, payees, withdrawals
from pipeline.books.audit import AuditTrail
from pipeline.books.changes import Changes, OutputRecord
from pipeline.books.ledger import Ledger
from pipeline.commands.halts import CommandArrival, arrive_command, decide_commands, refuse_command
from pipeline.gate.limits import Limits
from pipeline.isolation.quarantine import quarantine_id_of, told
from pipeline.model.invariants import Unpublished
from pipeline.model.quarantine import InputRecord, Named, Stage
from pipeline.model.refusal import Refusal
from pipeline.requests.authentication import TokenVerifier
from schemas.commands import COMMANDS_ACCOUNT, DoubtDecision, WithdrawalDecision
from schemas.reasons import ReasonCode
from schemas.wire import SourceOffset

log = structlog.get_logger(__name__)

ACTOR: Final = "control"
_UNPUBLISHED_SECONDS_MAX: Final = 2.0


class ControlStep:
    """The step of `trade.commands`. `verifier` None: this installation does not ask who commands (a sandbox)."""

    def __init__(
        self, context: StepContext, verifier: TokenVerifier | None, limits: Limits, unseal: Unsealed, batch_size_max: int
    ) -> None:
        self.batch_size_max = batch_size_max
        self._context = context
        self._verifier = verifier
        self._limits = limits
        self._unseal = unseal

    async def run(self, batch: Batch) -> tuple[OutputRecord, ...]:
        at(Stage.DECODE)
        arrivals = [self._arrival_of(record) for record in batch.records]
        # A newer word must not overtake an older one that is on its way to Kafka; no command waits for it longer than this, as a halt may
        # be among those behind it.
        wait_until = monotonic() + _UNPUBLISHED_SECONDS_MAX

        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            at(Stage.LOAD)
            changes = await self._decide(step, arrivals, wait_until)
            at(Stage.STORE)
            await step.store(changes, changes.now - self._context.rules.key_lifetime)
            return await step.finish(batch.next_offset, changes.outputs, changes.now)

        return await self._context.runner.run(batch, attempt)

    def named(self, record: ConsumerRecord) -> Named:
        arrival = self._arrival_of(record)
        if arrival.command is None or arrival.refusal is not None:
            return Named()
        return Named(arrival.command.operator, f"command {arrival.command.command_id}")

    async def set_aside(self, transaction: StepTransaction, batch: Batch, record: InputRecord, *, sparing: bool) -> Changes:
        """Refuses the command in its operator's chain; where that cannot be loaded, the event of its being set aside stands for it."""
        if sparing:
            return await self._context.isolation.bare_changes(transaction, ACTOR)
        arrival = self._arrival_of(batch.records[0])
        changes = await self._context.isolation.bare_changes(transaction, ACTOR, arrival.account)
        text = told(quarantine_id_of(record), "nothing was changed. Give the command again, or stop the workers to stop trading")
        refuse_command(arrival, Refusal(ReasonCode.INTERNAL_ERROR, text), changes)
        return changes

    def _arrival_of(self, record: ConsumerRecord) -> CommandArrival:
        # The topic's timestamp type is LogAppendTime: this is the broker's clock, in milliseconds.
        appended_at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=record.timestamp)
        source = SourceOffset(record.topic, record.partition, record.offset)
        return arrive_command(source, appended_at, record.value, record.headers, self._verifier)

    async def _decide(self, step: StepTransaction, arrivals: list[CommandArrival], wait_until: float) -> Changes:
        operators = sorted({arrival.command.operator for arrival in arrivals if arrival.command is not None and arrival.refusal is None})
        named = {arrival.command.withdrawal_id for arrival in arrivals if isinstance(arrival.command, WithdrawalDecision)}
        in_doubt = sorted({arrival.command.target_id for arrival in arrivals if isinstance(arrival.command, DoubtDecision)})
        withdrawal_ids = sorted({*named, *in_doubt})
        owned = await step.users_of(WITHDRAWALS, withdrawal_ids) | await step.users_of(ORDERS, in_doubt)
        owners = sorted(set(owned.values()))
        # The chain of commands is the halts' lock, whoever commands.
        locked = await step.lock_accounts([*operators, *owners, COMMANDS_ACCOUNT])
        prefix = self._context.topics.orders_prefix
        waiting = await step.unpublished(WITHDRAWALS, withdrawal_ids, prefix) | await step.unpublished(ORDERS, in_doubt, prefix)
        if waiting and monotonic() < wait_until:
            raise Unpublished(f"{len(waiting)} withdrawals or orders have an older word that is not published yet")
        now = self._context.clock()
        users = sorted({*operators, *owners})
        states = await accounts(step.connection, users, (), locked.conduct, self._limits, self._unseal, now)
        changes = Changes(
            topics=self._context.topics,
            now=now,
            actor=ACTOR,
            trail=AuditTrail(locked.heads, now),
            ledger=Ledger(await step.balances(owners) if owners else {}),
            withdrawals=await withdrawals(step.connection, withdrawal_ids),
            orders=await step.orders(in_doubt),
            cancels=await step.pending_cancels(in_doubt) if in_doubt else {},
            proposals=await proposals(step.connection, in_doubt) if in_doubt else {},
            conduct=locked.conduct,
            halts=await halts(step.connection),
            payees=await payees(step.connection, owners, self._limits, self._context.rules.address_wait, now),
            unpublished=waiting,
        )
        at(Stage.DECIDE)
        for refusal in decide_commands(arrivals, states, changes, self._context.rules):
            log.warning("command_refused", reason_code=refusal.code.value, what=refusal.reason)
        for scope, target in changes.halts_moved:
            found = changes.halts.get((scope, target))
            level = found.halt.level.value if found is not None else None
            log.warning("halts_changed", scope=scope.value, target=target, level=level)
        return changes
