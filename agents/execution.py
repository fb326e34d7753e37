"""The execution agent of one exchange: when orders are sent. What is sent, and what an outcome means, stands in pipeline/execution.

Three parts, each replay-safe:
1. a database transaction stores the intents (`submitting`, this worker's fencing epoch, the time that the signed request will carry),
2. the calls: concurrent across accounts, in order within an account, each started in the first half of its receive window,
3. a second database transaction stores the outcomes.
A worker that dies between 1 and 3 leaves `submitting` under its epoch; whoever gets the record again puts the order in doubt.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

import structlog

from agents.batch import Batch, StepContext
from agents.halt_watch import HaltWatch
from infra.exchange.gateway import Gateway, WithdrawalGateway
from infra.postgres.gate import halt_book
from infra.postgres.step import StepTransaction
from infra.postgres.withdrawals import withdrawals
from pipeline.audit import AuditTrail
from pipeline.changes import Changes, OutputRecord
from pipeline.crash_points import CrashPoint
from pipeline.execution import CancelOutcome, NotSent, Outcome, Plan, conclude, is_stopped, plan
from pipeline.invariants import InvariantViolation, Retryable, Unpublished
from pipeline.ledger import Ledger
from pipeline.payouts import Outcome as PayoutOutcome
from pipeline.payouts import conclude_withdrawals, plan_withdrawals
from pipeline.venue import OrderReference, Refused, Submission
from pipeline.withdrawal import WithdrawalSubmission
from schemas.orders import Mode
from schemas.reasons import ReasonCode
from schemas.routing import Action, RoutedOrder

log = structlog.get_logger(__name__)

_UNAVAILABLE_PAUSES: Final = (0.1, 0.3, 0.9)
# No venue says these of an order: it was stopped on this side, behind the queues, by the end of its receive window or by a halt.
_STOPPED_HERE: Final = frozenset({ReasonCode.REQUEST_EXPIRED, ReasonCode.TRADING_HALTED})
Sent = TypeVar("Sent")


@dataclass(slots=True)
class _Outcomes:
    submitted: dict[str, Outcome] = field(default_factory=dict)
    canceled: dict[str, CancelOutcome] = field(default_factory=dict)
    withdrawn: dict[str, PayoutOutcome] = field(default_factory=dict)


async def load_orders(
    step: StepTransaction,
    order_ids: list[str],
    user_ids: list[str],
    context: StepContext,
    actor: str,
    more_accounts: Sequence[str] = (),
    withdrawal_ids: Sequence[str] = (),
) -> Changes:
    """Locks the users' chains, and those of `more_accounts`, and loads what a step about their orders and withdrawals needs."""
    locked = await step.lock_accounts([*user_ids, *more_accounts])
    now = context.clock()
    return Changes(
        topics=context.topics,
        now=now,
        actor=actor,
        trail=AuditTrail(locked.heads, now),
        ledger=Ledger(await step.balances(user_ids)),
        orders=await step.orders(order_ids),
        withdrawals=await withdrawals(step.connection, withdrawal_ids),
        cancels=await step.pending_cancels(order_ids),
        conduct=locked.conduct,
    )


async def require_published(step: StepTransaction, order_ids: list[str], context: StepContext) -> None:
    """Raises Unpublished while an older word about one of these orders is on its way to Kafka: a newer one must not overtake it."""
    waiting = await step.unpublished(order_ids, context.topics.orders_prefix) if order_ids else set()
    if waiting:
        raise Unpublished(f"{len(waiting)} orders have an older word that is not published yet")


