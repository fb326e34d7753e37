"""The embedded services as a whole: what is stored survives restarts and kills, and nothing is left running."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from embedded.errors import ChooseOtherDirectoryError, ReadLogError
from embedded.services import Endpoints, services
from infra.settings import Settings
from tests.processes import processes_naming, until_none_named

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

ROOT = Path(__file__).parents[2]

# An owner in a process of its own: prints the endpoints and then waits for ever.
OWNER = """
import asyncio, json, sys
from dataclasses import asdict
from pathlib import Path
from embedded.services import services
from infra.settings import Settings
async def main():
    settings = Settings(data_dir=Path(sys.argv[1]), infra="embedded", kafka_bootstrap_servers=None, database_url=None)
    async with services(settings, progress=lambda text: print(text, file=sys.stderr)) as endpoints:
        print(json.dumps(asdict(endpoints)), flush=True)
        await asyncio.sleep(1000)
asyncio.run(main())
"""


def _settings(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir, infra="embedded", kafka_bootstrap_servers=None, database_url=None)


@asynccontextmanager
async def _owner(data_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Endpoints]]:
    """Services that belong to another process; it is killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(data_dir), cwd=ROOT, stdout=asyncio.subprocess.PIPE, process_group=0
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 240)
        yield process, Endpoints(**json.loads(line))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _write(endpoints: Endpoints, value: bytes) -> None:
    """One row and one record, both acknowledged."""
    connection = await asyncpg.connect(endpoints.database_url, timeout=10)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (value bytea)")
        await connection.execute("INSERT INTO kept VALUES ($1)", value)
    finally:
        await connection.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=endpoints.kafka_bootstrap_servers)
    await admin.start()
    try:
        if "kept" not in await admin.list_topics():
            await admin.create_topics([NewTopic("kept", 1, 1)])
    finally:
        await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=endpoints.kafka_bootstrap_servers, transactional_id="kept")
    async with producer, producer.transaction():
        await producer.send_and_wait("kept", value, partition=0)


