"""The floor: a bare copy of each request to two outputs, exactly once, with aiokafka and nothing else.

One transactional producer per input partition, one Kafka transaction per batch, the input offset inside it: the same transactions as the
orchestrator's, without a decision, a database or an exchange. No row can be faster than this on the same broker and client library.

Run as a worker process: `python -m bench.baselines.aiokafka_copy`, with the settings in the environment.
"""

import asyncio
import signal
from typing import Final

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from infra.settings import Settings
from schemas.topics import Topics

_BATCH_RECORDS_MAX: Final = 500


async def copy(
    consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, partition: TopicPartition, group: str, outputs: tuple[str, str]
) -> None:
    """Copies one partition for ever."""
    while True:
        fetched = await consumer.getmany(partition, timeout_ms=1_000, max_records=_BATCH_RECORDS_MAX)
        records = fetched.get(partition, [])
        if not records:
            continue
        next_offset = await consumer.position(partition)
        async with producer.transaction():
            sends = [await producer.send(topic, record.value, key=record.key) for record in records for topic in outputs]
            await asyncio.gather(*sends)
            await producer.send_offsets_to_transaction({partition: next_offset}, group)


async def run(settings: Settings) -> None:
    """Copies every partition until SIGTERM."""
    topics, servers, group = Topics(settings.topic_prefix), settings.kafka_bootstrap_servers, settings.consumer_group
    partitions = [TopicPartition(topics.requests, number) for number in range(settings.kafka_partitions)]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    producers = [
        # The waits between the parts of a transaction; the default of 100 ms would be all that is measured.
        AIOKafkaProducer(bootstrap_servers=servers, transactional_id=f"{group}.{tp.topic}.{tp.partition}", retry_backoff_ms=5)
        for tp in partitions
    ]
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    try:
        for client in (*producers, consumer):
            await client.start()
        consumer.assign(partitions)
        outputs = (topics.results, topics.audit)
        copies = [
            asyncio.create_task(copy(consumer, producer, partition, group, outputs))
            for producer, partition in zip(producers, partitions, strict=True)
        ]
        stop = asyncio.create_task(stopped.wait())
        # A copy ends only by an error, which is raised here.
        done, running = await asyncio.wait({*copies, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in done:
            task.result()
    finally:
        for client in (consumer, *producers):
            await client.stop()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(run(Settings()))
