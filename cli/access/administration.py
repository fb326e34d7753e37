"""What the commands that change users, keys and limits share: who asks, the database, and the audit events on `trade.audit`.

Invariants:
1. Broker and database are both reached before anything is changed: a change that could not be published is not begun.
2. Database first, then Kafka. Every change publishes what waits to be published (infra/postgres/audit_outbox): its own events, and what a
   command left behind that was cut off between the two. Nothing is published twice.
3. Identifiers and texts are checked before anything is opened; what is wrong is told without repeating it, as it may be a secret in the
   wrong place.

4. Who asks is proven before anything is changed (infra/postgres/admin/operators): the name that is typed is the actor of nothing.

Start with `change`: it is all that a command needs which changes something.
"""

import asyncio
import getpass
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import asyncpg
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from pydantic import TypeAdapter, ValidationError

from cli.access.credentials import code_of, login_name, subject_of, token_in, usage, words_of
from cli.access.database import database_failed, reading, require_user
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import printable, reason_of, say, to_json, write_line
from infra.kafka.connection import client_options
from infra.keyring import Keyring, MasterKeyError, keyring_of
from infra.postgres.admin.administration import Done, NotDone, administration_events
from infra.postgres.admin.approvals import VALID_HOURS, NeedsApproval, NotDecided, ask_for_approval
from infra.postgres.admin.operators import About, By, NotProven, claimed_by, has_operators, proven_by
from infra.postgres.audit_outbox import publish_pending
from infra.postgres.database import Database, connect
from infra.postgres.schema import DatabaseUnfit
from infra.settings import Settings
from infra.trusted_keys import TrustedKeysError, token_verifier
from pipeline.books.audit import AuditRow
from pipeline.model.invariants import Retryable
from pipeline.requests.authentication import TokenVerifier
from schemas.requests import Identifier, Name, UserId
from schemas.topics import Topics

_KAFKA_SECONDS_MAX: Final = 15.0
# Of the time that the database lets a transaction idle.
_PUBLISH_SHARE: Final = 0.8
_USER_ID: Final[TypeAdapter[str]] = TypeAdapter(UserId)
_IDENTIFIER: Final[TypeAdapter[str]] = TypeAdapter(Identifier)
_NAME: Final[TypeAdapter[str]] = TypeAdapter(Name)

Value = TypeVar("Value")
Change = Callable[[Database, By], Awaitable[Done]]


def _checked(adapter: TypeAdapter[Value], value: str, what: str) -> Value:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        # Without the value.
        raise usage(f"The {what} cannot be used: {error.errors(include_input=False, include_url=False)[0]['msg']}.") from None


def user_id_of(text: str) -> str:
    """A user id as the contract has it, no name of the system's own accounts. Raises CommandFailed."""
    return _checked(_USER_ID, text, "user id")


def key_id_of(text: str) -> str:
    """The id of a stored key, as requests name it in `api_key_id`. Raises CommandFailed."""
    return _checked(_IDENTIFIER, text, "key id")


def exchange_of(text: str) -> str:
    """An exchange id. Raises CommandFailed."""
    return _checked(_NAME, text, "exchange")


def exchange_here(settings: Settings, text: str) -> str:
    """The id of one of this installation's exchanges. Raises CommandFailed for another: as a user or a key, it is not there."""
    exchange = exchange_of(text)
    if exchange not in settings.exchanges:
        known = ", ".join(settings.exchanges)
        raise CommandFailed(f"There is no exchange {exchange} here, only {known}. Nothing was changed.", Exit.NOT_SO)
    return exchange


@dataclass(frozen=True, slots=True)
class Asked:
    """A change as it was asked for: what, by whom (not proven yet), and why, in the operator's own words."""

    about: About
    credentials: Credentials
    reason: str | None


def asking(command: str, target_id: str, credentials: Credentials, reason: str | None = None) -> Asked:
    """What somebody asks for: the command's words (`users freeze`) and the id of what it is about. Raises CommandFailed for a name or a
    reason that cannot be stored."""
    if credentials.operator is not None:
        words_of("operator's name", credentials.operator)
    return Asked(About(command, target_id), credentials, None if reason is None else words_of("reason", reason))


def keyring_for(settings: Settings) -> Keyring:
    """The keyring of the settings. Raises CommandFailed."""
    try:
        return keyring_of(settings)
    except MasterKeyError as error:
        raise usage(f"The master key cannot be used: {error}.") from error