async def _read(endpoints: Endpoints, records_expected: int) -> tuple[list[bytes], list[bytes]]:
    """All rows and all records, once there are as many records as expected.

    A commit is acknowledged when its coordinator has stored it; after a crash the coordinator makes it visible some moments later.
    """
    connection = await asyncpg.connect(endpoints.database_url, timeout=10)
    try:
        rows = [row["value"] for row in await connection.fetch("SELECT value FROM kept")]
    finally:
        await connection.close()
    partition = TopicPartition("kept", 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=endpoints.kafka_bootstrap_servers, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        records: list[bytes] = []
        async with asyncio.timeout(90):
            while True:
                end = (await consumer.end_offsets([partition]))[partition]
                if len(records) >= records_expected and await consumer.position(partition) >= end:
                    break
                batch = await consumer.getmany(timeout_ms=100)
                records += [record.value for found in batch.values() for record in found]
    finally:
        await consumer.stop()
    return rows, records


async def test_services_keep_everything_over_a_stop_and_a_new_start(tmp_path: Path) -> None:
    """A second start on the same directory, on the same port, has every row and record; in between nothing runs."""
    told: list[str] = []
    async with services(_settings(tmp_path), progress=told.append) as first:
        await _write(first, b"one")
    assert not processes_naming(str(tmp_path))
    async with services(_settings(tmp_path), progress=told.append) as second:
        assert second.kafka_bootstrap_servers == first.kafka_bootstrap_servers
        await _write(second, b"two")
        assert await _read(second, 2) == ([b"one", b"two"], [b"one", b"two"])
    assert sum("Creating the database" in line for line in told) == 1
    assert sum("Formatting" in line for line in told) == 1


async def test_services_lose_nothing_acknowledged_when_their_owner_is_killed(tmp_path: Path) -> None:
    """After `kill -9` of the owner no process is left, and a start right after it has every acknowledged row and record."""
    async with _owner(tmp_path) as (owner, endpoints):
        await _write(endpoints, b"one")
        owner.kill()
        await owner.wait()
        # At once: this start waits until the killed one's servers have let go of the directory.
        async with services(_settings(tmp_path), progress=print) as again:
            assert await _read(again, 1) == ([b"one"], [b"one"])
    assert not processes_naming(str(tmp_path))


async def test_services_lose_nothing_acknowledged_when_the_guards_are_killed(tmp_path: Path) -> None:
    """`kill -9` of both guards ends both servers without an orderly stop; the next start recovers."""
    async with _owner(tmp_path) as (owner, endpoints):
        await _write(endpoints, b"one")
        guards = [pid for pid, line in processes_naming(str(tmp_path)).items() if "guard.py" in line]
        assert len(guards) == 2
        for pid in guards:
            os.kill(pid, signal.SIGKILL)
        # The owner notices that its services are gone and ends.
        assert await asyncio.wait_for(owner.wait(), 60) == 1
    await until_none_named(str(tmp_path))
    async with services(_settings(tmp_path), progress=print) as again:
        assert await _read(again, 1) == ([b"one"], [b"one"])


@pytest.mark.parametrize(("program", "named"), [("kafka.Kafka", "broker"), ("bin/postgres -D", "database")])
async def test_block_is_cancelled_when_a_server_ends_by_itself(tmp_path: Path, program: str, named: str) -> None:
    """Nobody goes on with a server that is gone: the block is cancelled and the error says which, and where its log is."""
    with pytest.raises(ReadLogError, match=f"The {named} ended by itself"):
        async with services(_settings(tmp_path), progress=print):
            (pid,) = [pid for pid, line in processes_naming(str(tmp_path)).items() if program in line and "guard.py" not in line]
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(60)
            pytest.fail("the block went on")
    assert not processes_naming(str(tmp_path))


async def test_cancelled_start_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C while the servers start: they are stopped, and the directory is free again."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.7), services(_settings(tmp_path), progress=print):
            pytest.fail("too fast to be cancelled")
    assert not processes_naming(str(tmp_path))
    async with services(_settings(tmp_path), progress=print) as endpoints:
        await _write(endpoints, b"one")


async def test_control_c_stops_services_in_order(tmp_path: Path) -> None:
    """SIGINT to the whole foreground process group: the owner stops both servers itself, in an orderly way."""
    async with _owner(tmp_path) as (owner, _):
        os.killpg(owner.pid, signal.SIGINT)
        await asyncio.wait_for(owner.wait(), 60)
    assert not processes_naming(str(tmp_path))
    assert "database system is shut down" in (tmp_path / "database" / "database.log").read_text()
    assert (tmp_path / "kafka" / "data" / ".kafka_cleanshutdown").exists()


async def test_second_start_on_a_directory_is_refused(tmp_path: Path) -> None:
    """It says which process holds the directory and how to choose another; the first is not disturbed."""
    async with _owner(tmp_path) as (owner, endpoints):
        with pytest.raises(ChooseOtherDirectoryError, match=rf"in use by process {owner.pid}.*ORCHESTRATOR_DATA_DIR="):
            async with services(_settings(tmp_path), progress=print):
                pytest.fail("two owners of one directory")
        await _write(endpoints, b"one")


async def test_database_settings_are_durable_and_its_url_works_with_both_clients(tmp_path: Path, servers: Endpoints) -> None:
    """Durability is on, no port is open, and asyncpg and SQLAlchemy connect with the URL."""
    connection = await asyncpg.connect(servers.database_url, timeout=10)
    try:
        found = {row["name"]: row["setting"] for row in await connection.fetch("SELECT name, setting FROM pg_settings")}
    finally:
        await connection.close()
    expected = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "listen_addresses": "", "max_connections": "200"}
    assert {name: found[name] for name in expected} == expected
    assert found["data_checksums"] == "on"
    directory = Path(parse_qs(urlsplit(servers.database_url).query)["host"][0])
    assert directory.stat().st_mode & 0o077 == 0
    engine = create_async_engine(servers.database_url.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        async with engine.connect() as session:
            assert (await session.execute(text("SELECT current_user"))).scalar_one() == "postgres"
    finally:
        await engine.dispose()


async def test_database_of_a_long_data_directory_has_a_short_socket(tmp_path: Path) -> None:
    """A path beyond what a socket address holds works; the socket then lies in a closed directory elsewhere."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    settings = Settings(data_dir=deep, infra="embedded", kafka_bootstrap_servers="127.0.0.1:1", database_url=None)
    async with services(settings, progress=print) as endpoints:
        assert endpoints.kafka_bootstrap_servers == "127.0.0.1:1"
        directory = Path(parse_qs(urlsplit(endpoints.database_url).query)["host"][0])
        assert len(str(directory)) < 90
        assert directory.stat().st_mode & 0o077 == 0
        connection = await asyncpg.connect(endpoints.database_url, timeout=10)
        await connection.close()


async def test_external_services_are_only_addresses(tmp_path: Path) -> None:
    """Nothing is started, no directory is made, and the password in the URL is not shown."""
    url = "postgresql://trader:geheim@db.example/orders"
    settings = Settings.model_validate(
        {"data_dir": tmp_path / "unused", "kafka_bootstrap_servers": "broker.example:9092", "database_url": url}
    )
    async with services(settings, progress=pytest.fail) as endpoints:
        assert endpoints == Endpoints("broker.example:9092", url)
        assert "geheim" not in repr(endpoints)
    assert not (tmp_path / "unused").exists()
