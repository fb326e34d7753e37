"""The end of an execution batch: the outcomes of its calls are stored, whatever becomes of one of them.

Once a call was made, nothing is planned or sent again in this batch: the outcomes are in memory, and here alone they can be kept. Where
they cannot be stored all together they are stored in halves, each in a database transaction that keeps what it publishes (`carry`), until
the one is left that cannot: its order is put in doubt, and its record set aside. Then the batch ends, and publishes all of it at once.

Invariants:
1. Every outcome is applied once: one whose order has left `submitting` was stored by an earlier try, whose commit was answered late.
2. A worker that dies in between leaves the rest `submitting`, which the next owner puts in doubt; what was carried is published then.

Start with `Conclusion.store`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from agents.steps.batch import StepContext
from agents.steps.isolation import input_record_of, record_failure
from agents.steps.step import Batch
from infra.postgres.rows import ORDERS
from infra.postgres.step import StepTransaction
from infra.postgres.withdrawals import withdrawals
from pipeline.books.audit import AuditTrail
from pipeline.books.changes import Changes, OutputRecord
from pipeline.books.ledger import Ledger
from pipeline.isolation.quarantine import quarantine_id_of, set_aside_order, set_aside_withdrawal
from pipeline.model.invariants import InvariantViolation, MustStop
from pipeline.model.quarantine import QUARANTINE_ACCOUNT, Failure, Named
from pipeline.orders.execution import CancelOutcome, Outcome, conclude
from pipeline.withdrawals.settlement import Outcome as PayoutOutcome
from pipeline.withdrawals.settlement import conclude_withdrawals
from schemas.orders import OrderStatus, WithdrawalStatus
from schemas.routing import Action, RoutedOrder

# A call: what was asked for, and the order or withdrawal.
Work = tuple[Action, str]


@dataclass(slots=True)
class Outcomes:
    """What became of the calls of a batch. `failed`: those that ended in an error of this system's own; they may have been made."""

    submitted: dict[str, Outcome] = field(default_factory=dict)
    canceled: dict[str, CancelOutcome] = field(default_factory=dict)
    withdrawn: dict[str, PayoutOutcome] = field(default_factory=dict)
    failed: dict[Work, Failure] = field(default_factory=dict)

    def works(self) -> list[Work]:
        """All calls whose outcome is known, in the order in which they are applied."""
        return [
            *((Action.SUBMIT, order_id) for order_id in self.submitted),
            *((Action.CANCEL, order_id) for order_id in self.canceled),
            *((Action.WITHDRAW, withdrawal_id) for withdrawal_id in self.withdrawn),
        ]


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


async def load_work(
    step: StepTransaction, work: Sequence[RoutedOrder], context: StepContext, actor: str, more_accounts: Sequence[str] = ()
) -> Changes:
    """As `load_orders`, for pieces of work."""
    order_ids = sorted({routed.order_id for routed in work if routed.action is not Action.WITHDRAW})
    withdrawal_ids = sorted({routed.order_id for routed in work if routed.action is Action.WITHDRAW})
    user_ids = sorted({routed.user_id for routed in work})
    return await load_orders(step, order_ids, user_ids, context, actor, more_accounts, withdrawal_ids)


def require_value(value: bytes | None, topic: str) -> bytes:
    """A record of a topic that only our own agents write. Raises InvariantViolation for a tombstone."""
    if value is None:
        raise InvariantViolation(f"a record on {topic} has no value; only this system writes there. Nothing was sent.")
    return value


def named_work(routed: RoutedOrder) -> Named:
    """What a piece of work is about. A cancel is asked for again by every look that finds its order resting."""
    kind = "withdrawal" if routed.action is Action.WITHDRAW else "order"
    if routed.action is Action.CANCEL:
        return Named(routed.user_id, f"cancel of order {routed.order_id}", is_made_again=True)
    return Named(routed.user_id, f"{kind} {routed.order_id} attempt {routed.attempt}")


def set_aside_work(routed: RoutedOrder, quarantine_id: str, changes: Changes) -> None:
    """Says of the order or withdrawal that a piece of work names what is proven."""
    if routed.action is Action.WITHDRAW:
        set_aside_withdrawal(routed, quarantine_id, changes)
    else:
        set_aside_order(routed, quarantine_id, changes)


