"""What operators do with records that were set aside, from the arguments to the database, the topics and the audit trail."""

import asyncio
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import msgpack
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from embedded.services import Endpoints
from pipeline.model.quarantine import QUARANTINE_ACCOUNT
from tests.integration.administered import Administered, administered
from tests.servers import fresh_database

pytestmark = pytest.mark.xdist_group("quarantine_commands")
WHY = ("--reason", "fixed", "--operator", "ana")


@pytest.fixture(scope="module")
def installed(
    servers: Endpoints, database_template: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Administered]:
    """One installation for all tests here."""
    directory = tmp_path_factory.mktemp("quarantine")
    with (
        fresh_database(servers.database_url, database_template) as url,
        administered(url, servers.kafka_bootstrap_servers, "quarantine.", "http://127.0.0.1:9", directory) as made,
    ):
        yield made


def _entry(
    installed: Administered, topic: str, value: bytes, offset: int, *, subject: str = "order o1", value_bytes: int | None = None
) -> str:
    quarantine_id = "q" + sha256(f"{topic}/{offset}".encode()).hexdigest()[:32]
    installed.execute(
        """
        INSERT INTO quarantine (quarantine_id, source_topic, source_partition, source_offset, appended_at, record_key, record_value,
            value_bytes, record_headers, stage, error, place, what, user_id, subject, sparing, set_aside_at, last_at)
        VALUES ($1, $2, 1, $3, now(), 'key', $4, $5, $6, 'decide', 'KeyError', 'pipeline.x:1 f', '', 'alice', $7, false, now(), now())
        """,
        quarantine_id,
        topic,
        offset,
        value,
        len(value) if value_bytes is None else value_bytes,
        msgpack.packb([("traceparent", b"00-1")]),
        subject,
    )
    return quarantine_id


def _records(installed: Administered, topic: str) -> list[tuple[int, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]]:
    async def read() -> list[tuple[int, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]]:
        consumer = AIOKafkaConsumer(bootstrap_servers=installed.kafka, auto_offset_reset="earliest", fetch_max_wait_ms=100)
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for number in range(2)]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            found = []
            async with asyncio.timeout(30):
                while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
                    for fetched in (await consumer.getmany(timeout_ms=200)).values():
                        found += [(record.partition, record.key, record.value, tuple(record.headers)) for record in fetched]
            return found
        finally:
            await consumer.stop()

    return asyncio.run(read())


def test_report_set_aside_is_listed_shown_and_published_again_once(installed: Administered) -> None:
    """On its own partition with its own key, bytes and headers; audited with who did it and why; a second retry changes nothing."""
    report = b'{"schema_version":1}'
    entry = _entry(installed, installed.topics.reports, report, 7)
    (listed,) = [row for row in installed.ran("quarantine", "list", "--json", "--state", "open").json if row["quarantine_id"] == entry]
    assert (listed["subject"], listed["error"], listed["source"]) == ("order o1", "KeyError", f"{installed.topics.reports}/1/7")
    assert entry in installed.ran("quarantine", "list").output
    shown = installed.ran("quarantine", "show", entry, "--json").json
    assert (shown["record_value"], shown["record_headers"], shown["state"]) == (report.decode(), "traceparent=00-1", "open")
    assert "KeyError" in installed.ran("quarantine", "show", entry).output
    assert "judges it anew" in installed.ran("quarantine", "retry", entry, *WHY).output
    assert "already" in installed.ran("quarantine", "retry", entry, *WHY).output
    assert _records(installed, installed.topics.reports) == [(1, b"key", report, (("traceparent", b"00-1"),))]
    (event,) = [event for event in installed.events(QUARANTINE_ACCOUNT) if event["request_id"] == entry]
    assert (event["event_type"], event["claimed_operator"], event["reason"]) == ("RECORD_RETRIED", "ana", "fixed")
    assert event["target_id"] == entry
    assert any(one["request_id"] == entry for one in installed.published_events(QUARANTINE_ACCOUNT).values())
    assert installed.ran("quarantine", "show", entry, "--json").json["state"] == "retried"


