"""What tests of the emergency stop share: commands as an operator sends them, and what the database says of them.

Start with `commanding`.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer

from tests.installation import Installation

APPLIED_SECONDS_MAX = 20.0


@dataclass(frozen=True)
class Applied:
    """What became of a record of `trade.commands`: its audit event, and when the broker appended it (seconds since 1970)."""

    event: dict[str, Any]
    appended_at: float


class Commands:
    """Sends commands to an installation; reads its database."""

    def __init__(self, made: Installation, producer: AIOKafkaProducer, connection: asyncpg.Connection) -> None:
        self.made = made
        self._producer = producer
        self._connection = connection

    async def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._connection.fetch(statement, *values)]

    async def events(self, account: str) -> list[dict[str, Any]]:
        """An account's audit events, in the order of its chain."""
        rows = await self.rows("SELECT body FROM audit_events WHERE account = $1 ORDER BY seq", account)
        return [json.loads(row["body"]) for row in rows]

    async def halts(self) -> list[dict[str, Any]]:
        return await self.rows("SELECT * FROM halts ORDER BY scope, target")

    async def send(self, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> tuple[str, float]:
        """Puts a record on the topic; returns its place and when it was appended."""
        sent = await self._producer.send_and_wait(self.made.topics.commands, value, key=b"all", headers=list(headers))
        return f"{sent.topic}/{sent.partition}/{sent.offset}", sent.timestamp / 1_000

    async def event_of(self, request_id: str, count: int = 1) -> dict[str, Any]:
        """Waits until there are so many audit events about a command; returns the newest."""
        deadline = monotonic() + APPLIED_SECONDS_MAX
        statement = "SELECT body FROM audit_events WHERE body::jsonb ->> 'request_id' = $1 ORDER BY recorded_at, seq"
        while True:
            found = await self.rows(statement, request_id)
            if len(found) >= count:
                event: dict[str, Any] = json.loads(found[-1]["body"])
                return event
            if monotonic() > deadline:
                logs = "\n".join(self.made.worker_log(number)[-3_000:] for number in range(len(self.made.workers)))
                raise AssertionError(f"{len(found)} of {count} events about {request_id}\n{logs}")
            await asyncio.sleep(0.02)

    async def command(self, word: str, headers: Sequence[tuple[str, bytes]] = (), **fields: Any) -> Applied:
        """Sends a command, for everybody where `fields` name no other scope, and waits until it is applied or refused."""
        value = command_of(word, **fields)
        _, appended_at = await self.send(json.dumps(value).encode(), headers)
        return Applied(await self.event_of(value["command_id"]), appended_at)

    async def until(self, what: str, statement: str, *values: object, within_seconds: float = APPLIED_SECONDS_MAX) -> list[dict[str, Any]]:
        """Waits until a statement gives a row."""
        deadline = monotonic() + within_seconds
        while True:
            found = await self.rows(statement, *values)
            if found:
                return found
            if monotonic() > deadline:
                logs = "\n".join(self.made.worker_log(number)[-3_000:] for number in range(len(self.made.workers)))
                raise AssertionError(f"{what}: not within {within_seconds} s\n{logs}")
            await asyncio.sleep(0.02)


def command_of(word: str, **fields: Any) -> dict[str, Any]:
    """A command for everybody as a JSON document."""
    return {
        "schema_version": 1,
        "command_id": str(uuid.uuid4()),
        "command": word,
        "scope": "all",
        "target": "",
        "operator": "ana",
        "reason": "a test",
        **fields,
    }


@asynccontextmanager
async def commanding(made: Installation) -> AsyncIterator[Commands]:
    """Opens what commands need."""
    url = made.settings.database_url
    assert url is not None
    producer = AIOKafkaProducer(bootstrap_servers=made.settings.kafka_bootstrap_servers, acks="all")
    await producer.start()
    connection = await asyncpg.connect(url.get_secret_value(), timeout=10)
    try:
        yield Commands(made, producer, connection)
    finally:
        await connection.close(timeout=10)
        await producer.stop()
