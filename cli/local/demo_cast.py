"""What the demo's users are given beyond money and a key, and what they send before the load: second factors, limits, unfit keys, sessions.

Invariant: all of it goes the way that operators and users have, so that what the demo shows is what they get.

Start with `equip` and `open_sessions`.
"""

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Final

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from cli.local.demo_identities import Identities, Proof
from cli.local.demo_members import EXPIRED_KEY, MEMBERS, OPERATOR, READING_KEY, REVOKED_KEY, Bounds, Standing, member_id
from infra.kafka.connection import client_options
from infra.keyring import Keyring, StoredSecret
from infra.postgres.admin.administration import StatusChange, add_user, enrol_second_factor, set_limit, set_user_status
from infra.postgres.admin.key_administration import NewKey, Permission, add_key, revoke_key
from infra.postgres.admin.operators import By
from infra.postgres.database import Database
from infra.settings import Settings
from pipeline.model.invariants import Retryable
from schemas.commands import Command, CommandWord, HaltScope
from schemas.topics import Topics
from schemas.wire import format_time

_SECONDS_MAX: Final = 60.0
_POLL_SECONDS: Final = 0.2
_WORDS: Final = {Standing.HALTED: CommandWord.HALT, Standing.REDUCED: CommandWord.REDUCE}


@dataclass(frozen=True, slots=True)
class Cast:
    """The users of one run, with their keys at the exchange (without the secrets): those who trade, and all who have an account there."""

    traders: dict[str, str]
    everybody: dict[str, str]


def member_ids(run: str) -> list[str]:
    """The members who have an account at the exchange; who waits for verification has none."""
    return [member_id(run, member.name) for member in MEMBERS if member.standing is not Standing.PENDING]


async def equip(database: Database, keyring: Keyring, identities: Identities, user_ids: Sequence[str], run: str, by: By) -> None:
    """Gives everybody a second factor, and the members what they are there for. The users in `user_ids` are there already."""
    operator, pending = member_id(run, OPERATOR), member_id(run, "pending")
    await add_user(database, operator, "operator", pending=False, by=by)
    await add_user(database, pending, "trader", pending=True, by=by)
    everybody = [*user_ids, operator, pending]
    for user_id in everybody:
        ciphertext = keyring.encrypt_second_factor(user_id, identities.enrol(user_id))
        await enrol_second_factor(database, user_id, keyring.key_id, ciphertext, replace=False, by=by)
    for member in MEMBERS:
        for name, amount in member.limits.items():
            await set_limit(database, member_id(run, member.name), name, amount, by)
        if member.standing is Standing.FROZEN:
            await set_user_status(database, member_id(run, member.name), StatusChange.FREEZE, by)
    await _unfit_keys(database, keyring, member_id(run, "keys"), by)


async def _unfit_keys(database: Database, keyring: Keyring, user_id: str, by: By) -> None:
    expired = by.at - timedelta(days=1)
    unfit: tuple[tuple[str, frozenset[Permission], datetime | None], ...] = (
        (REVOKED_KEY, frozenset({"trade"}), None),
        (EXPIRED_KEY, frozenset({"trade"}), expired),
        (READING_KEY, frozenset({"withdraw"}), None),
    )
    for key_id, permissions, expires_at in unfit:
        ciphertext = keyring.encrypt(user_id, key_id, StoredSecret(f"key{uuid.uuid4().hex}", uuid.uuid4().hex))
        new = NewKey(user_id, key_id, "binance", permissions, expires_at, keyring.key_id, ciphertext)
        await add_key(database, new, replace=False, by=by)
    await revoke_key(database, user_id, REVOKED_KEY, by)


Record = tuple[str, str, bytes, Proof, str]


def _requests(run: str, in_session: Iterable[str], requests_topic: str) -> list[Record]:
    """What users publish before the load: (topic, record key, value, proof, signer)."""
    wanted = [(user_id, Bounds()) for user_id in in_session]
    wanted += [(member_id(run, member.name), member.session) for member in MEMBERS if member.session is not None]
    records: list[Record] = []
    for user_id, bounds in wanted:
        base = {"schema_version": 1, "type": "session", "user_id": user_id}
        fields: dict[str, object] = {**base, "idempotency_key": f"{run}:session"}
        if bounds.orders_max is not None:
            fields["orders_max"] = bounds.orders_max
        if bounds.symbols is not None:
            fields["symbols"] = bounds.symbols
        if bounds.lasts is not None:
            fields["session_expires_at"] = format_time(datetime.now(UTC) + bounds.lasts)
        records.append((requests_topic, user_id, orjson.dumps(fields), Proof.CODE, user_id))
        if bounds.is_revoked:
            ended = {**base, "idempotency_key": f"{run}:session ends", "revoke": True}
            records.append((requests_topic, user_id, orjson.dumps(ended), Proof.SESSION, user_id))
    return records


def _commands(run: str, commands_topic: str) -> list[Record]:
    records: list[Record] = []
    for member in MEMBERS:
        if member.standing not in _WORDS:
            continue
        command = Command(
            schema_version=1,
            command_id=str(uuid.uuid4()),
            command=_WORDS[member.standing],
            scope=HaltScope.USER,
            target=member_id(run, member.name),
            operator=member_id(run, OPERATOR),
            reason="shown in the demo",
        )
        value = command.model_dump_json().encode()
        records.append((commands_topic, HaltScope.USER.value, value, Proof.OPERATOR, command.operator))
    return records


async def open_sessions(
    settings: Settings, bootstrap_servers: str, database: Database, identities: Identities, run: str, in_session: Sequence[str]
) -> int:
    """Begins every session, has an operator stop two members, and waits until the workers have done so and what is brief is over; returns
    how many sessions there are. Raises Retryable when they do not."""
    topics = Topics(settings.topic_prefix)
    producer = AIOKafkaProducer(**client_options(settings, bootstrap_servers), enable_idempotence=True, acks="all")
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            await producer.start()
            try:
                # Now, as the times in them begin to run.
                began = monotonic()
                requests = _requests(run, in_session, topics.requests)
                records = [*requests, *_commands(run, topics.commands)]
                sends = []
                for topic, key, value, proof, signer in records:
                    sends.append(await producer.send(topic, value, key=key.encode(), headers=identities.headers(signer, proof)))
                await asyncio.gather(*sends)
            finally:
                await producer.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        raise Retryable(f"the broker is out of reach ({type(error).__name__}: {error})") from error
    signers = sorted({signer for *_, signer in requests})
    await _until_begun(database, signers)
    brief = max((member.session.lasts for member in MEMBERS if member.session is not None and member.session.lasts), default=timedelta(0))
    await asyncio.sleep(max(0.0, began + brief.total_seconds() - monotonic()))
    return len(signers)


async def _until_begun(database: Database, user_ids: Sequence[str]) -> None:
    deadline = monotonic() + _SECONDS_MAX
    begun = 0
    while monotonic() < deadline:
        async with database.connection() as connection:
            begun = await connection.fetchval("SELECT count(*) FROM sessions WHERE user_id = ANY($1::text[])", user_ids)
        if begun >= len(user_ids):
            return
        await asyncio.sleep(_POLL_SECONDS)
    raise Retryable(f"{begun} of {len(user_ids)} sessions have begun within {_SECONDS_MAX:.0f} s")
