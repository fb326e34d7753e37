"""What tests of administration share: an installation of a database, topics and a simulated exchange, and the command line run against it.

Commands run in the test's own process, so that a test can afford many. Everything that they print is kept, for the test that looks for
secrets in it.
"""

import asyncio
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import asyncpg
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from cli.main import run
from infra.kafka.topics import ensure_topics
from infra.keyring import new_master_key
from infra.settings import Settings
from schemas.topics import Topics
from tests.orchestrator import Ended

PARTITIONS = 2


@dataclass
class Administered:
    """One installation. `settings` are environment variables without their prefix; `secrets` is what must be found nowhere."""

    settings: dict[str, str]
    database_url: str
    topics: Topics
    kafka: str
    directory: Path
    secrets: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def run(self, *arguments: str, given: str = "", **settings: str) -> Ended:
        """A command with its exit code and what it printed. `settings` replace those of the installation; an empty one is left out."""
        ended = run_command(*arguments, given=given, settings={**self.settings, **settings}, directory=self.directory)
        self.said += [ended.output, ended.errors]
        return ended

    def ran(self, *arguments: str, given: str = "", **settings: str) -> Ended:
        """A command that must end well."""
        ended = self.run(*arguments, given=given, **settings)
        assert ended.code == 0, ended.errors
        return ended

    def fetch(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Rows of the database."""

        async def fetch() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(self.database_url, timeout=10)
            try:
                return [dict(row) for row in await connection.fetch(statement, *values)]
            finally:
                await connection.close(timeout=10)

        return asyncio.run(fetch())

    def execute(self, statement: str, *values: object) -> None:
        self.fetch(statement, *values)

    def events(self, account: str) -> list[dict[str, Any]]:
        """An account's audit events in the database, in the order of its chain."""
        rows = self.fetch("SELECT body FROM audit_events WHERE account = $1 ORDER BY seq", account)
        return [json.loads(row["body"]) for row in rows]

    def published(self) -> list[tuple[bytes | None, bytes | None]]:
        """Every record of `trade.audit` now, in the order of each partition."""

        async def read() -> list[tuple[bytes | None, bytes | None]]:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.kafka, isolation_level="read_committed", auto_offset_reset="earliest", fetch_max_wait_ms=100
            )
            await consumer.start()
            try:
                partitions = [TopicPartition(self.topics.audit, number) for number in range(PARTITIONS)]
                consumer.assign(partitions)
                ends = await consumer.end_offsets(partitions)
                await consumer.seek_to_beginning(*partitions)
                records: list[tuple[bytes | None, bytes | None]] = []
                async with asyncio.timeout(30):
                    while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
                        for fetched in (await consumer.getmany(timeout_ms=200)).values():
                            records += [(record.key, record.value) for record in fetched]
                return records
            finally:
                await consumer.stop()

        return asyncio.run(read())

    def published_events(self, account: str) -> dict[str, dict[str, Any]]:
        """An account's events on `trade.audit`, by key."""
        events = {(key or b"").decode(): json.loads(value or b"{}") for key, value in self.published()}
        return {key: event for key, event in events.items() if event["account"] == account}


def run_command(*arguments: str, given: str, settings: dict[str, str], directory: Path) -> Ended:
    """Runs the command line in this process, with nothing set but these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    own = {f"ORCHESTRATOR_{name}": value for name, value in {"DATA_DIR": str(directory), **settings}.items() if value}
    output, errors = io.StringIO(), io.StringIO()
    structlog_before = structlog.get_config()
    try:
        with (
            patch.dict(os.environ, {**kept, **own, "NO_COLOR": "1", "COLUMNS": "200"}, clear=True),
            patch.object(sys, "argv", ["orchestrator", *arguments]),
            patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode()))),
            redirect_stdout(output),
            redirect_stderr(errors),
        ):
            try:
                run()
            except SystemExit as ended:
                code = int(ended.code or 0)
    finally:
        structlog.configure(**structlog_before)
    return Ended(code, output.getvalue(), errors.getvalue())


@contextmanager
def administered(database_url: str, kafka: str, prefix: str, exchange_url: str, directory: Path) -> Iterator[Administered]:
    """An installation whose topics exist; the database must be migrated."""
    master_key = new_master_key()
    settings = {
        "DATABASE_URL": database_url,
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "TOPIC_PREFIX": prefix,
        "KAFKA_PARTITIONS": str(PARTITIONS),
        "EXCHANGE_URLS": json.dumps({"binance": exchange_url}),
        "MASTER_KEY": master_key,
        "EXCHANGE_TIMEOUT_MS": "2000",
    }
    made = Settings(kafka_bootstrap_servers=kafka, topic_prefix=prefix, kafka_partitions=PARTITIONS)
    asyncio.run(ensure_topics(made, kafka))
    yield Administered(settings, database_url, Topics(prefix), kafka, directory, {master_key})
