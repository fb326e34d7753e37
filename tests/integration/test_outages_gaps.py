"""Records that were deleted before they were read: their partition stops, the others go on, and a person decides."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from agents.process.worker import ExitCode
from tests.installation import Installation, ended, installation, order

START_SECONDS_MAX = 120
_ROOT = Path(__file__).parents[2]


@pytest.fixture
async def admin(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    yield client
    await client.close()


async def run(made: Installation, *arguments: str) -> tuple[int, str]:
    """The command line as an operator of this installation runs it: its exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", *arguments, env=made.environment({}), cwd=_ROOT, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(90):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def accept(made: Installation, said: dict[str, str]) -> None:
    """Does what the worker's log says."""
    arguments = said["do"].partition("orchestrator ")[2].replace("TEXT", "lost").split()
    code, output = await run(made, *arguments, "--operator", "olga", "--yes")
    assert (code, "goes on at" in output) == (0, True)


async def stopped_at(made: Installation, worker: int, first: int, last: int) -> dict[str, str]:
    """The word of a worker about a partition that stands because these records are missing."""
    told = f"from {first} to {last} are missing"
    async with asyncio.timeout(90):
        while True:
            for event in made.events(worker):
                if event["event"] == "partition_stopped" and told in event["what"]:
                    return event
            await asyncio.sleep(0.2)


async def test_records_deleted_unread_stop_their_partition_alone_until_an_operator_accepts_the_loss(
    kafka: str, admin: AIOKafkaAdminClient, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """While no worker runs, and while one runs and is paused: nothing is passed over, what lies behind the hole is answered once the loss
    is accepted, and the other partition's requests are answered all the time."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, kafka_partitions=2) as made:
        topic = made.topics.requests

        async def lose(before: int) -> None:
            await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=before)})

        first = made.start_worker()
        await made.final_results(await made.publish([order(number) for number in range(4)], partition=0), START_SECONDS_MAX)
        first.terminate()
        assert await ended(first, 30) == ExitCode.DONE

        lost = await made.publish([order(number) for number in range(10, 13)], partition=0)
        kept = await made.publish([order(13)], partition=0)
        await lose(kept[0].offset)
        second = made.start_worker()
        said = await stopped_at(made, 1, lost[0].offset, lost[-1].offset)
        assert said["partition"] == f"{topic}/0"
        await made.final_results(await made.publish([order(20)], partition=1), 60)
        code, output = await run(made, "offsets", "--json")
        row = next(row for row in json.loads(output) if (row["topic"], row["partition"]) == (topic, 0))
        assert (code, row["missing"], row["resume_at"]) == (1, f"{lost[0].offset}-{lost[-1].offset}", kept[0].offset)
        await accept(made, said)
        await made.final_results(kept, 120)

        # On the fly, in the same worker.
        second.send_signal(signal.SIGSTOP)
        # A fetch that the broker holds when the worker stops would still be answered with what is appended now.
        await asyncio.sleep(1.5)
        lost = await made.publish([order(number) for number in range(30, 33)], partition=0)
        kept = await made.publish([order(33)], partition=0)
        await lose(kept[0].offset)
        second.send_signal(signal.SIGCONT)
        said = await stopped_at(made, 1, lost[0].offset, lost[-1].offset)
        await made.final_results(await made.publish([order(40)], partition=1), 60)
        await accept(made, said)
        await made.final_results(kept, 120)
        assert second.poll() is None, made.worker_log(1)
        keys = {result["idempotency_key"] for result in await made.results()}
        assert len(keys) == 8
