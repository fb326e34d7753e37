"""A worker that dies at any named point changes nothing that a consumer, the ledger or the exchange can see."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from pipeline.model.crash_points import CrashPoint
from tests.installation import Installation, ended, installation, order, unique_file
from tests.promises import assert_promises_hold

REQUESTS = 24
NOT_EXECUTED = ("rejected", "ORDER_NOT_EXECUTED")


async def _answers_after(made: Installation, at: str, then: str, directory: Path) -> None:
    """Lets a worker reach a point, a second one take over, and checks every promise."""
    unsent = at.startswith(f"{CrashPoint.AFTER_SUBMITTING_COMMIT}@")
    sent = await made.publish([order(number) for number in range(REQUESTS)])
    first = made.start_worker(TEST_AT=at, TEST_THEN=then, TEST_ONCE=unique_file(directory))
    if then == "kill":
        assert await ended(first, 90) == -9, made.worker_log(0)
    else:
        await made.event(0, "partitions_assigned", 120)
    made.start_worker()
    finals = await made.final_results(sent, 120)
    ends = Counter((result["status"], result["reason_code"]) for result in finals.values())
    # What was in doubt is not sent again by itself: it ends as not executed, once that is proven.
    assert ends.keys() <= {("executed", None), NOT_EXECUTED}, ends
    # The other partition's batch may have been cut off between intent and call as well, wherever this one was.
    assert ends[NOT_EXECUTED] > 0 or not unsent, ends
    if then != "kill":
        # Others have done its work. Now it wakes up, and must notice that it is a zombie.
        first.send_signal(signal.SIGCONT)
        assert await ended(first, 90) != 0, made.worker_log(0)
        await asyncio.sleep(1)
    assert len(made.accepted_orders()) == ends["executed", None]
    await assert_promises_hold(made)


_TOPIC_OF = {
    CrashPoint.BATCH_TAKEN: "trade.requests",
    CrashPoint.BEFORE_INTAKE_COMMIT: "trade.requests",
    CrashPoint.AFTER_INTAKE_COMMIT: "trade.requests",
    CrashPoint.BEFORE_SUBMITTING_COMMIT: "trade.orders.binance",
    CrashPoint.AFTER_SUBMITTING_COMMIT: "trade.orders.binance",
    CrashPoint.AFTER_EXCHANGE_CALL: "trade.orders.binance",
    CrashPoint.AFTER_OUTCOME_COMMIT: "trade.orders.binance",
    CrashPoint.BEFORE_KAFKA_COMMIT: "trade.requests",
    CrashPoint.AFTER_KAFKA_COMMIT: "trade.orders.binance",
}


@pytest.mark.parametrize("point", list(_TOPIC_OF), ids=[point.value for point in _TOPIC_OF])
async def test_resumes_from(point: CrashPoint, kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """After kill -9 at the point the next owner finishes the work: one answer, one execution at most, all promises hold."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        await _answers_after(made, f"{point}@{_TOPIC_OF[point]}:1", "kill", tmp_path)


@pytest.mark.parametrize("point", [CrashPoint.BEFORE_SETTLEMENT_COMMIT, CrashPoint.AFTER_SETTLEMENT_COMMIT], ids=lambda point: point.value)
async def test_resumes_from_settlement(point: CrashPoint, kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """After kill -9 while a look-up's report is applied, the report is applied once."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        # Accepted by the exchange, but never answered: only a look-up can tell.
        await made.faults({"kind": "drop_after_accept", "probability": 1})
        await _answers_after(made, f"{point}@trade.reports:1", "kill", tmp_path)


@pytest.mark.parametrize(
    "point", [CrashPoint.BEFORE_SET_ASIDE_COMMIT, CrashPoint.AFTER_SET_ASIDE_COMMIT], ids=lambda point: point.value
)
async def test_resumes_from_set_aside(point: CrashPoint, kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """After kill -9 while a record that cannot be decided is set aside, it is set aside once, and the orders around it are executed."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        orders = made.topics.orders("binance")
        producer = AIOKafkaProducer(bootstrap_servers=kafka)
        await producer.start()
        try:
            # No piece of work of ours: whoever reads it can decide nothing about it.
            await producer.send_and_wait(orders, b"garbage", partition=0)
        finally:
            await producer.stop()
        await _answers_after(made, f"{point}@{orders.removeprefix(unique_prefix)}:1", "kill", tmp_path)
        connection = await asyncpg.connect(database_url, timeout=10)
        try:
            assert await connection.fetchval("SELECT count(*) FROM quarantine") == 1
        finally:
            await connection.close()
        letters = [record.value for record in await made.read(made.topics.requests_dlq)]
        assert letters.count(b"garbage") == 1


@pytest.mark.parametrize(
    ("point", "topic"),
    [
        (CrashPoint.BATCH_TAKEN, "trade.requests"),
        (CrashPoint.BEFORE_INTAKE_COMMIT, "trade.requests"),
        (CrashPoint.AFTER_SUBMITTING_COMMIT, "trade.orders.binance"),
        (CrashPoint.AFTER_EXCHANGE_CALL, "trade.orders.binance"),
        (CrashPoint.BEFORE_KAFKA_COMMIT, "trade.orders.binance"),
    ],
    ids=str,
)
async def test_zombie_changes_nothing(
    point: CrashPoint, topic: str, kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A worker that is paused at a point until its partitions have moved wakes up, notices, and ends without a trace."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        await _answers_after(made, f"{point}@{topic}:1", "stop", tmp_path)