class ExecutionStep:
    """The step of `trade.orders.<exchange>`. `gateways`: where orders of each mode go; a simulated one goes to no exchange."""

    def __init__(
        self,
        context: StepContext,
        exchange: str,
        gateways: Mapping[Mode, Gateway],
        payouts: WithdrawalGateway,
        halt_watch: HaltWatch,
        batch_size_max: int,
    ) -> None:
        self.batch_size_max = batch_size_max
        self._actor = f"execution.{exchange}"
        self._gateways = gateways
        self._payouts = payouts
        self._halt_watch = halt_watch
        self._context = context

    async def run(self, batch: Batch) -> tuple[OutputRecord, ...]:
        work = [RoutedOrder.model_validate_json(require_value(record.value, record.topic)) for record in batch.records]
        order_ids = sorted({routed.order_id for routed in work if routed.action is not Action.WITHDRAW})
        withdrawal_ids = sorted({routed.order_id for routed in work if routed.action is Action.WITHDRAW})
        user_ids = sorted({routed.user_id for routed in work})

        async def load(step: StepTransaction) -> Changes:
            return await load_orders(step, order_ids, user_ids, self._context, self._actor, withdrawal_ids=withdrawal_ids)

        decided = await self._context.runner.run(batch, lambda step: self._intend(step, batch, work, load))
        if not isinstance(decided, Plan):
            return decided
        self._context.reached(CrashPoint.AFTER_SUBMITTING_COMMIT, batch.partition.topic)
        outcomes = await self._call(decided)
        self._context.reached(CrashPoint.AFTER_EXCHANGE_CALL, batch.partition.topic)

        async def attempt(step: StepTransaction) -> tuple[OutputRecord, ...]:
            changes = await load(step)
            # Only this partition has changed the orders that it was sending; a resting one may have been filled meanwhile.
            await require_published(step, sorted(outcomes.canceled), self._context)
            conclude(outcomes.submitted, outcomes.canceled, changes, self._context.rules)
            conclude_withdrawals(outcomes.withdrawn, changes)
            await step.store(changes, changes.now - self._context.rules.key_lifetime)
            return await step.finish(batch.next_offset, changes.outputs, changes.now)

        outputs = await self._context.runner.run(batch, attempt)
        self._context.reached(CrashPoint.AFTER_OUTCOME_COMMIT, batch.partition.topic)
        return outputs

    async def _intend(
        self, step: StepTransaction, batch: Batch, work: list[RoutedOrder], load: Callable[[StepTransaction], Awaitable[Changes]]
    ) -> Plan | tuple[OutputRecord, ...]:
        changes = await load(step)
        owner = batch.partition.fencing_epoch, batch.partition.partition
        halts = await halt_book(step.connection)
        orders = [routed for routed in work if routed.action is not Action.WITHDRAW]
        decided = plan(orders, changes, *owner, halts, self._context.rules.usd_assets)
        payouts = [routed for routed in work if routed.action is Action.WITHDRAW]
        decided.withdrawals = plan_withdrawals(payouts, changes, *owner, halts)
        await step.store(changes, changes.now - self._context.rules.key_lifetime)
        if decided.submissions or decided.cancels or decided.withdrawals:
            await step.carry(changes.outputs, changes.now)
            self._context.reached(CrashPoint.BEFORE_SUBMITTING_COMMIT, batch.partition.topic)
            return decided
        # Nothing to call: the batch ends here.
        return await step.finish(batch.next_offset, changes.outputs, changes.now)

    async def _call(self, decided: Plan) -> _Outcomes:
        """Makes the calls of a plan: accounts side by side, each account's calls one after another, simulated ones beside the real."""
        outcomes = _Outcomes()
        accounts: dict[tuple[Mode, str, str], list[Callable[[], Awaitable[None]]]] = {}
        for submission in decided.submissions:
            account = submission.mode, submission.user_id, submission.api_key_id
            accounts.setdefault(account, []).append(self._submission_call(submission, outcomes))
        for reference in decided.cancels:
            account = reference.mode, reference.user_id, reference.api_key_id
            accounts.setdefault(account, []).append(self._cancel_call(reference, outcomes))
        for payout in decided.withdrawals:
            account = Mode.LIVE, payout.user_id, payout.api_key_id
            accounts.setdefault(account, []).append(self._withdrawal_call(payout, outcomes))
        async with asyncio.TaskGroup() as group:
            for calls in accounts.values():
                group.create_task(_one_after_another(calls))
        return outcomes

    def _submission_call(self, submission: Submission, outcomes: _Outcomes) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            outcomes.submitted[submission.order_id] = await self._submit(submission)

        return call

    def _cancel_call(self, reference: OrderReference, outcomes: _Outcomes) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            try:
                outcomes.canceled[reference.order_id] = await self._gateways[reference.mode].cancel(reference)
            except Retryable as error:
                # The stored key could not be read, so nothing was sent; the cancel stays pending and is repeated.
                outcomes.canceled[reference.order_id] = NotSent(str(error))

        return call

    def _withdrawal_call(self, submission: WithdrawalSubmission, outcomes: _Outcomes) -> Callable[[], Awaitable[None]]:
        last_look = partial(self._paying_halted, submission)

        async def call() -> None:
            outcomes.withdrawn[submission.withdrawal_id] = await self._send(
                submission.submitting_at, lambda: self._payouts.withdraw(submission, last_look)
            )

        return call

    async def _submit(self, submission: Submission) -> Outcome:
        gateway, last_look = self._gateways[submission.mode], partial(self._halted, submission)
        return await self._send(submission.submitting_at, lambda: gateway.submit(submission, last_look))

    async def _send(self, submitting_at: datetime, send: Callable[[], Awaitable[Sent]]) -> Sent | Refused | NotSent:
        """Sends once, again only after a proof that it was not accepted, and only in the first half of its receive window."""
        latest = submitting_at + self._context.rules.receive_window / 2
        refused: Refused | None = None
        for pause in (0.0, *_UNAVAILABLE_PAUSES):
            await asyncio.sleep(pause)
            if self._context.clock() > latest:
                break
            try:
                outcome = await send()
            except Retryable as error:
                return NotSent(f"the stored API key or the halts in force could not be read: {error}")
            if isinstance(outcome, Refused) and outcome.reason_code in _STOPPED_HERE:
                # Its own deadline may be later, and the halt may be over: both are looked at when its turn comes again.
                return NotSent(outcome.detail)
            if not isinstance(outcome, Refused) or outcome.reason_code is not ReasonCode.EXCHANGE_UNAVAILABLE:
                return outcome
            refused = outcome
        if refused is None:
            return NotSent("its turn came too late in the receive window; it was not sent")
        # Proven not accepted: queued again until its deadline, so that a short outage costs time and not orders.
        return NotSent(f"the exchange is not available: {refused.detail}")

    async def _paying_halted(self, submission: WithdrawalSubmission) -> Refused | None:
        """The same for what is paid out: a halt of either level stops it."""
        if await self._halt_watch.level_for(submission.exchange, "", submission.user_id) is None:
            return None
        return Refused(ReasonCode.TRADING_HALTED, "a halt came before its turn came")

    async def _halted(self, submission: Submission) -> Refused | None:
        """The last look before the first byte leaves: a halt that came while the order waited for its turn stops it."""
        level = await self._halt_watch.level_for(submission.exchange, submission.symbol, submission.user_id)
        if level is None or not is_stopped(submission, level, self._context.rules.usd_assets):
            return None
        return Refused(ReasonCode.TRADING_HALTED, "trading was halted before its turn came")


async def _one_after_another(calls: list[Callable[[], Awaitable[None]]]) -> None:
    for call in calls:
        await call()


def require_value(value: bytes | None, topic: str) -> bytes:
    """A record of a topic that only our own agents write. Raises InvariantViolation for a tombstone."""
    if value is None:
        raise InvariantViolation(f"a record on {topic} has no value; only this system writes there. Nothing was sent.")
    return value
