"""Somebody moved or lost the group's offsets while the workers were stopped: nothing is read until a person has decided."""

import asyncio
import re
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from agents.process.worker import ExitCode
from embedded.kafka_tools import KafkaTools
from infra.settings import Settings
from tests.installation import Installation, ended, installation, order
from tests.promises import assert_promises_hold

START_SECONDS_MAX = 120
_GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"


@pytest.fixture
async def tools(kafka: str) -> KafkaTools:
    """Kafka's own console tools: what operators use."""
    return await KafkaTools.for_broker(kafka, Settings().cache_dir, progress=lambda _: None)


async def work_and_stop(made: Installation, first: int) -> None:
    """Eight requests are executed, and the worker is stopped in an orderly way."""
    worker = made.start_worker()
    await made.final_results(await made.publish([order(number) for number in range(first, first + 8)]), START_SECONDS_MAX)
    await assert_promises_hold(made)
    worker.terminate()
    assert await ended(worker, 90) == ExitCode.DONE


async def refused(made: Installation) -> str:
    """Starts a worker that must refuse to read; what it says."""
    before = len(made.accepted_orders())
    worker = made.start_worker()
    number = len(made.workers) - 1
    assert await ended(worker, START_SECONDS_MAX) == ExitCode.IMPOSSIBLE, made.worker_log(number)
    end = made.end(number)
    assert end["error"] == "OffsetsMoved"
    assert "orders could be lost or executed twice" in end["what"]
    assert len(made.accepted_orders()) == before
    return str(end["what"])


async def test_offsets_that_were_moved_are_refused_until_they_are_put_right(
    kafka: str, tools: KafkaTools, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """After a reset or a loss of the group's offsets a worker ends with code 6 and says which offset is right; with that it goes on."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, kafka_partitions=1) as made:
        await work_and_stop(made, 0)
        group, topic = made.settings.consumer_group, made.topics.requests
        # What expires after offsets.retention.minutes without members is gone as what is deleted is.
        for damage, told in ((("--reset-offsets", "--to-earliest", "--execute"), "has 0 as"), (("--delete-offsets",), "has no")):
            await until_empty(made)
            await tools._run(_GROUPS, "--group", group, "--topic", topic, *damage)
            what = await refused(made)
            assert f"{told} committed offset" in what
            right = re.search(r"set it to (\d+) with kafka-consumer-groups", what)
            assert right is not None, what
            await until_empty(made)
            repair = ("--reset-offsets", "--to-offset", right.group(1), "--execute")
            await tools._run(_GROUPS, "--group", group, "--topic", topic, *repair)
        await work_and_stop(made, 8)
        assert len(made.accepted_orders()) == 16


async def test_first_answers_are_not_published_again_after_a_loss_of_offsets(
    kafka: str, tools: KafkaTools, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """With a single batch done, a lost offset must not look like that batch before its publication: its answers would come twice."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, kafka_partitions=1) as made:
        worker = made.start_worker()
        sent = await made.publish([b"not json"])
        await made.final_results(sent, START_SECONDS_MAX)
        worker.kill()
        await ended(worker, 10)
        await until_empty(made)
        arguments = ("--group", made.settings.consumer_group, "--topic", made.topics.requests, "--delete-offsets")
        await tools._run(_GROUPS, *arguments)
        await refused(made)
        # Would fail on a second answer.
        await made.final_results(sent, 10)


async def until_empty(made: Installation) -> None:
    """Waits until the broker has given up the members that ended without saying so."""
    admin = AIOKafkaAdminClient(bootstrap_servers=made.settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        async with asyncio.timeout(60):
            while (await admin.describe_consumer_groups([made.settings.consumer_group]))[0].groups[0][2] != "Empty":
                await asyncio.sleep(0.2)
    finally:
        await admin.close()


async def test_database_without_the_groups_past_is_refused(
    kafka: str, database_url: str, empty_database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A worker with a fresh database in a group that has worked before ends with code 6: another database knows what was executed."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, kafka_partitions=1) as made:
        await work_and_stop(made, 0)
        worker = made.start_worker(ORCHESTRATOR_DATABASE_URL=empty_database_url)
        assert await ended(worker, START_SECONDS_MAX) == ExitCode.IMPOSSIBLE, made.worker_log(1)
        end = made.end(1)
        assert end["error"] == "OffsetsMoved"
        assert "Give the workers the database that belongs to this consumer group" in end["what"]
        assert len(made.accepted_orders()) == 8
        await work_and_stop(made, 8)
