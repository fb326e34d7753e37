"""A rolling update: workers of the last release and of this one share a group, topics and a database, and take over from each other."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import monotonic

import asyncpg
import pytest

from infra.postgres.schema import newest_revision
from tests.installation import Installation, ended, order
from tests.last_release import needs_last_release
from tests.promises import assert_promises_hold
from tests.updating import RESTING, cancel, owned_by, requests, resting_of, shared, until, updating
from tests.withdrawing import QUICK, paid_out, run_sql

pytestmark = [needs_last_release, pytest.mark.timeout(300)]


async def _widen_every_table(made: Installation) -> None:
    """What any migration may do while workers of the release before are at work: new columns, nullable or with a default. Tried again where
    it and a step wait for each other's locks, as a worker that starts does."""
    tables = await run_sql(made, "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'")
    widened = [
        f'ALTER TABLE "{row["tablename"]}" ADD COLUMN of_the_next_release text, ADD COLUMN counted_by_it bigint NOT NULL DEFAULT 0'
        for row in tables
    ]
    deadline = monotonic() + 30
    while True:
        try:
            await run_sql(made, "DO $$ BEGIN " + "; ".join(widened) + "; END $$")
        except asyncpg.DeadlockDetectedError:
            assert monotonic() < deadline, "the tables were never free"
        else:
            return


async def _answered_by_both(
    made: Installation, numbers: Sequence[int], first: int, meanwhile: Callable[[Installation], Awaitable[None]] | None = None
) -> None:
    """Publishes requests and, once they rest, cancels; checks that both workers have worked on both topics. `meanwhile` is done
    between the two, when both have prepared their statements."""
    topics = (made.topics.requests, made.topics.orders("binance"))
    before = {(number, topic): await made.records_worked_on(number, topic) for number in numbers for topic in topics}
    sent = await made.publish(requests(first))
    resting = "SELECT count(*) = 8 AS found FROM orders WHERE status = 'new' AND idempotency_key = ANY($1)"
    await until(made, resting, 40, [f"key-{number}" for number in range(first, first + 24)])
    cancels = asyncio.create_task(made.publish([cancel(number) for number in resting_of(first)]))
    if meanwhile is not None:
        await meanwhile(made)
    sent += await cancels
    finals = await made.final_results(sent, 60)
    ends = Counter((result["status"], result["reason_code"]) for result in (finals[one.partition, one.offset] for one in sent))
    assert ends == {("executed", None): 16 + 8, ("canceled", None): 8, ("completed", None): 8}, ends
    for (number, topic), count in before.items():
        assert await made.records_worked_on(number, topic) > count, f"worker {number} has worked on nothing of {topic}"


async def _killed_at_work(made: Installation, victim: int, survivor: int, first: int) -> None:
    """Kills a worker while calls of its own are under way, with requests, cancels and reports on the topics; the other goes on alone."""
    resting = await made.publish([order(number, **RESTING) for number in range(first + 100, first + 108)])
    await until(made, "SELECT count(*) = 8 AS found FROM orders WHERE status = 'new'", 40)
    await made.faults({"kind": "hang_after_accept", "next_n": 12}, {"kind": "hang_before_accept", "next_n": 4})
    sent = await made.publish(requests(first))
    under_way = "SELECT count(*) > 0 AS found FROM orders WHERE status = 'submitting' AND work_partition = ANY($1)"
    await until(made, under_way, 40, owned_by(made, victim, made.topics.orders("binance")))
    made.workers[victim].kill()
    assert await ended(made.workers[victim], 10) == -9
    await made.faults()
    sent += await made.publish([cancel(number) for number in [*resting_of(first), *range(first + 100, first + 108)]])
    await made.final_results([*resting, *sent], 120)
    assert made.workers[survivor].poll() is None, made.worker_log(survivor)


async def _ends_on_a_newer_schema(made: Installation, source: Path) -> None:
    """A worker that is started after a newer release has migrated says so and changes nothing."""
    await run_sql(made, "UPDATE alembic_version SET version_num = '9999'")
    late = made.start_worker("agents", source, **QUICK)
    assert await ended(late, 60) == 2
    assert "not one that this version knows" in made.worker_log(len(made.workers) - 1)
    await run_sql(made, "UPDATE alembic_version SET version_num = $1", newest_revision())


async def test_workers_of_two_releases_share_the_work_and_take_over_from_each_other(
    kafka: str, empty_database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """The last release works; the database is migrated under it; one of this release joins, and both answer; what each leaves behind when
    it is killed, the other finishes. Every promise holds, and neither ends by itself."""
    async with updating(kafka, empty_database_url, unique_prefix, tmp_path) as (made, source):
        [version] = await run_sql(made, "SELECT version_num FROM alembic_version")
        assert version["version_num"] == newest_revision()
        made.start_worker("agents", **QUICK)
        await shared(made, (0, 1))
        await _answered_by_both(made, (0, 1), 0, meanwhile=_widen_every_table)
        await _killed_at_work(made, victim=1, survivor=0, first=200)
        made.start_worker("agents", **QUICK)
        await shared(made, (0, 2))
        await _answered_by_both(made, (0, 2), 400)
        await _killed_at_work(made, victim=0, survivor=2, first=600)
        assert made.end(0) == made.end(1) == {}
        await _ends_on_a_newer_schema(made, source)
        orders, withdrawals = made.accepted_orders(), paid_out(made).accepted
        assert set(Counter(one.client_order_id for one in orders).values()) == {1}
        assert set(Counter(one.withdraw_order_id for one in withdrawals).values()) == {1}
        await assert_promises_hold(made)
