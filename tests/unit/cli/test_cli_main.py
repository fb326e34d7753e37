"""The command line itself: quick help, wrong usage, wrong settings, and services that are away."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import structlog

from cli.main import commands, run
from tests.command_tree import every_command

_ROOT = Path(__file__).parents[3]
_HEAVY = ("ccxt", "faust", "alembic", "aiokafka", "sqlalchemy", "asyncpg", "aiohttp", "cryptography")


def _environment(data_dir: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    return {**kept, "ORCHESTRATOR_DATA_DIR": str(data_dir), "NO_COLOR": "1", "COLUMNS": "200", **settings}


@dataclass(frozen=True)
class _Ended:
    code: int
    output: str
    errors: str
    seconds: float


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Callable[..., _Ended]]:
    """Runs the command line in this process, with nothing set but what is given, in an empty data directory."""
    structlog_before = structlog.get_config()
    loggers = {name: logging.getLogger(name).level for name in ("aiokafka", "ccxt", "alembic")}

    def ran(*arguments: str, **settings: str) -> _Ended:
        for name in list(os.environ):
            if name.startswith("ORCHESTRATOR_"):
                monkeypatch.delenv(name)
        for name, value in _environment(tmp_path, **settings).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["orchestrator", *arguments])
        began = time.monotonic()
        with pytest.raises(SystemExit) as ended:
            run()
        captured = capfd.readouterr()
        return _Ended(int(ended.value.code or 0), captured.out, captured.err, time.monotonic() - began)

    yield ran
    structlog.configure(**structlog_before)
    for name, level in loggers.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def _silent_server() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("arguments", [["--help"], ["submit"]])
def test_help_and_usage_errors_load_no_heavy_library(arguments: list[str], tmp_path: Path) -> None:
    """They answer at once: the libraries of exchanges, Kafka and the database are loaded by the commands that use them."""
    program = (
        f"import sys; sys.argv = ['orchestrator', *{arguments!r}]\n"
        "from cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {_HEAVY!r} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=_ROOT, env=_environment(tmp_path), capture_output=True, text=True, timeout=60, check=True
    )
    assert "LOADED []" in ran.stdout


def test_help_lists_exactly_the_commands_that_exist(command: Callable[..., _Ended]) -> None:
    """What is listed can be run: each has a help page of its own."""
    listed = re.findall(r"^│ ([\w-]+)  ", command("--help").output.partition("Run here")[2], re.MULTILINE)
    assert listed == list(commands())
    assert {"demo", "up", "worker", "submit", "order", "halt", "in-doubt", "users", "doctor", "verify", "schema"} < set(listed)
    for name in listed:
        assert command(name, "--help").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["submit"], "Missing argument"),
        (["submit", "a", "b"], "unexpected extra argument"),
        (["orders", "--status", "foo"], "'foo' is not one of"),
        (["orders", "--limit", "0"], "--limit"),
        (["orders", "--limit", "many"], "--limit"),
        (["order"], "Missing argument"),
        (["up", "--workers", "0"], "--workers"),
        (["up", "--kafka-port", "0"], "--kafka-port"),
        (["up", "--kafka-port", "65536"], "--kafka-port"),
        (["up", "--web-port", "99999"], "--web-port"),
        (["up", "--web-port", "65535"], "65535 is the last one there is"),
        (["simulator", "--bogus"], "--bogus"),
        (["simulator", "--port", "99999"], "'99999' is no whole number from 0 to 65535"),
        (["simulator", "--port", "-1"], "'-1' is no whole number"),
        (["simulator", "--port", "١"], "is no whole number"),
        (["simulator", "--notional-min", "nan"], "'nan' is no decimal number"),
        (["simulator", "--tape-speed", "inf"], "'inf' is no decimal number"),
        (["simulator", "--tape-speed", "0"], "must be above zero"),
        (["demo", "--seed", "-1"], "--seed"),
        (["submit", "no-such-file.jsonl"], "no-such-file.jsonl cannot be read"),
        (["submit", str(_ROOT)], "it is a directory"),
        (["submit", "README.md", "--fail-on-reject"], "--wait"),
        (["submit", "README.md", "--token-file", "no-such-file"], "no-such-file cannot be read"),
        (["results", "--new"], "--follow"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_message(command: Callable[..., _Ended], arguments: list[str], said: str) -> None:
    """On standard error; standard output stays empty."""
    ended = command(*arguments)
    assert ended.code == 2
    assert ended.output == ""
    assert said in ended.errors


@pytest.mark.parametrize("arguments", [["orders"], ["submit", "-"], ["lag"], ["worker"], ["up"], ["verify"], ["simulator"]])
def test_wrong_setting_ends_with_2_and_names_the_variable(command: Callable[..., _Ended], arguments: list[str]) -> None:
    """Its value, which may be a secret, is not repeated."""
    ended = command(*arguments, ORCHESTRATOR_KAFKA_PARTITIONS="s3cret")
    assert ended.code == 2
    assert "ORCHESTRATOR_KAFKA_PARTITIONS" in ended.errors
    assert "s3cret" not in ended.errors


@pytest.mark.parametrize(
    "arguments", [["orders"], ["order", "x"], ["balances"], ["submit", "-"], ["lag"], ["worker"], ["verify"], ["doctor"]]
)
def test_command_without_any_installation_ends_with_3_and_says_what_to_start(
    command: Callable[..., _Ended], arguments: list[str]
) -> None:
    """Nothing runs in the data directory and no address is set."""
    ended = command(*arguments)
    assert ended.code == 3
    assert "orchestrator up" in ended.output + ended.errors


@pytest.mark.parametrize(
    "arguments", [["orders"], ["submit", "README.md"], ["lag"], ["doctor"], ["up"], ["verify"], ["verify", "--from-topic"]]
)
def test_command_with_services_away_ends_with_3_at_once(command: Callable[..., _Ended], arguments: list[str]) -> None:
    """A refused connection is told within seconds, and no password is shown."""
    ended = command(
        *arguments,
        ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9",
        ORCHESTRATOR_DATABASE_URL="postgresql://u:s3cret@127.0.0.1:9/db",
    )
    assert ended.code == 3
    assert ended.seconds < 15
    assert "s3cret" not in ended.output + ended.errors


@pytest.mark.parametrize("arguments", [["orders"], ["submit", "README.md"], ["lag"], ["doctor"], ["up"], ["verify"]])
def test_command_with_services_that_never_answer_ends_with_3_in_bounded_time(
    command: Callable[..., _Ended], arguments: list[str]
) -> None:
    """A connection that is taken and never served does not hang the command."""
    with _silent_server() as address:
        services = {"KAFKA_BOOTSTRAP_SERVERS": address, "DATABASE_URL": f"postgresql://u:p@{address}/db"}
        ended = command(*arguments, **{f"ORCHESTRATOR_{name}": value for name, value in services.items()})
    assert ended.code == 3
    assert ended.seconds < 20


def test_reader_that_goes_away_ends_the_command_quietly(tmp_path: Path) -> None:
    """`… | head` is no error to talk about."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    ran = subprocess.run(
        [sys.executable, "-m", "cli", "schema", "export"],
        cwd=_ROOT,
        env=_environment(tmp_path),
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write_end)
    assert ran.returncode == 128 + signal.SIGPIPE
    assert ran.stderr == b""


def test_interrupt_while_waiting_for_input_ends_with_130(tmp_path: Path) -> None:
    """Ctrl-C while `submit -` connects or waits: no traceback."""
    with _silent_server() as address:
        arguments = [sys.executable, "-m", "cli", "submit", "-"]
        environment = _environment(tmp_path, ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS=address)
        with subprocess.Popen(arguments, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 30
            # It has connected: it waits for the broker's answer.
            while not _has_connection(process.pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=90)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def _has_connection(pid: int) -> bool:
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in psutil.Process(pid).net_connections())


# Servers, which print what they serve at as JSON or log in JSON, and a command whose output is JSON documents already.
_NOTHING_TO_READ = {("worker",), ("simulator",), ("schema", "export")}


def test_every_command_prints_json_for_programs() -> None:
    """Whatever a command has to say on standard output, `--json` makes it an object or an array."""
    found = {words: {option for parameter in command.params for option in parameter.opts} for words, command in every_command()}
    assert len(found) > 40
    assert {words for words, options in found.items() if "--json" not in options} == _NOTHING_TO_READ
