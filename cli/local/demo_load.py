"""The demo's load: publishes the requests, shows how many are answered, and waits until nothing is under way any more.

What is shown meanwhile comes from the database and is for people; the figures of the summary are counted afterwards from the topics.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from cli.local.demo_identities import Identities
from cli.local.demo_requests import DemoRecord
from infra.kafka.connection import client_options
from infra.postgres.database import Database
from infra.settings import Settings
from pipeline.model.invariants import Retryable
from schemas.topics import Topics
from verification.evidence.exchange_log import read_books
from verification.evidence.topics import read_ends, read_offsets
from verification.promises.books import ExchangeBooks
from verification.promises.deposits import Booked

_CHUNK: Final = 100
_POLL_SECONDS: Final = 0.5
_SEND_SECONDS_MAX: Final = 60.0
# Longer than the pause between two rounds of look-ups in a demo.
_REST_SECONDS: Final = 1.5


async def publish(
    settings: Settings,
    bootstrap_servers: str,
    identities: Identities,
    records: Sequence[DemoRecord],
    seconds: float,
    published: Callable[[int], None],
) -> None:
    """Publishes the records in order, spread over `seconds` (0: as fast as the broker takes them), each with the token and the code that
    its signer has then. Raises Retryable without a broker."""
    topic = Topics(settings.topic_prefix).requests
    producer = AIOKafkaProducer(**client_options(settings, bootstrap_servers), enable_idempotence=True, acks="all", linger_ms=2)
    started_at = monotonic()
    # Ten parts a second where the load is spread, so that it is a stream and not a few bursts.
    size = _CHUNK if seconds <= 0 else max(1, min(_CHUNK, int(len(records) / (10 * seconds))))
    try:
        await producer.start()
        try:
            for begin in range(0, len(records), size):
                chunk = records[begin : begin + size]
                async with asyncio.timeout(_SEND_SECONDS_MAX):
                    sends = [
                        await producer.send(
                            topic,
                            record.value,
                            key=record.key,
                            headers=[*record.headers, *identities.headers(record.signer, record.proof)],
                        )
                        for record in chunk
                    ]
                    await asyncio.gather(*sends)
                done = begin + len(chunk)
                published(done)
                await asyncio.sleep(max(0.0, started_at + seconds * done / len(records) - monotonic()))
        finally:
            await producer.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        raise Retryable(f"the broker is out of reach ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the database is: records that intake has read, and what is still under way."""

    read: int
    unfinished: int
    in_doubt: int
    pending_cancels: int

    @property
    def answered(self) -> int:
        return max(0, self.read - self.unfinished - self.in_doubt)

    @property
    def is_quiet(self) -> bool:
        return self.unfinished == self.in_doubt == self.pending_cancels == 0

    def __str__(self) -> str:
        under_way = f"{self.unfinished} orders, withdrawals and announced deposits under way"
        return f"{under_way}, {self.in_doubt} in doubt, {self.pending_cancels} cancels waiting"


async def standing(database: Database, settings: Settings) -> Standing:
    """Reads how far the database is. Raises Retryable when it is out of reach."""
    async with database.connection() as connection:
        row = await connection.fetchrow(
            """
            SELECT
              (SELECT coalesce(sum(greatest(next_offset, 0)), 0) FROM input_partitions WHERE consumer_group = $1 AND topic = $2) AS read,
              (SELECT count(*) FROM orders WHERE executed_at IS NULL AND status IN ('accepted', 'submitting'))
                + (SELECT count(*) FROM withdrawals WHERE executed_at IS NULL AND status <> 'in_doubt')
                + (SELECT count(*) FROM deposit_announcements WHERE executed_at IS NULL) AS unfinished,
              (SELECT count(*) FROM orders WHERE executed_at IS NULL AND status = 'in_doubt')
                + (SELECT count(*) FROM withdrawals WHERE executed_at IS NULL AND status = 'in_doubt') AS in_doubt,
              (SELECT count(*) FROM cancels WHERE NOT ended) AS pending_cancels
            """,
            settings.consumer_group,
            Topics(settings.topic_prefix).requests,
        )
    if row is None:
        raise Retryable("the database gave no row")
    return Standing(int(row["read"]), row["unfinished"], row["in_doubt"], row["pending_cancels"])


