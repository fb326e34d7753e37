"""The shared servers of a test run: isolated databases, a template, and no process left behind."""

import asyncio
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from embedded.services import Endpoints
from tests.servers import fresh_database, in_thread, template_database


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _tables(url: str) -> list[str]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return [row["tablename"] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    finally:
        await connection.close()


@pytest.mark.parametrize("_run", [1, 2])
async def test_database_url_of_each_test_is_a_database_of_its_own(empty_database_url: str, _run: int) -> None:
    """A table that one test makes is never seen by another."""
    assert await _tables(empty_database_url) == []
    await _execute(empty_database_url, "CREATE TABLE only_mine (n int)")
    assert await _tables(empty_database_url) == ["only_mine"]


async def test_kafka_serves_topics_as_soon_as_the_fixture_is_there(kafka: str, unique_prefix: str) -> None:
    """The first thing a test does can be to create a topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(f"{unique_prefix}orders", num_partitions=4, replication_factor=1)])
        assert f"{unique_prefix}orders" in await admin.list_topics()
    finally:
        await admin.close()


def test_template_database_is_migrated_once_and_copied(servers: Endpoints, tmp_path: Path) -> None:
    """`migrate` runs once however many tests ask, and every copy has its tables."""
    calls: list[str] = []

    async def migrate(url: str) -> None:
        calls.append(url)
        await _execute(url, "CREATE TABLE migrated (n int)")

    name = f"test_template_{tmp_path.name[-8:]}_{os.getpid()}"
    try:
        for _ in range(2):
            template_database(tmp_path, servers.database_url, migrate, name)
        assert len(calls) == 1
        with fresh_database(servers.database_url, name) as first, fresh_database(servers.database_url, name) as second:
            assert first != second
            for url in (first, second):
                assert in_thread(partial(_tables, url)) == ["migrated"]
    finally:
        in_thread(lambda: _execute(servers.database_url, f'DROP DATABASE "{name}"'))


_USER = """
import sys, time
from pathlib import Path
from tests.servers import shared_servers
with shared_servers(Path(sys.argv[1])) as endpoints:
    print(endpoints.kafka_bootstrap_servers, flush=True)
    sys.stdin.read()
"""


def _processes_naming(text: str) -> list[str]:
    """Command lines of running processes that name `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(line)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
async def test_shared_servers_stop_after_the_last_user_was_killed(tmp_path: Path) -> None:
    """Two users share one broker; it outlives a killed first user and is gone soon after the killed last one."""
    directory = tmp_path / "shared"
    users = [
        subprocess.Popen(
            [sys.executable, "-c", _USER, str(directory)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        addresses = [await asyncio.to_thread(user.stdout.readline) for user in users if user.stdout is not None]
        assert addresses[0] == addresses[1] != ""
        users[0].send_signal(signal.SIGKILL)
        users[0].wait(90)
        host, _, port = addresses[1].strip().rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        assert _processes_naming(f"{directory}/data")
    finally:
        for user in users:
            user.kill()
            user.communicate(timeout=90)
    async with asyncio.timeout(60):
        while _processes_naming(str(directory)):
            await asyncio.sleep(0.1)
