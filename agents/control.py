"""The control agent: when commands of operators are applied. What a command does stands in pipeline/halts.

The halt is in force as soon as its transaction commits: intake reads the halts inside each batch's own transaction, and every worker's
`HaltWatch` reads them several times a second for what is about to be sent.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from aiokafka import ConsumerRecord

from agents.batch import Batch, StepContext
from infra.postgres.gate import Unsealed, accounts, halts, resting_orders
from infra.postgres.step import StepTransaction
from pipeline.audit import AuditTrail
from pipeline.authentication import TokenVerifier
from pipeline.changes import Changes, OutputRecord
from pipeline.gate.context import Limits
from pipeline.halts import CommandArrival, arrive_command, cancel_of_halt, decide_commands
from pipeline.ledger import Ledger
from schemas.commands import COMMANDS_ACCOUNT, Command
from schemas.wire import SourceOffset

log = structlog.get_logger(__name__)

ACTOR: Final = "control"
# One Kafka transaction carries them; a command that is repeated takes the next ones.
_CANCELS_MAX: Final = 5_000


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
            changes = await self._decide(step, arrivals)
            await step.store(changes, changes.now - self._context.rules.key_lifetime)
            return await step.finish(batch.next_offset, changes.outputs, changes.now)

        return await self._context.runner.run(batch, attempt)

    def _arrival_of(self, record: ConsumerRecord) -> CommandArrival:
        # The topic's timestamp type is LogAppendTime: this is the broker's clock, in milliseconds.
        appended_at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=record.timestamp)
        source = SourceOffset(record.topic, record.partition, record.offset)
        return arrive_command(source, appended_at, record.value, record.headers, self._verifier)

    async def _decide(self, step: StepTransaction, arrivals: list[CommandArrival]) -> Changes:
        operators = sorted({arrival.command.operator for arrival in arrivals if arrival.command is not None and arrival.refusal is None})
        # The chain of commands is the halts' lock, whoever commands.
        locked = await step.lock_accounts([*operators, COMMANDS_ACCOUNT])
        now = self._context.clock()
        states = await accounts(step.connection, operators, (), locked.conduct, self._limits, self._unseal, now)
        changes = Changes(
            topics=self._context.topics,
            now=now,
            actor=ACTOR,
            trail=AuditTrail(locked.heads, now),
            ledger=Ledger({}),
            conduct=locked.conduct,
            halts=await halts(step.connection),
        )
        for command in decide_commands(arrivals, states, changes):
            await self._cancel_open(step, command, changes)
        for arrival in arrivals:
            if arrival.refusal is not None:
                log.warning("command_refused", source=str(arrival.source), reason_code=arrival.refusal.code.value)
        return changes

    async def _cancel_open(self, step: StepTransaction, command: Command, changes: Changes) -> None:
        found = await resting_orders(step.connection, command.scope, command.target, _CANCELS_MAX)
        for order in found:
            changes.route(cancel_of_halt(order.order_id, order.user_id, order.attempt), order.exchange, None)
        log.warning("halt_cancels", scope=command.scope.value, target=command.target, orders=len(found), more=len(found) == _CANCELS_MAX)
