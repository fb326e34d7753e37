"""`halt`, `reduce`, `resume`: the emergency stop as an operator gives it, and the stop that `verify --halt` asks for.

Invariants:
1. The broker is all that a command needs: where the database does not answer, it is sent all the same, and that is said.
2. What counts is the command's audit event in the database: until it is there, nothing is said to be stopped.
3. Token and code are in the record's headers and in no message.

Start with `command`.
"""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.access.credentials import operator_name, token_in, usage, words_of
from cli.access.database import Row, reading
from cli.access.installation import Installation
from cli.access.operator_commands import KAFKA_SECONDS_MAX, producing, send_command, unsent
from cli.access.operator_options import NO_CREDENTIALS, Credentials
from cli.show.halts import halt_lines, halts_in_force
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import printable, reason_of, say, to_json, write_line
from schemas.audit import EventType
from schemas.commands import Command, CommandWord, HaltLevel, HaltScope, HaltTrip
from schemas.topics import Topics

_POLL_SECONDS: Final = 0.1
# A trip that waits too long is ignored, so it is published again.
_TRIP_AGAIN_SECONDS: Final = 3.0
_TRIP_SECONDS_MAX: Final = 20.0

_USER: Final = text("SELECT 1 FROM users WHERE user_id = :target")
_EXCHANGE: Final = text("SELECT 1 FROM input_partitions WHERE topic = :topic LIMIT 1")
_STOPPED_HERE: Final = text("SELECT 1 FROM halts WHERE scope = :scope AND target = :target")
_STOPPED: Final = text("SELECT 1 FROM halts WHERE scope = 'all' AND level = 'halt'")


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """What was asked for. `target` is '' for everybody."""

    word: CommandWord
    scope: HaltScope
    target: str
    reason: str
    cancel_open: bool = False
    credentials: Credentials = NO_CREDENTIALS
    as_json: bool = False


def scope_of(user: str | None, symbol: str | None, exchange: str | None) -> tuple[HaltScope, str]:
    """The scope that the options name. Raises CommandFailed when they name two."""
    named = [
        (scope, target)
        for scope, target in ((HaltScope.USER, user), (HaltScope.SYMBOL, symbol), (HaltScope.EXCHANGE, exchange))
        if target is not None
    ]
    if len(named) > 1:
        raise usage("Name one of --user, --symbol and --exchange, or none for everybody.")
    return named[0] if named else (HaltScope.ALL, "")


async def command(installation: Installation, options: CommandOptions) -> Exit:
    """Sends a command and waits until it is applied. Returns NOT_SO when it was refused; raises CommandFailed when nobody applied it."""
    asked = _command(options, token_in(options.credentials.token_file))
    await _require_known(installation, asked)
    event = await send_command(
        installation,
        asked,
        asked.scope.value,
        options.credentials,
        look_up="orchestrator status",
        # Stopping needs none: who has lost the device must still be able to stop.
        needs_code=options.word is CommandWord.RESUME,
        meanwhile="; until then what it asks for is NOT in force. Where no worker runs, nothing is sent either: to be sure that nothing is "
        "sent, stop the workers",
    )
    if event is None:
        return Exit.NOT_SO
    async with reading(installation) as connection:
        halts = await halts_in_force(connection)
    _show(options, asked, event, halts)
    return Exit.DONE


def _command(options: CommandOptions, token: str | None) -> Command:
    try:
        return Command(
            schema_version=1,
            command_id=str(uuid.uuid4()),
            command=options.word,
            scope=options.scope,
            target=options.target,
            operator=operator_name(options.credentials, token),
            reason=words_of("reason", options.reason),
            cancel_open=options.cancel_open,
        )
    except ValidationError as error:
        # Without the values.
        raise usage(f"The command cannot be sent: {error.errors(include_input=False, include_url=False)[0]['msg']}.") from None


async def _require_known(installation: Installation, asked: Command) -> None:
    """Refuses what does not exist: a stop for a misspelt name would be in force and stop nothing, and a resume of it lift nothing."""
    if asked.scope not in {HaltScope.USER, HaltScope.EXCHANGE}:
        return
    try:
        async with reading(installation) as connection:
            known = await _is_known(connection, installation, asked)
    except CommandFailed as error:
        say(f"{error} The command is sent all the same.")
        return
    if not known:
        raise CommandFailed(f"There is no {asked.scope} {printable(asked.target)} here. Nothing was sent or stopped.", Exit.NOT_SO)


async def _is_known(connection: AsyncConnection, installation: Installation, asked: Command) -> bool:
    if asked.command is CommandWord.RESUME:
        # What was stopped once may be gone from the settings by now: its stop can be lifted all the same.
        stopped = await connection.execute(_STOPPED_HERE, {"scope": asked.scope.value, "target": asked.target})
        if stopped.first() is not None:
            return True
    if asked.scope is HaltScope.USER:
        return (await connection.execute(_USER, {"target": asked.target})).first() is not None
    topic = Topics(installation.settings.topic_prefix).orders(asked.target)
    return asked.target in installation.settings.exchanges or (await connection.execute(_EXCHANGE, {"topic": topic})).first() is not None


def _show(options: CommandOptions, asked: Command, event: Mapping[str, str], halts: list[Row]) -> None:
    if options.as_json:
        write_line(to_json({"command_id": asked.command_id, "event_type": event["event_type"], "reason": event["reason"], "halts": halts}))
        return
    where = "everybody" if asked.scope is HaltScope.ALL else f"{asked.scope} {printable(asked.target)}"
    if event["event_type"] == EventType.HALT_SET:
        what = "nothing new is sent" if asked.command is CommandWord.HALT else "only sales into US dollars are sent"
        say(f"In force for {where}: {what}; cancels still pass.")
    elif event.get("halt_level") is None:
        say(f"Nothing was stopped for {where}.")
    else:
        say(f"Lifted for {where}. What the system stopped by itself it stops again while the cause is there.")
    write_line("\n".join(halt_lines(halts)))


async def trip_all(installation: Installation, reason: str) -> bool:
    """Asks the workers to halt everybody because a promise is broken; whether that is in force. Needs no operator: it only stops."""
    topic = Topics(installation.settings.topic_prefix).reports
    deadline = monotonic() + _TRIP_SECONDS_MAX
    async with producing(installation, topic) as producer, reading(installation) as connection:
        again_at = 0.0
        while monotonic() < deadline:
            if (await connection.execute(_STOPPED)).first() is not None:
                return True
            if monotonic() >= again_at:
                again_at = monotonic() + _TRIP_AGAIN_SECONDS
                await _send_trip(installation, producer, topic, reason)
            await asyncio.sleep(_POLL_SECONDS)
    return False


async def _send_trip(installation: Installation, producer: AIOKafkaProducer, topic: str, reason: str) -> None:
    trip = HaltTrip(
        schema_version=1,
        trip_id=f"trip:verify:{uuid.uuid4()}",
        scope=HaltScope.ALL,
        level=HaltLevel.HALT,
        reason=reason[:300],
        tripped_at=datetime.now(UTC),
    )
    try:
        async with asyncio.timeout(KAFKA_SECONDS_MAX):
            await producer.send_and_wait(topic, trip.model_dump_json().encode(), key=trip.trip_id.encode())
    except (KafkaError, OSError, TimeoutError) as error:
        raise unsent(installation, reason_of(error)) from error
