"""A seek reads everything again that was handed out and dropped, from where the partition's owner stands."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import faust
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import NoOffsetForPartitionError

from infra.kafka.transport import Chunk, CommittedOffset, OrchestratorApp


class _Owner:
    """Has done nothing yet with the partitions that it owns."""

    def __init__(self) -> None:
        self._owned: dict[TopicPartition, int] = {}

    async def on_assigned(self, partitions: Iterable[TopicPartition], committed: CommittedOffset) -> None:
        self._owned = dict.fromkeys(partitions, 0)

    def next_offsets(self) -> dict[TopicPartition, int]:
        return self._owned

    def standing(self) -> set[TopicPartition]:
        return set()

    def on_out_of_range(self, partition: TopicPartition) -> None:
        raise AssertionError(partition)

    def on_revoking(self) -> None:
        return

    async def on_revoked(self) -> None:
        return


@pytest.fixture
async def topic(kafka: str, unique_prefix: str) -> str:
    """A topic of one partition with five records and no group that has read it."""
    name = f"{unique_prefix}source"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    for number in range(5):
        await producer.send_and_wait(name, str(number).encode())
    await producer.stop()
    return name


@pytest.fixture
async def app_and_chunks(kafka: str, topic: str, tmp_path: Path) -> AsyncIterator[tuple[OrchestratorApp, asyncio.Queue[Chunk]]]:
    """An app that reads the topic, and what it was handed out."""
    chunks: asyncio.Queue[Chunk] = asyncio.Queue()
    app = OrchestratorApp(
        f"{topic}.group", owner=_Owner(), client_options={"bootstrap_servers": kafka}, chunk_records_max=100, broker=f"kafka://{kafka}",
        store="memory://", datadir=tmp_path, web_enabled=False, topic_allow_declare=False, topic_disable_leader=True,
        table_standby_replicas=0, stream_wait_empty=True,
    )  # fmt: skip

    async def collect(stream: faust.StreamT) -> AsyncIterator[None]:
        async for event in stream.noack().events():
            chunks.put_nowait(event.message.value)
            event.ack()
            yield

    app.agent(app.topic(topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"))(collect)
    await app.start()
    try:
        yield app, chunks
    finally:
        async with asyncio.timeout(60):
            await app.stop()


async def test_seek_without_a_committed_offset_reads_from_the_beginning_again(
    app_and_chunks: tuple[OrchestratorApp, asyncio.Queue[Chunk]],
) -> None:
    """The first records of a partition are handed out again after they were dropped, although nothing was ever committed."""
    app, chunks = app_and_chunks
    async with asyncio.timeout(60):
        first = await chunks.get()
        assert (first.start_offset, first.records[0].offset) == (0, 0)
        await app.consumer.perform_seek()
        again = await chunks.get()
        assert (again.start_offset, again.records[0].offset) == (0, 0)


async def test_fetch_that_meets_a_rebalance_before_the_seek_ends_nothing(
    kafka: str, topic: str, app_and_chunks: tuple[OrchestratorApp, asyncio.Queue[Chunk]]
) -> None:
    """A rebalance leaves this error for a fetch that began before it, where the group has no offset yet; the next records arrive."""
    app, chunks = app_and_chunks
    thread, partition = app.consumer._thread, TopicPartition(topic, 0)

    async def leave_error() -> None:
        thread._consumer._fetcher._set_error(partition, NoOffsetForPartitionError(partition))

    async with asyncio.timeout(60):
        assert len((await chunks.get()).records) == 5
        await thread.call_thread(leave_error)
        while partition in thread._consumer._fetcher._records:
            await asyncio.sleep(0.02)
        async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
            await producer.send_and_wait(topic, b"next")
        assert [record.value for record in (await chunks.get()).records] == [b"next"]
