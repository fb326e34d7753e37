"""Steps side by side: users' writers queue up, nobody waits in a circle, and no money is spent twice."""

import asyncio
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from random import Random

import pytest

from infra.postgres.admin.accounts import NewUser, add_users
from infra.postgres.database import Database, InputPartition
from infra.postgres.retention import purge_claims
from infra.postgres.rows import ORDERS
from infra.postgres.step import open_step
from infra.postgres.unfinished import unfinished_orders
from infra.postgres.withdrawals import WITHDRAWALS
from pipeline.books.audit import GENESIS_HASH
from pipeline.books.changes import Changes
from pipeline.requests.record import Arrival
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode
from tests.integration.step_database import changes_in, counts, decide_in, open_database, plain_connection, take_in, taken
from tests.unit.builders import EXCHANGE, NOW, TOPICS, account, arrival, cancel, finals_of, limit, trade
from tests.unit.withdrawal_builders import withdrawal_of


async def test_steps_of_one_user_are_serialised(database_url: str) -> None:
    """The second step waits for the first one's lock and then sees what it did."""
    async with open_database(database_url) as database:
        first, second = await taken(database, 0), await taken(database, 1)
        order: list[str] = []

        async def other() -> None:
            async with open_step(database, second) as step:
                changes = await changes_in(step, ["alice"])
                order.append("second")
                assert changes.ledger.balance(account("USDT")).pending == 40

        async with open_step(database, first) as step:
            await changes_in(step, ["alice"])
            waiting = asyncio.create_task(other())
            await asyncio.sleep(0)
            changes = await decide_in(step, [arrival(limit())])
            order.append("first")
            await step.finish(1, changes.outputs, NOW)
        await waiting
        assert order == ["first", "second"]


@pytest.mark.parametrize("seed", range(3))
async def test_steps_with_overlapping_users_never_wait_in_a_circle(database_url: str, seed: int) -> None:
    """Twelve partitions, random users of thirty, many of them new to the database, in any order: no deadlock is ever reported."""
    dice = Random(seed)
    strangers = [f"user{number:02d}" for number in range(30)]
    async with open_database(database_url, timeout_seconds=20) as database:
        owned = [await taken(database, partition) for partition in range(12)]

        async def batches(partition: InputPartition, plan: list[list[str]]) -> None:
            for next_offset, users in enumerate(plan, start=1):
                key = f"{partition}-{next_offset}"
                records = [
                    arrival(trade(user_id=user, idempotency_key=key), 100 * next_offset + number, partition=partition.partition)
                    for number, user in enumerate(users)
                ]
                await take_in(database, partition, records, 100 * next_offset + 99)

        plans = [[dice.sample(strangers, dice.randint(1, 12)) for _ in range(4)] for _ in owned]
        async with asyncio.timeout(60):
            await asyncio.gather(*(batches(partition, plan) for partition, plan in zip(owned, plans, strict=True)))
        async with plain_connection(database_url) as connection:
            assert await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
        expected = Counter(user for plan in plans for users in plan for user in users)
        await _assert_chains(database_url, expected)


async def _assert_chains(url: str, expected: Counter[str]) -> None:
    """Each account's events count 1, 2, 3 … and chain, as many as there were records."""
    async with plain_connection(url) as connection:
        rows = await connection.fetch("SELECT account, seq, hash, body FROM audit_events ORDER BY account, seq")
    heads: dict[str, tuple[int, str]] = {}
    for row in rows:
        seq, head = heads.get(row["account"], (0, GENESIS_HASH))
        assert row["seq"] == seq + 1
        assert f'"prev_hash":"{head}"' in row["body"]
        heads[row["account"]] = (row["seq"], row["hash"])
    assert {account: heads[account][0] for account in expected} == dict(expected)


async def test_balance_is_not_spent_twice_by_steps_at_once(database_url: str) -> None:
    """One user, eight partitions, twice as many orders as there are funds: exactly half are accepted."""
    async with open_database(database_url, users=(), timeout_seconds=20) as database:
        funds = {"USDT": Decimal("52.5") * 8}
        await add_users(database, [NewUser("alice", EXCHANGE, "k1", "key", b"c", funds)], NOW, "test")
        owned = [await taken(database, partition) for partition in range(8)]

        async def order_twice(partition: InputPartition) -> list[Changes]:
            return [(await take_in(database, partition, [_order(partition, number)], number))[0] for number in (1, 2)]

        batches = [changes for pair in await asyncio.gather(*map(order_twice, owned)) for changes in pair]
        assert sum(len(changes.orders.made) for changes in batches) == 8
        refusals = [result.reason_code for changes in batches for result in finals_of(changes)]
        assert refusals == [ReasonCode.BALANCE_INSUFFICIENT] * 8
        async with open_step(database, owned[0]) as step:
            (balance,) = (await step.balances(["alice"])).values()
            assert (balance.posted, balance.available) == (420, 0)


def _order(partition: InputPartition, number: int) -> Arrival:
    return arrival(trade(idempotency_key=f"{partition.partition}-{number}"), number, partition=partition.partition)