async def begin_offsets(settings: Settings, bootstrap_servers: str) -> dict[int, int]:
    """The end of every partition of the requests topic now: where this run's requests begin."""
    topic = Topics(settings.topic_prefix).requests
    return {partition.partition: end for partition, end in (await read_ends(settings, bootstrap_servers, [topic])).items()}


@dataclass(slots=True)
class Rest:
    """Waits until the system is at rest with `expected` records read. `paused` counts the workers that stand still and may go on;
    `why_not` says what kept it from rest, for people.

    Rest is what every look sees for `_REST_SECONDS`, with all workers awake: one that wakes up says what it had in hand, and a report of
    its look-ups would be left behind when all have stopped.
    """

    settings: Settings
    bootstrap_servers: str
    database: Database
    exchange_log: Path
    expected: int
    paused: Callable[[], int]
    why_not: str = "it was not looked at yet"

    async def reached(self, seconds: float, answered: Callable[[int], None]) -> bool:
        """Whether everything read, answered and settled within `seconds`; the exchange's prices must be held still."""
        deadline = monotonic() + seconds
        since: float | None = None
        while True:
            if not await self._is_reached(answered):
                since = None
                if monotonic() > deadline:
                    return False
            elif since is None:
                since = monotonic()
            elif monotonic() - since >= _REST_SECONDS:
                return True
            await asyncio.sleep(_POLL_SECONDS)

    async def _is_reached(self, answered: Callable[[int], None]) -> bool:
        paused = self.paused()
        try:
            is_quiet = await self._nothing_is_under_way(answered)
        except Retryable as error:
            # The broker may still be looking for the group's coordinator.
            self.why_not = str(error)
            return False
        if is_quiet and paused:
            self.why_not = f"{paused} workers are paused"
        return is_quiet and not paused

    async def _nothing_is_under_way(self, answered: Callable[[int], None]) -> bool:
        now = await standing(self.database, self.settings)
        answered(now.answered)
        self.why_not = f"{self.expected - now.read} records are not read, {now}"
        if now.read < self.expected or not now.is_quiet or not await self._offsets_meet():
            return False
        books = await asyncio.to_thread(read_books, self.exchange_log)
        return await self._resting_orders_agree(books) and await self._deposits_agree(books)

    async def _offsets_meet(self) -> bool:
        behind = [
            TopicPartition(row.topic, row.partition)
            for row in await read_offsets(self.settings, self.bootstrap_servers)
            if row.end_offset > (row.committed_offset or 0)
        ]
        self.why_not = f"records wait on {len(behind)} input partitions"
        return not behind

    async def _resting_orders_agree(self, books: ExchangeBooks) -> bool:
        """Whether our resting orders are what the exchange has: a fill is known to us only at the next look-up."""
        booked = {order.client_order_id: (order.status.value, order.cum_quantity) for order in books.orders}
        async with self.database.connection() as connection:
            rows = await connection.fetch(
                "SELECT client_order_id, status, cum_quantity FROM orders WHERE executed_at IS NULL AND mode = 'live'"
            )
        behind = [row for row in rows if booked.get(row["client_order_id"]) != (row["status"], row["cum_quantity"])]
        self.why_not = f"{len(behind)} resting orders have moved on at the exchange"
        return not behind

    async def _deposits_agree(self, books: ExchangeBooks) -> bool:
        """Whether every deposit is over at the exchange, and stands with us as it does there."""
        async with self.database.connection() as connection:
            rows = await connection.fetch("SELECT exchange_deposit_id, status FROM deposits")
        ours = {row["exchange_deposit_id"]: row["status"] for row in rows}
        behind = [row for row in books.deposits if ours.get(row.exchange_deposit_id, "") not in _AGREED[row.state]]
        self.why_not = f"{len(behind)} deposits have moved on at the exchange"
        return not behind


# A deposit that was taken back before it was seen was never credited.
_AGREED: Final = {
    Booked.UNDER_WAY: frozenset[str](),
    Booked.CREDITED: frozenset({"credited"}),
    Booked.TAKEN_BACK: frozenset({"reversed", "rejected"}),
}
