"""Which installation a command talks to."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from cli.access.installation import (
    FILE_NAME,
    RunningInstallation,
    WrongSettings,
    announced,
    find_installation,
    made_settings,
    process_started,
    read_running,
    without_password,
)
from cli.terminal.exits import CommandFailed, Exit


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty data directory, and no settings from the developer's environment."""
    for name in list(os.environ):
        if name.startswith("ORCHESTRATOR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path))
    return tmp_path


def _running(pid: int | None = None, started: str | None = None) -> RunningInstallation:
    number = os.getpid() if pid is None else pid
    return RunningInstallation(
        pid=number,
        started=process_started(number) or "" if started is None else started,
        kafka_bootstrap_servers="127.0.0.1:9001",
        database_url=SecretStr("postgresql://u:hidden@127.0.0.1/db"),
        exchanges=("binance",),
        exchange_urls={"binance": "http://127.0.0.1:9002"},
        topic_prefix="p.",
        consumer_group="g",
        master_key_file=Path("/keys/master.key"),
        exchange_log=None,
        health=("http://127.0.0.1:9003",),
    )


def test_command_without_settings_uses_the_running_installation(directory: Path) -> None:
    """Addresses, prefix, group, exchanges and the key's file all come from what `up` wrote."""
    with announced(directory, _running()):
        found = find_installation()
    assert found.kafka == "127.0.0.1:9001"
    assert found.database_url == "postgresql://u:hidden@127.0.0.1/db"
    assert (found.settings.topic_prefix, found.settings.consumer_group) == ("p.", "g")
    assert found.settings.exchange_urls == {"binance": "http://127.0.0.1:9002"}
    assert found.settings.master_key_file == Path("/keys/master.key")
    assert found.running is not None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "production:9092"),
        ("DATABASE_URL", "postgresql://production/db"),
        ("TOPIC_PREFIX", "other."),
        ("CONSUMER_GROUP", "other"),
        ("EXCHANGE_URLS", '{"binance": "http://elsewhere"}'),
    ],
)
def test_command_with_a_setting_that_contradicts_takes_nothing_over(
    directory: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Pointed at another broker, a command must not meet this installation's database, nor the other way round."""
    monkeypatch.setenv(f"ORCHESTRATOR_{variable}", value)
    with announced(directory, _running()):
        found = find_installation()
    assert found.running is None
    assert "127.0.0.1" not in repr(found.settings.kafka_bootstrap_servers)
    assert found.settings.database_url is None or "production" in found.settings.database_url.get_secret_value()


def test_command_with_a_setting_that_agrees_takes_the_rest_over(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` against a configured broker writes that broker's address: it contradicts nothing."""
    monkeypatch.setenv("ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9001")
    with announced(directory, _running()):
        assert find_installation().database_url == "postgresql://u:hidden@127.0.0.1/db"


def test_command_with_a_master_key_keeps_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key from the environment is not replaced by a file."""
    monkeypatch.setenv("ORCHESTRATOR_MASTER_KEY", "a key")
    with announced(directory, _running()):
        assert find_installation().settings.master_key_file is None


@pytest.mark.parametrize("started", ["1.00", ""])
def test_file_of_a_process_that_has_ended_is_not_used(directory: Path, started: str) -> None:
    """Its ports may be somebody else's by now, and its number too: only number and start time together are the process."""
    with announced(directory, _running(started=started)):
        found = find_installation()
        with pytest.raises(CommandFailed, match="has ended without cleaning up") as raised:
            _ = found.kafka
    assert raised.value.code is Exit.OUT_OF_REACH


def test_running_installation_is_found_after_the_clock_was_set(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NTP, or a virtual machine that goes on, sets the time of day; the process that wrote the file runs on all the same."""
    with announced(directory, _running()):
        if sys.platform == "linux":
            an_hour_earlier = psutil.boot_time() - 3_600
            monkeypatch.setattr("psutil._pslinux.boot_time", lambda: an_hour_earlier)
        assert find_installation().kafka == "127.0.0.1:9001"


def test_process_is_told_from_others_and_from_none() -> None:
    """Two processes have not started at once, and one that has ended has no start."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mine, started = process_started(os.getpid()), process_started(other.pid)
        assert None not in {mine, started}
        assert mine != started
        other.communicate(b"\n")
    assert process_started(other.pid) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_damaged_file_is_as_good_as_none(directory: Path, content: bytes) -> None:
    """A command says that nothing runs; it does not stumble."""
    (directory / FILE_NAME).write_bytes(content)
    assert read_running(directory) is None
    with pytest.raises(CommandFailed, match="ORCHESTRATOR_DATABASE_URL is not set, and no installation runs in"):
        _ = find_installation().database_url


def test_announcement_is_for_its_owner_alone_and_goes_with_the_block(directory: Path) -> None:
    """It can hold a password: mode 0600 from the first moment, and nothing is left afterwards."""
    with announced(directory, _running()):
        assert stat.S_IMODE((directory / FILE_NAME).stat().st_mode) == 0o600
        assert [path.name for path in directory.iterdir()] == [FILE_NAME]
    assert list(directory.iterdir()) == []


def test_announcement_of_another_process_is_left_alone(directory: Path) -> None:
    """Who ends removes its own file, never one that somebody wrote since."""
    with announced(directory, _running()):
        (directory / FILE_NAME).write_text(_running(started="2.00").model_dump_json())
    assert (directory / FILE_NAME).exists()


def test_password_appears_in_no_repr(directory: Path) -> None:
    """Neither the installation nor what it was read from shows it."""
    with announced(directory, _running()):
        assert "hidden" not in repr(find_installation()) + repr(read_running(directory))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@host:5432/db", "postgresql://u@host:5432/db"),
        ("postgresql://u:p%40x@host/db", "postgresql://u@host/db"),
        ("postgresql://postgres@/postgres?host=/a/b", "postgresql://postgres@/postgres?host=/a/b"),
        ("postgresql:///db?user=u&password=p&host=h", "postgresql:///db?user=u&host=h"),
        ("http://user:p@127.0.0.1:1", "http://user@127.0.0.1:1"),
    ],
)
def test_shown_url_holds_no_password(url: str, shown: str) -> None:
    """Wherever the URL carries it."""
    assert without_password(url) == shown


@pytest.mark.parametrize("mark", ["/", "?", "#", "[", "@/"])
def test_url_whose_password_is_not_encoded_shows_nothing_of_it(mark: str) -> None:
    """A random password has such characters often, and where it is cut off there, its parts look like a host or a path."""
    shown = without_password(f"postgresql://user:hid{mark}den@host:5432/name")
    assert "hid" not in shown and "den" not in shown
    assert "host:5432" in shown


def test_wrong_settings_are_named_by_variable_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wrong variable is named at once; a value may be a secret and is not repeated."""
    monkeypatch.setenv("ORCHESTRATOR_KAFKA_PARTITIONS", "s3cret")
    monkeypatch.setenv("ORCHESTRATOR_LOG_LEVEL", "s3cret")
    with pytest.raises(WrongSettings) as raised:
        made_settings()
    assert {problem.split(":")[0] for problem in raised.value.problems} == {"ORCHESTRATOR_KAFKA_PARTITIONS", "ORCHESTRATOR_LOG_LEVEL"}
    assert "s3cret" not in str(raised.value)


def test_setting_that_must_be_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map that is no JSON names its variable."""
    monkeypatch.setenv("ORCHESTRATOR_EXCHANGE_URLS", "binance=http://s3cret")
    with pytest.raises(WrongSettings, match="ORCHESTRATOR_EXCHANGE_URLS is not JSON") as raised:
        made_settings()
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("content", [None, "kafka_partitions = ", "\x00"])
def test_settings_file_that_is_absent_or_broken_is_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """A file that is named and cannot be read must not be left out in silence."""
    file = directory / "settings.toml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", str(file))
    with pytest.raises(WrongSettings, match="ORCHESTRATOR_CONFIG"):
        made_settings()