async def test_key_is_claimed_once_by_steps_at_once(database_url: str) -> None:
    """Eight copies of one request on eight partitions at the same moment: one order."""
    async with open_database(database_url, timeout_seconds=20) as database:
        owned = [await taken(database, partition) for partition in range(8)]
        batches = await asyncio.gather(
            *(take_in(database, partition, [arrival(trade(), 0, partition=partition.partition)], 1) for partition in owned)
        )
        assert sum(len(changes.orders.made) for changes, _ in batches) == 1
        assert await counts(database_url, "orders", "claims") == {"orders": 1, "claims": 1}
        assert Counter(result.reason_code for changes, _ in batches for result in finals_of(changes)) == {
            ReasonCode.IDEMPOTENCY_IN_PROGRESS: 7
        }


async def test_same_users_added_at_once_are_added_once(database_url: str) -> None:
    """Two workers that seed the same users at the start do not fail and do not pay twice."""
    async with open_database(database_url, users=()) as database:
        new = [NewUser(f"u{number}", EXCHANGE, "k1", "key", b"c", {"USDT": Decimal(7)}) for number in range(20)]
        added = await asyncio.gather(add_users(database, new, NOW, "a"), add_users(database, list(reversed(new)), NOW, "b"))
        assert sorted(len(rows) for rows in added) == [0, 20]
        assert await counts(database_url, "users", "transfers") == {"users": 20, "transfers": 20}


async def test_unfinished_orders_come_in_pages_that_reach_every_one(database_url: str) -> None:
    """However many orders rest, each has its turn, and only those of the partitions asked for."""
    async with open_database(database_url) as database:
        batch = [arrival(limit(idempotency_key=f"k{number}", quantity="0.0005"), number) for number in range(7)]
        changes, _ = await take_in(database, await taken(database), batch, 7)
        async with plain_connection(database_url) as connection:
            await connection.execute("UPDATE orders SET status = 'new', submitting_at = now(), attempt = 1, work_partition = 2")
            await connection.execute("UPDATE orders SET work_partition = 3 WHERE order_id = $1", min(changes.orders.made))
        seen: list[str] = []
        after = ""
        while page := await unfinished_orders(database, EXCHANGE, [2], [OrderStatus.NEW], after, 2):
            seen += [unfinished.order.order_id for unfinished in page]
            after = seen[-1]
        assert seen == sorted(changes.orders.made)[1:]
        assert await unfinished_orders(database, EXCHANGE, [2], [OrderStatus.IN_DOUBT], "", 10) == []


async def test_newest_word_of_another_partition_is_known_to_be_unpublished(database_url: str) -> None:
    """Of orders and of withdrawals, to whom it belongs and that it is on its way; the partition that stored it need not wait for itself."""
    withdrawal = withdrawal_of(updated_at=NOW)
    async with open_database(database_url) as database:
        owned, other = await taken(database), await taken(database, 1)
        changes, _ = await take_in(database, owned, [arrival(limit())], 1)
        async with plain_connection(database_url) as connection:
            await connection.execute(WITHDRAWALS.insert(), *WITHDRAWALS.arrays([withdrawal]))
        for columns, one in ((ORDERS, min(changes.orders.made)), (WITHDRAWALS, withdrawal.withdrawal_id)):
            async with open_step(database, other) as step:
                assert await step.unpublished(columns, [one, "none"], TOPICS.orders_prefix) == {one}
                assert await step.unpublished(columns, [], TOPICS.orders_prefix) == set()
                assert await step.users_of(columns, [one, "none"]) == {one: "alice"}
            async with open_step(database, owned) as step:
                assert await step.unpublished(columns, [one], TOPICS.orders_prefix) == set()


async def test_no_statement_of_a_step_scans_a_table(database_url: str) -> None:
    """With many orders and claims there, every statement reaches its rows by an index: the server counts scans, and there are none."""
    async with open_database(database_url, timeout_seconds=30) as database:
        owned = await taken(database)
        batch = [arrival(limit(idempotency_key=f"k{number}", quantity="0.0005"), number) for number in range(1500)]
        batch += [
            arrival(cancel(idempotency_key=f"c{number}", target_idempotency_key=f"k{number}"), 1500 + number) for number in range(1000)
        ]
        for begin in range(0, 2500, 500):
            await take_in(database, owned, batch[begin : begin + 500], begin + 500)
        async with plain_connection(database_url) as connection:
            await connection.execute("ANALYZE")
        before = await _scans(database_url)
        await _one_of_each(database, owned)
        after = await _scans(database_url)
        scanned = {table: after[table] - before[table] for table in ("orders", "claims", "transfers", "audit_events", "cancels")}
        assert scanned == dict.fromkeys(scanned, 0)


async def _one_of_each(database: Database, owned: InputPartition) -> None:
    records = [
        arrival(limit(idempotency_key="new"), 2500),
        arrival(limit(idempotency_key="k1", quantity="0.0005"), 2501),
        arrival(cancel(target_idempotency_key="new"), 2502),
        arrival(cancel(idempotency_key="c", target_idempotency_key="k1400"), 2503),
    ]
    changes, _ = await take_in(database, owned, records, 2504)
    await purge_claims(database, NOW - timedelta(days=1))
    async with open_step(database, owned) as step:
        await changes_in(step, ["alice"], orders=changes.orders.made)
        await step.pending_cancels(sorted(changes.orders.made))


async def _scans(url: str) -> dict[str, int]:
    async with plain_connection(url) as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        # The pool's connections report their statistics when they are idle for a moment, or when they end.
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await asyncio.sleep(0.2)
        rows = await connection.fetch("SELECT relname, seq_scan FROM pg_stat_user_tables")
    return {row["relname"]: row["seq_scan"] for row in rows}
