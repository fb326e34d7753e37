"""What every command of an operator needs on its way to `trade.commands`: token, code, a producer that does not make topics, and what came
of it.

Invariants:
1. Token and code are in the record's headers and in no message.
2. What counts is the command's audit event in the database: until it is there, nothing is said to be done.

Start with `send_command`: sends a command and returns its event. A new kind of command needs no more of this module.
"""

import asyncio
from asyncio import timeout
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Final, Protocol

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from sqlalchemy import text

from cli.access.credentials import code_of, token_in
from cli.access.database import reading
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import printable, reason_of, say
from infra.kafka.connection import client_options
from schemas.audit import EventType
from schemas.commands import COMMANDS_ACCOUNT
from schemas.topics import Topics

KAFKA_SECONDS_MAX: Final = 10.0
# How long a worker may take to apply a command; it takes well below a second where one runs and keeps up.
APPLIED_SECONDS_MAX: Final = 10.0
_POLL_SECONDS: Final = 0.1

# The newest events of two accounts; what was applied before what was refused, as copies of a command are.
_EVENT: Final = text("""
    SELECT newest.body FROM unnest(CAST(:accounts AS text[])) AS wanted (account)
    CROSS JOIN LATERAL (
        SELECT body FROM audit_events WHERE audit_events.account = wanted.account ORDER BY seq DESC LIMIT 1000
    ) AS newest
    WHERE newest.body::jsonb ->> 'request_id' = :command_id
    ORDER BY newest.body::jsonb ->> 'event_type' = 'COMMAND_REFUSED', newest.body::jsonb ->> 'ts_recorded' LIMIT 1
""")


class OperatorCommand(Protocol):
    """A record of `trade.commands` (schemas/commands)."""

    @property
    def command_id(self) -> str: ...
    @property
    def operator(self) -> str: ...
    def model_dump_json(self) -> str: ...


@asynccontextmanager
async def producing(installation: Installation, topic: str) -> AsyncIterator[AIOKafkaProducer]:
    """A producer for a topic that must be there. Raises CommandFailed."""
    options = client_options(installation.settings, installation.kafka)
    producer = AIOKafkaProducer(**options, enable_idempotence=True, acks="all", request_timeout_ms=int(KAFKA_SECONDS_MAX * 1000))
    try:
        async with timeout(KAFKA_SECONDS_MAX):
            await producer.start()
            # Without naming the topic: a broker may make one that is asked for, and not as it must be.
            known = (await producer.client.fetch_all_metadata()).topics()
    except (KafkaError, OSError, TimeoutError) as error:
        await producer.stop()
        raise unsent(installation, reason_of(error)) from error
    try:
        if topic not in known:
            raise unsent(installation, f"it has no topic {topic}, as no worker of this version has started with it")
        yield producer
    finally:
        await producer.stop()


def unsent(installation: Installation, why: str) -> CommandFailed:
    """The error for a command that did not reach the broker."""
    return CommandFailed(
        f"The command was not sent: the broker at {installation.kafka} does not take it ({why}). Nothing was stopped or resumed. To stop "
        "trading without the broker, stop the workers: nothing is sent by a worker that does not run.",
        Exit.OUT_OF_REACH,
    )


def operator_headers(token: str | None, totp: str | None, *, needs_code: bool = True) -> list[tuple[str, bytes]]:
    """The headers that prove an operator; asks for a code that is needed and not given. Raises CommandFailed without a terminal."""
    if token is None:
        return []
    if totp is None and needs_code:
        totp = code_of(None)
    code = [] if totp is None else [("x-totp", totp.strip().encode())]
    return [("authorization", f"Bearer {token}".encode()), *code]


async def send_command(
    installation: Installation,
    asked: OperatorCommand,
    key: str,
    credentials: Credentials,
    *,
    look_up: str,
    needs_code: bool = True,
    meanwhile: str = "",
) -> Mapping[str, str] | None:
    """Sends a command under its record key and waits until a worker has applied it; returns its audit event. None where a worker refused
    it, which was said.

    `look_up` is the command line that tells what became of it, `meanwhile` what holds until it is applied. Raises CommandFailed where it
    was not sent, or not applied in time.
    """
    token = token_in(credentials.token_file)
    topic = Topics(installation.settings.topic_prefix).commands
    async with producing(installation, topic) as producer:
        # Last, as a code is good for half a minute.
        headers = await asyncio.to_thread(operator_headers, token, credentials.totp, needs_code=needs_code)
        try:
            async with timeout(KAFKA_SECONDS_MAX):
                await producer.send_and_wait(topic, asked.model_dump_json().encode(), key=key.encode(), headers=headers)
        except (KafkaError, OSError, TimeoutError) as error:
            raise CommandFailed(
                f"The broker did not take the command in time ({reason_of(error)}); it may have arrived all the same. See `{look_up}` "
                "before you send it again.",
                Exit.OUT_OF_REACH,
            ) from error
    event = await event_of(installation, asked, APPLIED_SECONDS_MAX)
    if event is None:
        raise CommandFailed(
            f"No worker has applied the command within {APPLIED_SECONDS_MAX:.0f} s. It is on {topic} and will be applied as soon as a "
            f"worker reads it{meanwhile}. `{look_up}` tells, `orchestrator lag` how far workers are behind.",
            Exit.OUT_OF_REACH,
        )
    if event["event_type"] == EventType.COMMAND_REFUSED:
        say(printable(f"Refused, nothing was changed: {event['reason_code']}: {event['reason']}"))
        return None
    return event


async def event_of(installation: Installation, asked: OperatorCommand, seconds_max: float) -> Mapping[str, str] | None:
    """A command's audit event; None when there is none in time. Raises CommandFailed while the database is out of reach."""
    deadline = monotonic() + seconds_max
    failure: CommandFailed | None = None
    while True:
        try:
            async with reading(installation) as connection:
                failure = None
                while monotonic() < deadline:
                    parameters = {"accounts": [asked.operator, COMMANDS_ACCOUNT], "command_id": asked.command_id}
                    row = (await connection.execute(_EVENT, parameters)).first()
                    if row is not None:
                        event: Mapping[str, str] = orjson.loads(row.body)
                        return event
                    await asyncio.sleep(_POLL_SECONDS)
        except CommandFailed as error:
            failure = error
        if monotonic() >= deadline:
            break
        await asyncio.sleep(_POLL_SECONDS)
    if failure is not None:
        raise CommandFailed(
            f"The command is sent, but whether it is applied is not known. {failure} Workers send nothing either while they cannot read "
            "the halts in force.",
            Exit.OUT_OF_REACH,
        )
    return None
