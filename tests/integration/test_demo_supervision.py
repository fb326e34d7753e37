"""Supervision of workers: what ends is replaced within a bound, and nothing outlives the supervisor."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from agents.process.worker import ExitCode
from cli.local import supervision
from cli.local.supervision import WorkerPool, describe_exit, supervised_workers, worker_environment
from embedded.services import Endpoints
from infra.settings import Settings

_SECONDS_MAX = 20.0


def script(code: str) -> tuple[str, ...]:
    """A stand-in for a worker."""
    return (sys.executable, "-c", code)


STAYS = "import time\nprint('up', flush=True)\ntime.sleep(600)"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SECONDS_MAX):
        while not condition():
            await asyncio.sleep(0.02)


def starts(logs: Path, number: int) -> int:
    log = logs / f"worker-{number}.log"
    return log.read_text().count("==== started") if log.exists() else 0


async def test_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """After `kill -9` another process runs under the same number, and people are told."""
    said: list[str] = []
    async with supervised_workers(2, script(STAYS), {}, tmp_path, said.append) as pool:
        await until(lambda: len(pool.processes()) == 2)
        killed = pool.processes()[0]
        killed.kill()
        await until(lambda: pool.restarts == 1 and len(pool.processes()) == 2)
        assert killed.pid not in {process.pid for process in pool.processes()}
        assert pool.failure is None
    assert any("signal 9" in text for text in said)


async def test_worker_that_never_settles_is_given_up_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restarts of one that ends at once are bounded; the pool says why it stopped trying."""
    monkeypatch.setattr(supervision, "RESTARTS_MAX", 2)
    async with supervised_workers(1, script("print('no such broker'); raise SystemExit(4)"), {}, tmp_path, lambda _: None) as pool:
        async with asyncio.timeout(_SECONDS_MAX):
            why = await pool.failed()
        assert "exit code 4" in why
        assert "no such broker" in why
    assert starts(tmp_path, 1) == 3


async def test_worker_whose_settings_cannot_work_is_not_started_again(tmp_path: Path) -> None:
    """Another start would end the same way: a person must look."""
    async with supervised_workers(1, script(f"raise SystemExit({ExitCode.SETTINGS})"), {}, tmp_path, lambda _: None) as pool:
        async with asyncio.timeout(_SECONDS_MAX):
            await pool.failed()
    assert starts(tmp_path, 1) == 1


async def test_worker_that_ignores_the_request_to_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving the block ends it in bounded time, also while it is paused."""
    monkeypatch.setattr(supervision, "_STOP_SECONDS", 0.5)
    deaf = "import signal,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(600)"
    async with supervised_workers(2, script(deaf), {}, tmp_path, lambda _: None) as pool:
        await until(lambda: all("deaf" in _log(tmp_path, number) for number in (1, 2)))
        processes = pool.processes()
        processes[1].send_signal(signal.SIGSTOP)
        left_at = time.monotonic()
    assert time.monotonic() - left_at < 10
    assert not any(process.is_running() for process in processes)


async def test_paused_workers_are_counted_until_they_go_on(tmp_path: Path) -> None:
    """One that stands still is neither gone nor done: it will say what it had in hand."""
    async with supervised_workers(2, script("import time; print('up', flush=True); time.sleep(600)"), {}, tmp_path, lambda _: None) as pool:
        await until(lambda: all("up" in _log(tmp_path, number) for number in (1, 2)))
        assert pool.paused() == 0
        stopped = pool.processes()[1]
        stopped.send_signal(signal.SIGSTOP)
        await until(lambda: pool.paused() == 1)
        stopped.send_signal(signal.SIGCONT)
        await until(lambda: pool.paused() == 0)


def _log(logs: Path, number: int) -> str:
    log = logs / f"worker-{number}.log"
    return log.read_text() if log.exists() else ""


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from cli.local.supervision import supervised_workers

async def main():
    async with supervised_workers(1, (sys.executable, "-c", "import time; time.sleep(600)"), {}, Path(sys.argv[1]), print) as pool:
        while not pool.processes():
            await asyncio.sleep(0.02)
        print(pool.processes()[0].pid, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_worker_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    """Also `kill -9` of the supervisor leaves no worker behind."""
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with supervisor:
        assert supervisor.stdout is not None
        worker = psutil.Process(int(supervisor.stdout.readline()))
        supervisor.kill()
        worker.wait(_SECONDS_MAX)
    assert not worker.is_running()


def test_environment_of_a_worker_gives_back_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker started with it has every setting, secrets among them, whatever else the environment says."""
    settings = Settings(
        exchanges=("binance",),
        exchange_urls={"binance": "http://127.0.0.1:1"},
        master_key="a2V5",
        exchange_rate_limit=False,
        topic_prefix="t.",
    )
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "/nowhere.toml")
    for name, value in worker_environment(settings, Endpoints("127.0.0.1:9", "postgresql://x@/y")).items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert read.database_url is not None
    assert read.database_url.get_secret_value() == "postgresql://x@/y"
    assert read.kafka_bootstrap_servers == "127.0.0.1:9"
    assert read.model_copy(update={"database_url": None, "kafka_bootstrap_servers": None}) == settings


def test_exit_of_a_worker_is_described_in_words() -> None:
    """Codes of the worker by their names, signals by their numbers."""
    assert describe_exit(4) == "exit code 4, fenced"
    assert describe_exit(137) == "signal 9"
    assert describe_exit(99) == "exit code 99"


def test_pool_has_no_failure_before_one_happens() -> None:
    """`failure` is readable at any time."""

    async def check() -> None:
        assert WorkerPool((), {}, Path(), print, ()).failure is None

    asyncio.run(check())
