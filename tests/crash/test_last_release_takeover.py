"""A worker of one release dies at a named point, and one of the other finishes its work. Run by `make deep`."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.model.crash_points import CrashPoint
from tests.installation import ended, unique_file
from tests.last_release import needs_last_release
from tests.promises import assert_promises_hold
from tests.updating import RESTING, cancel, requests, resting_of, shared, updating
from tests.withdrawing import QUICK, paid_out

pytestmark = [needs_last_release, pytest.mark.deep, pytest.mark.timeout(300)]

# What is stored and not published is published by the next owner as it is, byte for byte, whoever wrote it.
_STORED = (
    (CrashPoint.AFTER_INTAKE_COMMIT, "trade.requests"),
    (CrashPoint.AFTER_OUTCOME_COMMIT, "trade.orders.binance"),
    (CrashPoint.AFTER_SETTLEMENT_COMMIT, "trade.reports"),
)
_POINTS = (
    *_STORED,
    (CrashPoint.BEFORE_SUBMITTING_COMMIT, "trade.orders.binance"),
    (CrashPoint.AFTER_SUBMITTING_COMMIT, "trade.orders.binance"),
    (CrashPoint.AFTER_EXCHANGE_CALL, "trade.orders.binance"),
    (CrashPoint.BEFORE_KAFKA_COMMIT, "trade.orders.binance"),
)


@pytest.mark.parametrize("dies", ["this", "last"])
@pytest.mark.parametrize(("point", "topic"), _POINTS, ids=[point.value for point, _ in _POINTS])
async def test_other_release_takes_over_from(
    point: CrashPoint, topic: str, dies: str, kafka: str, empty_database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """After kill -9 at the point every request, order, cancel and withdrawal of either release has one answer, and was executed once."""
    switches = {"TEST_AT": f"{point}@{topic}:1", "TEST_THEN": "kill", "TEST_ONCE": unique_file(tmp_path)}
    of_the_last = switches if dies == "last" else {}
    async with updating(kafka, empty_database_url, unique_prefix, tmp_path, **of_the_last) as (made, _):
        if dies == "this":
            made.start_worker(**QUICK, **switches)
        else:
            made.start_worker("agents", **QUICK)
        await shared(made, (0, 1))
        victim, survivor = (1, 0) if dies == "this" else (0, 1)
        if topic == "trade.reports":
            # Only a look-up can tell of these, and what it tells is a report.
            await made.faults({"kind": "drop_after_accept", "next_n": 16})
        sent = await made.publish(requests(0))
        assert await ended(made.workers[victim], 60) == -9, made.worker_log(victim)
        await made.faults()
        finals = await made.final_results([record for record, asked in zip(sent, requests(0), strict=True) if not _rests(asked)], 120)
        sent += await made.publish([cancel(number) for number in resting_of(0)])
        finals = await made.final_results(sent, 120)
        assert {result["status"] for result in finals.values()} <= {"executed", "canceled", "completed", "rejected"}
        assert {result["reason_code"] for result in finals.values()} <= {None, "ORDER_NOT_EXECUTED", "ORDER_NOT_CANCELABLE"}
        republished = [event for event in made.events(survivor) if event.get("event") == "republishing"]
        assert republished or (point, topic) not in _STORED
        assert made.workers[survivor].poll() is None, made.worker_log(survivor)
        assert set(Counter(one.client_order_id for one in made.accepted_orders()).values()) == {1}
        assert set(Counter(one.withdraw_order_id for one in paid_out(made).accepted).values()) == {1}
        await assert_promises_hold(made)


def _rests(asked: dict[str, object]) -> bool:
    return asked.get("price") == RESTING["price"]
