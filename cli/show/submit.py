"""`submit`: publishes requests from JSON Lines, and waits for their answers where asked to.

Invariants:
1. A line is published as it stands: nothing is added, so that whatever the answer says is about what the user wrote.
2. An answer belongs to the line whose record its `source` names, never to one that looks alike.
3. What was not confirmed by the broker is told by line number. Submitting it again is safe: the idempotency key is the same.
4. At most `_IN_FLIGHT_MAX` records wait for the broker.
5. Token and codes are in the records' headers and in no message. A code is accepted once, so each is sent with one record.

Start with `submit`.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RequestTimedOutError
from aiokafka.structs import RecordMetadata

from cli.access.installation import Installation
from cli.show.proof import Proof
from cli.show.results import result_partitions
from cli.terminal.exits import CommandFailed, Exit, ReaderGone
from cli.terminal.lines import Line, TooLong, numbered_lines
from cli.terminal.output import reason_of, say, to_json, write_line
from infra.kafka.connection import client_options
from schemas.results import ResultStatus
from schemas.topics import REQUESTS_MESSAGE_BYTES_MAX, Topics

_IN_FLIGHT_MAX: Final = 1_000
_CONNECT_SECONDS: Final = 10
# How long the producer itself tries to get a record confirmed.
_REQUEST_SECONDS: Final = 15
_NAMED_MAX: Final = 10
# Batch and record headers take some of the topic's limit.
_LINE_BYTES_MAX: Final = REQUESTS_MESSAGE_BYTES_MAX - 1_024
_AGAIN: Final = "Submitting the file again is safe: lines that were executed are answered again, not executed again."

# Answers that say that nothing was done, or not all of it.
_NOT_EXECUTED: Final = frozenset({ResultStatus.REJECTED.value, ResultStatus.FAILED.value})

Source = tuple[int, int]


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """`raw` publishes lines that are no JSON objects too. `timeout_seconds` counts from the last published line.

    `totp` is the code for the first line that moves real money, `totp_secret_file` has the secret to make one for each of them.
    `fail_on_reject` makes an answer that nothing was executed a failure of the command.
    """

    file: str
    wait: bool = False
    timeout_seconds: float = 60.0
    raw: bool = False
    as_json: bool = False
    token_file: Path | None = None
    totp: str | None = field(default=None, repr=False)
    totp_secret_file: Path | None = None
    fail_on_reject: bool = False


@dataclass(slots=True)
class _Progress:
    """Line numbers by what became of them."""

    published: int = 0
    refused: list[int] = field(default_factory=list)
    unconfirmed: list[int] = field(default_factory=list)
    waiting: dict[Source, int] = field(default_factory=dict)
    # The newest answer that was not the last one, by line.
    interim: dict[int, str] = field(default_factory=dict)
    # Final answers by status and reason code.
    answered: Counter[tuple[str, str | None]] = field(default_factory=Counter)


def _listed(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    more = f" and {len(ordered) - _NAMED_MAX} more" if len(ordered) > _NAMED_MAX else ""
    return ", ".join(map(str, ordered[:_NAMED_MAX])) + more


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"


def summary(answered: Mapping[tuple[str, str | None], int]) -> str:
    """How many answers have which status, and for those with a reason code which."""
    statuses: Counter[str] = Counter()
    for (status, _), count in answered.items():
        statuses[status] += count
    parts = []
    for status, count in sorted(statuses.items()):
        reasons = sorted((code, of) for (other, code), of in answered.items() if other == status and code is not None)
        named = ", ".join(code if len(reasons) == 1 and of == count else f"{of} {code}" for code, of in reasons)
        parts.append(f"{count} {status}" + (f" ({named})" if named else ""))
    return ", ".join(parts)


def user_of(value: bytes) -> str | None:
    """The `user_id` of a line, which becomes the record's key, "" where it has none that is text; None where the line is no JSON object."""
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict):
        return None
    user_id = document.get("user_id")
    return user_id if isinstance(user_id, str) else ""


async def submit(installation: Installation, options: SubmitOptions) -> Exit:
    """Publishes every line and returns DONE, or NOT_SO where a line was not published or not answered in time.

    Raises CommandFailed for a file that cannot be read and for a broker that is out of reach.
    """
    descriptor = _open(options.file)
    try:
        return await _Submission(installation, options).run(descriptor)
    except (KafkaError, OSError, TimeoutError) as error:
        raise installation.out_of_reach("broker", installation.kafka, reason_of(error)) from None
    finally:
        if options.file != "-":
            os.close(descriptor)


