"""`python -m bench.ledger`: what the ledger costs beside the least that could be written: holds and fills, of one hot user and of 10,000.

Invariants:
1. All rows write the same transfers and move the same balances, one database transaction and one commit to the disk per batch.
2. The floor's tables lie in the same database and have the same columns, a primary key and nothing else: no check, reference or trigger.
   What it writes is worked out beforehand and not counted.
3. Rows take turns batch by batch, and ratios are taken within a round: what else the machine does meets all rows alike.
4. In the end each account has what its transfers say, on both sides, or the benchmark fails.

Start with `run_bench`. A fill has four transfers: paid from the hold, received, the rest of the hold released, a fee.
"""

import argparse
import asyncio
import gc
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import orjson

from bench.report import Spread
from bench.run import machine
from embedded.data_dir import locked_data_directory
from embedded.database import EmbeddedDatabase
from embedded.errors import ServicesError
from infra.postgres.database import Connection, Database, InputPartition, connect
from infra.postgres.migrate import migrate
from infra.postgres.rows import TRANSFERS, columns_of
from infra.postgres.step import Progress, StepTransaction
from infra.postgres.storing import store
from infra.settings import Settings
from pipeline.books.audit import AuditTrail
from pipeline.books.changes import Changes
from pipeline.books.ledger import AccountKey, Balance, Ledger, Transfer, TransferKind, clearing, fees
from schemas.topics import Topics

_LATEST: Final = Path(__file__).parent / "latest-ledger.json"
_TIMEOUT_SECONDS: Final = 60
_NOW: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
_OPENING: Final = Decimal(10) ** 12
_EXCHANGE: Final = "binance"
# Statements are planned anew for their first five runs.
_WARM_UP_BATCHES: Final = 8
_TRANSFERS_OF_FILL: Final = 4
FLOOR, STORED, DECIDED = "floor", "ledger", "ledger with load and decisions"
_SETUP: Final = (
    """
    INSERT INTO users (user_id, status, created_at)
    SELECT 'u' || number, 'active', now() FROM generate_series(0, $1::integer - 1) AS number
    """,
    # No transfer of its own makes what the users begin with: the end compares what was moved.
    """
    INSERT INTO balances (user_id, exchange, book, asset, posted, pending)
    SELECT user_id, 'binance', 'live', asset, 1e12, 0 FROM users, (VALUES ('USDT'), ('BTC')) AS given (asset)
    """,
    "CREATE TABLE floor_transfers (LIKE transfers, PRIMARY KEY (transfer_id))",
    "CREATE TABLE floor_balances (LIKE balances, PRIMARY KEY (user_id, exchange, book, asset)) WITH (fillfactor = 50)",
    "INSERT INTO floor_balances SELECT * FROM balances",
)
_FLOOR_INSERT: Final = TRANSFERS.insert(1, "recorded_at").replace("INTO transfers", "INTO floor_transfers")
_FLOOR_UPDATE: Final = """
    UPDATE floor_balances AS held SET posted = held.posted + moved.posted, pending = held.pending + moved.pending
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::numeric[], $6::numeric[])
        AS moved (user_id, exchange, book, asset, posted, pending)
    WHERE held.user_id = moved.user_id AND held.exchange = moved.exchange AND held.book = moved.book AND held.asset = moved.asset
"""
# Accounts whose balance is not what they began with and what their transfers moved.
_WRONG: Final = """
    SELECT count(*) FROM {balances} AS held LEFT JOIN (
        SELECT owner, asset, sum(posted) AS posted, sum(pending) AS pending FROM (
            SELECT debit_owner AS owner, asset, CASE WHEN kind IN ('post', 'post_held') THEN -amount ELSE 0 END AS posted,
                CASE kind WHEN 'hold' THEN amount WHEN 'post' THEN 0 ELSE -amount END AS pending FROM {transfers}
            UNION ALL SELECT credit_owner, asset, CASE WHEN kind IN ('post', 'post_held') THEN amount ELSE 0 END, 0 FROM {transfers}
        ) AS side GROUP BY owner, asset
    ) AS moved ON owner = user_id AND moved.asset = held.asset
    WHERE (held.posted, held.pending) IS DISTINCT FROM (1e12 + coalesce(moved.posted, 0), coalesce(moved.pending, 0))
"""


