"""Kafka's own tools against the run's broker: lag and transactions as an operator sees them."""

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from embedded.errors import RetryLaterError
from embedded.kafka_tools import KafkaTools, PartitionLag, TransactionState
from infra.settings import Settings


@pytest.fixture
async def tools(kafka: str) -> KafkaTools:
    return await KafkaTools.for_broker(kafka, Settings().cache_dir, progress=print)


async def test_describe_group_counts_what_is_not_read_yet(tools: KafkaTools, kafka: str, unique_prefix: str) -> None:
    """Ten records, four of them committed as read, in one of two partitions: a lag of six and a lag of none."""
    topic, group = f"{unique_prefix}lag", f"{unique_prefix}group"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 2, 1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for number in range(10):
            await producer.send_and_wait(topic, str(number).encode(), partition=0)
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False)
    async with consumer:
        for _ in range(4):
            await consumer.getone()
        await consumer.commit()
        assert sorted(await tools.describe_group(group), key=lambda row: row.partition) == [
            PartitionLag(topic, 0, 4, 10, 6),
            PartitionLag(topic, 1, 0, 0, 0),
        ]


async def test_list_transactions_shows_the_open_one(tools: KafkaTools, kafka: str, unique_prefix: str) -> None:
    """A transaction that nobody ends is seen as ongoing, and as aborted afterwards."""
    topic, transactional_id = f"{unique_prefix}transaction", f"{unique_prefix}id"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()

    async def state() -> TransactionState:
        (found,) = [row for row in await tools.list_transactions() if row.transactional_id == transactional_id]
        return found

    async with AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=transactional_id) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"value")
        assert (await state()).state == "Ongoing"
        await producer.abort_transaction()
        assert (await state()).state in ("PrepareAbort", "CompleteAbort")


async def test_describe_group_of_an_unknown_group_is_told(tools: KafkaTools, unique_prefix: str) -> None:
    """The tool ends with code 0 for it; we do not."""
    with pytest.raises(RetryLaterError, match="not found"):
        await tools.describe_group(f"{unique_prefix}nobody")
