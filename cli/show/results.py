"""`results`: the answers on `trade.results`, as they were published; with `--follow` also those that come.

Invariants:
1. What is read is what a `read_committed` consumer sees, in the order of each partition.
2. Nothing is kept: however many answers there are, each is printed as it is read and forgotten.
3. Reading commits no offset and joins no group: it takes nothing from anybody.

Start with `show_results`.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from cli.access.installation import Installation
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import printable, reason_of, say, wrapped, write_line
from infra.kafka.connection import client_options
from schemas.results import ResultStatus
from schemas.topics import Topics

_CONNECT_SECONDS: Final = 10.0
_POLL_MS: Final = 500
# A topic that is read to its end gives something within this, unless an open transaction holds its end back.
_SILENT_SECONDS_MAX: Final = 5.0


@dataclass(frozen=True, slots=True)
class ResultsOptions:
    """What is shown. None: all. `name` is any id or key that an answer has. `from_end` leaves out what was published before."""

    follow: bool = False
    from_end: bool = False
    user_id: str | None = None
    name: str | None = None
    status: ResultStatus | None = None
    final: bool = False
    as_json: bool = False

    def takes(self, result: Mapping[str, Any]) -> bool:
        """Whether an answer is shown."""
        return (
            (self.user_id is None or result.get("user_id") == self.user_id)
            and (self.status is None or result.get("status") == self.status.value)
            and (not self.final or result.get("final") is True)
            and (self.name is None or self.name in {result.get(field) for field in _NAMES})
        )


_NAMES: Final = ("request_id", "idempotency_key", "order_id", "client_order_id", "exchange_order_id")


async def result_partitions(client: dict[str, Any], topics: Topics) -> list[TopicPartition]:
    """The partitions of the results topic. Raises CommandFailed where the installation has no topics yet, and what aiokafka raises."""
    admin = AIOKafkaAdminClient(**client, request_timeout_ms=int(_CONNECT_SECONDS * 1000))
    names = [topics.requests, topics.results]
    try:
        await asyncio.wait_for(admin.start(), _CONNECT_SECONDS)
        existing = set(await admin.list_topics())
        missing = [name for name in names if name not in existing]
        described = [] if missing else await admin.describe_topics(names)
    finally:
        await admin.close()
    if missing:
        # Publishing would create it on a broker that allows that, with settings that break a promise.
        raise CommandFailed(
            f"The broker has no topic {' and no topic '.join(missing)}: no worker has started against it yet. Nothing was published. "
            "Start one with `orchestrator worker` or `orchestrator up`, or check ORCHESTRATOR_TOPIC_PREFIX.",
            Exit.OUT_OF_REACH,
        )
    results = next(topic for topic in described if topic["topic"] == topics.results)
    return [TopicPartition(topics.results, row["partition"]) for row in results["partitions"]]


async def show_results(installation: Installation, options: ResultsOptions) -> Exit:
    """Prints answers: those that are there, and with `follow` what comes until it is interrupted. Raises CommandFailed."""
    topics = Topics(installation.settings.topic_prefix)
    client = client_options(installation.settings, installation.kafka)
    try:
        partitions = await result_partitions(client, topics)
        async with _consumer(client) as consumer:
            shown = await _read(consumer, partitions, options)
    except (KafkaError, OSError, TimeoutError) as error:
        raise installation.out_of_reach("broker", installation.kafka, reason_of(error)) from None
    if not shown:
        say("No matching answers.")
    return Exit.DONE


@asynccontextmanager
async def _consumer(client: dict[str, Any]) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        **client, isolation_level="read_committed", enable_auto_commit=False, fetch_max_wait_ms=100, request_timeout_ms=10_000
    )
    await asyncio.wait_for(consumer.start(), _CONNECT_SECONDS)
    try:
        yield consumer
    finally:
        await consumer.stop()


async def _read(consumer: AIOKafkaConsumer, partitions: list[TopicPartition], options: ResultsOptions) -> int:
    consumer.assign(partitions)
    ends = await asyncio.wait_for(consumer.end_offsets(partitions), _CONNECT_SECONDS)
    starts = ends if options.from_end else await asyncio.wait_for(consumer.beginning_offsets(partitions), _CONNECT_SECONDS)
    for partition, offset in starts.items():
        consumer.seek(partition, offset)
    loop = asyncio.get_running_loop()
    shown, silent_since = 0, loop.time()
    while options.follow or await _is_before(consumer, ends):
        batches = await consumer.getmany(timeout_ms=_POLL_MS)
        for records in batches.values():
            for record in records:
                shown += _show(record.value, options)
        if batches:
            silent_since = loop.time()
        elif not options.follow and loop.time() - silent_since > _SILENT_SECONDS_MAX:
            say("The end of the topic belongs to a transaction that is still open: its answers are not there yet.")
            break
    return shown


async def _is_before(consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> bool:
    return any([await consumer.position(partition) < end for partition, end in ends.items()])


def _show(value: bytes | None, options: ResultsOptions) -> int:
    """Prints an answer that is asked for; returns 1 where it did."""
    result = orjson.loads(value) if value else {}
    if not options.takes(result):
        return 0
    if options.as_json:
        write_line((value or b"").decode())
    else:
        write_line("\n".join(wrapped(result_line(result), 4)))
    return 1


def result_line(result: Mapping[str, Any]) -> str:
    """An answer in one line for people: when, whose, which key, what became of it, and why or under which id."""
    status = str(result["status"]) + ("" if result.get("final") else " (not final)") + (" (again)" if result.get("replayed") else "")
    parts = [f"{str(result['decided_at'])[:23]}Z", result.get("user_id") or "–", result.get("idempotency_key") or "–", status]
    if result.get("reason_code"):
        parts.append(f"{result['reason_code']}: {result.get('reason')}")
    elif result.get("filled_quantity") not in (None, "0"):
        price = f" at {result['average_price']}" if result.get("average_price") else ""
        parts.append(f"{result['filled_quantity']}{price}")
    if result.get("order_id"):
        parts.append(str(result["order_id"]))
    return printable("  ".join(map(str, parts)))
