"""What the commands that change users, keys and limits share: who asks, the database, and the audit events on `trade.audit`.

Invariants:
1. Broker and database are both reached before anything is changed: a change that could not be published is not begun.
2. Database first, then Kafka. Every change publishes all that was ever changed in the same account, under the same keys and with the same
   bytes: what a command left behind that was cut off between the two gets there with the next one, or with `users publish`.
3. Identifiers and texts are checked before anything is opened; what is wrong is told without repeating it, as it may be a secret in the
   wrong place.

Start with `administering`.
"""

import asyncio
import getpass
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, TypeVar

import asyncpg
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from pydantic import TypeAdapter, ValidationError

from cli.installation import Installation
from cli.orders import database_failed
from cli.output import CommandFailed, Exit, reason_of, say, write_line
from infra.kafka.connection import client_options
from infra.keyring import Keyring, MasterKeyError, keyring_of
from infra.postgres.administration import By, Done, NotDone, administration_events
from infra.postgres.schema import DatabaseUnfit
from infra.postgres.step import Database, connect
from infra.settings import Settings
from pipeline.invariants import Retryable
from schemas.requests import Identifier, Name, UserId
from schemas.topics import Topics

_KAFKA_SECONDS_MAX: Final = 15.0
_PUBLISH_SECONDS_MAX: Final = 30.0
_TEXT_LENGTH_MAX: Final = 300
_USER_ID: Final[TypeAdapter[str]] = TypeAdapter(UserId)
_IDENTIFIER: Final[TypeAdapter[str]] = TypeAdapter(Identifier)
_NAME: Final[TypeAdapter[str]] = TypeAdapter(Name)

Value = TypeVar("Value")
Change = Callable[[Database], Awaitable[Done]]


def usage(text: str) -> CommandFailed:
    """The error for an argument that cannot be meant."""
    return CommandFailed(f"{text} Nothing was changed.", Exit.USAGE)


def _checked(adapter: TypeAdapter[Value], value: str, what: str) -> Value:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        # Without the value.
        raise usage(f"The {what} cannot be used: {error.errors(include_input=False, include_url=False)[0]['msg']}.") from None


def user_id_of(text: str) -> str:
    """A user id as the contract has it. Raises CommandFailed."""
    if text.startswith("@"):
        raise usage("A user id does not begin with @: those are the system's own accounts.")
    return _checked(_USER_ID, text, "user id")


def key_id_of(text: str) -> str:
    """The id of a stored key, as requests name it in `api_key_id`. Raises CommandFailed."""
    return _checked(_IDENTIFIER, text, "key id")


def exchange_of(text: str) -> str:
    """An exchange id. Raises CommandFailed."""
    return _checked(_NAME, text, "exchange")


def by_operator(operator: str | None, reason: str | None = None) -> By:
    """Who asks, now: the operator's name, else the login name. Raises CommandFailed for a name or reason that cannot be stored."""
    if operator is None:
        try:
            operator = getpass.getuser()
        except (KeyError, OSError):
            raise usage("This login has no name: say who you are with --operator NAME.") from None
    for what, text in (("operator's name", operator), ("reason", reason)):
        if text is not None and not (text.strip() and len(text) <= _TEXT_LENGTH_MAX and text.isprintable()):
            raise usage(f"The {what} must be 1 to {_TEXT_LENGTH_MAX} printable characters.")
    return By(operator.strip(), datetime.now(UTC), reason.strip() if reason is not None else None)


def keyring_for(settings: Settings) -> Keyring:
    """The keyring of the settings. Raises CommandFailed."""
    try:
        return keyring_of(settings)
    except MasterKeyError as error:
        raise usage(f"The master key cannot be used: {error}.") from error


