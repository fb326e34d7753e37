"""A worker for tests: the product's own, with a crash or a pause at a named point, or with one mechanism broken on purpose.

These switches live here and nowhere in the product:
- `TEST_AT=point@topic_suffix:count` with `TEST_THEN=kill|stop|pause:seconds`: what happens when a point is reached for the count-th time,
- `TEST_BROKEN=name`: see BROKEN.
The first time it happens the file `TEST_ONCE` is made; while it exists nothing happens any more, so that a restarted worker runs on.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import agents.process.worker
import agents.steps.execution
from agents.process.worker import run_worker
from agents.steps.intake import IntakeStep
from agents.steps.step import Batch, StepRunner
from agents.watches import deposits as deposit_watch
from infra.kafka import transactions
from infra.postgres import step
from infra.settings import Settings
from pipeline.books.changes import Changes, OutputRecord
from pipeline.model.crash_points import CrashPoint, pass_by
from pipeline.model.invariants import Retryable
from pipeline.model.order import Order
from pipeline.model.withdrawal import Withdrawal, WithdrawalSubmission
from pipeline.orders import execution
from pipeline.withdrawals import settlement as payouts
from schemas.requests import TradeRequest, decode_request
from schemas.routing import RoutedOrder


def _once() -> bool:
    """True for the first caller among all workers of a test."""
    try:
        os.close(os.open(os.environ["TEST_ONCE"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _pause(seconds: float) -> None:
    """Stops this process like a full garbage collection or a frozen machine would; a helper process wakes it up again."""
    wake_up = f"import os,signal,time; time.sleep({seconds}); os.kill({os.getpid()}, signal.SIGCONT)"
    subprocess.Popen([sys.executable, "-c", wake_up], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)


_PAUSES_SKIPPED = 3
_pauses = [0]


def _pause_once() -> None:
    """Pauses the first worker that comes here for the fourth time, for as long as TEST_PAUSE says (seconds)."""
    _pauses[0] += 1
    if _pauses[0] > _PAUSES_SKIPPED and _once():
        _pause(float(os.environ["TEST_PAUSE"]))


def _reached() -> Callable[[CrashPoint, str], None]:
    at, then = os.environ.get("TEST_AT"), os.environ.get("TEST_THEN", "kill")
    if at is None:
        return pass_by
    point, _, rest = at.partition("@")
    suffix, _, count = rest.partition(":")
    remaining = [int(count or 1)]

    def reached(name: CrashPoint, topic: str) -> None:
        if name != point or not topic.endswith(suffix):
            return
        remaining[0] -= 1
        if remaining[0] == 0 and _once():
            if then == "kill":
                _kill()
            elif then == "stop":
                # The test wakes it up, when others have done its work.
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                _pause(float(then.partition(":")[2]))

    return reached


def _end_late() -> None:
    """A zombie does all the harm that the broken mechanism allows before another mechanism ends it."""
    compose = agents.process.worker.compose

    def compose_late(*arguments: object) -> object:
        *others, fail = arguments

        def fail_late(error: BaseException) -> None:
            asyncio.get_running_loop().call_later(5, fail, error)

        return compose(*others, fail_late)

    agents.process.worker.compose = compose_late


def _answers(outputs: Sequence[OutputRecord]) -> bool:
    """Whether a final answer is among them."""
    return any(record.topic.endswith("trade.results") and b'"final":true' in (record.value or b"") for record in outputs)


def _transactional_id_per_worker() -> None:
    """Each worker uses ids of its own: a worker that is paused with a final answer in hand is not fenced when its partition moves."""
    publish = transactions.PartitionProducer.publish

    async def pause_and_publish(self: transactions.PartitionProducer, outputs: Sequence[OutputRecord], next_offset: int) -> None:
        if _answers(outputs):
            _pause_once()
        await publish(self, outputs, next_offset)

    transactions.transactional_id_of = lambda group, partition: f"{group}.{os.getpid()}.{partition.topic}.{partition.partition}"
    transactions.PartitionProducer.publish = pause_and_publish


def _no_fence_in_the_database() -> None:
    """The database takes steps of any worker, one that is paused with orders in hand too: neither epoch nor position is compared."""
    run = IntakeStep.run

    async def pause_and_run(self: IntakeStep, batch: Batch) -> tuple[OutputRecord, ...]:
        if any(isinstance(decode_request(record.value), TradeRequest) for record in batch.records):
            _pause_once()
        return await run(self, batch)

    def accept(partition: step.InputPartition, stored_epoch: int) -> None:
        object.__setattr__(partition, "fencing_epoch", stored_epoch)

    async def run_anywhere(self: StepRunner, batch: Batch, attempt: Callable[[step.StepTransaction], Awaitable[object]]) -> object:
        while True:
            with contextlib.suppress(Retryable):
                async with step.open_step(self._database, batch.partition) as opened:
                    return await attempt(opened)
            await asyncio.sleep(0.1)

    async def finish_anywhere(
        self: step.StepTransaction, next_offset: int, outputs: Sequence[OutputRecord], now: datetime
    ) -> tuple[OutputRecord, ...]:
        everything = (*self.progress.carried, *outputs)
        await self._connection.execute(
            """
            UPDATE input_partitions
            SET base_offset = least(next_offset, $4), next_offset = greatest(next_offset, $4), outputs = $5, carried = NULL, updated_at = $6
            WHERE consumer_group = $1 AND topic = $2 AND partition = $3
            """,
            *self._row,
            next_offset,
            step.pack(everything),
            now,
        )
        return everything

    IntakeStep.run = pause_and_run
    step.check_fencing_epoch = accept
    step.StepTransaction.finish = finish_anywhere
    StepRunner.run = run_anywhere


def _offsets_outside_the_transaction() -> None:
    """Outputs are committed first, the offset afterwards in a transaction of its own; the first worker that answers an order dies between
    the two. (What a batch of another topic publishes need not be an answer, and a record twice that is none breaks no promise.)"""
    publish = transactions.PartitionProducer.publish

    async def publish_then_commit(self: transactions.PartitionProducer, outputs: Sequence[OutputRecord], next_offset: int) -> None:
        if not outputs:
            await publish(self, outputs, next_offset)
            return
        await self._producer.begin_transaction()
        await self._send(outputs)
        await self._producer.commit_transaction()
        if ".orders." in self._partition.topic and _answers(outputs) and _once():
            _kill()
        await publish(self, (), next_offset)

    transactions.PartitionProducer.publish = publish_then_commit


def _blind_resend() -> None:
    """An order whose worker died is sent again at once, under the same client order id, instead of being looked up."""
    plan, mark_in_doubt = execution.plan, execution.mark_in_doubt

    def plan_and_resend(work: Sequence[RoutedOrder], changes: Changes, *given: object) -> execution.Plan:
        resent: list[Order] = []

        def resend(order: Order, detail: str, changes: Changes) -> None:
            changes.orders.keep(order.order_id, replace(order, submitting_at=datetime.now(UTC)))
            resent.append(changes.orders[order.order_id])

        execution.mark_in_doubt = resend
        try:
            decided = plan(work, changes, *given)
        finally:
            execution.mark_in_doubt = mark_in_doubt
        decided.submissions += [execution.submission_of(order) for order in resent]
        return decided

    agents.steps.execution.plan = plan_and_resend


def _blind_payout() -> None:
    """A withdrawal whose worker died is sent again at once, under the same client id, instead of being looked up."""
    plan = payouts.plan_withdrawals

    def plan_and_resend(work: Sequence[RoutedOrder], changes: Changes, *given: object) -> list[WithdrawalSubmission]:
        resent: list[WithdrawalSubmission] = []

        def resend(withdrawal: Withdrawal, detail: str, changes: Changes) -> None:
            changes.withdrawals.keep(withdrawal.withdrawal_id, replace(withdrawal, submitting_at=datetime.now(UTC)))
            resent.append(payouts.submission_of(changes.withdrawals[withdrawal.withdrawal_id]))

        put_in_doubt, payouts.put_in_doubt = payouts.put_in_doubt, resend
        try:
            decided = plan(work, changes, *given)
        finally:
            payouts.put_in_doubt = put_in_doubt
        return decided + resent

    agents.steps.execution.plan_withdrawals = plan_and_resend


def _audit_key_order_id() -> None:
    """Audit events are keyed by order, so that compaction removes all but the newest of each."""
    publish = Changes.publish

    def publish_by_order(self: Changes, topic: str, key: str, *arguments: object, **named: object) -> None:
        publish(self, topic, key.rpartition(":")[0] if topic == self.topics.audit else key, *arguments, **named)

    Changes.publish = publish_by_order


def _watches_everything() -> None:
    """The watch of deposits divides nothing: every worker looks at every account."""
    listed = deposit_watch.watched_accounts

    async def all_accounts(
        database: step.Database, exchange: str, shares: object, after: tuple[str, str], now: datetime, limit: int
    ) -> list[tuple[str, str]]:
        return await listed(database, exchange, (1, [0]), after, now, limit)

    deposit_watch.watched_accounts = all_accounts


BROKEN = {
    "watches_everything": _watches_everything,
    "transactional_id_per_worker": _transactional_id_per_worker,
    "no_fence_in_the_database": _no_fence_in_the_database,
    "offsets_outside_the_transaction": _offsets_outside_the_transaction,
    "blind_resend": _blind_resend,
    "blind_payout": _blind_payout,
    "audit_key_order_id": _audit_key_order_id,
}


def main() -> int:
    broken = os.environ.get("TEST_BROKEN")
    if broken:
        BROKEN[broken]()
        _end_late()
    settings = Settings()
    if settings.kafka_bootstrap_servers is None or settings.database_url is None:
        sys.stderr.write("the test must name broker and database\n")
        return 2
    return run_worker(settings, settings.kafka_bootstrap_servers, settings.database_url.get_secret_value(), _reached())


if __name__ == "__main__":
    raise SystemExit(main())
