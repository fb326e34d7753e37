"""The disk of the database or of the broker is full: a clear error, nothing lost, and all goes on when there is room again.

The small disks are file systems in memory, which only root may mount; elsewhere these tests are skipped and say so.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.process.worker import ExitCode
from tests.fragile_servers import FragileServer, SmallDisk, fragile_broker, fragile_database, small_disk
from tests.installation import ended, installation, order
from tests.promises import assert_promises_hold

START_SECONDS_MAX = 120
ANSWER_SECONDS_MAX = 120
# A start wants 256 MiB of free space.
DISK_MEGABYTES = 420


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disk"), DISK_MEGABYTES) as found:
        if found is None:
            pytest.skip("a file system in memory cannot be mounted here: that needs root, and a kernel that permits it")
        yield found


async def revive(server: FragileServer) -> None:
    """What an operator does after making room."""
    await server.stop()
    await server.start()


async def test_full_disk_of_the_database_is_named_and_loses_nothing(
    disk: SmallDisk, kafka: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A worker waits for its patience, ends with code 3 and a message that names the full disk or the database that stopped on it."""
    with fragile_database(disk.directory / "data") as database:
        async with installation(kafka, database.address, unique_prefix, tmp_path, stall_seconds_max=8) as made:
            worker = made.start_worker()
            sent = await made.publish([order(number) for number in range(8)])
            await made.final_results(sent, START_SECONDS_MAX)
            disk.fill()
            for batch in range(1, 9):
                sent += await made.publish([order(number) for number in range(batch * 40, batch * 40 + 40)])
                await asyncio.sleep(0.2)
            assert await ended(worker, 60) == ExitCode.OUT_OF_REACH, made.worker_log(0)
            end = made.end(0)
            assert "the database" in end["what"], end
            said = [event["error"] for event in made.events(0) if event["event"] == "waiting_for_database"]
            assert any("No space left on device" in text for text in [*said, end["what"]]), (said, end)
            disk.make_room()
            await revive(database)
            made.start_worker()
            finals = await made.final_results(sent, ANSWER_SECONDS_MAX)
            assert {result["status"] for result in finals.values()} == {"executed"}
            assert len(made.accepted_orders()) == 8 + 8 * 40
            await assert_promises_hold(made)


async def test_full_disk_of_the_broker_ends_the_worker_and_loses_nothing(
    disk: SmallDisk, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A broker whose disk is full stops. The worker ends with a message; what the broker had acknowledged is worked on when it is back."""
    with fragile_broker(disk.directory / "data") as broker:
        async with installation(broker.address, database_url, unique_prefix, tmp_path, stall_seconds_max=8) as made:
            worker = made.start_worker()
            sent = await made.publish([order(number) for number in range(40)])
            await made.final_results(sent, START_SECONDS_MAX)
            # Room for the requests, and not for what comes of them: the worker's transactions meet the full disk.
            disk.fill(free_bytes=150 * 1024)
            sent += await made.publish([order(number) for number in range(40, 200)])
            assert await ended(worker, 90) in {ExitCode.OUT_OF_REACH, ExitCode.FENCED}, made.worker_log(0)[-3_000:]
            assert made.end(0), "the worker ended without a word"
            disk.make_room()
            await revive(broker)
            made.start_worker()
            finals = await made.final_results(sent, ANSWER_SECONDS_MAX)
            assert {finals[record.partition, record.offset]["status"] for record in sent} == {"executed"}
            await assert_promises_hold(made)
