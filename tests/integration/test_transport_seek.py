"""A seek reads everything again that was handed out and dropped, from where the partition's owner stands."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import faust
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

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


async def test_seek_without_a_committed_offset_reads_from_the_beginning_again(kafka: str, topic: str, tmp_path: Path) -> None:
    """The first records of a partition are handed out again after they were dropped, although nothing was ever committed."""
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
        async with asyncio.timeout(60):
            first = await chunks.get()
            assert (first.start_offset, first.records[0].offset) == (0, 0)
            await app.consumer.perform_seek()
            again = await chunks.get()
            assert (again.start_offset, again.records[0].offset) == (0, 0)
    finally:
        await app.stop()
