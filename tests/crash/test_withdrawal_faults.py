"""Exchange faults and dying workers around a pay-out: one pay-out per key in the exchange's own log, and the ledger agrees."""

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.crash_points import CrashPoint
from tests.installation import Installation, ended, installation, unique_file
from tests.promises import assert_promises_hold, findings_of
from tests.withdrawing import APPLY, QUICK, allow_withdrawals, balance, paid_out, withdrawal

FAR = "2100-01-01T00:00:00Z"
ACCEPTED_UNTOLD = (
    "hang_after_accept", "drop_after_accept", "http_500_after_accept", "http_502_after_accept", "http_503_after_accept",
    "http_504_after_accept", "truncated_body", "cut_json", "html_200", "empty_json_200", "duplicate",
)  # fmt: skip
NOT_ACCEPTED = (
    "hang_before_accept", "drop_before_accept", "http_500_before_accept", "http_502_before_accept", "http_503_before_accept",
    "http_504_before_accept", "http_503_unavailable", "rate_limit",
)  # fmt: skip
# Of these the exchange says nothing that would prove that it did not take the withdrawal.
SILENT = tuple(kind for kind in NOT_ACCEPTED if kind != "rate_limit")


def _once_each(*kinds: str) -> list[dict[str, Any]]:
    return [{"kind": kind, "next_n": 1, "path": APPLY} for kind in kinds]


def _paid_by_client_id(made: Installation) -> Counter[str]:
    return Counter(record.withdraw_order_id for record in paid_out(made).accepted)