class BenchFailed(Exception):
    """A figure would not mean what it says."""


@dataclass(frozen=True, slots=True)
class Options:
    """`batches` is how many each row writes in a round, for either kind of users; `batch` how many orders one has."""

    users: int
    batch: int
    batches: int
    rounds: int
    output: Path


@dataclass(frozen=True, slots=True)
class Figures:
    """One run of one row. `users` is how many the orders are drawn from."""

    row: str
    users: int
    orders: int
    hold_seconds: float
    fill_seconds: float

    @property
    def seconds(self) -> float:
        return self.hold_seconds + self.fill_seconds


@dataclass(frozen=True, slots=True)
class Traded:
    """An order that is held for and filled at once. Amounts in US dollars (`held`, `paid`) and BTC (`received`, `fee`)."""

    order_id: str
    user_id: str
    held: Decimal = Decimal("100.5")
    paid: Decimal = Decimal("99.12345678")
    received: Decimal = Decimal("0.00123456")
    fee: Decimal = Decimal("0.00000123")

    def account(self, asset: str) -> AccountKey:
        return AccountKey(self.user_id, _EXCHANGE, "live", asset)

    def hold(self, ledger: Ledger) -> None:
        """What accepting it does to the ledger."""
        if not ledger.hold(f"{self.order_id}:hold", self.order_id, self.account("USDT"), self.held):
            raise BenchFailed(f"the funds of {self.user_id} are used up")

    def fill(self, ledger: Ledger) -> None:
        """What its end does."""
        usdt, btc = self.account("USDT"), self.account("BTC")
        ledger.post_held(f"{self.order_id}:pay", self.order_id, usdt, clearing(*usdt[1:]), self.paid)
        ledger.post(f"{self.order_id}:receive", self.order_id, clearing(*btc[1:]), btc, self.received)
        ledger.release(f"{self.order_id}:release", self.order_id, usdt, self.held - self.paid)
        ledger.charge(f"{self.order_id}:fee:BTC", self.order_id, btc, fees(*btc[1:]), self.fee)


Act = Callable[[Traded, Ledger], None]


@dataclass(slots=True)
class Side:
    """A row: how it writes a batch. Returns the seconds that count."""

    connection: Connection

    async def floor(self, orders: Sequence[Traded], act: Act) -> float:
        ledger = _decided(orders, act)
        arrays, moved = TRANSFERS.arrays(ledger.transfers), columns_of(_moved(ledger.transfers), 6)
        begin = time.perf_counter()
        async with self.connection.transaction():
            await self.connection.execute(_FLOOR_INSERT, *arrays, _NOW)
            await self.connection.execute(_FLOOR_UPDATE, *moved)
        return time.perf_counter() - begin

    async def stored(self, orders: Sequence[Traded], act: Act) -> float:
        ledger = _decided(orders, act)
        begin = time.perf_counter()
        async with self.connection.transaction():
            await store(self.connection, _changes(ledger), _NOW, "bench")
        return time.perf_counter() - begin

    async def decided(self, orders: Sequence[Traded], act: Act) -> float:
        begin = time.perf_counter()
        async with self.connection.transaction():
            step = StepTransaction(self.connection, InputPartition("bench", "bench", 0, 1), Progress(-1, -1, (), ()))
            ledger = Ledger(await step.balances(sorted({order.user_id for order in orders})))
            for order in orders:
                act(order, ledger)
            await store(self.connection, _changes(ledger), _NOW, "bench")
        return time.perf_counter() - begin


def _changes(ledger: Ledger) -> Changes:
    return Changes(topics=Topics(""), now=_NOW, actor="bench", trail=AuditTrail({}, _NOW), ledger=ledger)


def _decided(orders: Sequence[Traded], act: Act) -> Ledger:
    accounts = {order.account(asset): Balance(_OPENING, _OPENING / 2) for order in orders for asset in ("USDT", "BTC")}
    ledger = Ledger(accounts)
    for order in orders:
        act(order, ledger)
    return ledger


