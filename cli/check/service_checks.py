"""What `doctor` asks the services: the broker's topics, the database's schema and triggers, the offsets in both, the exchanges' clocks.

Start with `check_broker`.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aiokafka.errors import KafkaError
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.access.database import reading
from cli.access.installation import Installation, without_password
from cli.check.durability_checks import durability_findings
from cli.operate.offsets import measure_offsets
from cli.operate.quarantine import OpenEntries, open_entries
from cli.show.lag import committed_offsets, input_topics
from cli.terminal.exits import CommandFailed
from cli.terminal.findings import Finding, Findings
from cli.terminal.output import to_text
from infra.exchange.ccxt.connection import VenueConnection
from infra.exchange.gateway import UnknownVenue, VenueUnavailable
from infra.exchange.venues.registry import is_real_money, venue
from infra.kafka.connection import client_options
from infra.kafka.topics import topic_problems
from infra.keyring import MasterKeyError, keyring_of
from infra.postgres import migrate
from infra.postgres.durability import SETTINGS
from pipeline.model.invariants import Retryable
from schemas.topics import Topics

_KEYS_CHECKED_MAX: Final = 1_000
_CLOCK_DIFFERENCE_MS_MAX: Final = 1_000
_EXCHANGE_TIMEOUT_MS_MAX: Final = 5_000
# A batch that is stored and not yet published is normal for a moment.
_OFFSET_ATTEMPTS: Final = 4
_OFFSET_PAUSE_SECONDS: Final = 0.5
_APPEND_ONLY_TABLES: Final = ("audit_events", "transfers")
# pg_trigger.h: bits of tgtype for DELETE, UPDATE and TRUNCATE.
_TRIGGER_EVENTS: Final = 8 | 16 | 32

# Who may halt and approve: with a second factor that can be used.
_OPERATORS: Final = text("""
    SELECT count(*) FROM users JOIN second_factors USING (user_id)
    WHERE users.role = 'operator' AND users.status = 'active' AND NOT second_factors.locked
""")
_CLOCK: Final = text("SELECT clock_timestamp()")
_TRIGGERS: Final = text("""
    SELECT relname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
    WHERE tgname = 'append_only' AND tgenabled IN ('O', 'A') AND tgtype & :events = :events
      AND relname = ANY(:tables) AND pg_table_is_visible(pg_class.oid)
""")
_DURABILITY: Final = text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names)")
_REVISION: Final = text("SELECT version_num FROM alembic_version")
_KEYS: Final = text("""
    SELECT user_id, api_key_id, ciphertext FROM api_keys WHERE status = 'active' ORDER BY user_id, api_key_id LIMIT :limit
""")
_PARTITIONS: Final = text("SELECT topic, partition, base_offset, next_offset FROM input_partitions WHERE consumer_group = :group")


async def check_broker(installation: Installation) -> Findings:
    """Reach, topics, copies."""
    settings = installation.settings
    try:
        address = installation.kafka
        problems = await topic_problems(settings, address)
    except CommandFailed as error:
        return [Finding.unreachable("broker", _cause(error), "start one with `orchestrator up`, or set the address")]
    except Retryable as error:
        return [Finding.unreachable("broker", f"{address}: {error}", "start it, or check ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS")]
    reached = Finding.ok("broker", f"{address} answers")
    if not problems:
        return [reached, Finding.ok("topics", f"{len(Topics(settings.topic_prefix).specs(settings.exchanges))} topics as they must be")]
    remedy = "a worker makes missing topics when it starts; change settings with kafka-configs, copies with kafka-reassign-partitions"
    refused = f"no worker starts with it; {remedy}"
    return [
        reached, *(Finding.problem("topics", str(problem), refused if problem.reaction == "refuse" else remedy) for problem in problems)
    ]


async def check_database(installation: Installation) -> Findings:
    """Reach, clock, durability, schema, triggers, operators, and that the master key fits what is stored."""
    try:
        async with reading(installation) as connection:
            version = (await connection.execute(text("SHOW server_version"))).scalar_one()
            findings = [Finding.ok("database", f"{without_password(installation.database_url)} answers, PostgreSQL {version}")]
            findings += [*await _clock(connection), *await _durability(connection)]
            schema = await _schema(connection)
            findings += schema
            if all(finding.status == "ok" for finding in schema):
                findings += [*await _triggers(connection), *await _stored_keys(installation, connection)]
                findings.append(quarantine_finding(await open_entries(connection)))
                if installation.settings.authentication == "required":
                    findings += await _operators(connection)
            return findings
    except CommandFailed as error:
        return [Finding.unreachable("database", _cause(error), "start it, or check ORCHESTRATOR_DATABASE_URL")]


def _cause(error: CommandFailed) -> str:
    """What happened, without what it means for a command that wanted to do something."""
    return str(error).partition(". Nothing")[0]


async def _clock(connection: AsyncConnection) -> Findings:
    """Rows have the worker's time, and some questions compare it with the server's."""
    asked_at = datetime.now(UTC)
    server = (await connection.execute(_CLOCK)).scalar_one()
    # The answer took some time itself: the clock is judged by the nearer end.
    answered_at = datetime.now(UTC)
    difference = server - answered_at if server > answered_at else min(server - asked_at, timedelta())
    difference_ms = round(difference / timedelta(milliseconds=1))
    if abs(difference_ms) <= _CLOCK_DIFFERENCE_MS_MAX:
        return []
    detail = f"its server's clock differs from this machine's by {difference_ms} ms"
    return [Finding.problem("database", detail, "synchronise both clocks (NTP): ages and deadlines are compared across them")]


async def _operators(connection: AsyncConnection) -> Findings:
    """Where tokens are required, a command counts only with an operator's token and code: without one nobody could resume or approve."""
    count = (await connection.execute(_OPERATORS)).scalar_one()
    if count:
        return [Finding.ok("operators", f"{count} with a second factor")]
    remedy = "`orchestrator users add NAME --role operator`, then `orchestrator users enrol-totp NAME`"
    return [Finding.problem("operators", "no active user is an operator with a second factor: nobody could resume or approve", remedy)]