@pytest.mark.timeout(600)
async def test_withdrawal_whose_answer_is_lost_is_paid_once(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Taken by the exchange and answered with silence, an error or nonsense: in doubt, found in the history, never sent again."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        await allow_withdrawals(made)
        await made.faults(*_once_each(*ACCEPTED_UNTOLD))
        made.start_worker("agents", **QUICK)
        sent = await made.publish([withdrawal(number, expires_at=FAR) for number in range(len(ACCEPTED_UNTOLD))])
        finals = await made.final_results(sent, 90)
        assert {result["status"] for result in finals.values()} == {"completed"}
        paid = _paid_by_client_id(made)
        assert len(paid) == len(ACCEPTED_UNTOLD) and set(paid.values()) == {1}
        doubts = {result["order_id"] for result in await made.results() if result["status"] == "in_doubt"}
        assert len(doubts) == len(ACCEPTED_UNTOLD)
        await assert_promises_hold(made)


@pytest.mark.timeout(600)
async def test_withdrawal_that_was_not_taken_is_never_sent_again_and_its_funds_are_free(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Without a word of the exchange it is in doubt, however far its deadline: proven absent it ends as not executed, with nothing held.
    What the exchange itself turned away is sent again, and paid once."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        await allow_withdrawals(made)
        await made.faults(*_once_each(*NOT_ACCEPTED))
        made.start_worker("agents", **QUICK)
        # Each partition's batches go one after another: all have met their fault when the first are final.
        sent = await made.publish([withdrawal(number, expires_at=FAR) for number in range(len(NOT_ACCEPTED))])
        finals = await made.final_results(sent, 120)
        ended = Counter((result["status"], result["reason_code"]) for result in finals.values())
        assert ended == {("rejected", "ORDER_NOT_EXECUTED"): len(SILENT), ("completed", None): len(NOT_ACCEPTED) - len(SILENT)}
        paid = _paid_by_client_id(made)
        assert len(paid) == len(NOT_ACCEPTED) - len(SILENT) and set(paid.values()) <= {1}
        for user_id in {result["user_id"] for result in finals.values()}:
            assert (await balance(made, user_id))[1] == 0
        await assert_promises_hold(made)


_POINTS = (
    (CrashPoint.BEFORE_INTAKE_COMMIT, "trade.requests"),
    (CrashPoint.AFTER_INTAKE_COMMIT, "trade.requests"),
    (CrashPoint.BEFORE_SUBMITTING_COMMIT, "trade.orders.binance"),
    (CrashPoint.AFTER_SUBMITTING_COMMIT, "trade.orders.binance"),
    (CrashPoint.AFTER_EXCHANGE_CALL, "trade.orders.binance"),
    (CrashPoint.AFTER_OUTCOME_COMMIT, "trade.orders.binance"),
    (CrashPoint.AFTER_KAFKA_COMMIT, "trade.orders.binance"),
    (CrashPoint.BEFORE_SETTLEMENT_COMMIT, "trade.reports"),
    (CrashPoint.AFTER_SETTLEMENT_COMMIT, "trade.reports"),
)
_WITHDRAWALS = 6


async def _paid_after(made: Installation, at: str, then: str, directory: Path, **broken: str) -> int:
    """Lets a worker reach a point and another one take over; every key must end with one final answer. Returns how many were paid."""
    await allow_withdrawals(made)
    sent = await made.publish([withdrawal(number, expires_at=FAR) for number in range(_WITHDRAWALS)])
    first = made.start_worker(TEST_AT=at, TEST_THEN=then, TEST_ONCE=unique_file(directory), **QUICK, **broken)
    if then == "kill":
        assert await ended(first, 90) == -9, made.worker_log(0)
    else:
        async with asyncio.timeout(60):
            while "partitions_assigned" not in made.worker_log(0):
                await asyncio.sleep(0.05)
    made.start_worker(**QUICK, **broken)
    finals = await made.final_results(sent, 90)
    ended_as = Counter((result["status"], result["reason_code"]) for result in finals.values())
    unsent = ended_as[("rejected", "ORDER_NOT_EXECUTED")]
    # An intent that was stored and not sent is in doubt, and is not sent again by itself.
    assert (unsent > 0) is at.startswith(CrashPoint.AFTER_SUBMITTING_COMMIT)
    assert ended_as[("completed", None)] + unsent == _WITHDRAWALS
    if then != "kill":
        # Others have done its work. Now it wakes up, and must notice that it is a zombie.
        first.send_signal(signal.SIGCONT)
        assert await ended(first, 90) != 0, made.worker_log(0)
        await asyncio.sleep(1)
    return _WITHDRAWALS - unsent


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("point", "topic"), _POINTS, ids=[point.value for point, _ in _POINTS])
async def test_resumes_payouts_from(
    point: CrashPoint, topic: str, kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """After kill -9 at the point the next owner finishes: one answer and one pay-out per key, all promises hold."""
    # One partition: of a second one a batch could be cut off anywhere, also between intent and call.
    async with installation(kafka, database_url, unique_prefix, tmp_path, kafka_partitions=1) as made:
        wanted = await _paid_after(made, f"{point}@{topic}:1", "kill", tmp_path)
        paid = _paid_by_client_id(made)
        assert len(paid) == wanted and set(paid.values()) <= {1}
        await assert_promises_hold(made)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", [CrashPoint.AFTER_SUBMITTING_COMMIT, CrashPoint.AFTER_EXCHANGE_CALL], ids=str)
async def test_zombie_pays_nothing_again(point: CrashPoint, kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """A worker that is paused around the call until another has finished its work wakes up and changes nothing."""
    # One partition: of a second one a batch could be cut off anywhere, also between intent and call.
    async with installation(kafka, database_url, unique_prefix, tmp_path, kafka_partitions=1) as made:
        wanted = await _paid_after(made, f"{point}@trade.orders.binance:1", "stop", tmp_path)
        paid = _paid_by_client_id(made)
        assert len(paid) == wanted and set(paid.values()) <= {1}
        await assert_promises_hold(made)


@pytest.mark.timeout(600)
async def test_worker_that_sends_blindly_again_is_found_out(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """The control: without the rule of doubt the exchange pays twice, and verification says so by name."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        await allow_withdrawals(made)
        sent = await made.publish([withdrawal(number, expires_at=FAR) for number in range(_WITHDRAWALS)])
        at = "after_exchange_call@trade.orders.binance:1"
        first = made.start_worker(TEST_AT=at, TEST_ONCE=unique_file(tmp_path), **QUICK)
        assert await ended(first, 90) == -9, made.worker_log(0)
        made.start_worker(TEST_BROKEN="blind_payout", **QUICK)
        async with asyncio.timeout(60):
            while max(_paid_by_client_id(made).values(), default=0) < 2:
                await asyncio.sleep(0.2)
        assert len(sent) == _WITHDRAWALS
        assert "paid_out_twice" in {finding.name for finding in await findings_of(made) if not finding.holds}