def _moved(transfers: Sequence[Transfer]) -> list[tuple[str, str, str, str, Decimal, Decimal]]:
    """What transfers move per user's account: (owner, exchange, book, asset, posted, pending)."""
    sums: dict[AccountKey, list[Decimal]] = {}
    for transfer in transfers:
        moves_posted = transfer.kind in {TransferKind.POST, TransferKind.POST_HELD}
        for account, sign in ((transfer.debit, -1), (transfer.credit, 1)):
            if not account.owner.startswith("@") and moves_posted:
                sums.setdefault(account, [Decimal(0), Decimal(0)])[0] += sign * transfer.amount
        if transfer.kind is not TransferKind.POST:
            sign = 1 if transfer.kind is TransferKind.HOLD else -1
            sums.setdefault(transfer.debit, [Decimal(0), Decimal(0)])[1] += sign * transfer.amount
    return [(*account, posted, pending) for account, (posted, pending) in sums.items()]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Reads the command line; a wrong option ends the process with status 2 and a message."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description="Measures what the ledger costs.")
    parser.add_argument("--users", type=int, default=10_000, help="users beside the hot one (default 10000)")
    parser.add_argument("--batch", type=int, default=500, help="orders in a batch (default 500)")
    parser.add_argument("--batches", type=int, default=20, help="batches that each row writes in a round (default 20)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each row is run (default 5)")
    parser.add_argument("--output", type=Path, default=_LATEST, help="where the JSON goes")
    found = parser.parse_args(arguments)
    if min(found.users, found.batch, found.batches, found.rounds) < 1 or found.users < found.batch:
        parser.error("all must be 1 or more, and --users no fewer than --batch")
    return Options(**vars(found))


@asynccontextmanager
async def _server(directory: Path) -> AsyncIterator[str]:
    """The address of the database that the settings name, else of an embedded one in this directory. Raises a ServicesError."""
    external = Settings().database_url
    if external is not None:
        yield external.get_secret_value()
        return
    async with locked_data_directory(directory, progress=_say) as data:
        server = await EmbeddedDatabase.start(data, progress=_say)
        try:
            yield server.address
        finally:
            await server.stop()


@asynccontextmanager
async def _prepared(server_url: str, users: int) -> AsyncIterator[Database]:
    """A database with these users and the floor's tables, dropped in the end; one connection to it, with a worker's settings."""
    name = f"bench_ledger_{uuid4().hex[:10]}"
    url = urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    server = await asyncpg.connect(server_url, timeout=_TIMEOUT_SECONDS)
    try:
        await server.execute(f'CREATE DATABASE "{name}"')
        try:
            await migrate(url)
            filling = await asyncpg.connect(url, timeout=_TIMEOUT_SECONDS)
            await filling.execute("SET session_replication_role = replica")
            for statement in _SETUP:
                await filling.execute(statement, *([users] if "$1" in statement else []))
            await filling.execute("VACUUM (ANALYZE)")
            await filling.close()
            _say(f"{name}: {users:,} users")
            database = await connect(url, 1, _TIMEOUT_SECONDS)
            try:
                yield database
            finally:
                await database.close()
        finally:
            await server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await server.close(timeout=_TIMEOUT_SECONDS)


