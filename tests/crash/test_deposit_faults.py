"""Dying workers, two watches at once and an exchange that lists as it likes: each deposit is credited once, and the ledger agrees."""

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.model.crash_points import CrashPoint
from tests.depositing import HISTORY, QUICK, announcement, arrive, credited_amounts, deposits, mark, simulator
from tests.installation import USERS, Installation, ended, installation, unique_file
from tests.promises import assert_promises_hold

_POINTS = (
    (CrashPoint.BEFORE_INTAKE_COMMIT, "trade.requests"),
    (CrashPoint.AFTER_INTAKE_COMMIT, "trade.requests"),
    (CrashPoint.BATCH_TAKEN, "trade.reports"),
    (CrashPoint.BEFORE_SETTLEMENT_COMMIT, "trade.reports"),
    (CrashPoint.AFTER_SETTLEMENT_COMMIT, "trade.reports"),
    (CrashPoint.BEFORE_KAFKA_COMMIT, "trade.reports"),
    (CrashPoint.AFTER_KAFKA_COMMIT, "trade.reports"),
)
_DEPOSITS = 4
_LOOK_UP_FAULTS = (
    "hang_before_accept", "drop_before_accept", "http_500_before_accept", "http_503_unavailable", "truncated_body", "cut_json", "html_200",
    "empty_json_200",
)  # fmt: skip


async def _send(made: Installation) -> dict[str, Decimal]:
    """Deposits for different users, the first one listed twice and the second late; their amounts by the exchange's id."""
    amounts: dict[str, Decimal] = {}
    for number in range(_DEPOSITS):
        more = ({"listings": 2}, {"listed_after_ms": 1_500}, {}, {})[number]
        deposit = await arrive(made, USERS[number], f"25.{number}", **more)
        amounts[deposit["id"]] = Decimal(f"25.{number}")
    return amounts


async def _all_credited(made: Installation, amounts: dict[str, Decimal]) -> None:
    async with asyncio.timeout(60):
        while (await credited_amounts(made)).keys() < amounts.keys():
            await asyncio.sleep(0.2)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("point", "topic"), _POINTS, ids=[f"{point.value}-{topic}" for point, topic in _POINTS])
async def test_resumes_deposits_from(
    point: CrashPoint, topic: str, kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """After kill -9 at the point, between the report and the credit too, the next owner finishes: one credit and one answer each."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        sent = await made.publish([announcement(number, amount=f"25.{number}") for number in range(_DEPOSITS)])
        amounts = await _send(made)
        first = made.start_worker(TEST_AT=f"{point}@{topic}:1", TEST_ONCE=unique_file(tmp_path), **QUICK)
        assert await ended(first, 90) == -9, made.worker_log(0)
        made.start_worker(**QUICK)
        finals = await made.final_results(sent, 90)
        assert {result["status"] for result in finals.values()} == {"completed"}
        assert await credited_amounts(made) == {entry: [amount] for entry, amount in amounts.items()}
        await assert_promises_hold(made)


@pytest.mark.timeout(600)
async def test_two_workers_that_watch_the_same_accounts_credit_once(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Both watch everything, the history comes in another order each time, and answers get lost."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        await simulator(made, "deposits/listing", {"order": "shuffled"})
        await made.faults(*({"kind": kind, "next_n": 2, "method": "GET", "path": HISTORY} for kind in _LOOK_UP_FAULTS))
        amounts = await _send(made)
        for _ in range(2):
            made.start_worker(TEST_BROKEN="watches_everything", **QUICK)
        await _all_credited(made, amounts)
        taken_back = next(iter(amounts))
        await mark(made, {"id": taken_back}, 2)
        async with asyncio.timeout(30):
            while (await deposits(made))[taken_back]["status"] != "reversed":
                await asyncio.sleep(0.2)
        assert await credited_amounts(made) == {entry: [amount] for entry, amount in amounts.items()}
        await assert_promises_hold(made)