class Administration:
    """An open database and producer. `by` proves who asks, `database` is for one change, `publish` brings its events to `trade.audit`."""

    def __init__(self, database: Database, settings: Settings, producer: AIOKafkaProducer, topic: str) -> None:
        self.database = database
        self._settings = settings
        self._producer = producer
        self._topic = topic
        self._asked: Asked | None = None

    async def by(self, asked: Asked) -> By:
        """Who asks: proven by token and code as soon as the installation has operators, a claim before. Raises CommandFailed."""
        self._asked, credentials = asked, asked.credentials
        if not await has_operators(self.database):
            claimed = credentials.operator or login_name()
            found = await claimed_by(self.database, claimed, login_name(), asked.reason)
            if found is not None:
                return found
        verifier, keyring = _verifier(self._settings), keyring_for(self._settings)
        # In threads, as people may be asked for them; the code last, as it is good for half a minute.
        token = await asyncio.to_thread(_token, credentials)
        if credentials.operator not in (None, subject_of(token)):
            raise usage("--operator names somebody else than the token (`sub`): nobody acts under another's name. Leave it out.")
        code = await asyncio.to_thread(code_of, credentials.totp)
        try:
            return await proven_by(
                self.database, token, code, verifier, keyring.decrypt_second_factor, asked.about, asked.reason
            )
        except MasterKeyError as error:
            raise usage(f"The operator's second factor cannot be read: {error}.") from error
        except NotProven as error:
            await self.publish()
            raise CommandFailed(f"Refused, nothing was changed: {error}", Exit.NOT_SO) from error

    async def tell(self, done: Done) -> None:
        """Prints what came of a change, and publishes its events."""
        asked = self._asked
        if asked is not None and asked.credentials.as_json:
            about = {"command": asked.about.command, "target_id": asked.about.target_id}
            write_line(to_json({**about, "changed": done.changed, "what": done.what}))
        else:
            write_line(done.what)
        await self.publish()

    async def publish(self) -> int:
        """Publishes every event of administration that was not published yet; returns how many. Raises CommandFailed."""
        try:
            return await publish_pending(self.database, self._send)
        except (KafkaError, OSError, TimeoutError, Retryable) as error:
            raise CommandFailed(
                f"What is said above is stored and in force, but its audit event may not be on trade.audit yet ({reason_of(error)}). The "
                "next change of anything publishes it, and so does `orchestrator users publish`; until then `orchestrator verify` reports "
                "it as missing there.",
                Exit.OUT_OF_REACH,
            ) from error

    async def publish_again(self, accounts: Sequence[str]) -> int:
        """Publishes every event of administration of these accounts, under the same keys and with the same bytes as before."""
        await self.publish()
        events = await administration_events(self.database, accounts)
        try:
            await self._send(events)
        except (KafkaError, OSError, TimeoutError) as error:
            raise CommandFailed(f"The broker did not take all events ({reason_of(error)}). Do it again.", Exit.OUT_OF_REACH) from error
        return len(events)

    async def _send(self, rows: Sequence[AuditRow]) -> None:
        # Less than the database lets the transaction idle that keeps other publishers away.
        async with asyncio.timeout(self._settings.database_timeout_seconds * _PUBLISH_SHARE):
            sent = [await self._producer.send(self._topic, row.value, key=row.event_id.encode()) for row in rows]
            await asyncio.gather(*sent)


def _waits(request_id: str, needed: NeedsApproval) -> str:
    wanted = needed.wanted
    return (
        f"`{wanted.command}` on {printable(wanted.target_id)} ({printable(wanted.what)}) needs a second operator. Nothing was changed; the "
        f"request waits as {request_id} for {VALID_HOURS} hours. Another operator says `orchestrator approvals approve {request_id} "
        "--reason …`; then give this command again, as it is, with a new code."
    )


def _verifier(settings: Settings) -> TokenVerifier:
    try:
        return token_verifier(settings)
    except TrustedKeysError as error:
        raise usage(
            f"This installation has operators, so a change needs the token of one, and here no token can be verified: {error}. Set "
            "ORCHESTRATOR_TOKEN_KEYS_FILE, and the issuer and audience, as the workers have them."
        ) from error


def _token(credentials: Credentials) -> str:
    """The operator's token, asked for where none is given. Raises CommandFailed without a terminal."""
    token = token_in(credentials.token_file)
    if token is None:
        if not sys.stdin.isatty():
            raise usage(
                "This installation has operators, so a change needs the token of one, with the scope `operate`: give it with --token-file "
                "or ORCHESTRATOR_OPERATOR_TOKEN_FILE, and a code of your second factor with --totp."
            )
        token = getpass.getpass("Token of an operator: ").strip().removeprefix("Bearer ").strip()
    return token


@asynccontextmanager
async def administering(installation: Installation) -> AsyncIterator[Administration]:
    """Opens broker and database. Raises CommandFailed for what is away, for what was NotDone, and for a database without tables."""
    topic = Topics(installation.settings.topic_prefix).audit
    producer = await _producer(installation, topic)
    try:
        async with _database(installation) as database:
            administration = Administration(database, installation.settings, producer, topic)
            try:
                yield administration
            except NeedsApproval as needed:
                request_id = await ask_for_approval(database, needed)
                await administration.publish()
                raise CommandFailed(_waits(request_id, needed), Exit.NOT_SO) from needed
    except (NotDone, NotDecided) as error:
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


async def change(installation: Installation, asked: Asked, work: Change) -> None:
    """Makes one change for whoever asks and proves it, prints what came of it, and publishes its events."""
    async with administering(installation) as administration:
        by = await administration.by(asked)
        await administration.tell(await work(administration.database, by))


async def publish(installation: Installation, user_ids: Sequence[str], *, as_json: bool) -> None:
    """Publishes what was not published yet, and all events of administration of these users again. Changes nothing."""
    async with reading(installation) as connection:
        for user_id in user_ids:
            await require_user(connection, user_id)
    async with administering(installation) as administration:
        count = await administration.publish_again(user_ids) if user_ids else await administration.publish()
    if as_json:
        write_line(to_json({"published": count}))
    else:
        say(f"{count} audit events of administration were published.")
