"""What an operator reads when the services cannot start: what happened, what it means for the data, what to do next."""

import asyncio
import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedded import broker, data_dir, jar_fetch, jars, java
from embedded.broker import EmbeddedBroker
from embedded.data_dir import DataDirectory, locked_data_directory
from embedded.database import EmbeddedDatabase
from embedded.errors import ChooseOtherDirectoryError, FixHostError, FreeDiskSpaceError, ReadLogError, RetryLaterError, ServicesError
from embedded.jars import BROKER_JARS, jars_directory
from embedded.ports import free_port
from embedded.services import services
from infra.settings import Settings
from tests.processes import processes_naming

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

IS_ROOT = os.geteuid() == 0


def _settings(data_dir_path: Path, **values: object) -> Settings:
    return Settings.model_validate(
        {"data_dir": data_dir_path, "infra": "embedded", "kafka_bootstrap_servers": None, "database_url": None, **values}
    )


def _check_text(error: ServicesError) -> None:
    """Every text is about the data as well as about the failure, and names something that the operator can do."""
    text = str(error)
    assert any(words in text for words in ("No order was accepted", "no order was accepted", "data", "Nothing was started")), text
    assert any(words in text for words in ("ORCHESTRATOR_", "tart again", "log", "ask again")), text


async def _start_database(path: Path) -> None:
    async with locked_data_directory(path, progress=print) as directory:
        database = await EmbeddedDatabase.start(directory, progress=print)
        await database.stop()


async def _start_broker(path: Path) -> None:
    async with locked_data_directory(path, progress=print) as directory:
        started = await EmbeddedBroker.start(directory, Settings().cache_dir, progress=print)
        await started.stop()


@contextmanager
def _small_disk(path: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own, that small."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


async def test_download_without_network_is_told_and_leaves_no_half_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No route to the archives: RetryLaterError with the way out; the cache stays empty, so the next start tries again."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(RetryLaterError, match="could not be downloaded") as caught:
            async with services(_settings(tmp_path / "data", cache_dir=tmp_path / "cache"), progress=print):
                pytest.fail("started without a broker")
    assert "HTTPS_PROXY" in str(caught.value)
    assert "ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS" in str(caught.value)
    _check_text(caught.value)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert not processes_naming(str(tmp_path))


def test_archives_that_differ_from_the_expected_are_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One changed byte in one archive: nothing is put in place, and the archive is named."""
    source = Settings().cache_dir.expanduser() / BROKER_JARS.name
    if not source.is_dir():
        pytest.skip("the archives are not in the cache yet")

    def resolve(_: jars.JarSet, scratch: Path) -> Path:
        complete = Path(shutil.copytree(source, scratch / "complete"))
        with (complete / "kafka-clients-4.1.2.jar").open("ab") as jar:
            jar.write(b"!")
        return complete

    monkeypatch.setattr(jar_fetch, "_resolve", resolve)
    assert jar_fetch.main([BROKER_JARS.name, str(tmp_path)]) == jars.FETCH_WRONG_FILES
    assert not (tmp_path / BROKER_JARS.name).exists()
    with pytest.raises(jar_fetch.WrongFilesError, match=r"unexpected: kafka-clients-4\.1\.2\.jar$"):
        jar_fetch.fetch(BROKER_JARS, tmp_path)


async def test_two_fetches_at_once_wait_for_one_another(tmp_path: Path) -> None:
    """While one process holds the lock of a set, another waits, and then takes what the first has put in place."""
    lock = os.open(tmp_path / f"{BROKER_JARS.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    waiting = asyncio.create_task(jars_directory(BROKER_JARS, tmp_path, progress=print))
    try:
        async with asyncio.timeout(30):
            while not processes_naming(f"embedded.jar_fetch {BROKER_JARS.name} {tmp_path}"):
                await asyncio.sleep(0.02)
        (tmp_path / BROKER_JARS.name).mkdir()
    finally:
        os.close(lock)
    assert await asyncio.wait_for(waiting, 60) == tmp_path / BROKER_JARS.name


@pytest.mark.skipif(not IS_ROOT, reason="only root can mount a small file system")
@pytest.mark.parametrize(
    ("start", "size_mb", "free_kb"),
    [
        # While the cluster is made; while the storage is formatted or before.
        (_start_database, 24, 24 * 1024),
        (_start_broker, 2, 16),
        (_start_broker, 2, 0),
    ],
)
async def test_full_disk_at_the_first_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[Path], Awaitable[None]], size_mb: int, free_kb: int
) -> None:
    """ENOSPC while a server's storage is made: FreeDiskSpaceError, and no process is left."""
    monkeypatch.setattr(data_dir, "FREE_BYTES_MIN", 0)
    disk = tmp_path / "disk"
    with _small_disk(disk, size_mb):
        _fill(disk, free_kb)
        with pytest.raises(FreeDiskSpaceError) as caught:
            await start(disk / "data")
        _check_text(caught.value)
        assert not processes_naming(str(disk))


@pytest.mark.skipif(not IS_ROOT, reason="only root can mount a small file system")
@pytest.mark.parametrize(("start", "size_mb"), [(_start_database, 128), (_start_broker, 2)])
async def test_full_disk_at_a_later_start_is_told_and_mended_by_freeing_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[Path], Awaitable[None]], size_mb: int
) -> None:
    """Storage that exists on a disk that is full: FreeDiskSpaceError, and with space again the same directory starts."""
    monkeypatch.setattr(data_dir, "FREE_BYTES_MIN", 0)
    # The first start on a machine records the broker's start-up cache and starts it twice, which leaves room that a later start can use.
    await start(tmp_path / "elsewhere")
    disk = tmp_path / "disk"
    with _small_disk(disk, size_mb):
        await start(disk / "data")
        filler = _fill(disk, 0)
        with pytest.raises(FreeDiskSpaceError) as caught:
            await start(disk / "data")
        _check_text(caught.value)
        filler.unlink()
        await start(disk / "data")
        assert not processes_naming(str(disk))


