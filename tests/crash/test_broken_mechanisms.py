"""The verification can fail: with one mechanism broken on purpose the demo names the breach and ends with 1; with none it ends with 0.

The switches are in tests/worker_under_test.py; the product has none.
"""

import sys
from pathlib import Path

import orjson
import pytest

from cli.local.demo import DemoOptions, run_demo
from tests.installation import unique_file

# Longer than the demo's session time-out, so that the partitions of a paused worker have moved when it wakes up.
PAUSE_SECONDS = 16
# A worker that is paused in the middle of database transactions holds locks until the database ends them; only then do the others go on.
LONG_PAUSE_SECONDS = 26


async def _run(
    environment: dict[str, str], pause: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, object]]:
    """(exit code, broken promises with examples) of a demo whose workers are started with this environment; one is paused this long."""
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path / "data"))
    code = await run_demo(
        DemoOptions(
            requests=400,
            as_json=True,
            worker_argv=(sys.executable, "-m", "tests.worker_under_test"),
            worker_environment={**environment, "TEST_PAUSE": str(pause), "TEST_ONCE": unique_file(tmp_path)},
            rest_seconds_max=45,
        )
    )
    printed = capsys.readouterr()
    # Shown where a test fails.
    sys.stderr.write(printed.err)
    figures = orjson.loads(printed.out)
    return code, {name: row.get("examples") for name, row in figures["promises"].items() if not row["holds"]}


@pytest.mark.parametrize(
    ("broken", "environment", "pause", "promises"),
    [
        # What the zombie publishes once more depends on what it had in hand: final answers, or older words about running orders.
        ("transactional_id_per_worker", {}, PAUSE_SECONDS, {"answered_twice", "results_match_database", "state_matches_database"}),
        ("no_fence_in_the_database", {}, LONG_PAUSE_SECONDS, {"audit_on_topic_matches_database"}),
        ("offsets_outside_the_transaction", {}, 0, {"answered_twice"}),
        ("blind_resend", {"TEST_AT": "after_exchange_call@trade.orders.binance:2", "TEST_THEN": "kill"}, 0, {"executed_twice"}),
        ("audit_key_order_id", {}, 0, {"audit_key_unique"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_broken_mechanism_is_reported_by_name(
    broken: str,
    environment: dict[str, str],
    pause: int,
    promises: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run ends with 1 and names a promise that the broken mechanism kept."""
    code, breaches = await _run({**environment, "TEST_BROKEN": broken}, pause, tmp_path, monkeypatch, capsys)
    assert code == 1
    assert breaches.keys() & promises, breaches


async def test_same_fault_with_all_mechanisms_in_place_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: a worker that is paused while it publishes, with nothing broken, leaves every promise whole."""
    environment = {"TEST_AT": "before_kafka_commit@trade.orders.binance:3", "TEST_THEN": f"pause:{PAUSE_SECONDS}"}
    assert await _run(environment, PAUSE_SECONDS, tmp_path, monkeypatch, capsys) == (0, {})
