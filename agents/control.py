"""The control agent: when commands of operators are applied. What a command does stands in pipeline/halts.

A decision about a withdrawal is applied here too (pipeline/withdrawals), under the lock of the withdrawal's user.

The halt is in force as soon as its transaction commits: intake reads the halts inside each batch's own transaction, and every worker's
`HaltWatch` reads them several times a second for what is about to be sent. Where a halt cancels what rests, `agents/halt_cancels` does so.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from aiokafka import ConsumerRecord

from agents.batch import Batch, StepContext
from agents.execution import require_published
from agents.settlement import require_withdrawals_published
from infra.postgres.doubts import proposals, users_of_orders
from infra.postgres.gate import Unsealed, accounts, halts
from infra.postgres.step import StepTransaction
from infra.postgres.withdrawals import users_of_withdrawals, withdrawals
from pipeline.audit import AuditTrail
from pipeline.authentication import TokenVerifier
from pipeline.changes import Changes, OutputRecord
from pipeline.gate.context import Limits
from pipeline.halts import CommandArrival, arrive_command, decide_commands
from pipeline.ledger import Ledger
from schemas.commands import COMMANDS_ACCOUNT, DoubtDecision, WithdrawalDecision
from schemas.wire import SourceOffset

log = structlog.get_logger(__name__)

ACTOR: Final = "control"


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
        arrivals = [self._arrival_of(record) for record in batch.records]

        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            changes = await self._decide(step, batch, arrivals)
            await step.store(changes, changes.now - self._context.rules.key_lifetime)
            return await step.finish(batch.next_offset, changes.outputs, changes.now)

        return await self._context.runner.run(batch, attempt)

    def _arrival_of(self, record: ConsumerRecord) -> CommandArrival:
        # The topic's timestamp type is LogAppendTime: this is the broker's clock, in milliseconds.
        appended_at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=record.timestamp)
        source = SourceOffset(record.topic, record.partition, record.offset)
        return arrive_command(source, appended_at, record.value, record.headers, self._verifier)

    async def _decide(self, step: StepTransaction, batch: Batch, arrivals: list[CommandArrival]) -> Changes:
        operators = sorted({arrival.command.operator for arrival in arrivals if arrival.command is not None and arrival.refusal is None})
        named = {arrival.command.withdrawal_id for arrival in arrivals if isinstance(arrival.command, WithdrawalDecision)}
        in_doubt = sorted({arrival.command.target_id for arrival in arrivals if isinstance(arrival.command, DoubtDecision)})
        withdrawal_ids = sorted({*named, *in_doubt})
        owned = {
            **(await users_of_withdrawals(step.connection, withdrawal_ids) if withdrawal_ids else {}),
            **(await users_of_orders(step.connection, in_doubt) if in_doubt else {}),
        }
        owners = sorted(set(owned.values()))
        # The chain of commands is the halts' lock, whoever commands.
        locked = await step.lock_accounts([*operators, *owners, COMMANDS_ACCOUNT])
        await require_withdrawals_published(step, batch, withdrawal_ids, self._context)
        await require_published(step, in_doubt, self._context)
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
            orders=await step.orders(in_doubt) if in_doubt else {},
            cancels=await step.pending_cancels(in_doubt) if in_doubt else {},
            proposals=await proposals(step.connection, in_doubt) if in_doubt else {},
            conduct=locked.conduct,
            halts=await halts(step.connection),
        )
        for refusal in decide_commands(arrivals, states, changes, self._context.rules):
            log.warning("command_refused", reason_code=refusal.code.value, what=refusal.reason)
        for scope, target in changes.halts_moved:
            found = changes.halts.get((scope, target))
            level = found.halt.level.value if found is not None else None
            log.warning("halts_changed", scope=scope.value, target=target, level=level)
        return changes