def _fill(disk: Path, free_kb: int) -> Path:
    """Leave that much free."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - free_kb * 1024)))
    return filler


async def test_nearly_full_disk_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less free space than two servers need: nothing is made."""
    monkeypatch.setattr(data_dir, "FREE_BYTES_MIN", 2**62)
    with pytest.raises(FreeDiskSpaceError, match="MiB are needed") as caught:
        async with services(_settings(tmp_path / "data"), progress=pytest.fail):
            pytest.fail("started on a full disk")
    _check_text(caught.value)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["lock"]


async def test_database_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """A cluster of another major version: refused, untouched, and the text says that the data is still there."""
    cluster = tmp_path / "database" / "data"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("16\n")
    with pytest.raises(ChooseOtherDirectoryError, match=r"made by PostgreSQL 16.*still in it") as caught:
        await _start_database(tmp_path)
    _check_text(caught.value)
    assert [path.name for path in cluster.iterdir()] == ["PG_VERSION"]


@pytest.mark.parametrize(("version", "told"), [("4.10.0", r"made by Kafka 4\.10\.0"), (None, "of an unknown version")])
async def test_storage_of_another_broker_version_is_left_alone(tmp_path: Path, version: str | None, told: str) -> None:
    """Storage that a newer Kafka made, or one that did not say which it was: refused, untouched, and the text says what it is."""
    data = tmp_path / "kafka" / "data"
    data.mkdir(parents=True)
    if version is not None:
        (data / "formatted_by").write_text(f"{version}\n")
    before = sorted(path.name for path in data.iterdir())
    with pytest.raises(ChooseOtherDirectoryError, match=rf"{told}.*still in it") as caught:
        await _start_broker(tmp_path)
    _check_text(caught.value)
    assert sorted(path.name for path in data.iterdir()) == before


async def test_broker_that_crashes_at_its_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    """Damaged storage: ReadLogError with Kafka's own words."""
    (tmp_path / "kafka" / "data").mkdir(parents=True)
    (tmp_path / "kafka" / "data" / "formatted_by").write_text(f"{jars.KAFKA_VERSION}\n")
    (tmp_path / "kafka" / "data" / "meta.properties").write_text("version=1\nnode.id=77\ncluster.id=somebody-elses\n")
    with pytest.raises(ReadLogError, match=r"(?s)The broker ended while it started.*77") as caught:
        await _start_broker(tmp_path)
    _check_text(caught.value)
    assert not processes_naming(str(tmp_path))


