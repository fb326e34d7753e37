"""Adds work to an exchange's queue beside the steps: what a halt cancels, what no look-up can show, what is tried again."""

import asyncio
from collections.abc import Iterable

from aiokafka import AIOKafkaProducer

from schemas.routing import RoutedOrder


async def queue_work(producer: AIOKafkaProducer, topic: str, work: Iterable[tuple[RoutedOrder, int]]) -> None:
    """Publishes pieces of work, each in the partition that its other records are in: one partition's batches never overlap. Returns when
    the broker has all of them. Raises KafkaError."""
    sent = []
    for routed, partition in work:
        value, key = routed.model_dump_json().encode(), routed.user_id.encode()
        sent.append(await producer.send(topic, value, key=key, partition=partition))
    await asyncio.gather(*sent)