async def _run(options: Options, server_url: str) -> list[list[Figures]]:
    drawn, numbers = random.Random(20_261_124), count()

    def orders_of(users: int) -> list[Traded]:
        chosen = drawn.sample(range(options.users), options.batch) if users > 1 else [0] * options.batch
        # As long as a real one.
        return [Traded(f"o{next(numbers):032x}", f"u{number}") for number in chosen]

    rounds: list[list[Figures]] = []
    async with _prepared(server_url, options.users) as database, database.connection() as connection:
        side = Side(connection)
        rows: Mapping[str, Callable[[Sequence[Traded], Act], Awaitable[float]]] = {
            FLOOR: side.floor, STORED: side.stored, DECIDED: side.decided,
        }  # fmt: skip
        gc.collect()
        gc.freeze()
        for number in range(options.rounds + 1):
            rounds.append([])
            for users in (1, options.users):
                seconds = {name: [0.0, 0.0] for name in rows}
                for _ in range(options.batches if number else _WARM_UP_BATCHES):
                    # Batch by batch, so that what else the machine does meets all rows alike.
                    for name, write in rows.items():
                        orders = orders_of(users)
                        for part, act in enumerate((Traded.hold, Traded.fill)):
                            seconds[name][part] += await write(orders, act)
                for name, (held, filled) in seconds.items():
                    rounds[-1].append(Figures(name, users, options.batch * options.batches, held, filled))
                    if number:
                        _say(f"round {number}: {name}, {users:,} users: {held + filled:.2f} s")
        for names in ({"balances": "balances", "transfers": "transfers"}, {"balances": "floor_balances", "transfers": "floor_transfers"}):
            wrong = await connection.fetchval(_WRONG.format(**names))
            if wrong:
                raise BenchFailed(f"{wrong} accounts in {names['balances']} are not what their transfers make them")
    return rounds[1:]


def _spreads(runs: Sequence[Figures]) -> dict[str, Spread]:
    return {
        "holds_per_second": Spread.of([run.orders / run.hold_seconds for run in runs]),
        "fills_per_second": Spread.of([run.orders / run.fill_seconds for run in runs]),
        "transfers_per_second": Spread.of([run.orders * (1 + _TRANSFERS_OF_FILL) / run.seconds for run in runs]),
    }


def times_the_floor(rounds: Sequence[Sequence[Figures]]) -> dict[tuple[str, int], Spread]:
    """By row and users: how many times the floor's time it took, within each round."""
    found: dict[tuple[str, int], list[float]] = {}
    for figures in rounds:
        floors = {one.users: one.seconds for one in figures if one.row == FLOOR}
        for one in figures:
            if one.row != FLOOR:
                found.setdefault((one.row, one.users), []).append(one.seconds / floors[one.users])
    return {key: Spread.of(values) for key, values in found.items()}


def as_json(rounds: Sequence[Sequence[Figures]], options: Options, about: Mapping[str, str | int | float]) -> bytes:
    """`rows` with `name`, `users`, `orders` and figures of `min, median, max`; `times_the_floor` alike; `machine`; `options`."""
    table = [
        {"name": runs[0].row, "users": runs[0].users, "orders": runs[0].orders, **_spreads(runs)} for runs in zip(*rounds, strict=True)
    ]
    ratios = [{"name": row, "users": users, "times": spread} for (row, users), spread in times_the_floor(rounds).items()]
    given = {name: value for name, value in asdict(options).items() if name != "output"}
    report = {"rows": table, "times_the_floor": ratios, "options": given, "machine": about}
    return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def as_table(rounds: Sequence[Sequence[Figures]], about: Mapping[str, str | int | float]) -> str:
    """Markdown, so that it can be quoted as it is."""
    ratios = times_the_floor(rounds)
    lines = ["| row | users | holds/s | fills/s | transfers/s | times the floor's time |", "|---|---|---|---|---|---|"]
    for runs in zip(*rounds, strict=True):
        first = runs[0]
        ratio = ratios.get((first.row, first.users))
        cells = [first.row, f"{first.users:,}", *(spread.text() for spread in _spreads(runs).values()), ratio.text(2) if ratio else "1"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Minimum / median / maximum of {len(rounds)} rounds, rows taking turns; a fill has {_TRANSFERS_OF_FILL} transfers."]
    lines += ["; ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())]
    return "\n".join(lines)


async def run_bench(options: Options) -> int:
    """Runs everything; returns the exit code: 0, 1 when a run failed, 3 when the database did not start."""
    about = machine()
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as scratch:
        root = Path(scratch)
        # The database's own account must be able to reach its directory.
        root.chmod(0o711)
        try:
            async with _server(root / "services") as url:
                rounds = await _run(options, url)
        except ServicesError as error:
            _say(str(error))
            return 3
        except BenchFailed as error:
            _say(f"the benchmark failed: {error}")
            return 1
    options.output.write_bytes(as_json(rounds, options, about))
    print(as_table(rounds, about))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(run_bench(parse())))