async def test_java_that_cannot_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that refuses its options: ReadLogError with the runtime's words."""
    monkeypatch.setattr(java, "OPTIONS", ("-XX:NoSuchOption",))
    with pytest.raises(ReadLogError, match="NoSuchOption") as caught:
        await _start_broker(tmp_path)
    _check_text(caught.value)


async def test_database_that_crashes_at_its_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    """A damaged cluster: ReadLogError with PostgreSQL's own words."""
    cluster = tmp_path / "database" / "data"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("18\n")
    (cluster / "postgresql.conf").write_text("")
    if IS_ROOT:
        shutil.chown(cluster, "pgserver")
    cluster.chmod(0o700)
    with pytest.raises(ReadLogError, match=r"(?s)The database ended while it started.*The end of its log says why:\n.+") as caught:
        await _start_database(tmp_path)
    _check_text(caught.value)


async def test_broker_takes_other_ports_when_the_first_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that another program took in the meantime costs a second try, not the start."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        chosen = [taken.getsockname()[1]]

        def port(others: frozenset[int] = frozenset()) -> int:
            # The first ports of all are for the formatter, which does not listen.
            return chosen.pop() if chosen and (tmp_path / "kafka" / "data").exists() else free_port(others)

        monkeypatch.setattr(broker, "free_port", port)
        await _start_broker(tmp_path)
        assert not chosen


async def test_broker_without_any_free_port_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports taken again and again: RetryLaterError after a bounded number of tries."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        # The formatter needs two that differ.
        monkeypatch.setattr(broker, "free_port", lambda *others: port if (tmp_path / "kafka" / "data").exists() else free_port(*others))
        monkeypatch.setattr(broker, "_PORT_ATTEMPTS_MAX", 2)
        with pytest.raises(RetryLaterError, match="2 times a free port") as caught:
            await _start_broker(tmp_path)
    _check_text(caught.value)


async def test_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file where the directory should be: FixHostError that names the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FixHostError, match="cannot be written") as caught:
        async with locked_data_directory(tmp_path / "file" / "data", progress=print):
            pytest.fail("locked a directory inside a file")
    _check_text(caught.value)


async def test_lock_of_servers_that_are_stopping_is_waited_for(tmp_path: Path) -> None:
    """The owner has ended but its servers still hold the directory: the next start waits, says so, and then goes on."""
    holder = await asyncio.create_subprocess_exec("/bin/true")
    await holder.wait()
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(lock, f"{holder.pid}\n".encode())
    fcntl.flock(lock, fcntl.LOCK_EX)
    told: list[str] = []

    def progress(text: str) -> None:
        told.append(text)
        os.close(lock)

    async with locked_data_directory(tmp_path, progress=progress) as directory:
        assert directory == DataDirectory(tmp_path, directory.lock_fd)
    assert len(told) == 1


async def test_lock_that_is_never_released_is_given_up(tmp_path: Path) -> None:
    """Nobody waits for ever for a lock whose owner has ended."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(ChooseOtherDirectoryError, match="another process"):
            async with locked_data_directory(tmp_path, progress=print, release_seconds_max=0.2):
                pytest.fail("two locks")
    finally:
        os.close(lock)


async def test_containers_without_an_engine_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Docker: FixHostError that says how to go on without containers."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    with pytest.raises(FixHostError, match="needs a container engine") as caught:
        async with services(_settings(tmp_path / "data", infra="containers"), progress=print):
            pytest.fail("started without an engine")
    assert "ORCHESTRATOR_INFRA=embedded" in str(caught.value)
    _check_text(caught.value)


def test_full_disk_is_recognised_by_the_words_of_the_c_library() -> None:
    """The servers are told by their output, which uses these words; a quota counts as well."""
    assert data_dir.says_disk_full(f"PANIC: could not write: {os.strerror(errno.ENOSPC)}")
    assert data_dir.says_disk_full(os.strerror(errno.EDQUOT))
    assert not data_dir.says_disk_full("Permission denied")

