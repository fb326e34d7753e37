"""Programs that tests start with their libraries loaded behave like those that `python -m` starts, and none is left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import prepared
from tests.processes import is_alive, until_dead

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are started by `python -m`")

_ROOT = Path(__file__).parents[2]
_STARTER = """
import sys
from tests import prepared
simulator = prepared.start_piped("simulator", "--port", "0", "--data-dir", sys.argv[1], "--parent-pipe")
print(simulator.pid, flush=True)
sys.stdin.read()
"""


def test_prepared_worker_says_what_a_worker_says_and_ends_with_its_code(tmp_path: Path) -> None:
    """Its own environment alone counts, its output is where it was asked for, and its exit code is its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    with (tmp_path / "log").open("wb") as log:
        worker = prepared.start("agents", env={**environment, "ORCHESTRATOR_KAFKA_PARTITIONS": "none"}, output=log.fileno())
        assert worker.wait(60) == 2
    assert "ORCHESTRATOR_KAFKA_PARTITIONS" in (tmp_path / "log").read_text()
    assert "ORCHESTRATOR_KAFKA_PARTITIONS" not in os.environ


def test_prepared_program_ends_by_a_signal_like_any_other(tmp_path: Path) -> None:
    """It is a process of its own, which can be asked, killed and waited for."""
    simulator = prepared.start_piped("simulator", "--port", "0", "--data-dir", str(tmp_path))
    assert simulator.stdout is not None
    assert "url" in json.loads(simulator.stdout.readline())
    assert simulator.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        simulator.wait(0.1)
    simulator.kill()
    assert simulator.wait(60) == -signal.SIGKILL == simulator.returncode
    # Harmless afterwards, also where its number has been given to another process.
    simulator.terminate()


async def test_prepared_programs_end_with_the_tests_that_started_them(tmp_path: Path) -> None:
    """Also `kill -9` of the test process leaves none."""
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTER, str(tmp_path)], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )  # fmt: skip
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert is_alive(pid)
        starter.kill()
    await until_dead(pid, seconds_max=60)