async def _durability(connection: AsyncConnection) -> Findings:
    rows = await connection.execute(_DURABILITY, {"names": list(SETTINGS)})
    return durability_findings(dict(rows.all()))


async def _schema(connection: AsyncConnection) -> Findings:
    head = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations")).get_current_head()
    exists = (await connection.execute(text("SELECT to_regclass('alembic_version') IS NOT NULL"))).scalar_one()
    current = (await connection.execute(_REVISION)).scalar_one_or_none() if exists else None
    if current == head:
        return [Finding.ok("schema", f"revision {head}")]
    if current is None:
        return [Finding.problem("schema", "there are no tables yet", "a worker makes them when it starts")]
    remedy = "start a worker of this version, which brings it up to date; if the database is newer, use the newer version"
    return [Finding.problem("schema", f"revision {current}, this version needs {head}", remedy)]


async def _triggers(connection: AsyncConnection) -> Findings:
    rows = await connection.execute(_TRIGGERS, {"events": _TRIGGER_EVENTS, "tables": list(_APPEND_ONLY_TABLES)})
    missing = sorted(set(_APPEND_ONLY_TABLES) - set(rows.scalars()))
    if not missing:
        return [Finding.ok("append-only", f"{' and '.join(_APPEND_ONLY_TABLES)} refuse UPDATE, DELETE and TRUNCATE")]
    remedy = "somebody removed or disabled the trigger append_only: find out who, run `orchestrator verify`, and put it back"
    return [Finding.problem("append-only", f"{table} can be rewritten", remedy) for table in missing]


async def _stored_keys(installation: Installation, connection: AsyncConnection) -> Findings:
    try:
        keyring = keyring_of(installation.settings)
    except MasterKeyError:
        return [Finding.skipped("stored keys", "without a master key they cannot be tried")]
    rows = (await connection.execute(_KEYS, {"limit": _KEYS_CHECKED_MAX})).all()
    wrong = []
    for user_id, api_key_id, ciphertext in rows:
        try:
            keyring.decrypt(user_id, api_key_id, ciphertext)
        except MasterKeyError:
            wrong.append(f"{user_id}/{api_key_id}")
    if not wrong:
        return [Finding.ok("stored keys", f"the master key decrypts all {len(rows)}")]
    named = ", ".join(wrong[:5]) + (" …" if len(wrong) > 5 else "")
    remedy = "set the ORCHESTRATOR_MASTER_KEY they were stored under, or store them again; orders with them are not sent meanwhile"
    return [Finding.problem("stored keys", f"the master key does not decrypt {len(wrong)} of {len(rows)}: {named}", remedy)]


def quarantine_finding(found: OpenEntries) -> Finding:
    """Records that were set aside: each is a defect or damage, and may be about funds that are held."""
    if not found.entries:
        return Finding.ok("quarantine", "no record that was set aside is open")
    detail = f"{found.entries} records that could not be decided are open, the oldest since {to_text(found.oldest_at)}"
    remedy = "look at them with `orchestrator quarantine list --state open`; docs/operations.md says what becomes of each"
    return Finding.problem("quarantine", detail, remedy)