def _open(file: str) -> int:
    if file == "-":
        return 0
    try:
        if Path(file).is_dir():
            raise IsADirectoryError(None, "it is a directory")
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CommandFailed(
            f"{file} cannot be read: {error.strerror}. Nothing was published and no order was sent. "
            "Name a file of JSON Lines, one request a line, or - for standard input.",
            Exit.USAGE,
        ) from None


class _Submission:
    """One run of the command."""

    def __init__(self, installation: Installation, options: SubmitOptions) -> None:
        self._installation = installation
        self._options = options
        self._proof = Proof(options.token_file, options.totp, options.totp_secret_file)
        self._topics = Topics(installation.settings.topic_prefix)
        self._progress = _Progress()
        self._in_flight: set[asyncio.Task[None]] = set()
        # What ends the publishing: the broker is away, or nobody reads where the lines were published.
        self._failure: KafkaError | ReaderGone | None = None
        self._all_answered = asyncio.Event()
        self._all_read = False

    async def run(self, descriptor: int) -> Exit:
        client = client_options(self._installation.settings, self._installation.kafka)
        partitions = await result_partitions(client, self._topics)
        async with AsyncExitStack() as stack:
            reader = None
            if self._options.wait:
                consumer = AIOKafkaConsumer(
                    **client, isolation_level="read_committed", enable_auto_commit=False, fetch_max_wait_ms=100, request_timeout_ms=10_000
                )
                await asyncio.wait_for(consumer.start(), _CONNECT_SECONDS)
                stack.push_async_callback(consumer.stop)
                # Answers come after the end that the topic has before the first line is published.
                await asyncio.wait_for(_go_to_end(consumer, partitions), _CONNECT_SECONDS)
                reader = asyncio.create_task(self._read_results(consumer))
                stack.callback(reader.cancel)
            producer = AIOKafkaProducer(
                **client,
                enable_idempotence=True,
                acks="all",
                linger_ms=5,
                request_timeout_ms=_REQUEST_SECONDS * 1000,
                max_request_size=2 * REQUESTS_MESSAGE_BYTES_MAX,
            )
            await asyncio.wait_for(producer.start(), _CONNECT_SECONDS)
            stack.push_async_callback(_stop, producer)
            try:
                await self._publish_all(descriptor, producer)
            finally:
                # Also when it was interrupted: what was published is worked off.
                self._tell_published()
            self._all_read = True
            if reader is not None and self._progress.published:
                await self._wait(reader)
        return self._end()

    async def _publish_all(self, descriptor: int, producer: AIOKafkaProducer) -> None:
        async for line in numbered_lines(descriptor, _LINE_BYTES_MAX):
            if isinstance(line, TooLong):
                self._refuse(line.number, f"is longer than {_LINE_BYTES_MAX} bytes")
                continue
            user_id = user_of(line.value)
            if user_id is None and not self._options.raw:
                self._refuse(line.number, "is not a JSON object")
                continue
            if len(self._in_flight) >= _IN_FLIGHT_MAX:
                await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
            if self._failure is not None:
                break
            await self._send(producer, line, user_id or None)
        if self._in_flight:
            await asyncio.wait(self._in_flight)
        if isinstance(self._failure, ReaderGone):
            raise self._failure
        if self._failure is not None:
            raise CommandFailed(
                f"The broker stopped answering ({type(self._failure).__name__}). {_lines(self._progress.published)} published, which "
                f"will be worked off; not confirmed, so published or not: line {_listed(self._progress.unconfirmed)}; the lines after them "
                f"were not published. {_AGAIN}",
                Exit.OUT_OF_REACH,
            )

    def _refuse(self, number: int, why: str) -> None:
        self._progress.refused.append(number)
        say(f"line {number}: {why}; it was not published.")

    async def _send(self, producer: AIOKafkaProducer, line: Line, user_id: str | None) -> None:
        """Hands one record over, in the order of the lines: a cancel must not overtake its order."""
        key = None if user_id is None else user_id.encode()
        try:
            headers = await self._proof.headers(line)
            delivery = await producer.send(self._topics.requests, line.value, key=key, headers=headers)
        except KafkaError as error:
            self._not_published(line.number, error)
            return
        task = asyncio.create_task(self._confirmed(delivery, line.number))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    async def _confirmed(self, delivery: asyncio.Future[RecordMetadata], number: int) -> None:
        try:
            record = await delivery
        except KafkaError as error:
            self._not_published(number, error)
            return
        self._progress.published += 1
        if self._options.wait:
            self._progress.waiting[record.partition, record.offset] = number
        elif self._options.as_json:
            source = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            try:
                write_line(to_json({"line": number, "source": source}))
            except ReaderGone as error:
                self._failure = error

    def _not_published(self, number: int, error: KafkaError) -> None:
        if isinstance(error, MessageSizeTooLargeError):
            self._refuse(number, "is longer than the broker takes")
        elif isinstance(error, KafkaTimeoutError | RequestTimedOutError | KafkaConnectionError):
            self._progress.unconfirmed.append(number)
            self._failure = error
        else:
            self._refuse(number, f"was refused by the broker ({type(error).__name__})")

    def _tell_published(self) -> None:
        found = f"{_lines(self._progress.published)} published to {self._topics.requests}"
        refused = f", {len(self._progress.refused)} not published" if self._progress.refused else ""
        if not self._progress.published and not refused:
            say("There is no line to publish.")
        else:
            say(f"{found}{refused}.")

    async def _read_results(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            batches = await consumer.getmany(timeout_ms=500)
            # A record that was answered was appended before: once what is in flight now is confirmed, its place is known.
            if batches and self._in_flight:
                await asyncio.wait(set(self._in_flight))
            for records in batches.values():
                for record in records:
                    self._take(record.value)
            if self._all_read and not self._progress.waiting:
                self._all_answered.set()

    def _take(self, value: bytes | None) -> None:
        result = orjson.loads(value) if value else {}
        source = result.get("source") or {}
        if source.get("topic") != self._topics.requests:
            return
        place = (source["partition"], source["offset"])
        number = self._progress.waiting.get(place)
        if number is None:
            return
        if not result["final"]:
            self._progress.interim[number] = result["status"]
            return
        del self._progress.waiting[place]
        self._progress.interim.pop(number, None)
        self._progress.answered[result["status"], result.get("reason_code")] += 1
        write_line((value or b"").decode())

    async def _wait(self, reader: asyncio.Task[None]) -> None:
        """Until every line is answered, the time is over, or the results cannot be read any more (then it raises the reason)."""
        if not self._progress.waiting:
            return
        answered = asyncio.create_task(self._all_answered.wait())
        deadline = monotonic() + self._options.timeout_seconds
        try:
            await asyncio.wait({answered, reader}, timeout=max(0.0, deadline - monotonic()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            answered.cancel()
        if reader.done():
            reader.result()

    def _end(self) -> Exit:
        progress = self._progress
        if progress.waiting:
            say(
                f"{_lines(len(progress.waiting))} without a final answer after {self._options.timeout_seconds:g} s: "
                f"line {_listed(progress.waiting.values())}. What is in Kafka will be answered on {self._topics.results}; "
                f"`orchestrator lag` shows whether workers are behind. {_AGAIN}"
            )
            resting = [number for number in progress.waiting.values() if progress.interim.get(number) == "open"]
            if resting:
                say(f"Among them orders that are open, answered when they are filled or canceled: line {_listed(resting)}.")
        elif self._options.wait and progress.published:
            say(f"{_lines(progress.answered.total())} answered: {summary(progress.answered)}.")
        if progress.waiting and progress.answered:
            say(f"Of the others: {summary(progress.answered)}.")
        failed = progress.waiting or progress.refused or not progress.published
        rejected = self._options.fail_on_reject and any(status in _NOT_EXECUTED for status, _ in progress.answered)
        return Exit.NOT_SO if failed or rejected else Exit.DONE


async def _go_to_end(consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
    consumer.assign(partitions)
    for partition, offset in (await consumer.end_offsets(partitions)).items():
        consumer.seek(partition, offset)


async def _stop(producer: AIOKafkaProducer) -> None:
    try:
        await asyncio.wait_for(producer.stop(), _CONNECT_SECONDS)
    except (KafkaError, TimeoutError):
        # Everything in flight was waited for: there is nothing left to lose.
        return
