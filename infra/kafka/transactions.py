"""The one owner of the Kafka transaction: a transactional producer per input partition.

Invariants:
1. The transactional id is `{group}.{topic}.{partition}`: starting the producer of a partition fences whoever had it before. An id per
   worker instead would let a paused worker finish its transaction after the partition moved.
2. Outputs and the input offset are committed in one transaction.
3. A producer whose last outcome is unknown is never used again: the process ends, and the next owner's start completes or aborts the
   transaction before it reads the committed offset.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced
from aiokafka.producer.message_accumulator import BatchBuilder

from infra.kafka.partitioner import partition_of
from pipeline.books.changes import OutputRecord
from pipeline.model.invariants import Fenced, Retryable
from schemas.topics import DLQ_MESSAGE_BYTES_MAX, OUTPUT_BATCH_BYTES_MAX

_BATCH_BYTES: Final = OUTPUT_BATCH_BYTES_MAX // 2


class CommitUnknown(Exception):
    """A Kafka transaction whose outcome this process cannot know. It ends; the next owner finds out."""


def transactional_id_of(consumer_group: str, partition: TopicPartition) -> str:
    """One id per input partition, the same for every worker that ever owns it."""
    return f"{consumer_group}.{partition.topic}.{partition.partition}"


def _append(batch: BatchBuilder, record: OutputRecord) -> bool:
    return batch.append(timestamp=None, key=record.key, value=record.value, headers=list(record.headers)) is not None


class PartitionProducer:
    """The producer of one input partition. Start it before the partition's committed offset is read."""

    def __init__(self, partition: TopicPartition, consumer_group: str, options: dict[str, Any], transaction_timeout_ms: int) -> None:
        self._partition = partition
        self._consumer_group = consumer_group
        # Well before the broker gives up on the transaction, so that we know first.
        self._timeout_seconds = transaction_timeout_ms / 1000 * 0.75
        self._options = options
        self._transaction_timeout_ms = transaction_timeout_ms
        self._producer = self._new_producer()

    def _new_producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **self._options,
            transactional_id=transactional_id_of(self._consumer_group, self._partition),
            transaction_timeout_ms=self._transaction_timeout_ms,
            # aiokafka waits this long between the parts of a transaction while the broker still completes the one before; at the default
            # of 100 ms small transactions wait for nothing but this.
            retry_backoff_ms=5,
            linger_ms=0,
            max_batch_size=_BATCH_BYTES,
            max_request_size=DLQ_MESSAGE_BYTES_MAX + 64 * 1024,
            request_timeout_ms=max(1_000, self._transaction_timeout_ms // 2),
        )

    async def fence(self) -> None:
        """InitProducerId: the previous owner is fenced, its open transaction completed or aborted. Raises Retryable without a broker."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._producer.start()
        except (KafkaError, OSError, TimeoutError) as error:
            await self.stop()
            # One that has failed to start cannot be started again.
            self._producer = self._new_producer()
            raise Retryable(f"the broker is out of reach ({type(error).__name__}: {error})") from error

    async def publish(self, outputs: Sequence[OutputRecord], next_offset: int) -> None:
        """Commits the outputs and the input partition's next offset together.

        Raises Fenced when another worker has the partition, CommitUnknown for everything else. Both end the process.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._producer.begin_transaction()
                # The broker takes records and offset side by side; what counts is that both have arrived before the commit.
                offset = self._producer.send_offsets_to_transaction({self._partition: next_offset}, self._consumer_group)
                await asyncio.gather(self._send(outputs), offset)
                await self._producer.commit_transaction()
        except ProducerFenced as error:
            raise Fenced(
                f"another worker publishes for {self._partition.topic}/{self._partition.partition} now, or a transaction took longer than "
                "the broker allows. Nothing of this batch was published here; the next owner publishes it."
            ) from error
        # After fencing aiokafka raises bare AssertionErrors.
        except (KafkaError, OSError, TimeoutError, AssertionError) as error:
            raise CommitUnknown(
                f"the broker did not confirm a transaction for {self._partition.topic}/{self._partition.partition} "
                f"({type(error).__name__}: {error}). Nothing is lost or doubled: the partition's next owner publishes what is stored."
            ) from error

    async def _send(self, outputs: Sequence[OutputRecord]) -> None:
        batches = await self._batches(outputs)
        sends = [await self._producer.send_batch(batch, to.topic, partition=to.partition) for to, batch in batches]
        # A send that failed does not fail the transaction by itself: every one is waited for before the commit.
        await asyncio.gather(*sends)

    async def _batches(self, outputs: Sequence[OutputRecord]) -> list[tuple[TopicPartition, BatchBuilder]]:
        """The outputs as whole batches, in order within each partition.

        Whole, because a send per record costs aiokafka a future and a look at the topic's metadata for each.
        """
        producer = self._producer
        partitions = {topic: sorted(await producer.partitions_for(topic)) for topic in {record.topic for record in outputs}}
        batches: list[tuple[TopicPartition, BatchBuilder]] = []
        open_batches: dict[TopicPartition, BatchBuilder] = {}
        for record in outputs:
            target = TopicPartition(record.topic, partition_of(record.key, partitions[record.topic]))
            batch = open_batches.get(target)
            # A batch that is full takes nothing; an empty one takes a record of any size.
            if batch is None or not _append(batch, record):
                batch = open_batches[target] = producer.create_batch()
                batches.append((target, batch))
                _append(batch, record)
        return batches

    async def stop(self) -> None:
        """Closes the connections; an open transaction is aborted by the next owner's start or by its time-out."""
        try:
            async with asyncio.timeout(5):
                await self._producer.stop()
        except (KafkaError, OSError, TimeoutError, AssertionError):
            # The process is about to end or the partition has moved: there is nothing left to save here.
            return