async def check_offsets(installation: Installation) -> Findings:
    """Kafka's committed offsets against the database's: they are equal, or a batch apart while it is published."""
    settings = installation.settings
    try:
        client = client_options(settings, installation.kafka)
        wrong: list[str] = []
        for attempt in range(_OFFSET_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_OFFSET_PAUSE_SECONDS)
            async with reading(installation) as connection:
                rows = (await connection.execute(_PARTITIONS, {"group": settings.consumer_group})).all()
            stored = {(topic, partition): (base, following) for topic, partition, base, following in rows}
            committed = await committed_offsets(client, settings.consumer_group, input_topics(settings))
            wrong = offset_problems({(known.topic, known.partition): offset for known, offset in committed.items()}, stored)
            if not wrong:
                return [
                    Finding.ok("offsets", f"{len(committed)} input partitions agree in Kafka and the database"),
                    *await _missing_records(installation),
                ]
    except (CommandFailed, KafkaError, OSError, TimeoutError):
        return [Finding.skipped("offsets", "broker and database must both answer, with their tables")]
    remedy = (
        "workers refuse to start on these: if an offset was reset, set it back to the database's with kafka-consumer-groups; if a backup "
        "was restored, see docs/operations.md"
    )
    return [Finding.problem("offsets", problem, remedy) for problem in wrong]


async def _missing_records(installation: Installation) -> Findings:
    """Partitions that stand, or would, because records were lost before they were read."""
    missing = [row for row in await measure_offsets(installation) if row.gap is not None and row.accepted_by is None]
    remedy = "see `orchestrator offsets`, and docs/operations.md: records that were lost before they were read"
    return [Finding.problem("offsets", f"{row.topic}/{row.partition}: {row.gap}", remedy) for row in missing]


def offset_problems(committed: dict[tuple[str, int], int], stored: dict[tuple[str, int], tuple[int, int]]) -> list[str]:
    """Where the two disagree. `committed` is -1 where there is none; `stored` is (base, next) of the newest batch."""
    problems = []
    for key in sorted(committed.keys() | stored.keys()):
        topic, partition = key
        if key not in committed:
            problems.append(f"{topic}/{partition}: the database knows it, the broker has no such partition")
            continue
        offsets = stored.get(key)
        if offsets is None:
            if committed[key] >= 0:
                problems.append(f"{topic}/{partition}: {committed[key]} is committed in Kafka, the database knows nothing of it")
        elif committed[key] not in offsets:
            problems.append(f"{topic}/{partition}: {committed[key]} is committed in Kafka, the database stands at {offsets[1]}")
    return problems


async def check_exchange(installation: Installation, exchange: str) -> Findings:
    """Known, permitted, reached, and its clock."""
    settings, check = installation.settings, f"exchange {exchange}"
    try:
        row = venue(exchange)
    except UnknownVenue as error:
        return [Finding.problem(check, str(error), "take it out of ORCHESTRATOR_EXCHANGES")]
    url = settings.exchange_urls.get(exchange)
    is_real = url is None or is_real_money(url)
    if is_real and settings.authentication == "sandbox":
        remedy = (
            "set ORCHESTRATOR_AUTHENTICATION=required with the keys of your tokens, or name a sandbox or the simulated exchange: "
            f"ORCHESTRATOR_EXCHANGE_URLS='{{\"{exchange}\": \"http://…\"}}'"
        )
        return [Finding.problem(check, "it is the real exchange, and nobody is asked for a token: workers refuse it", remedy)]
    if settings.receive_window > row.receive_window_max:
        return [Finding.skipped(check, "it would refuse every call: see its waiting times")]
    connection = VenueConnection(
        row,
        base_url=url,
        timeout_ms=min(settings.exchange_timeout_ms, _EXCHANGE_TIMEOUT_MS_MAX),
        receive_window=settings.receive_window,
        rate_limit=False,
        connections_max=2,
        clock=lambda: datetime.now(UTC),
    )
    shown = "its own address" if url is None else without_password(urlsplit(url)._replace(query="", fragment="").geturl())
    try:
        # Markets and clock are public: neither a key nor money is needed.
        await connection.ready()
    except VenueUnavailable as error:
        remedy = "start it, or check ORCHESTRATOR_EXCHANGE_URLS"
        if url is None:
            remedy = "check the network, and whether the exchange serves this place"
        return [Finding.unreachable(check, f"{shown}: {error}", remedy)]
    finally:
        await connection.close()
    difference = connection.clock_difference_ms
    if abs(difference) > _CLOCK_DIFFERENCE_MS_MAX:
        detail = f"its clock differs from this machine's by {difference} ms"
        return [Finding.problem(check, detail, "synchronise this machine's clock (NTP): deadlines of orders go by it")]
    money = " (REAL MONEY)" if is_real else ""
    return [Finding.ok(check, f"{shown} answers{money}, clock difference {difference} ms")]
