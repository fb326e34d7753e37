"""Publishing lines: order, bounds, and what is told when the broker refuses a record or goes away."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiokafka.errors import InvalidTopicError, KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from aiokafka.structs import RecordMetadata, TopicPartition

from cli.access.installation import Installation
from cli.show.submit import _IN_FLIGHT_MAX, SubmitOptions, _Submission
from cli.terminal.exits import CommandFailed, Exit
from infra.settings import Settings

Publish = Callable[..., Awaitable[_Submission]]


@dataclass
class Broker:
    """Stands in for a producer: confirms each record after a moment, or fails the ones that `errors` names by number from 1."""

    errors: dict[int, KafkaError] = field(default_factory=dict)
    delay_seconds: float = 0.0
    records: list[tuple[bytes | None, bytes]] = field(default_factory=list)
    unconfirmed: int = 0
    unconfirmed_max: int = 0

    async def send(
        self, topic: str, value: bytes, *, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> asyncio.Future[RecordMetadata]:
        assert headers == []
        self.records.append((key, value))
        number = len(self.records)
        self.unconfirmed += 1
        self.unconfirmed_max = max(self.unconfirmed, self.unconfirmed_max)
        return asyncio.ensure_future(self._confirm(topic, number))

    async def _confirm(self, topic: str, number: int) -> RecordMetadata:
        await asyncio.sleep(self.delay_seconds)
        self.unconfirmed -= 1
        if number in self.errors:
            raise self.errors[number]
        return RecordMetadata(topic, 0, TopicPartition(topic, 0), number - 1, 0, 0, 0)


@pytest.fixture
async def publish(tmp_path: Path) -> AsyncIterator[Publish]:
    """Publishes lines to a stand-in; returns the submission."""
    opened = []

    async def run(broker: Broker, lines: Sequence[bytes], *, raw: bool = False) -> _Submission:
        file = tmp_path / "lines"
        file.write_bytes(b"\n".join(lines))
        opened.append(os.open(file, os.O_RDONLY))
        settings = Settings(kafka_bootstrap_servers="127.0.0.1:1", database_url=None)
        submission = _Submission(Installation(settings), SubmitOptions(file=str(file), wait=True, raw=raw))
        await submission._publish_all(opened[-1], broker)  # type: ignore[arg-type]  # a stand-in
        return submission

    yield run
    for descriptor in opened:
        os.close(descriptor)


async def test_lines_are_published_in_their_order_under_their_users(publish: Publish) -> None:
    """A cancel must not overtake its order; what is published is what was written."""
    broker = Broker()
    lines = [b'{"user_id":"u%d", "n" : %d}' % (number % 3, number) for number in range(100)]
    await publish(broker, lines)
    assert [value for _, value in broker.records] == lines
    assert [key for key, _ in broker.records] == [b"u%d" % (number % 3) for number in range(100)]


async def test_records_in_flight_are_bounded(publish: Publish) -> None:
    """A slow broker slows the reading down; memory does not grow with the file."""
    broker = Broker(delay_seconds=0.01)
    await publish(broker, [b"{}"] * (3 * _IN_FLIGHT_MAX))
    assert broker.unconfirmed_max <= _IN_FLIGHT_MAX
    assert len(broker.records) == 3 * _IN_FLIGHT_MAX


@pytest.mark.parametrize("error", [MessageSizeTooLargeError(), InvalidTopicError()])
async def test_refused_record_is_named_and_the_others_go_on(
    publish: Publish, capsys: pytest.CaptureFixture[str], error: KafkaError
) -> None:
    """One bad line is one message."""
    broker = Broker(errors={2: error})
    submission = await publish(broker, [b"{}"] * 4)
    assert len(broker.records) == 4
    assert "line 2: " in capsys.readouterr().err
    assert submission._end() is Exit.NOT_SO


async def test_broker_that_goes_away_ends_it_and_tells_which_lines_are_uncertain(publish: Publish) -> None:
    """Lines without a confirmation are named as published or not; the rest is not tried against a broker that is gone."""
    broker = Broker(errors={number: KafkaTimeoutError() for number in range(3, 6)}, delay_seconds=0.001)
    with pytest.raises(CommandFailed, match="not confirmed, so published or not: line 3, 4, 5") as raised:
        await publish(broker, [b"{}"] * 5 + [b"{}"] * 2 * _IN_FLIGHT_MAX)
    assert raised.value.code is Exit.OUT_OF_REACH
    assert "Submitting the file again is safe" in str(raised.value)
    assert len(broker.records) < 2 * _IN_FLIGHT_MAX


async def test_lines_that_are_no_objects_are_published_only_when_asked(publish: Publish) -> None:
    """--raw publishes them as they stand, without a key."""
    lines = [b"x", b"[]", b"{}", b"\xff"]
    broker, raw = Broker(), Broker()
    await publish(broker, lines)
    await publish(raw, lines, raw=True)
    assert broker.records == [(None, b"{}")]
    assert raw.records == [(None, line) for line in lines]


async def test_answer_is_matched_by_its_source_alone(publish: Publish, capsys: pytest.CaptureFixture[str]) -> None:
    """Another producer's record with the same key at another place is somebody else's; so is one of another topic."""
    submission = await publish(Broker(), [b"{}", b"{}"])
    answers = (
        b'{"final":true,"status":"executed","source":{"topic":"trade.requests","partition":1,"offset":0}}',
        b'{"final":true,"status":"executed","source":{"topic":"other","partition":0,"offset":0}}',
        b'{"final":false,"status":"open","source":{"topic":"trade.requests","partition":0,"offset":1}}',
        b'{"final":true,"status":"executed","source":{"topic":"trade.requests","partition":0,"offset":0}}',
        b'{"final":true,"status":"executed","source":{"topic":"trade.requests","partition":0,"offset":0}}',
    )
    for answer in answers:
        submission._take(answer)
    captured = capsys.readouterr()
    assert captured.out.encode().splitlines() == [answers[3]]
    assert submission._end() is Exit.NOT_SO
    told = capsys.readouterr().err
    assert "1 line without a final answer" in told
    assert "orders that are open" in told
