"""The administration step: creates the topics with the settings their promises need, and refuses to start on wrong ones.

Faust may not declare topics: it would create an output topic without compaction, or the requests topic with the producer's clock.
"""

import asyncio
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError, TopicAlreadyExistsError, for_code

from infra.kafka.connection import client_options
from infra.settings import Settings
from pipeline.invariants import Retryable
from schemas.topics import Topics, TopicSpec

_TIMEOUT_MS: Final = 15_000
_ASKED_MAX: Final = 20
_ASK_AGAIN_SECONDS: Final = 0.25
# What must be as created, or a promise is broken: a requests topic with the producer's time, an audit topic that deletes, a record that
# workers cannot unpack and so stop at, a dead letter that does not fit.
_BINDING: Final = ("cleanup.policy", "message.timestamp.type", "compression.type", "max.message.bytes")


class TopicsUnfit(Exception):
    """A topic exists with settings that break a promise. A person must decide; nothing is changed."""


async def ensure_topics(settings: Settings, bootstrap_servers: str) -> None:
    """Creates what is missing and checks what exists. Raises TopicsUnfit for wrong settings, Retryable without a broker."""
    admin = AIOKafkaAdminClient(**client_options(settings, bootstrap_servers), request_timeout_ms=_TIMEOUT_MS)
    try:
        await admin.start()
        specs = Topics(settings.topic_prefix).specs(settings.exchanges)
        await _create(admin, specs, settings)
        await _check(admin, specs, settings)
        await _find_coordinator(admin, settings.consumer_group)
    except (KafkaError, OSError, TimeoutError) as error:
        raise Retryable(f"the broker is out of reach ({type(error).__name__}: {error})") from error
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, specs: tuple[TopicSpec, ...], settings: Settings) -> None:
    existing = set(await admin.list_topics())
    new = [
        NewTopic(
            spec.name,
            num_partitions=settings.kafka_partitions,
            replication_factor=settings.kafka_replication_factor,
            topic_configs={
                "cleanup.policy": spec.cleanup_policy,
                "min.insync.replicas": str(settings.kafka_min_insync_replicas),
                **spec.config,
            },
        )
        for spec in specs
        if spec.name not in existing
    ]
    if not new:
        return
    response = await admin.create_topics(new, timeout_ms=_TIMEOUT_MS)
    for name, code, *message in response.topic_errors:
        error = for_code(code)
        # Another worker that starts at the same time may have been faster.
        if code and error is not TopicAlreadyExistsError:
            raise TopicsUnfit(
                f"topic {name} could not be created: {error.__name__} {message[0] if message else ''}. No request is read until it exists: "
                "check the permissions, ORCHESTRATOR_KAFKA_REPLICATION_FACTOR and the number of brokers."
            )


async def _find_coordinator(admin: AIOKafkaAdminClient, group: str) -> None:
    """Waits until the group has a coordinator: the first question ever makes the topic of the groups' offsets, which takes a moment, and a
    consumer that asks meanwhile calls that an error. Raises Retryable."""
    for _ in range(_ASKED_MAX):
        try:
            await admin.find_coordinator(group)
        except GroupCoordinatorNotAvailableError:
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
        else:
            return
    raise Retryable(f"the broker names no coordinator for the consumer group {group}")


async def _check(admin: AIOKafkaAdminClient, specs: tuple[TopicSpec, ...], settings: Settings) -> None:
    problems = await _setting_problems(admin, specs, settings)
    if problems:
        raise TopicsUnfit(
            "topics have settings that break a promise, so nothing is read and no order is sent: "
            + "; ".join(problems)
            + ". Change them with kafka-configs (or name another ORCHESTRATOR_TOPIC_PREFIX) and start again."
        )


async def _setting_problems(admin: AIOKafkaAdminClient, specs: tuple[TopicSpec, ...], settings: Settings) -> list[str]:
    found = await _settings_of(admin, [spec.name for spec in specs])
    return [problem for spec in specs for problem in _problems(spec, found.get(spec.name, {}), settings)]


async def topic_problems(settings: Settings, bootstrap_servers: str) -> list[str]:
    """What is wrong with the topics, one sentence each: missing, wrong settings, too few copies. Changes nothing.

    Raises Retryable without a broker.
    """
    admin = AIOKafkaAdminClient(**client_options(settings, bootstrap_servers), request_timeout_ms=_TIMEOUT_MS)
    specs = Topics(settings.topic_prefix).specs(settings.exchanges)
    try:
        await admin.start()
        existing = set(await admin.list_topics())
        present = tuple(spec for spec in specs if spec.name in existing)
        problems = [f"{spec.name}: does not exist" for spec in specs if spec.name not in existing]
        if present:
            problems += await _setting_problems(admin, present, settings)
            copies = await admin.describe_topics([spec.name for spec in present])
            problems += [problem for topic in copies for problem in _copy_problems(topic, settings)]
    except (KafkaError, OSError, TimeoutError) as error:
        raise Retryable(f"the broker is out of reach ({type(error).__name__}: {error})") from error
    finally:
        await admin.close()
    return problems


def _copy_problems(topic: dict[str, Any], settings: Settings) -> list[str]:
    name, partitions = topic["topic"], topic["partitions"]
    copies = min(len(partition["replicas"]) for partition in partitions)
    in_sync = min(len(partition["isr"]) for partition in partitions)
    problems = []
    if copies < settings.kafka_replication_factor:
        problems.append(f"{name}: has {copies} copies, must have {settings.kafka_replication_factor}")
    if in_sync < settings.kafka_min_insync_replicas:
        problems.append(f"{name}: {in_sync} copies are in sync, and nothing is written below {settings.kafka_min_insync_replicas}")
    return problems


async def _settings_of(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    """Every topic's settings by name. A topic that was just made is not known to every broker at once: it is asked for again."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    for _ in range(_ASKED_MAX):
        found: dict[str, dict[str, str]] = {}
        for response in await admin.describe_configs(resources):
            for error_code, _, _, name, entries in response.resources:
                if error_code == 0:
                    found[name] = {entry[0]: entry[1] for entry in entries}
        if len(found) == len(names):
            return found
        await asyncio.sleep(_ASK_AGAIN_SECONDS)
    raise Retryable(f"the broker does not tell the settings of {', '.join(sorted(set(names) - set(found)))}")


def _problems(spec: TopicSpec, found: dict[str, str], settings: Settings) -> list[str]:
    wanted = {"cleanup.policy": spec.cleanup_policy, **spec.config}
    problems = [
        f"{spec.name}: {name} is {found.get(name)}, must be {wanted[name]}"
        for name in _BINDING
        if name in wanted and found.get(name) != wanted[name]
    ]
    replicas = int(found.get("min.insync.replicas") or 1)
    if replicas < settings.kafka_min_insync_replicas:
        problems.append(f"{spec.name}: min.insync.replicas is {replicas}, must be at least {settings.kafka_min_insync_replicas}")
    return problems
