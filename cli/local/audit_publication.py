"""Publishes what waits in the outbox of administration (infra/postgres/audit_outbox) to `trade.audit`, for programs that set up users."""

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer

from infra.kafka.connection import client_options
from infra.postgres.audit_outbox import publish_pending
from infra.postgres.database import Database
from infra.settings import Settings
from pipeline.books.audit import AuditRow
from schemas.topics import Topics


async def publish_audit_events(settings: Settings, bootstrap_servers: str, database: Database) -> int:
    """Publishes what was not published yet; returns how many events. Raises KafkaError, OSError or Retryable."""
    topic = Topics(settings.topic_prefix).audit
    options = client_options(settings, bootstrap_servers)
    producer = AIOKafkaProducer(**options, enable_idempotence=True, acks="all", request_timeout_ms=10_000)
    await producer.start()

    async def send(rows: Sequence[AuditRow]) -> None:
        await asyncio.gather(*[await producer.send(topic, row.value, key=row.event_id.encode()) for row in rows])

    try:
        return await publish_pending(database, send)
    finally:
        await producer.stop()
