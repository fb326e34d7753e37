"""What tests of isolation share: the four steps on a real database, in a partition's task of their own, between a broker and an exchange
that are made of lists."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, cast

import faust
from aiokafka import ConsumerRecord, TopicPartition

from agents.steps.batch import MissingRecords, PartitionTask, StepContext
from agents.steps.control import ControlStep
from agents.steps.execution import ExecutionStep
from agents.steps.halt_watch import HaltWatch
from agents.steps.intake import IntakeStep
from agents.steps.isolation import Isolation, QuarantineLimit
from agents.steps.settlement import SettlementStep
from agents.steps.step import Batch, Step, StepRunner
from infra.exchange.gateway import Gateway, WithdrawalGateway
from infra.kafka.transactions import PartitionProducer
from infra.kafka.transport import Chunk
from infra.postgres.admin.accounts import NewUser, add_users
from infra.postgres.database import Database, connect
from infra.postgres.gate import read_halts
from infra.postgres.step import take_partition
from pipeline.books.changes import OutputRecord
from pipeline.model.call_record import CallRecord
from pipeline.model.crash_points import pass_by
from pipeline.model.venue import Confirmed, InDoubt, OrderReference, Submission, SubmissionOutcome, VenueOrder
from schemas.orders import Mode, OrderStatus
from schemas.results import RESULT, Result
from schemas.routing import Report
from tests.unit.builders import EXCHANGE, NOW, PRICE, RULES, TOPICS, WIDE_LIMITS, limit, market_data

GROUP: Final = "group"
ORDERS: Final = TOPICS.orders(EXCHANGE)
MILLISECOND: Final = timedelta(milliseconds=1)


class _Event:
    def ack(self) -> None:
        """Faust's; nothing waits for it here."""


@dataclass
class Venue:
    """A gateway that counts what is sent. `answer` says what comes back; it may raise."""

    answer: Callable[[Submission], SubmissionOutcome] = field(default_factory=lambda: filled)
    sent: Counter[str] = field(default_factory=Counter)
    exchange: str = EXCHANGE

    async def submit(self, submission: Submission, pre_send_check: object = None) -> SubmissionOutcome:
        self.sent[submission.order_id] += 1
        await asyncio.sleep(0)
        return self.answer(submission)

    async def cancel(self, reference: OrderReference) -> InDoubt:
        return InDoubt("not looked at")


def filled(submission: Submission) -> Confirmed:
    """The whole order, at its price or the market's."""
    quantity, price = submission.quantity or Decimal(0), submission.price or PRICE
    return Confirmed(
        VenueOrder(submission.client_order_id, f"x{submission.order_id}", OrderStatus.FILLED, quantity, quantity * price, (), NOW)
    )


