"""What every command of an operator needs on its way to `trade.commands`: token, code, and a producer that does not make topics.

Invariant: token and code are in the record's headers and in no message.
"""

import getpass
import sys
from asyncio import timeout
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import jwt
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from cli.administration import usage
from cli.installation import Installation
from cli.output import CommandFailed, Exit, reason_of
from infra.kafka.connection import client_options

KAFKA_SECONDS_MAX: Final = 10.0
_TOKEN_BYTES_MAX: Final = 65_536


def token_in(file: Path | None) -> str | None:
    """The token in a file, None without a file. Raises CommandFailed."""
    if file is None:
        return None
    try:
        with file.open("rb") as opened:
            token = opened.read(_TOKEN_BYTES_MAX).decode("ascii").strip()
    except OSError as error:
        raise usage(f"The token in {file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError:
        raise usage(f"{file} holds no token.") from None
    return token.removeprefix("Bearer ").strip()


def subject_of(token: str) -> str:
    """Whose token it is, by its own word: workers check it."""
    try:
        subject = jwt.decode(token, options={"verify_signature": False})["sub"]
    except (jwt.PyJWTError, KeyError):
        raise usage("The token file holds no token that names a user (`sub`).") from None
    return str(subject)


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


def operator_headers(token: str | None, totp: str | None) -> list[tuple[str, bytes]]:
    """The headers that prove an operator; asks for the code where none is given. Raises CommandFailed without a terminal."""
    if token is None:
        return []
    if totp is None:
        if not sys.stdin.isatty():
            raise usage("A command needs a code of your second factor: give it with --totp.")
        totp = getpass.getpass("Code of your second factor: ")
    return [("authorization", f"Bearer {token}".encode()), ("x-totp", totp.strip().encode())]
