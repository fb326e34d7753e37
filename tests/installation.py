"""A small installation for tests: a simulated exchange, a database, topics of its own, users with money, and workers to kill."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from agents.process.app import utc_now
from cli.local.audit_publication import publish_audit_events
from infra.kafka.topics import ensure_topics
from infra.keyring import StoredSecret, keyring_of, new_master_key
from infra.postgres.admin.accounts import NewUser, add_users
from infra.postgres.database import connect
from infra.postgres.migrate import migrate
from infra.settings import Settings
from schemas.topics import Topics
from simulator.records import OrderAccepted, read_log
from tests import prepared
from tests.last_release import environment_of
from verification.evidence.topics import read_offsets

USERS = tuple(f"user-{number}" for number in range(8))
OPENING = {"USDT": Decimal(1_000_000), "BTC": Decimal(50)}
# Short, so that a test does not wait long; the order of the three is what matters.
SESSION_TIMEOUT_MS = 6_000


@dataclass
class Installation:
    """Addresses and settings of one test's installation. `log_directory` has a log file per worker."""

    settings: Settings
    topics: Topics
    simulator_url: str
    exchange_log: Path
    log_directory: Path
    simulator_pid: int
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        """What a worker of this installation is started with."""
        settings = self.settings
        secret = {name: getattr(settings, name).get_secret_value() for name in ("database_url", "master_key")}
        own = {
            "ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers or "",
            "ORCHESTRATOR_DATABASE_URL": secret["database_url"],
            "ORCHESTRATOR_MASTER_KEY": secret["master_key"],
            "ORCHESTRATOR_TOPIC_PREFIX": settings.topic_prefix,
            "ORCHESTRATOR_CONSUMER_GROUP": settings.consumer_group,
            "ORCHESTRATOR_EXCHANGE_URLS": json.dumps(settings.exchange_urls),
            **{f"ORCHESTRATOR_{name.upper()}": str(getattr(settings, name)) for name in (*_NUMBERS, *Settings.without_limits())},
        }
        return {**os.environ, **own, **extra}

    def start_worker(self, module: str = "tests.worker_under_test", source: Path | None = None, **extra: str) -> subprocess.Popen[bytes]:
        """Starts a worker in a process of its own; `extra` are the switches of its module, and settings that only this worker has. `source`
        is another release's code to run (tests.last_release)."""
        with (self.log_directory / f"worker-{len(self.workers)}.log").open("wb") as log:
            if source is None:
                worker = prepared.start(module, env=self.environment(extra), output=log.fileno())
            else:
                environment = self.environment({**environment_of(source), **extra})
                worker = subprocess.Popen([sys.executable, "-m", module], env=environment, cwd=source, stderr=log, stdout=log)
        self.workers.append(worker)
        return worker

    def worker_log(self, number: int) -> str:
        return (self.log_directory / f"worker-{number}.log").read_text(errors="replace")

    def events(self, number: int) -> list[dict[str, Any]]:
        """The lines of a worker's log so far, as objects; what is no JSON (a traceback) is left out."""
        lines = self.worker_log(number).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    async def event(self, number: int, name: str, within_seconds: float) -> dict[str, Any]:
        """Waits for a worker's log to have an event of this name; returns the first."""
        deadline = monotonic() + within_seconds
        while True:
            for event in self.events(number):
                if event.get("event") == name:
                    return event
            if monotonic() > deadline:
                raise AssertionError(f"no {name} within {within_seconds} s:\n{self.worker_log(number)[-4_000:]}")
            await asyncio.sleep(0.05)

    async def records_worked_on(self, number: int, topic: str) -> int:
        """How many input records of a topic a worker has committed, by its own metrics."""
        address = (await self.event(number, "worker_started", 120))["health"]
        async with aiohttp.ClientSession() as session, session.get(f"{address}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        prefix = f'orchestrator_records_total{{topic="{topic}"}} '
        return sum(round(float(line.removeprefix(prefix))) for line in lines if line.startswith(prefix))

    def end(self, number: int) -> dict[str, Any]:
        """What a worker said about its end; empty when it ended without a word."""
        return next((event for event in reversed(self.events(number)) if event.get("event") == "worker_ends"), {})

    async def faults(self, *rules: dict[str, Any]) -> None:
        """Switches faults on at the exchange; no rule switches all off."""
        async with aiohttp.ClientSession() as session:
            await session.delete(f"{self.simulator_url}/simulator/faults")
            if rules:
                async with session.post(f"{self.simulator_url}/simulator/faults", json=list(rules)) as response:
                    response.raise_for_status()

    async def pin_price(self, symbol: str, price: str) -> None:
        """Sets a price at the exchange (its own form of the symbol, `BTCUSDT`), where it stays."""
        url, price_set = f"{self.simulator_url}/simulator/price", {"symbol": symbol, "price": price}
        async with aiohttp.ClientSession() as session, session.post(url, json=price_set) as response:
            response.raise_for_status()

    async def publish(self, requests: Sequence[dict[str, Any] | bytes | None], partition: int | None = None) -> list[ConsumerRecord]:
        """Publishes requests, keyed by user; returns what the broker said of each."""
        producer = AIOKafkaProducer(bootstrap_servers=self.settings.kafka_bootstrap_servers, linger_ms=2)
        await producer.start()
        try:
            sends = []
            for request in requests:
                value = json.dumps(request).encode() if isinstance(request, dict) else request
                key = str(request.get("user_id")).encode() if isinstance(request, dict) else b"key"
                sends.append(await producer.send(self.topics.requests, value, key=key, partition=partition))
            return list(await asyncio.gather(*sends))
        finally:
            await producer.stop()

    @asynccontextmanager
    async def following(self, topic: str) -> AsyncIterator[Callable[[], Awaitable[list[ConsumerRecord]]]]:
        """A read_committed consumer of a topic. Each call of what it gives returns the records up to the topic's end as of the call that
        no call before has returned."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.kafka_bootstrap_servers,
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
            # By default aiokafka goes to the end as soon as it is assigned, and may do so after it was told to go to the beginning.
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for number in range(self.settings.kafka_partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)

            async def read_on() -> list[ConsumerRecord]:
                ends = await consumer.end_offsets(partitions)
                records: list[ConsumerRecord] = []
                deadline = monotonic() + 30
                while any([await consumer.position(partition) < ends[partition] for partition in partitions]) and monotonic() < deadline:
                    for fetched in (await consumer.getmany(timeout_ms=200)).values():
                        records += fetched
                return records

            yield read_on
        finally:
            await consumer.stop()

    async def read(self, topic: str) -> list[ConsumerRecord]:
        """Everything that a read_committed consumer sees of a topic now."""
        async with self.following(topic) as read_on:
            return await read_on()

    async def results(self) -> list[dict[str, Any]]:
        return [json.loads(record.value) for record in await self.read(self.topics.results)]

    async def final_results(self, sent: Sequence[Any], within_seconds: float) -> dict[tuple[int, int], dict[str, Any]]:
        """Waits for the final answer to each of these records, by (partition, offset). Fails on a second one."""
        wanted = {(record.partition, record.offset) for record in sent}
        deadline = monotonic() + within_seconds
        finals: list[dict[str, Any]] = []
        # One consumer for all looks: a new one each time would cost as much as the workers that are waited for.
        async with self.following(self.topics.results) as read_on:
            while True:
                finals += [result for record in await read_on() if (result := json.loads(record.value))["final"]]
                counts = Counter((result["source"]["partition"], result["source"]["offset"]) for result in finals)
                assert not {source: count for source, count in counts.items() if count > 1}, "answered twice"
                if wanted <= set(counts):
                    return {(result["source"]["partition"], result["source"]["offset"]): result for result in finals}
                if monotonic() > deadline:
                    logs = "\n".join(self.worker_log(number)[-3_000:] for number in range(len(self.workers)))
                    raise AssertionError(f"{len(wanted - set(counts))} of {len(wanted)} records without a final answer\n{logs}")
                await asyncio.sleep(0.3)

    async def until_at_rest(self, within_seconds: float) -> None:
        """Waits until no input partition has anything left, not even a marker of a transaction that its offset must move past."""
        deadline = monotonic() + within_seconds
        while True:
            rows = await read_offsets(self.settings, self.settings.kafka_bootstrap_servers or "")
            behind = [row for row in rows if row.end_offset > (row.committed_offset or 0)]
            if not behind:
                return
            assert monotonic() < deadline, f"still waiting: {behind}"
            await asyncio.sleep(0.1)

    def accepted_orders(self) -> list[OrderAccepted]:
        """The orders that the exchange's own log says it accepted."""
        return [record for record in read_log(self.exchange_log) if isinstance(record, OrderAccepted)]


_NUMBERS = (
    "receive_window_ms", "venue_timeout_ms", "venue_read_lag_ms", "exchange_timeout_ms", "session_timeout_ms", "rebalance_timeout_ms",
    "reconcile_interval_ms", "transaction_timeout_ms", "stall_seconds_max", "kafka_partitions", "exchange_rate_limit", "trade_usd_min",
    "trade_usd_max",
)  # fmt: skip


def order(number: int, **fields: Any) -> dict[str, Any]:
    """A market order of one of the users, different for each number; `fields` replace or (None) remove."""
    request = {
        "schema_version": 1,
        "type": "trade",
        "idempotency_key": f"key-{number}",
        "user_id": USERS[number % len(USERS)],
        "mode": "live",
        "exchange": "binance",
        "api_key_id": "main",
        "symbol": "BTC/USDT",
        "side": "buy" if number % 2 else "sell",
        "order_type": "market",
        "quantity": "0.001",
        "expires_at": "2100-01-01T00:00:00Z",
        **fields,
    }
    return {name: value for name, value in request.items() if value is not None}


@asynccontextmanager
async def installation(
    kafka: str,
    database_url: str,
    prefix: str,
    directory: Path,
    *simulator_options: str,
    users: Sequence[str] = USERS,
    before_migration: Callable[[Installation], Awaitable[object]] | None = None,
    **overrides: Any,
) -> AsyncIterator[Installation]:
    """Starts everything but workers; stops and kills everything, workers too. `users` get money and a key each. `before_migration` is
    awaited while the database is as it was given, without users."""
    master_key = new_master_key()
    simulator = prepared.start_piped(
        "simulator", "--port", "0", "--data-dir", str(directory / "exchange"), "--venue-timeout-ms", "1000", "--parent-pipe",
        *simulator_options,
    )  # fmt: skip
    try:
        url = json.loads(await asyncio.to_thread(_first_line, simulator))["url"]
        values: dict[str, Any] = {
            "kafka_bootstrap_servers": kafka,
            "database_url": database_url,
            "master_key": master_key,
            "topic_prefix": prefix,
            "consumer_group": f"{prefix}workers",
            "exchange_urls": {"binance": url},
            "receive_window_ms": 3_000,
            "venue_timeout_ms": 1_000,
            "venue_read_lag_ms": 500,
            "exchange_timeout_ms": 1_500,
            "session_timeout_ms": SESSION_TIMEOUT_MS,
            "rebalance_timeout_ms": 8_000,
            "reconcile_interval_ms": 300,
            "kafka_partitions": 2,
            "exchange_rate_limit": False,
            **Settings.without_limits(),
            **overrides,
        }
        settings = Settings(**values)
        made = Installation(settings, Topics(prefix), url, directory / "exchange" / "exchange-log.jsonl", directory, simulator.pid)
        try:
            if before_migration is not None:
                await before_migration(made)
            await migrate(database_url)
            await ensure_topics(settings, kafka)
            await _add_users(settings, url, users)
            yield made
        finally:
            await _stop(made.workers)
    finally:
        simulator.terminate()
        await asyncio.to_thread(simulator.wait)
        for pipe in (simulator.stdin, simulator.stdout):
            if pipe is not None:
                pipe.close()


def _first_line(program: subprocess.Popen[bytes]) -> bytes:
    """The first line that it prints; AssertionError where it does not in time."""
    assert program.stdout is not None
    readable, _, _ = select.select([program.stdout], [], [], 60)
    assert readable, "the simulated exchange did not start"
    return program.stdout.readline()


async def _add_users(settings: Settings, simulator_url: str, user_ids: Sequence[str]) -> None:
    keyring = keyring_of(settings)
    users = []
    for user in user_ids:
        ciphertext = keyring.encrypt(user, "main", StoredSecret(f"key-{user}", f"secret-{user}"))
        users.append(NewUser(user, "binance", "main", keyring.key_id, ciphertext, OPENING))
    if settings.database_url is None:
        raise RuntimeError("an installation has a database")
    database = await connect(settings.database_url.get_secret_value(), 2, 10)
    try:
        await add_users(database, users, utc_now(), "test")
        await publish_audit_events(settings, settings.kafka_bootstrap_servers or "", database)
    finally:
        await database.close()
    accounts = [
        {
            "label": user,
            "api_key": f"key-{user}",
            "secret": f"secret-{user}",
            "balances": {asset: str(amount) for asset, amount in OPENING.items()},
        }
        for user in user_ids
    ]
    async with aiohttp.ClientSession() as session, session.post(f"{simulator_url}/simulator/accounts", json=accounts) as response:
        response.raise_for_status()


async def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks all to stop, wakes up the paused, kills what is left."""
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
    deadline = monotonic() + 15
    for worker in workers:
        while worker.poll() is None and monotonic() < deadline:
            await asyncio.sleep(0.05)
        if worker.poll() is None:
            worker.kill()
            worker.wait()


async def ended(worker: subprocess.Popen[bytes], within_seconds: float) -> int:
    """Waits until a worker has ended; returns its exit code, negative for a signal."""
    deadline = monotonic() + within_seconds
    while worker.poll() is None:
        assert monotonic() < deadline, "the worker did not end"
        await asyncio.sleep(0.05)
    return int(worker.returncode)


def unique_file(directory: Path) -> str:
    return str(directory / f"once-{uuid.uuid4().hex}")
