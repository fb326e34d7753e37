"""The ledger on a real database against a naive one: random batches, whose connection is cut between any two statements.

`HYPOTHESIS_PROFILE=deep` tries 100,000 operations, the default profile a tenth of them.
"""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from random import Random

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from infra.postgres.database import Database, InputPartition, connect
from infra.postgres.step import open_step, take_partition
from infra.postgres.withdrawals import withdrawals
from pipeline.books.ledger import AccountKey
from pipeline.model.invariants import InvariantViolation, Retryable
from tests.integration.step_database import GROUP, changes_in, taken
from tests.property.naive_ledger import Act, Drawer, NaiveLedger
from tests.statement_proxy import COMMIT, StatementProxy
from tests.unit.builders import NOW
from verification.evidence.database import read_database
from verification.promises.accounts import check_accounts

EXAMPLES, STEPS = (50 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 5), 44
# A batch has 40 to 60.
OPERATIONS = EXAMPLES * 2_000
# A step has a dozen statements, each prepared before it is first used on a new connection; a cut behind the last of them never comes.
STATEMENTS = 26
CUTOFF = NOW - timedelta(hours=24)

_SYSTEM = """
    SELECT owner, exchange, book, asset, sum(amount) FROM (
        SELECT credit_owner AS owner, exchange, book, asset, amount FROM transfers
        UNION ALL SELECT debit_owner, exchange, book, asset, -amount FROM transfers
    ) AS side WHERE exchange = ANY($1::text[]) AND owner LIKE '@%' GROUP BY owner, exchange, book, asset
"""
_HELD = """
    SELECT user_id, exchange, mode, hold_asset, sum(hold_amount) FROM (
        SELECT user_id, exchange, mode, hold_asset, hold_amount FROM orders WHERE executed_at IS NULL
        UNION ALL SELECT user_id, exchange, mode, asset, hold_amount FROM withdrawals WHERE executed_at IS NULL
    ) AS open WHERE user_id = ANY($1::text[]) GROUP BY user_id, exchange, mode, hold_asset
"""


@dataclass(slots=True)
class World:
    """The database, the way to it that can be cut, and another that cannot; what was done in all examples together."""

    runner: asyncio.Runner
    proxy: StatementProxy
    database: Database
    beside: asyncpg.Connection
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    operations: int = 0
    cuts: dict[str, int] = field(default_factory=lambda: {"rolled back": 0, "stored": 0, "not reached": 0})


@contextmanager
def _world(url: str) -> Iterator[World]:
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="cut-") as directory, asyncio.Runner() as runner:
        proxy = StatementProxy(url, Path(directory))
        runner.run(proxy.start())
        database = runner.run(connect(proxy.url, 1, 20))
        beside = runner.run(asyncpg.connect(url, timeout=10, command_timeout=60))
        try:
            yield World(runner, proxy, database, beside)
        finally:
            runner.run(database.close())
            runner.run(beside.close(timeout=5))
            runner.run(proxy.stop())


