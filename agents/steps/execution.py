"""The execution agent of one exchange: when orders are sent. What is sent, and what an outcome means, stands in pipeline/orders/execution.

Three parts, each replay-safe:
1. a database transaction stores the intents (`submitting`, this worker's fencing epoch, the time that the signed request will carry),
2. the calls: concurrent across accounts, in order within an account, each started in the first half of its receive window,
3. a second database transaction stores the outcomes (agents/steps/conclusion).
A worker that dies between 1 and 3 leaves `submitting` under its epoch; whoever gets the record again puts the order in doubt.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Final, TypeVar

from aiokafka import ConsumerRecord
from pydantic import ValidationError

from agents.steps.batch import StepContext
from agents.steps.conclusion import Conclusion, Outcomes, Work, load_work, named_work, require_value, set_aside_work
from agents.steps.halt_watch import HaltWatch
from agents.steps.isolation import at, record_failure
from agents.steps.step import Batch
from infra.exchange.gateway import Gateway, WithdrawalGateway
from infra.postgres.gate import halt_book
from infra.postgres.keys import key_versions
from infra.postgres.step import StepTransaction
from infra.postgres.withdrawals import payees
from pipeline.books.changes import Changes, OutputRecord
from pipeline.gate.limits import Limits
from pipeline.isolation.quarantine import quarantine_id_of
from pipeline.model.call_record import BatchOfCalls, CallRecord
from pipeline.model.crash_points import CrashPoint
from pipeline.model.intents import NotSent
from pipeline.model.invariants import InvariantViolation, Retryable
from pipeline.model.quarantine import QUARANTINE_ACCOUNT, InputRecord, Named, Stage
from pipeline.model.venue import InDoubt, OrderReference, Refused, Submission
from pipeline.model.withdrawal import WithdrawalSubmission
from pipeline.orders.execution import Outcome, Plan, is_stopped, plan
from pipeline.withdrawals.settlement import plan_withdrawals
from schemas.orders import Mode
from schemas.reasons import ReasonCode
from schemas.routing import Action, RoutedOrder

_UNAVAILABLE_PAUSES: Final = (0.1, 0.3, 0.9)
_AWAY_SECONDS: Final = 5.0
# No venue says these of an order: it was stopped on this side, behind the queues, by the end of its receive window or by a halt.
_STOPPED_HERE: Final = frozenset({ReasonCode.REQUEST_EXPIRED, ReasonCode.TRADING_HALTED})
Sent = TypeVar("Sent")


class ExecutionStep:
    """The step of `trade.orders.<exchange>`. `gateways`: where orders of each mode go; a simulated one goes to no exchange."""

    def __init__(
        self,
        context: StepContext,
        exchange: str,
        gateways: Mapping[Mode, Gateway],
        payouts: WithdrawalGateway,
        halt_watch: HaltWatch,
        calls: CallRecord,
        limits: Limits,
        batch_size_max: int,
    ) -> None:
        self.batch_size_max = batch_size_max
        self._actor = f"execution.{exchange}"
        self._gateways = gateways
        self._payouts = payouts
        self._halt_watch = halt_watch
        self._calls = calls
        self._limits = limits
        self._context = context
        self._conclusion = Conclusion(context, self._actor)
        # Until when the exchange counts as one that takes nothing, by the monotonic clock.
        self._away_until = float("-inf")

    async def run(self, batch: Batch) -> tuple[OutputRecord, ...]:
        at(Stage.DECODE)
        work = [_work_in(record) for record in batch.records]
        # What earlier tries of this run have stored, whose commit may have been answered late: of these alone it is known that nothing was
        # sent. A batch that is run again in halves begins without any.
        own_intents: set[tuple[str, int]] = set()
        decided = await self._context.runner.run(batch, lambda step: self._intend(step, batch, work, own_intents))
        if not isinstance(decided, Plan):
            return decided
        self._context.reached(CrashPoint.AFTER_SUBMITTING_COMMIT, batch.partition.topic)
        at(Stage.CALL)
        outcomes = await self._call(decided)
        # Here and not from the database: what a worker that died has left in doubt says nothing about the exchange.
        self._calls.note(batch_of_calls(decided, outcomes, self._context.clock()))
        self._context.reached(CrashPoint.AFTER_EXCHANGE_CALL, batch.partition.topic)
        at(Stage.CONCLUDE)
        outputs = await self._conclusion.store(batch, work, outcomes)
        self._context.reached(CrashPoint.AFTER_OUTCOME_COMMIT, batch.partition.topic)
        return outputs

    def named(self, record: ConsumerRecord) -> Named:
        return named_work(_work_in(record))

    async def set_aside(self, transaction: StepTransaction, batch: Batch, record: InputRecord, *, sparing: bool) -> Changes:
        """Ends or puts in doubt the order or withdrawal that the record names, where both can be read."""
        try:
            routed = _work_in(batch.records[0])
        except (ValidationError, InvariantViolation):
            # No piece of work of ours: it names nothing that waits.
            return await self._context.isolation.bare_changes(transaction, self._actor)
        if sparing:
            return await self._context.isolation.bare_changes(transaction, self._actor)
        changes = await load_work(transaction, [routed], self._context, self._actor, [QUARANTINE_ACCOUNT])
        set_aside_work(routed, quarantine_id_of(record), changes)
        return changes

    async def _intend(
        self, step: StepTransaction, batch: Batch, work: list[RoutedOrder], own_intents: set[tuple[str, int]]
    ) -> Plan | tuple[OutputRecord, ...]:
        at(Stage.LOAD)
        changes = await load_work(step, work, self._context, self._actor)
        owner = batch.partition.fencing_epoch, batch.partition.partition
        halts = await halt_book(step.connection)
        named = {(order.user_id, order.api_key_id) for order in changes.orders.values()}
        named |= {(payout.user_id, payout.api_key_id) for payout in changes.withdrawals.values()}
        changes.keys = await key_versions(step.connection, named)
        at(Stage.DECIDE)
        orders = [routed for routed in work if routed.action is not Action.WITHDRAW]
        decided = plan(orders, changes, *owner, halts, self._context.rules.usd_assets, own_intents)
        payouts = [routed for routed in work if routed.action is Action.WITHDRAW]
        users = sorted({routed.user_id for routed in payouts})
        changes.payees = await payees(step.connection, users, self._limits, self._context.rules.address_wait, changes.now)
        decided.withdrawals = plan_withdrawals(payouts, changes, *owner, halts, own_intents)
        own_intents.update((one.order_id, changes.orders[one.order_id].attempt) for one in decided.submissions)
        own_intents.update((one.withdrawal_id, changes.withdrawals[one.withdrawal_id].attempt) for one in decided.withdrawals)
        at(Stage.STORE)
        await step.store(changes, changes.now - self._context.rules.key_lifetime)
        if decided.submissions or decided.cancels or decided.withdrawals:
            await step.carry(changes.outputs, changes.now)
            self._context.reached(CrashPoint.BEFORE_SUBMITTING_COMMIT, batch.partition.topic)
            return decided
        # Nothing to call: the batch ends here.
        return await step.finish(batch.next_offset, changes.outputs, changes.now)

    async def _call(self, decided: Plan) -> Outcomes:
        """Makes the calls of a plan: accounts side by side, each account's calls one after another, simulated ones beside the real."""
        outcomes = Outcomes()
        accounts: dict[tuple[Mode, str, str], list[Callable[[], Awaitable[None]]]] = {}
        for submission in decided.submissions:
            account = submission.mode, submission.user_id, submission.api_key_id
            call = self._submission_call(submission, outcomes)
            accounts.setdefault(account, []).append(_kept(call, (Action.SUBMIT, submission.order_id), outcomes))
        for reference in decided.cancels:
            account = reference.mode, reference.user_id, reference.api_key_id
            call = self._cancel_call(reference, outcomes)
            accounts.setdefault(account, []).append(_kept(call, (Action.CANCEL, reference.order_id), outcomes))
        for payout in decided.withdrawals:
            account = Mode.LIVE, payout.user_id, payout.api_key_id
            call = self._withdrawal_call(payout, outcomes)
            accounts.setdefault(account, []).append(_kept(call, (Action.WITHDRAW, payout.withdrawal_id), outcomes))
        async with asyncio.TaskGroup() as group:
            for calls in accounts.values():
                group.create_task(_one_after_another(calls))
        return outcomes

    def _submission_call(self, submission: Submission, outcomes: Outcomes) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            outcomes.submitted[submission.order_id] = await self._submit(submission)

        return call

    def _cancel_call(self, reference: OrderReference, outcomes: Outcomes) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            try:
                outcomes.canceled[reference.order_id] = await self._gateways[reference.mode].cancel(reference)
            except Retryable as error:
                # The stored key could not be read, so nothing was sent; the cancel stays pending and is repeated.
                outcomes.canceled[reference.order_id] = NotSent(str(error))

        return call

    def _withdrawal_call(self, submission: WithdrawalSubmission, outcomes: Outcomes) -> Callable[[], Awaitable[None]]:
        pre_send_check = partial(self._paying_halted, submission)

        async def call() -> None:
            outcomes.withdrawn[submission.withdrawal_id] = await self._send(
                submission.submitting_at, lambda: self._payouts.withdraw(submission, pre_send_check)
            )

        return call

    async def _submit(self, submission: Submission) -> Outcome:
        gateway, pre_send_check = self._gateways[submission.mode], partial(self._halted, submission)
        return await self._send(submission.submitting_at, lambda: gateway.submit(submission, pre_send_check))

    async def _send(self, submitting_at: datetime, send: Callable[[], Awaitable[Sent]]) -> Sent | Refused | NotSent:
        """Sends once, again only after a proof that it was not accepted, and only in the first half of its receive window."""
        latest = submitting_at + self._context.rules.receive_window / 2
        refused: Refused | None = None
        # Where the exchange was just found to be away, each piece of work tries once: together they would fill the window with pauses.
        is_away = monotonic() < self._away_until
        for pause in (0.0,) if is_away else (0.0, *_UNAVAILABLE_PAUSES):
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
                self._away_until = float("-inf")
                return outcome
            refused = outcome
        if refused is None:
            return NotSent("its turn came too late in the receive window; it was not sent")
        self._away_until = monotonic() + _AWAY_SECONDS
        # Proven not accepted: tried again until its deadline, so that a short outage costs time and not orders.
        return NotSent(f"the exchange is not available: {refused.detail}")

    async def _paying_halted(self, submission: WithdrawalSubmission) -> Refused | None:
        """The same for what is paid out: a halt of either level stops it."""
        if await self._halt_watch.level_for(submission.exchange, "", submission.user_id) is None:
            return None
        return Refused(ReasonCode.TRADING_HALTED, "a halt came before its turn came")

    async def _halted(self, submission: Submission) -> Refused | None:
        """The check before the first byte leaves: a halt that came while the order waited for its turn stops it."""
        level = await self._halt_watch.level_for(submission.exchange, submission.symbol, submission.user_id)
        if level is None or not is_stopped(submission, level, self._context.rules.usd_assets):
            return None
        return Refused(ReasonCode.TRADING_HALTED, "trading was halted before its turn came")