@pytest.mark.parametrize(
    ("topic", "subject", "value_bytes", "told"),
    [
        ("requests", "request r1", None, "send it again under a new key"),
        ("commands", "command c1", None, "Give the command again"),
        ("reports", "", None, "nothing that this system has written"),
        ("reports", "order o1", 100_000, "not kept whole"),
    ],
)
def test_record_that_is_not_safe_to_publish_is_refused_with_what_to_do_instead(
    installed: Administered, topic: str, subject: str, value_bytes: int | None, told: str
) -> None:
    """Exit code 1, nothing on the topic, and the entry stays open; dropping it is audited."""
    name = getattr(installed.topics, topic)
    before = len(_records(installed, name))
    entry = _entry(installed, name, b"{}", 100 + len(told), subject=subject, value_bytes=value_bytes)
    ended = installed.run("quarantine", "retry", entry, *WHY)
    assert (ended.code, ended.output) == (1, "")
    assert told in ended.errors
    assert len(_records(installed, name)) == before
    assert installed.ran("quarantine", "show", entry, "--json").json["state"] == "open"
    assert installed.run("quarantine", "drop", entry, *WHY).code == 2
    assert installed.ran("quarantine", "show", entry, "--json").json["state"] == "open"
    assert "dropped" in installed.ran("quarantine", "drop", entry, "--yes", *WHY).output
    assert installed.ran("quarantine", "show", entry, "--json").json["state"] == "dropped"
    events = [event["event_type"] for event in installed.events(QUARANTINE_ACCOUNT) if event["request_id"] == entry]
    assert events == ["RECORD_DROPPED"]


def test_open_entries_show_in_status_and_doctor_until_they_are_dealt_with(installed: Administered) -> None:
    """How many, since when the oldest, and the command that lists them; one that was dealt with counts no more."""
    for entry in installed.ran("quarantine", "list", "--state", "open", "--json").json:
        installed.ran("quarantine", "drop", entry["quarantine_id"], "--yes", *WHY)
    assert installed.ran("status", "--json").json["quarantine"] == {"open": 0, "oldest_at": None}
    assert "== records that were set aside\nnone is open" in installed.ran("status").output
    assert _quarantine_line(installed)["status"] == "ok"
    entries = [_entry(installed, installed.topics.requests, b"{}", offset) for offset in (900, 901)]
    installed.execute("UPDATE quarantine SET set_aside_at = '2026-11-24T06:46:59Z' WHERE quarantine_id = $1", entries[0])
    assert installed.ran("status", "--json").json["quarantine"] == {"open": 2, "oldest_at": "2026-11-24T06:46:59.000000Z"}
    shown = installed.ran("status").output.partition("== records that were set aside\n")[2].splitlines()[0]
    assert shown.startswith("2 open, the oldest since 2026-11-24T06:46:59") and "quarantine list --state open" in shown
    found = _quarantine_line(installed)
    assert (found["status"], found["out_of_reach"]) == ("problem", False)
    assert found["detail"].startswith("2 records") and "2026-11-24T06:46:59" in found["detail"]
    assert "quarantine list --state open" in found["remedy"]
    installed.ran("quarantine", "drop", entries[0], "--yes", *WHY)
    assert installed.ran("status", "--json").json["quarantine"]["open"] == 1


def _quarantine_line(installed: Administered) -> dict[str, Any]:
    (found,) = [one for one in installed.run("doctor", "--json").json if one["check"] == "quarantine"]
    return dict(found)


@pytest.mark.parametrize("command", ["show", "retry", "drop"])
def test_unknown_entry_is_told(installed: Administered, command: str) -> None:
    """Exit code 1 and what to look at; nothing is written."""
    why = {"show": (), "retry": WHY, "drop": ("--yes", *WHY)}[command]
    ended = installed.run("quarantine", command, "q0", *why)
    assert ended.code == 1
    assert "quarantine list" in ended.errors
    assert json.dumps(ended.output) == '""'