def _machine(world: World) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        """One example: three users of its own at two exchanges of its own."""

        def __init__(self) -> None:
            super().__init__()
            number = next(world.numbers)
            self.users = tuple(f"u{number}-{user}" for user in range(3))
            self.exchanges = f"a{number}", f"b{number}"
            self.naive, self.drawn, self.offset = NaiveLedger(), number * 1_000_000, 0
            self.owned: InputPartition
            world.runner.run(self._begin(number))

        async def _begin(self, number: int) -> None:
            await world.beside.execute("INSERT INTO users SELECT name, 'active', now() FROM unnest($1::text[]) AS name", self.users)
            self.partition = number
            self.owned = await taken(world.database, number)

        @rule(
            seed=st.integers(0, 2**32 - 1),
            size=st.integers(40, 60),
            cut=st.none() | st.just(COMMIT) | st.integers(1, STATEMENTS),
            after=st.booleans(),
            unforeseen=st.booleans(),
        )
        def batch(self, seed: int, size: int, cut: int | None, after: bool, unforeseen: bool) -> None:
            """A batch of operations, which may be cut at a statement; afterwards there is all of it or nothing."""
            naive = self.naive.copy()
            drawer = Drawer(Random(seed), naive, self.users, self.exchanges, self.drawn)
            acts = [drawer.draw() for _ in range(size)]
            self.drawn = drawer.number
            world.runner.run(self._stored(acts, cut, after=after))
            self.naive = naive
            world.operations += size
            if unforeseen:
                world.runner.run(self._refused(Random(seed)))

        @invariant()
        def is_the_naive_ledger(self) -> None:
            world.runner.run(self._compare())

        def teardown(self) -> None:
            world.runner.run(self._sums())

        async def _stored(self, acts: list[Act], cut: int | None, *, after: bool) -> None:
            if cut is not None:
                world.proxy.cut_at(cut, after=after)
                try:
                    with suppress(Retryable):
                        await self._step(acts)
                finally:
                    cuts = world.proxy.let_through()
                for process in cuts:
                    # What it was about to do is decided when it has ended.
                    await world.beside.fetchval("SELECT pg_terminate_backend($1, 10000)", process)
                self.owned, progress = await take_partition(world.database, GROUP, self.owned.topic, self.partition, NOW)
                stored = progress.next_offset == self.offset + 1
                world.cuts["not reached" if not cuts else "stored" if stored else "rolled back"] += 1
                if stored:
                    self.offset += 1
                    return
                await self._compare()
            await self._step(acts)
            self.offset += 1

        async def _step(self, acts: list[Act]) -> None:
            async with open_step(world.database, self.owned) as step:
                changes = await changes_in(step, self.users, orders=list(self.naive.orders))
                changes.withdrawals = await withdrawals(step.connection, list(self.naive.withdrawals))
                ids = [part for name in self.naive.applied for part in (name, f"{name}:shortfall")]
                changes.ledger.known |= await step.transfers(ids)
                for act in acts:
                    act(changes)
                # Answers belong to requests, of which there is none here.
                changes.finished.clear()
                await step.store(changes, CUTOFF)
                await step.finish(self.offset + 1, (), NOW)

        async def _refused(self, random: Random) -> None:
            """A batch that meets an applied id without knowing it is refused whole, by name, whatever else it holds."""
            name = random.choice([name for name, (word, _, _) in self.naive.applied.items() if word != "reverse"] or [""])
            if not name:
                return
            _, account, amount = self.naive.applied[name]
            with pytest.raises(InvariantViolation, match=name):
                async with open_step(world.database, self.owned) as step:
                    changes = await changes_in(step, self.users)
                    changes.ledger.open(f"unforeseen:{name}", account, Decimal(1))
                    changes.ledger.open(name, account, amount + random.choice((0, 1)))
                    await step.store(changes, CUTOFF)

        async def _compare(self) -> None:
            naive = self.naive
            rows = await world.beside.fetch(
                "SELECT user_id, exchange, book, asset, posted, pending FROM balances WHERE user_id = ANY($1::text[])", self.users
            )
            stored = {AccountKey(*tuple(row)[:4]): (row["posted"], row["pending"]) for row in rows if row["posted"]}
            assert all(posted >= pending >= 0 for posted, pending in stored.values())
            assert stored == {account: (amount, naive.pending(account)) for account, amount in naive.owned.items() if amount}
            held = {AccountKey(*tuple(row)[:4]): row["sum"] for row in await world.beside.fetch(_HELD, self.users) if row["sum"]}
            assert held == {account: pending for account, (_, pending) in stored.items() if pending}

        async def _sums(self) -> None:
            rows = await world.beside.fetch(_SYSTEM, self.exchanges)
            stored = {AccountKey(*tuple(row)[:4]): row["sum"] for row in rows if row["sum"]}
            assert stored == {account: amount for account, amount in self.naive.system.items() if amount}

    return Machine


@pytest.mark.timeout(1_200)
def test_no_loss_and_no_invention_whatever_is_cut(database_url: str) -> None:
    """Owned, held and the house's accounts are the naive ledger's after every batch, all of it or nothing of it after every cut."""
    with _world(database_url) as world:
        chosen = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck))
        run_state_machine_as_test(_machine(world), settings=chosen)
        # An example may be shorter than it is allowed to be.
        for _ in range(EXAMPLES):
            if world.operations < OPERATIONS:
                run_state_machine_as_test(_machine(world), settings=settings(chosen, max_examples=1))
        print(f"{world.operations} operations, cuts {world.cuts}")
        assert world.operations >= OPERATIONS
        assert min(world.cuts.values()) > 0
        evidence = world.runner.run(read_database(database_url, GROUP))
        findings = check_accounts(evidence.accounts, evidence.orders.values(), evidence.withdrawals.values())
        assert [found for found in findings if not found.holds] == []
