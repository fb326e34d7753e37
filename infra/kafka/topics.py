"""The administration step: creates the topics with the settings their promises need, and refuses to start on wrong ones.

Faust may not declare topics: it would create an output topic without compaction, or the requests topic with the producer's clock.
"""

import asyncio
from typing import Final

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError, TopicAlreadyExistsError, for_code

from infra.kafka.connection import client_options
from infra.kafka.topic_settings import Found, TopicProblem, Wanted, problems_of
from infra.settings import Settings
from pipeline.model.invariants import Retryable
from schemas.topics import Topics, TopicSpec

log = structlog.get_logger(__name__)

_TIMEOUT_MS: Final = 15_000
_ASKED_MAX: Final = 20
_ASK_AGAIN_SECONDS: Final = 0.25


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
    problems = await _problems(admin, specs, settings)
    refused = [str(problem) for problem in problems if problem.reaction == "refuse"]
    if refused:
        raise TopicsUnfit(
            "topics have settings that break a promise, so nothing is read and no order is sent: "
            + "; ".join(refused)
            + ". Change them with kafka-configs (or name another ORCHESTRATOR_TOPIC_PREFIX) and start again."
        )
    for problem in problems:
        log.warning("topic_at_risk", topic=problem.topic, what=problem.text, do="change it with kafka-configs; see `orchestrator doctor`")


async def _problems(admin: AIOKafkaAdminClient, specs: tuple[TopicSpec, ...], settings: Settings) -> list[TopicProblem]:
    wanted = Wanted(settings.kafka_replication_factor, settings.kafka_min_insync_replicas)
    names = [spec.name for spec in specs]
    found, copies = await _settings_of(admin, names), await _copies_of(admin, names)
    return [
        problem
        for spec in specs
        for problem in problems_of(spec, Found(found.get(spec.name, {}), *copies.get(spec.name, (None, None))), wanted)
    ]


async def topic_problems(settings: Settings, bootstrap_servers: str) -> list[TopicProblem]:
    """What is wrong with the topics: missing, wrong settings, too few copies. Changes nothing. Raises Retryable without a broker."""
    admin = AIOKafkaAdminClient(**client_options(settings, bootstrap_servers), request_timeout_ms=_TIMEOUT_MS)
    specs = Topics(settings.topic_prefix).specs(settings.exchanges)
    try:
        await admin.start()
        existing = set(await admin.list_topics())
        present = tuple(spec for spec in specs if spec.name in existing)
        problems = [TopicProblem(spec.name, "does not exist", "warn") for spec in specs if spec.name not in existing]
        return problems + (await _problems(admin, present, settings) if present else [])
    except (KafkaError, OSError, TimeoutError) as error:
        raise Retryable(f"the broker is out of reach ({type(error).__name__}: {error})") from error
    finally:
        await admin.close()


async def _copies_of(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, tuple[int, int]]:
    """Copies and copies in sync of each topic's worst partition. A topic that was just made may not be told yet."""
    return {
        topic["topic"]: (
            min(len(partition["replicas"]) for partition in topic["partitions"]),
            min(len(partition["isr"]) for partition in topic["partitions"]),
        )
        for topic in await admin.describe_topics(names)
        if topic["partitions"]
    }


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