class Conclusion:
    """See the module. `actor` is who says so in the audit trail."""

    def __init__(self, context: StepContext, actor: str) -> None:
        self._context = context
        self._actor = actor

    async def store(self, batch: Batch, work: Sequence[RoutedOrder], outcomes: Outcomes) -> tuple[OutputRecord, ...]:
        """Stores the outcomes and ends the batch; returns what it publishes. Raises nothing that would have a batch run again in halves."""
        works = outcomes.works()
        if not outcomes.failed:
            try:
                return await self._context.runner.run(batch, lambda step: self._all(step, batch, work, outcomes))
            # Nothing of it is stored.
            except Exception as error:  # noqa: BLE001 — `record_failure` raises what is no record's failure
                record_failure(error)
        parts = [works] if works else []
        failed = dict(outcomes.failed)
        while parts:
            part = parts.pop()
            try:
                await self._context.runner.run(batch, partial(self._part, work=work, outcomes=outcomes, part=part))
            except Exception as error:  # noqa: BLE001 — `record_failure` raises what is no record's failure
                found = record_failure(error)
                if len(part) == 1:
                    failed[part[0]] = found
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
        for one, failure in failed.items():
            await self._set_aside(batch, work, one, failure)
        return await self._context.runner.run(batch, lambda step: step.finish(batch.next_offset, (), self._context.clock()))

    async def _all(
        self, step: StepTransaction, batch: Batch, work: Sequence[RoutedOrder], outcomes: Outcomes
    ) -> tuple[OutputRecord, ...]:
        changes = await load_work(step, work, self._context, self._actor)
        await self._apply(step, changes, outcomes, outcomes.works())
        await step.store(changes, changes.now - self._context.rules.key_lifetime)
        return await step.finish(batch.next_offset, changes.outputs, changes.now)

    async def _part(
        self, step: StepTransaction, work: Sequence[RoutedOrder], outcomes: Outcomes, part: Sequence[Work]
    ) -> tuple[OutputRecord, ...]:
        changes = await load_work(step, _work_about(work, part), self._context, self._actor)
        # What an earlier try has stored, whose commit was answered late, is not applied again.
        await self._apply(step, changes, outcomes, [one for one in part if not _has_left(one, changes)])
        await step.store(changes, changes.now - self._context.rules.key_lifetime)
        await step.carry(changes.outputs, changes.now)
        return ()

    async def _apply(self, step: StepTransaction, changes: Changes, outcomes: Outcomes, part: Sequence[Work]) -> None:
        canceled = [order_id for action, order_id in part if action is Action.CANCEL]
        # Only this partition has changed the orders that it was sending; a resting one may have been filled meanwhile, and a newer word
        # must not overtake an older one that is not published yet. The next look-up shows how the order stands.
        waiting = await step.unpublished(ORDERS, canceled, self._context.topics.orders_prefix)
        conclude(
            {order_id: outcomes.submitted[order_id] for action, order_id in part if action is Action.SUBMIT},
            {order_id: outcomes.canceled[order_id] for order_id in canceled if order_id not in waiting},
            changes,
            self._context.rules,
        )
        conclude_withdrawals({one: outcomes.withdrawn[one] for action, one in part if action is Action.WITHDRAW}, changes)

    async def _set_aside(self, batch: Batch, work: Sequence[RoutedOrder], one: Work, failure: Failure) -> None:
        """Puts the order in doubt and sets its record aside; sparing its user's rows where they cannot be loaded."""
        index = next(index for index, routed in enumerate(work) if (routed.action, routed.order_id) == one)
        routed, record = work[index], input_record_of(batch.records[index])
        named = named_work(routed)
        isolation = self._context.isolation
        for sparing in (False, True):

            async def attempt(step: StepTransaction, *, sparing: bool = sparing) -> tuple[OutputRecord, ...]:
                if await isolation.is_repeat(step, record, failure, named):
                    return ()
                if sparing:
                    changes = await isolation.bare_changes(step, self._actor)
                else:
                    changes = await load_work(step, [routed], self._context, self._actor, [QUARANTINE_ACCOUNT])
                    set_aside_work(routed, quarantine_id_of(record), changes)
                await isolation.note(step, record, failure, named, changes, sparing=sparing)
                await step.store(changes, changes.now - self._context.rules.key_lifetime)
                await step.carry(changes.outputs, changes.now)
                return ()

            try:
                await self._context.runner.run(batch, attempt)
            except Exception as error:
                found = record_failure(error)
                if sparing:
                    raise MustStop(
                        f"the outcome of {one[0].value} {one[1]} could neither be stored ({failure}) nor be set aside "
                        f"({found}). The partition's next owner puts it in doubt: its funds stay held, and it is looked up."
                    ) from error
            else:
                isolation.tell(record, failure, named, new=True)
                return


def _work_about(work: Sequence[RoutedOrder], part: Sequence[Work]) -> list[RoutedOrder]:
    wanted = set(part)
    return [routed for routed in work if (routed.action, routed.order_id) in wanted]


def _has_left(one: Work, changes: Changes) -> bool:
    action, entity_id = one
    if action is Action.SUBMIT:
        return changes.orders[entity_id].status is not OrderStatus.SUBMITTING
    if action is Action.WITHDRAW:
        return changes.withdrawals[entity_id].status is not WithdrawalStatus.SUBMITTING
    return False