@dataclass
class Stand:
    """An installation without Kafka. Each topic has one partition, whose records are read in the order in which they were written."""

    database: Database
    venue: Venue
    limit: QuarantineLimit
    published: list[OutputRecord] = field(default_factory=list)
    commits: list[int] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    # Raised instead of publishing a dead letter, as when the worker dies between its two commits.
    dies_with: BaseException | None = None
    _ticks: int = 0
    _ends: dict[str, int] = field(default_factory=dict)

    def clock(self) -> datetime:
        """Later with every look: a batch and what it changed are known by their time."""
        self._ticks += 1
        return NOW + self._ticks * MILLISECOND

    def context(self) -> StepContext:
        runner = StepRunner(self.database, self.clock, 5.0)
        return StepContext(runner, TOPICS, RULES, self.clock, pass_by, Isolation(runner, TOPICS, RULES, self.limit, self.clock))

    def step(self, topic: str) -> Step:
        context = self.context()
        if topic == TOPICS.requests:
            return IntakeStep(
                context, lambda: {EXCHANGE: market_data(observed_at=self.clock())}, dict, None, WIDE_LIMITS, lambda *_: "", 500
            )
        if topic == TOPICS.commands:
            return ControlStep(context, None, WIDE_LIMITS, lambda *_: "", 500)
        if topic == TOPICS.reports:
            return SettlementStep(context, 500)
        gateways: Mapping[Mode, Gateway] = {Mode.LIVE: cast("Gateway", self.venue), Mode.PAPER: cast("Gateway", self.venue)}
        halts = HaltWatch(lambda: read_halts(self.database))
        return ExecutionStep(context, EXCHANGE, gateways, cast("WithdrawalGateway", self.venue), halts, CallRecord(), WIDE_LIMITS, 500)

    # What stands in for the partition's producer.

    async def publish(self, outputs: Sequence[OutputRecord], next_offset: int) -> None:
        if self.dies_with is not None and any(record.topic == TOPICS.requests_dlq for record in outputs):
            raise self.dies_with
        self.published += outputs
        self.commits.append(next_offset)

    async def stop(self) -> None:
        """Nothing to close."""

    async def run(self, topic: str, values: Iterable[bytes | None], *, again_from: int | None = None) -> list[OutputRecord]:
        """Lets a new owner of the topic's partition work off these records as one chunk; returns what was published."""
        partition = TopicPartition(topic, 0)
        begin = self._ends.get(topic, 0) if again_from is None else again_from
        records = tuple(
            ConsumerRecord(topic, 0, begin + number, int(NOW.timestamp() * 1000), 1, b"key", value, None, 3, len(value or b""), ())
            for number, value in enumerate(values)
        )
        end = begin + len(records)
        owned, progress = await take_partition(self.database, GROUP, topic, 0, self.clock())
        before = len(self.published)
        context = self.context()
        if progress.next_offset < 0:
            await context.runner.skip(Batch(owned, (), -1, begin))

        async def idle_position(*_: Any) -> None:
            return None

        async def seek(*_: Any) -> None:
            raise AssertionError

        task = PartitionTask(
            kafka_partition=partition,
            partition=owned,
            next_offset=begin,
            producer=cast("PartitionProducer", self),
            step=self.step(topic),
            runner=context.runner,
            isolation=context.isolation,
            hold=lambda _: None,
            resume=lambda _: None,
            idle_position=idle_position,
            seek=seek,
            missing_records=cast("MissingRecords", None),
            stands=False,
            reached=pass_by,
            fail=self.failures.append,
        )
        task.put(cast("faust.EventT", _Event()), Chunk(partition, records, begin, end))
        task.start()
        async with asyncio.timeout(60):
            while task.next_offset < end and not self.failures:
                await asyncio.sleep(0.01)
            await task.stop(10)
        if not self.failures:
            self._ends[topic] = end
        return self.published[before:]


@asynccontextmanager
async def standing(url: str, users: Iterable[str], *, records_max: int = 20) -> AsyncIterator[Stand]:
    """A stand with funded users."""
    database = await connect(url, 8, 5.0)
    try:
        funds = {"USDT": Decimal(100_000), "BTC": Decimal(10)}
        await add_users(database, [NewUser(user, EXCHANGE, "k1", "key", b"ciphertext", funds) for user in users], NOW, "test")
        yield Stand(database, Venue(), QuarantineLimit(records_max, timedelta(minutes=10)))
    finally:
        await database.close()


def request(user_id: str, key: str, **fields: Any) -> bytes:
    return json.dumps(limit(user_id=user_id, idempotency_key=key, request_id=f"r-{key}", **fields)).encode()


def finals_in(outputs: Iterable[OutputRecord]) -> list[Result]:
    results = [RESULT.validate_json(record.value or b"") for record in outputs if record.topic == TOPICS.results]
    return [result for result in results if result.final]


def work_in(outputs: Iterable[OutputRecord]) -> list[bytes]:
    return [record.value or b"" for record in outputs if record.topic == ORDERS]


def letters_in(outputs: Iterable[OutputRecord]) -> list[dict[str, str]]:
    return [{name: text.decode() for name, text in record.headers} for record in outputs if record.topic == TOPICS.requests_dlq]


def report_filled(order_id: str, user_id: str, attempt: int, quantity: str = "0.001", price: str = "40000") -> bytes:
    return Report(
        schema_version=1,
        order_id=order_id,
        user_id=user_id,
        attempt=attempt,
        found=True,
        looked_up_at=NOW + timedelta(minutes=1),
        exchange_order_id=f"x{order_id}",
        order_status=OrderStatus.FILLED,
        cum_quantity=Decimal(quantity),
        cum_quote=Decimal(quantity) * Decimal(price),
    ).model_dump_json().encode()
