"""Lag tools that share no code with ours see 0 on every input partition of an idle pipeline."""

import asyncio
import json
from pathlib import Path
from time import monotonic

import asyncpg
from confluent_kafka import Consumer, Producer, TopicPartition

from embedded.kafka_tools import KafkaTools
from infra.settings import Settings
from tests.installation import Installation, installation, order

_IDLE_SECONDS_MAX = 20.0
Offsets = dict[tuple[str, int], int]


def _input_partitions(made: Installation) -> set[tuple[str, int]]:
    names = (made.topics.requests, made.topics.orders("binance"), made.topics.reports, made.topics.commands)
    return {(name, partition) for name in names for partition in range(made.settings.kafka_partitions)}


async def _stored_offsets(made: Installation) -> Offsets:
    """Where the database stands with each input partition."""
    if made.settings.database_url is None:
        raise RuntimeError("an installation has a database")
    connection = await asyncpg.connect(made.settings.database_url.get_secret_value(), timeout=10)
    try:
        rows = await connection.fetch("SELECT topic, partition, next_offset FROM input_partitions")
    finally:
        await connection.close(timeout=10)
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


def _librdkafka_lag(made: Installation) -> dict[tuple[str, int], tuple[int, int]]:
    """(committed, end) of each input partition, as librdkafka reads them."""
    consumer = Consumer(
        {
            "bootstrap.servers": made.settings.kafka_bootstrap_servers or "",
            "group.id": made.settings.consumer_group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    try:
        partitions = [TopicPartition(*each) for each in sorted(_input_partitions(made))]
        committed = consumer.committed(partitions, timeout=10)
        ends = [consumer.get_watermark_offsets(each, timeout=10)[1] for each in partitions]
    finally:
        consumer.close()
    return {(each.topic, each.partition): (each.offset, end) for each, end in zip(committed, ends, strict=True)}


async def _until_idle(made: Installation) -> dict[tuple[str, int], tuple[int, int]]:
    """Waits until librdkafka sees no lag, at most for a while: then the last look speaks."""
    deadline = monotonic() + _IDLE_SECONDS_MAX
    while True:
        found = await asyncio.to_thread(_librdkafka_lag, made)
        if all(committed == end for committed, end in found.values()) or monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)


async def _assert_no_lag(made: Installation, tools: KafkaTools) -> Offsets:
    """Kafka's tool, librdkafka and the database agree that nothing is behind; returns the committed offsets."""
    seen_by_librdkafka = await _until_idle(made)
    rows = {(row.topic, row.partition): row for row in await tools.describe_group(made.settings.consumer_group)}
    stored = await _stored_offsets(made)
    assert {each: row.lag for each, row in rows.items()} == dict.fromkeys(_input_partitions(made), 0)
    committed = {each: row.current_offset for each, row in rows.items()}
    assert committed == {each: offset for each, (offset, _) in seen_by_librdkafka.items()}
    assert committed == stored
    return {each: offset for each, offset in committed.items() if offset is not None}


def _aborted(made: Installation, partition: int, records: int) -> None:
    """A transaction of a foreign producer that is given up, with its records already in the log."""
    producer = Producer(
        {"bootstrap.servers": made.settings.kafka_bootstrap_servers or "", "transactional.id": f"{made.settings.topic_prefix}foreign"}
    )
    producer.init_transactions(20)
    producer.begin_transaction()
    for number in range(records):
        producer.produce(made.topics.requests, json.dumps(order(900 + number)).encode(), partition=partition)
    if producer.flush(20):
        raise RuntimeError("the records did not reach the broker")
    producer.abort_transaction(20)


async def test_lag_tools_see_zero_on_every_input_partition_when_idle(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """After a batch on trade.orders.* and right after an aborted transaction the lag is 0, and offsets are where the database stands."""
    tools = await KafkaTools.for_broker(kafka, Settings().cache_dir.expanduser(), progress=print)
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        made.start_worker()
        sent = [*await made.publish([order(number) for number in range(20)], 0), *await made.publish([order(20)], 1)]
        await made.final_results(sent, 120)
        before = await _assert_no_lag(made, tools)
        # The orders went through a topic on which every batch ends with the marker of a transaction.
        assert sum(offset for (topic, _), offset in before.items() if topic == made.topics.orders("binance")) > len(sent)

        await asyncio.to_thread(_aborted, made, 0, 5)
        after = await _assert_no_lag(made, tools)
        # Five records that nobody may see, and the marker behind them.
        assert after[made.topics.requests, 0] == before[made.topics.requests, 0] + 6
        assert len(made.accepted_orders()) == len(sent)