def batch_of_calls(decided: Plan, outcomes: Outcomes, now: datetime) -> BatchOfCalls:
    """How the exchange has answered the orders and withdrawals of one batch. Simulated orders go to no exchange; what was not sent, and
    what is asked again by itself (cancels), says nothing."""
    live = {submission.order_id for submission in decided.submissions if submission.mode is Mode.LIVE}
    answers = [outcome for order_id, outcome in outcomes.submitted.items() if order_id in live]
    sent = [outcome for outcome in (*answers, *outcomes.withdrawn.values()) if not isinstance(outcome, NotSent)]
    return BatchOfCalls(now, len(sent), sum(isinstance(outcome, InDoubt) for outcome in sent))


async def _one_after_another(calls: list[Callable[[], Awaitable[None]]]) -> None:
    for call in calls:
        await call()


def _work_in(record: ConsumerRecord) -> RoutedOrder:
    """Raises ValidationError and InvariantViolation for what is no piece of work of ours."""
    return RoutedOrder.model_validate_json(require_value(record.value, record.topic))


def _kept(call: Callable[[], Awaitable[None]], work: Work, outcomes: Outcomes) -> Callable[[], Awaitable[None]]:
    """The call, whose unexpected error is kept as what became of it: it must not end the calls beside it, whose outcomes count."""

    async def kept() -> None:
        try:
            await call()
        # Whatever it is, it may have come after the hand-over.
        except Exception as error:  # noqa: BLE001 — `record_failure` raises what is no record's failure
            outcomes.failed[work] = record_failure(error)

    return kept
