"""Records that nobody can decide, put on the topics where only this system writes, so that the demo shows that they stop nothing.

Each must be set aside once, whatever is done to the workers meanwhile, and nothing beside them.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from cli.local.demo_requests import EXCHANGE
from infra.kafka.connection import client_options
from infra.postgres.database import Database
from infra.settings import Settings
from schemas.topics import Topics
from verification.promises.finding import Check, Finding

# Of one partition fewer than the setting lets be set aside in a while, wherever they fall.
_RECORDS: Final = 12
_PAUSE_SECONDS: Final = 1.0
_UNKNOWN_ORDER: Final = b'{"schema_version":1,"action":"submit","order_id":"o%032d","user_id":"nobody","attempt":1}' % 0
_GARBAGE: Final = (b"\xff\xfe", b"", b"{}", b"[null]", b'{"schema_version":1,"order_id"', _UNKNOWN_ORDER)


class PoisonRecords:
    """`counts` has how many were published, under the name that the summary shows."""

    def __init__(self, settings: Settings, kafka: str, database: Database, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._settings = settings
        self._kafka = kafka
        self._database = database
        self._random = random.Random(seed)
        self._set_aside_before = 0

    async def run(self, is_under_way: Callable[[], bool]) -> None:
        """Publishes them one after another while the load is under way. One that the broker does not take is not counted."""
        self._set_aside_before = await self._set_aside()
        topics = Topics(self._settings.topic_prefix)
        options = client_options(self._settings, self._kafka)
        producer = AIOKafkaProducer(**options, enable_idempotence=True, acks="all")
        await producer.start()
        try:
            for number in range(_RECORDS):
                if not is_under_way():
                    return
                topic = topics.orders(EXCHANGE) if number % 2 else topics.reports
                # Without a key, so that they fall on any partition.
                await producer.send_and_wait(topic, self._random.choice(_GARBAGE))
                self.counts["poison_record"] += 1
                await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            with suppress(KafkaError):
                await producer.stop()

    async def finding(self) -> Finding:
        """Whether each was set aside once, and nothing else."""
        published = self.counts["poison_record"]
        check = Check("poison_set_aside", "what nobody can decide is set aside once, and nothing beside it", published)
        found = await self._set_aside() - self._set_aside_before
        if found != published:
            check.breach(f"{published} records that nobody can decide were published, and {found} records were set aside")
        return check.finding()

    async def _set_aside(self) -> int:
        async with self._database.connection() as connection:
            return int(await connection.fetchval("SELECT count(*) FROM quarantine"))