class Administration:
    """An open database and producer. `database` is for one change; `published` brings its events to `trade.audit`."""

    def __init__(self, database: Database, producer: AIOKafkaProducer, topic: str) -> None:
        self.database = database
        self._producer = producer
        self._topic = topic

    async def tell(self, done: Done, accounts: Sequence[str]) -> None:
        """Prints what came of a change, and publishes the accounts' events."""
        write_line(done.what)
        await self.published(accounts)

    async def published(self, accounts: Sequence[str]) -> int:
        """Publishes every event of administration of these accounts; returns how many. Raises CommandFailed."""
        events = await administration_events(self.database, accounts)
        try:
            async with asyncio.timeout(_PUBLISH_SECONDS_MAX):
                # In the order of the chain, and all acknowledged before it counts.
                sent = [await self._producer.send(self._topic, row.value, key=row.event_id.encode()) for row in events]
                await asyncio.gather(*sent)
        except (KafkaError, OSError, TimeoutError) as error:
            raise CommandFailed(
                f"What is said above is stored and in force, but the broker did not take its audit event ({reason_of(error)}). Publish it "
                "with `orchestrator users publish` when the broker answers, or with any further change of the same user; until then "
                "`orchestrator verify` reports it as missing on trade.audit.",
                Exit.OUT_OF_REACH,
            ) from error
        return len(events)


@asynccontextmanager
async def administering(installation: Installation) -> AsyncIterator[Administration]:
    """Opens broker and database. Raises CommandFailed for what is away, for what was NotDone, and for a database without tables."""
    topic = Topics(installation.settings.topic_prefix).audit
    producer = await _producer(installation, topic)
    try:
        async with _database(installation) as database:
            yield Administration(database, producer, topic)
    except NotDone as error:
        raise CommandFailed(str(error), Exit.NOT_SO) from error
    finally:
        await producer.stop()


async def _producer(installation: Installation, topic: str) -> AIOKafkaProducer:
    options = client_options(installation.settings, installation.kafka)
    producer = AIOKafkaProducer(**options, enable_idempotence=True, acks="all", request_timeout_ms=10_000)
    try:
        async with asyncio.timeout(_KAFKA_SECONDS_MAX):
            await producer.start()
            # Without naming the topic: a broker may make one that is asked for, and not as it must be.
            known = (await producer.client.fetch_all_metadata()).topics()
    except (KafkaError, OSError, TimeoutError) as error:
        await producer.stop()
        raise CommandFailed(
            f"The broker at {installation.kafka} is out of reach ({reason_of(error)}), and no change is made without its audit event. "
            "Nothing was changed. Start it, or check its address; `orchestrator doctor` checks all of them.",
            Exit.OUT_OF_REACH,
        ) from error
    if topic not in known:
        await producer.stop()
        raise CommandFailed(
            f"The broker has no topic {topic}: no worker has started with it. Nothing was changed. Start one with `orchestrator worker` or "
            "`orchestrator up`, or check ORCHESTRATOR_TOPIC_PREFIX.",
            Exit.OUT_OF_REACH,
        )
    return producer


@asynccontextmanager
async def _database(installation: Installation) -> AsyncIterator[Database]:
    try:
        database = await connect(installation.database_url, 2, installation.settings.database_timeout_seconds)
    except (Retryable, DatabaseUnfit) as error:
        raise database_failed(installation, error.__cause__ if isinstance(error.__cause__, Exception) else error) from None
    except (asyncpg.PostgresError, ValueError) as error:
        raise database_failed(installation, error) from None
    try:
        yield database
    except Retryable as error:
        raise CommandFailed(
            f"The database stopped answering ({error}). Whether the change was made is not known. `orchestrator users show` tells when it "
            "answers again; to ask for the same change once more is safe.",
            Exit.OUT_OF_REACH,
        ) from error
    except DatabaseUnfit as error:
        raise database_failed(installation, error.__cause__ if isinstance(error.__cause__, Exception) else error) from None
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise database_failed(installation, error) from None
    finally:
        await database.close()


async def change(installation: Installation, accounts: Sequence[str], work: Change) -> None:
    """Makes one change, prints what came of it, and publishes the accounts' events."""
    async with administering(installation) as administration:
        await administration.tell(await work(administration.database), accounts)


async def publish(installation: Installation, user_ids: Sequence[str]) -> None:
    """Publishes the events of administration of these users again. Changes nothing."""
    async with administering(installation) as administration:
        count = await administration.published(user_ids)
    say(f"{count} audit events of administration are on trade.audit.")
