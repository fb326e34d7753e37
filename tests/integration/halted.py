"""What tests of the emergency stop share: commands as an operator sends them, and what the database says of them.

Start with `commanding`.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import asyncpg
import pyotp
from aiokafka import AIOKafkaProducer

from cli.local.audit_publication import publish_audit_events
from infra.keyring import keyring_of
from infra.postgres.admin.administration import Role, StatusChange, add_user, enrol_second_factor, set_user_status
from infra.postgres.database import connect
from tests.claiming import claimed
from tests.installation import Installation
from tests.unit.tokens import AUDIENCE, ISSUER, Issuer

APPLIED_SECONDS_MAX = 20.0
_USED_WITHIN_SECONDS = 12


@dataclass(frozen=True)
class Applied:
    """What became of a record of `trade.commands`: its audit event, and when the broker appended it (seconds since 1970)."""

    event: dict[str, Any]
    appended_at: float


class Commands:
    """Sends commands to an installation; reads its database."""

    def __init__(self, made: Installation, producer: AIOKafkaProducer, connection: asyncpg.Connection) -> None:
        self.made = made
        self._producer = producer
        self._connection = connection

    async def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._connection.fetch(statement, *values)]

    async def events(self, account: str) -> list[dict[str, Any]]:
        """An account's audit events, in the order of its chain."""
        rows = await self.rows("SELECT body FROM audit_events WHERE account = $1 ORDER BY seq", account)
        return [json.loads(row["body"]) for row in rows]

    async def halts(self) -> list[dict[str, Any]]:
        return await self.rows("SELECT * FROM halts ORDER BY scope, target")

    async def send(self, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> tuple[str, float]:
        """Puts a record on the topic; returns its place and when it was appended."""
        sent = await self._producer.send_and_wait(self.made.topics.commands, value, key=b"all", headers=list(headers))
        return f"{sent.topic}/{sent.partition}/{sent.offset}", sent.timestamp / 1_000

    async def publish(self, requests: Sequence[dict[str, Any]]) -> None:
        """Puts requests on their topic, keyed by user; waits until the broker has them."""
        sends = [
            await self._producer.send(self.made.topics.requests, json.dumps(request).encode(), key=request["user_id"].encode())
            for request in requests
        ]
        await asyncio.gather(*sends)

    async def event_of(self, request_id: str, count: int = 1) -> dict[str, Any]:
        """Waits until there are so many audit events about a command; returns the newest."""
        deadline = monotonic() + APPLIED_SECONDS_MAX
        statement = "SELECT body FROM audit_events WHERE body::jsonb ->> 'request_id' = $1 ORDER BY recorded_at, seq"
        while True:
            found = await self.rows(statement, request_id)
            if len(found) >= count:
                event: dict[str, Any] = json.loads(found[-1]["body"])
                return event
            if monotonic() > deadline:
                logs = "\n".join(self.made.worker_log(number)[-3_000:] for number in range(len(self.made.workers)))
                raise AssertionError(f"{len(found)} of {count} events about {request_id}\n{logs}")
            await asyncio.sleep(0.02)

    async def command(self, word: str, headers: Sequence[tuple[str, bytes]] = (), **fields: Any) -> Applied:
        """Sends a command, for everybody where `fields` name no other scope, and waits until it is applied or refused."""
        value = command_of(word, **fields)
        _, appended_at = await self.send(json.dumps(value).encode(), headers)
        return Applied(await self.event_of(value["command_id"]), appended_at)

    async def until(self, what: str, statement: str, *values: object, within_seconds: float = APPLIED_SECONDS_MAX) -> list[dict[str, Any]]:
        """Waits until a statement gives a row."""
        deadline = monotonic() + within_seconds
        while True:
            found = await self.rows(statement, *values)
            if found:
                return found
            if monotonic() > deadline:
                logs = "\n".join(self.made.worker_log(number)[-3_000:] for number in range(len(self.made.workers)))
                raise AssertionError(f"{what}: not within {within_seconds} s\n{logs}")
            await asyncio.sleep(0.02)


def command_of(word: str, **fields: Any) -> dict[str, Any]:
    """A command for everybody as a JSON document."""
    return {
        "schema_version": 1,
        "command_id": str(uuid.uuid4()),
        "command": word,
        "scope": "all",
        "target": "",
        "operator": "ana",
        "reason": "a test",
        **fields,
    }


class Person:
    """Somebody with tokens and a second factor. `code` gives a new one each time, and waits for it where there are no more."""

    def __init__(self, name: str, issuer: Issuer) -> None:
        self.name = name
        self.secret = pyotp.random_base32(32)
        self._issuer = issuer
        self._last_step = -1

    def token(self, issuer: Issuer | None = None, **claims: Any) -> bytes:
        now = int(time())
        given = {"sub": self.name, "iat": now - 60, "exp": now + 600, "scope": "trade operate", **claims}
        return (issuer or self._issuer).token(**given)

    def code(self) -> bytes:
        step, passed = divmod(int(time()), 30)
        # The step before is good until this one is over: only where that leaves time to use it.
        self._last_step = max(self._last_step + 1, step - 1 if passed < _USED_WITHIN_SECONDS else step)
        while self._last_step > int(time()) // 30 + 1:
            sleep(0.2)
        return pyotp.TOTP(self.secret).at(self._last_step * 30).encode()

    def wrong_code(self) -> bytes:
        now = int(time()) // 30
        right = {pyotp.TOTP(self.secret).at(step * 30) for step in range(now - 2, now + 4)}
        return next(code for number in range(10) if (code := f"{number:06}") not in right).encode()

    def headers(self, code: bytes = b"000000", **claims: Any) -> list[tuple[str, bytes]]:
        """The headers of a command; the token is good, but for what is given."""
        return [("authorization", b"Bearer " + self.token(**claims)), ("x-totp", code)]


def token_settings(issuer: Issuer, directory: Path) -> dict[str, str]:
    """Settings, without their prefix, under which workers trust this issuer."""
    keys = directory / "token-keys.pem"
    keys.write_bytes(issuer.public_pem())
    return {"TOKEN_KEYS_FILE": str(keys), "TOKEN_ISSUER": ISSUER, "TOKEN_AUDIENCE": AUDIENCE}


async def add_people(made: Installation, people: dict[Person, Role], frozen: Collection[Person] = ()) -> None:
    """Adds them as users, with their second factors, and publishes what the audit trail says of it. Who is there already is enrolled."""
    url, keyring = made.settings.database_url, keyring_of(made.settings)
    assert url is not None
    database = await connect(url.get_secret_value(), 2, 10)
    try:
        for person, role in people.items():
            by = claimed("test", datetime.now(UTC), "a test")
            async with database.connection() as connection:
                known = await connection.fetchval("SELECT 1 FROM users WHERE user_id = $1", person.name)
            if not known:
                await add_user(database, person.name, role, pending=False, by=by)
            ciphertext = keyring.encrypt_second_factor(person.name, person.secret)
            await enrol_second_factor(database, person.name, keyring.key_id, ciphertext, replace=False, by=by)
            if person in frozen:
                await set_user_status(database, person.name, StatusChange.FREEZE, by)
        await publish_audit_events(made.settings, made.settings.kafka_bootstrap_servers or "", database)
    finally:
        await database.close()


def cli_settings(made: Installation, extra: dict[str, str] | None = None) -> dict[str, str]:
    """The settings of the installation for a command, without their prefix."""
    given = {f"ORCHESTRATOR_{name}": value for name, value in (extra or {}).items()}
    prefix = "ORCHESTRATOR_"
    return {name.removeprefix(prefix): value for name, value in made.environment(given).items() if name.startswith(prefix)}


@asynccontextmanager
async def commanding(made: Installation) -> AsyncIterator[Commands]:
    """Opens what commands need."""
    url = made.settings.database_url
    assert url is not None
    producer = AIOKafkaProducer(bootstrap_servers=made.settings.kafka_bootstrap_servers, acks="all")
    await producer.start()
    connection = await asyncpg.connect(url.get_secret_value(), timeout=10)
    try:
        yield Commands(made, producer, connection)
    finally:
        await connection.close(timeout=10)
        await producer.stop()
