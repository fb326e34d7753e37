"""`quarantine`: the records that could not be decided and were set aside, and what an operator does with them.

Invariants:
1. Only what this system's own agents have written is published again: work and reports say nothing that the database does not judge anew.
   A request was answered for good, and a command needs a fresh code: both are sent again by whoever sent them.
2. Published first, marked then: a record that is published twice is decided once, one that is marked and not published would be lost.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgpack
from aiokafka.errors import KafkaError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.access.administration import administering, asking, change, key_id_of
from cli.access.confirmation import confirm
from cli.access.database import Row, reading, rows_of
from cli.access.installation import Installation
from cli.access.operator_commands import KAFKA_SECONDS_MAX, producing, unsent
from cli.access.operator_options import Credentials
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import print_table, reason_of, to_json, to_text, write_line
from infra.postgres.admin.administration import Done
from infra.postgres.admin.quarantine_administration import kept_record, move_record
from infra.postgres.quarantine import Kept
from pipeline.model.quarantine import QuarantineState
from schemas.topics import Topics

_LISTED: Final = ("quarantine_id", "set_aside_at", "state", "source", "subject", "user_id", "stage", "error", "repeats")
_LIST: Final = text("""
    SELECT quarantine_id, set_aside_at, last_at, state, source_topic || '/' || source_partition || '/' || source_offset AS source, subject,
           user_id, stage, error, place, what, repeats, sparing, moved_at, moved_by
    FROM quarantine
    WHERE (CAST(:state AS text) IS NULL OR state = :state) AND (CAST(:user_id AS text) IS NULL OR user_id = :user_id)
    ORDER BY set_aside_at DESC, quarantine_id LIMIT :limit
""")
_OPEN: Final = text("SELECT count(*) AS entries, min(set_aside_at) AS oldest_at FROM quarantine WHERE state = 'open'")
_ONE: Final = text("SELECT * FROM quarantine WHERE quarantine_id = :id")
_SHOWN_BYTES_MAX: Final = 2_000


async def show_quarantine(
    installation: Installation, *, state: QuarantineState | None, user_id: str | None, limit: int, as_json: bool
) -> None:
    """Prints what was set aside, the newest first. Raises CommandFailed when the database is out of reach."""
    async with reading(installation) as connection:
        rows = await rows_of(connection, _LIST, state=state.value if state else None, user_id=user_id, limit=limit)
    print_table(rows, _LISTED, as_json=as_json, nothing="Nothing is set aside.")


@dataclass(frozen=True, slots=True)
class OpenEntries:
    """How many entries nobody has dealt with, and since when the oldest is there, UTC; None without any."""

    entries: int
    oldest_at: datetime | None


async def open_entries(connection: AsyncConnection) -> OpenEntries:
    """What is set aside and not dealt with yet."""
    row = (await connection.execute(_OPEN)).one()
    return OpenEntries(row.entries, row.oldest_at)


async def show_record(installation: Installation, quarantine_id: str, *, as_json: bool) -> None:
    """Prints one entry with the record that it keeps. Raises CommandFailed where there is none."""
    async with reading(installation) as connection:
        found = await rows_of(connection, _ONE, id=quarantine_id)
    if not found:
        raise CommandFailed(f"Nothing is set aside as {to_text(quarantine_id)}. `orchestrator quarantine list` shows what is.", Exit.NOT_SO)
    row = _readable(found[0])
    if as_json:
        write_line(to_json(row))
        return
    width = max(map(len, row))
    lines = [f"{name.replace('_', ' '):<{width}}  {to_text(value)}" for name, value in row.items() if value is not None]
    write_line("\n".join(lines))


def _readable(row: Row) -> Row:
    """The entry with its record's bytes as text."""
    shown: Row = {}
    for name, value in row.items():
        if name == "record_headers" and isinstance(value, bytes):
            shown[name] = ", ".join(f"{header}={_text(content)}" for header, content in msgpack.unpackb(value)) or None
        else:
            shown[name] = _text(value) if isinstance(value, bytes) else value
    return shown


def _text(value: bytes) -> str:
    return value[:_SHOWN_BYTES_MAX].decode("utf-8", "backslashreplace") + ("…" if len(value) > _SHOWN_BYTES_MAX else "")


async def retry(installation: Installation, quarantine_id: str, *, reason: str, credentials: Credentials) -> None:
    """Publishes a record of our own again on its topic, and marks its entry. Raises CommandFailed where that is not safe."""
    asked = asking("quarantine retry", key_id_of(quarantine_id), credentials, reason)
    async with administering(installation) as administration:
        kept = await kept_record(administration.database, quarantine_id)
        if kept.state is QuarantineState.OPEN:
            _require_retryable(kept, Topics(installation.settings.topic_prefix))
        by = await administration.by(asked)
        if kept.state is QuarantineState.OPEN:
            await _publish(installation, kept)
        done = await move_record(administration.database, quarantine_id, QuarantineState.RETRIED, by)
        then = " A worker judges it anew; `orchestrator quarantine list` shows whether it is set aside again." if done.changed else ""
        await administration.tell(Done(done.what + then, done.changed))


async def drop(installation: Installation, quarantine_id: str, *, reason: str, yes: bool, credentials: Credentials) -> None:
    """Marks an entry as dealt with. Changes nothing else: what it names stays as it is. Raises CommandFailed."""
    asked = asking("quarantine drop", key_id_of(quarantine_id), credentials, reason)
    await asyncio.to_thread(confirm, "quarantine drop", asked.about.target_id, yes)
    await change(installation, asked, lambda database, by: move_record(database, quarantine_id, QuarantineState.DROPPED, by))


def _require_retryable(kept: Kept, topics: Topics) -> None:
    topic = kept.source.topic
    if topic == topics.requests:
        raise CommandFailed(
            f"Record {kept.source} is a request, and was answered for good with INTERNAL_ERROR: its producer may have sent it again since, "
            "so that it could be executed twice. Nothing was published. Tell its producer to send it again under a new key if it is still "
            f"meant, then `orchestrator quarantine drop {kept.quarantine_id}`.",
            Exit.NOT_SO,
        )
    if topic == topics.commands:
        raise CommandFailed(
            f"Record {kept.source} is a command, and its code was for once. Nothing was published. Give the command again, then "
            f"`orchestrator quarantine drop {kept.quarantine_id}`.",
            Exit.NOT_SO,
        )
    if topic != topics.reports and not topic.startswith(topics.orders_prefix):
        other = f"Record {kept.source} is of another installation (ORCHESTRATOR_TOPIC_PREFIX). Nothing was published."
        raise CommandFailed(other, Exit.NOT_SO)
    if kept.value is None or len(kept.value) != kept.value_bytes or not kept.subject:
        raise CommandFailed(
            f"Record {kept.source} is nothing that this system has written, or is not kept whole. Nothing was published. See its dead "
            f"letter, then `orchestrator quarantine drop {kept.quarantine_id}`.",
            Exit.NOT_SO,
        )


async def _publish(installation: Installation, kept: Kept) -> None:
    """On the record's own partition, where the order's other records are. Raises CommandFailed."""
    async with producing(installation, kept.source.topic) as producer:
        try:
            async with asyncio.timeout(KAFKA_SECONDS_MAX):
                await producer.send_and_wait(
                    kept.source.topic, kept.value, key=kept.key, partition=kept.source.partition, headers=list(kept.headers)
                )
        except (KafkaError, OSError, TimeoutError) as error:
            raise unsent(installation, reason_of(error)) from error
