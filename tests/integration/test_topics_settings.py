"""The administration step: makes the topics as their promises need them, refuses wrong ones, and changes nothing that exists."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from agents.process.worker import ExitCode
from infra.kafka.topics import TopicsUnfit, ensure_topics, topic_problems
from infra.settings import Settings
from pipeline.model.invariants import Retryable
from schemas.topics import Topics
from tests.fragile_servers import free_port
from tests.installation import ended, installation, order

EXCHANGES = ("binance",)


@pytest.fixture
async def admin(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    yield client
    await client.close()


def settings_for(prefix: str, **fields: int) -> Settings:
    return Settings(topic_prefix=prefix, exchanges=EXCHANGES, kafka_partitions=2, **fields)


async def config_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in response.resources[0][4]}


async def test_topics_are_made_as_their_promises_need_them(kafka: str, admin: AIOKafkaAdminClient, unique_prefix: str) -> None:
    """Requests carry the broker's clock, the audit trail and the states are compacted, and all of them exist after one call."""
    await ensure_topics(settings_for(unique_prefix), kafka)
    topics = Topics(unique_prefix)
    assert {spec.name for spec in topics.specs(EXCHANGES)} <= set(await admin.list_topics())
    assert (await config_of(admin, topics.requests))["message.timestamp.type"] == "LogAppendTime"
    for topic in (topics.audit, topics.state):
        assert (await config_of(admin, topic))["cleanup.policy"] == "compact"
    assert await topic_problems(settings_for(unique_prefix), kafka) == []


async def test_topics_that_many_workers_make_at_once_are_made_once(kafka: str, unique_prefix: str) -> None:
    """Workers that start together do not get in each other's way."""
    await asyncio.gather(*(ensure_topics(settings_for(unique_prefix), kafka) for _ in range(5)))
    assert await topic_problems(settings_for(unique_prefix), kafka) == []


@pytest.mark.parametrize(
    ("topic", "config", "told"),
    [
        ("requests", {"message.timestamp.type": "CreateTime"}, "message.timestamp.type is CreateTime, must be LogAppendTime"),
        ("requests", {"compression.type": "zstd"}, "compression.type is zstd, must be uncompressed"),
        (
            "requests_dlq",
            {"max.message.bytes": "1048588"},
            # A dead letter that did not fit would stop its partition for ever.
            "max.message.bytes is 1048588, must be 1310732",
        ),
        ("audit", {"cleanup.policy": "delete"}, "cleanup.policy is delete, must be compact"),
        ("state", {"cleanup.policy": "compact,delete"}, "cleanup.policy is compact,delete, must be compact"),
        ("results", {"cleanup.policy": "compact"}, "cleanup.policy is compact, must be delete"),
        # Set by hand or by the cluster's default: what waits would be deleted, or what was acknowledged would vanish.
        ("reports", {"retention.ms": "60000"}, "retention.ms is 60000, must be at least 86400000"),
        ("requests", {"unclean.leader.election.enable": "true"}, "unclean.leader.election.enable is true, must be false"),
        ("results", {"max.message.bytes": "2000"}, "max.message.bytes is 2000, must be at least 524288"),
    ],
)
async def test_topic_with_a_setting_that_breaks_a_promise_is_refused_and_left_alone(
    topic: str, config: dict[str, str], told: str, kafka: str, admin: AIOKafkaAdminClient, unique_prefix: str
) -> None:
    """The message names the topic, the setting, what it is and what it must be; nothing about the topic is changed."""
    name = str(getattr(Topics(unique_prefix), topic))
    await admin.create_topics([NewTopic(name, 2, 1, topic_configs=config)])
    with pytest.raises(TopicsUnfit) as raised:
        await ensure_topics(settings_for(unique_prefix), kafka)
    assert f"{name}: {told}" in str(raised.value)
    assert "no order is sent" in str(raised.value)
    for setting, value in config.items():
        assert (await config_of(admin, name))[setting] == value


async def test_topic_setting_that_is_only_a_risk_is_told_and_no_obstacle(
    kafka: str, admin: AIOKafkaAdminClient, unique_prefix: str
) -> None:
    """A worker starts, and `doctor` names it."""
    name = Topics(unique_prefix).requests
    made = {spec.name: spec.config for spec in Topics(unique_prefix).specs(EXCHANGES)}[name] | {"retention.bytes": "1000000"}
    await admin.create_topics([NewTopic(name, 2, 1, topic_configs=made)])
    await ensure_topics(settings_for(unique_prefix), kafka)
    ((problem),) = await topic_problems(settings_for(unique_prefix), kafka)
    assert problem.reaction == "warn"
    assert str(problem) == f"{name}: retention.bytes is 1000000, must be -1 (a burst would delete what waits unread)"


async def test_records_of_every_codec_are_worked_on(
    kafka: str, admin: AIOKafkaAdminClient, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Whatever compresses the queues between the agents and the answers, orders are executed and answered: an operator or the cluster's
    default decides that, at any time."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, kafka_partitions=1) as made:
        worker = made.start_worker()
        specs = {spec.name: spec for spec in made.topics.specs(made.settings.exchanges)}
        ours = (made.topics.orders("binance"), made.topics.reports, made.topics.results)
        sent = []
        for number, codec in enumerate(("gzip", "snappy", "lz4", "zstd")):
            resources = [
                ConfigResource(ConfigResourceType.TOPIC, name, configs={**specs[name].config, "compression.type": codec}) for name in ours
            ]
            await admin.alter_configs(resources)
            # The broker takes a change over some moments after it has confirmed it.
            async with asyncio.timeout(60):
                while {(await config_of(admin, name))["compression.type"] for name in ours} != {codec}:
                    await asyncio.sleep(0.1)
            sent += await made.publish([order(10 * number + one) for one in range(5)])
            await made.final_results(sent, 120)
        assert worker.poll() is None, made.worker_log(0)
        assert len(made.accepted_orders()) == 20


async def test_topic_that_is_acknowledged_by_fewer_replicas_than_asked_for_is_refused(kafka: str, unique_prefix: str) -> None:
    """Topics made for one acknowledging replica are not good enough for an installation that wants two."""
    await ensure_topics(settings_for(unique_prefix), kafka)
    with pytest.raises(TopicsUnfit, match=r"min\.insync\.replicas is 1, must be at least 2"):
        await ensure_topics(settings_for(unique_prefix, kafka_min_insync_replicas=2), kafka)


async def test_topics_with_more_replicas_than_brokers_are_refused(kafka: str, unique_prefix: str) -> None:
    """The broker's refusal comes with the setting to look at."""
    with pytest.raises(TopicsUnfit, match="ORCHESTRATOR_KAFKA_REPLICATION_FACTOR"):
        await ensure_topics(settings_for(unique_prefix, kafka_replication_factor=3), kafka)


async def test_topics_without_a_broker_can_be_tried_again(unique_prefix: str) -> None:
    """Nobody there is not the same as something wrong there."""
    with pytest.raises(Retryable, match="the broker is out of reach"):
        await ensure_topics(settings_for(unique_prefix), f"127.0.0.1:{free_port()}")


async def test_worker_with_wrong_topics_ends_with_the_code_for_settings(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A worker neither reads nor sends; its supervisor learns that another start would end the same way."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        worker = made.start_worker(ORCHESTRATOR_KAFKA_MIN_INSYNC_REPLICAS="2")
        assert await ended(worker, 120) == ExitCode.SETTINGS, made.worker_log(0)
        end = made.end(0)
        assert end["error"] == "TopicsUnfit"
        assert "must be at least 2" in end["what"]
