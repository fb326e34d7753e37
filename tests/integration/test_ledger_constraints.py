"""The database's own rules over the ledger: what the code must never write is refused, whoever writes it."""

import itertools
from collections.abc import AsyncIterator
from decimal import Decimal

import asyncpg
import pytest

from infra.postgres.database import Database
from infra.postgres.transfers import apply_transfers, stored_transfers
from pipeline.books.ledger import (
    SYSTEM_OWNERS,
    AccountKey,
    Balance,
    Ledger,
    Outcome,
    Transfer,
    TransferKind,
    clearing,
    fees,
    opening,
    shortfall,
)
from pipeline.model.invariants import InvariantViolation
from tests.integration.step_database import open_database, plain_connection
from tests.unit.builders import EXCHANGE, NOW, account

D = Decimal
USDT, BTC, OTHER = account("USDT"), account("BTC"), account("USDT", "bob")
CLEARING = clearing(EXCHANGE, "live", "USDT")
CHECK, UNIQUE, RESTRICT = asyncpg.CheckViolationError, asyncpg.UniqueViolationError, asyncpg.RestrictViolationError
FOREIGN_KEY = asyncpg.ForeignKeyViolationError


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Alice and Bob with 100,000 USDT and 10 BTC each."""
    async with open_database(database_url) as opened:
        yield opened


def _move(kind: TransferKind, amount: str, *, name: str = "t", order: str | None = "o", **sides: AccountKey) -> Transfer:
    debit = sides.get("debit", USDT)
    same = debit if kind in {TransferKind.HOLD, TransferKind.RELEASE} else CLEARING
    return Transfer(name, kind, order, debit, sides.get("credit", same), D(amount))


async def _apply(database: Database, *transfers: Transfer) -> dict[str, Outcome]:
    async with database.connection() as connection, connection.transaction():
        return await apply_transfers(connection, transfers, NOW)


async def _balances(database: Database, owner: str = "alice") -> dict[AccountKey, Balance]:
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT * FROM balances WHERE user_id = $1", owner)
    return {AccountKey(owner, row["exchange"], row["book"], row["asset"]): Balance(row["posted"], row["pending"]) for row in rows}


async def test_each_kind_of_transfer_moves_balances_as_the_code_says(database: Database) -> None:
    """All kinds in one statement, several to one account, into an account that is new: the database's sums are the code's."""
    ledger = Ledger({USDT: Balance(D(100_000)), BTC: Balance(D(10))})
    sol = account("SOL")
    assert ledger.hold("h1", "o1", USDT, D(60))
    assert ledger.hold("h2", "o2", USDT, D("0.000000000000000001"))
    ledger.post_held("p1", "o1", USDT, CLEARING, D(50))
    ledger.post("r1", "o1", clearing(EXCHANGE, "live", "SOL"), sol, D("1.5"))
    ledger.charge("f1", "o1", sol, fees(EXCHANGE, "live", "SOL"), D("2"))
    ledger.release("e1", "o1", USDT, D(10))
    ledger.post("r2", None, clearing(EXCHANGE, "live", "BTC"), BTC, D("0.1"))
    ledger.open("opening:sol", account("SOL"), D(7))
    assert shortfall(EXCHANGE, "live", "SOL") in {transfer.debit for transfer in ledger.transfers}
    assert set((await _apply(database, *ledger.transfers)).values()) == {Outcome.APPLIED}
    assert await _balances(database) == ledger.balances
    assert (await _balances(database, "bob"))[OTHER] == Balance(D(100_000))


async def test_transfer_applied_twice_moves_once_and_says_so(database: Database) -> None:
    """In one call and in two, beside a new one: the outcome names each; balances move for the new one alone."""
    first, second = _move(TransferKind.HOLD, "5", name="a"), _move(TransferKind.HOLD, "7", name="b")
    assert await _apply(database, first, first) == {"a": Outcome.APPLIED}
    assert await _apply(database, first, second) == {"a": Outcome.ALREADY_APPLIED, "b": Outcome.APPLIED}
    assert await _apply(database, first, second) == {"a": Outcome.ALREADY_APPLIED, "b": Outcome.ALREADY_APPLIED}
    assert (await _balances(database))[USDT] == Balance(D(100_000), D(12))
    async with database.connection() as connection:
        assert await stored_transfers(connection, ["a", "b", "c"]) == {"a": first, "b": second}


@pytest.mark.parametrize(
    "other",
    [
        _move(TransferKind.HOLD, "5.000000000000000001", name="a"),
        _move(TransferKind.HOLD, "5", name="a", order="p"),
        _move(TransferKind.HOLD, "5", name="a", debit=OTHER),
        _move(TransferKind.POST, "5", name="a"),
    ],
)
async def test_transfer_id_for_another_movement_is_refused_by_name(database: Database, other: Transfer) -> None:
    """Another amount, order, account or kind: a defect that names the transfer and both movements; nothing of the call stays."""
    await _apply(database, _move(TransferKind.HOLD, "5", name="a"))
    before = await _balances(database)
    for call in ((_move(TransferKind.HOLD, "1", name="new"), other), (_move(TransferKind.HOLD, "5", name="a"), other)):
        with pytest.raises(InvariantViolation, match=r"transfer a was applied as hold of 5 from alice.* and would now be"):
            await _apply(database, *call)
    assert await _balances(database) == before


_DIRECT = (
    "UPDATE balances SET posted = posted + 1",
    "UPDATE balances SET pending = 0 WHERE false",
    "UPDATE balances SET user_id = 'bob' WHERE asset = 'x'",
    "INSERT INTO balances VALUES ('alice', 'e', 'live', 'X', 1, 0)",
    "INSERT INTO balances VALUES ('alice', 'binance', 'live', 'USDT', 1, 0) ON CONFLICT (user_id, exchange, book, asset) DO NOTHING",
    "INSERT INTO balances SELECT user_id, exchange, book, asset, 0, 0 FROM balances "
    "ON CONFLICT (user_id, exchange, book, asset) DO UPDATE SET posted = 1",
    "MERGE INTO balances USING (SELECT 'alice' AS who) AS given ON who = user_id WHEN MATCHED THEN UPDATE SET pending = 1",
    "DELETE FROM balances",
    "TRUNCATE balances",
    "TRUNCATE users CASCADE",
)


async def test_balances_are_moved_by_transfers_alone(database_url: str, database: Database) -> None:
    """No statement changes one beside the ledger, also none of the tables' owner."""
    before = await _balances(database)
    async with plain_connection(database_url) as connection:
        for statement in _DIRECT:
            with pytest.raises(RESTRICT, match="balances are moved by transfers alone"):
                await connection.execute(statement)
        # What was paid for them is noted beside.
        await connection.execute("UPDATE balances SET cost_quantity = 1, cost_usd = 2")
    assert await _balances(database) == before


def _row(*, kind: str = "post", asset: str = "USDT", sides: tuple[str, str] = ("alice", "@fees"), amount: str = "1") -> str:
    debit, credit = sides
    values = f"'t', '{kind}', 'o', 'binance', 'live', '{asset}', '{debit}', '{credit}', {amount}, now()"
    return f"INSERT INTO transfers VALUES ({values})"  # noqa: S608 — literals of the test


_HOLD = {"kind": "hold", "sides": ("alice", "alice")}
_FORBIDDEN = (
    (_row(amount="0"), CHECK, "amount_is_an_amount"),
    (_row(amount="-1"), CHECK, "amount_is_an_amount"),
    (_row(amount="'NaN'"), CHECK, "amount_is_an_amount"),
    (_row(amount="'Infinity'"), CHECK, "amount_is_an_amount"),
    (_row(amount="1e20"), CHECK, "amount_is_an_amount"),
    (_row(amount="0.0000000000000000001"), CHECK, "amount_is_an_amount"),
    (_row(amount="1.0000000000000000001"), CHECK, "amount_is_an_amount"),
    (_row(kind="credit"), CHECK, "transfers_kind_check"),
    (_row(sides=("carol", "@fees")), CHECK, "balances_check"),
    (_row(sides=("@clearing", "carol")), FOREIGN_KEY, "balances_user_id_fkey"),
    (_row(amount="100000.000000000000000001"), CHECK, "balances_check"),
    (_row(asset="SOL"), CHECK, "balances_check"),
    (_row(**_HOLD, amount="100000.000000000000000001"), CHECK, "balances_check"),
    (_row(**_HOLD, asset="SOL"), CHECK, "balances_check"),
    (_row(kind="release", sides=("alice", "alice")), CHECK, "balances_pending_check"),
    (_row(kind="post_held"), CHECK, "balances_pending_check"),
    (_row(sides=("@clearing", "alice"), amount="99999999999999999999.9"), CHECK, "posted_is_an_amount"),
    ("INSERT INTO transfers SELECT * FROM transfers LIMIT 1", UNIQUE, "transfers_pkey"),
)


async def test_database_refuses_transfers_that_the_code_must_never_write(database_url: str, database: Database) -> None:
    """Each is refused by its own rule, and leaves the balances as they were."""
    before = await _balances(database)
    async with plain_connection(database_url) as connection:
        for statement, error, rule in _FORBIDDEN:
            with pytest.raises(error, match=rule):
                await connection.execute(statement)
    assert await _balances(database) == before


async def test_owners_of_each_kind_are_those_of_the_code(database_url: str, database: Database) -> None:
    """Every kind between every pair of owners, with and without an order: database and code agree on which may be."""
    owners = ("alice", "bob", "@deposits", *sorted(SYSTEM_OWNERS))
    allowed: set[str] = set()
    async with plain_connection(database_url) as connection:
        for kind, debit, credit, order in itertools.product(TransferKind, owners, owners, (None, "o")):
            sides = {"debit": USDT._replace(owner=debit), "credit": USDT._replace(owner=credit)}
            # An id that an opening may have.
            transfer = _move(kind, "1", name="opening:t", order=order, **sides)
            try:
                Ledger({key: Balance(D(2), D(1)) for key in (USDT, OTHER)})._apply(transfer)
            except InvariantViolation:
                by_code = False
            else:
                by_code = True
                allowed.add(kind.value)
            db_transaction = connection.transaction()
            await db_transaction.start()
            try:
                # So that there is a hold to take from.
                await apply_transfers(connection, [_move(TransferKind.HOLD, "1", name=key.owner, debit=key) for key in (USDT, OTHER)], NOW)
                await apply_transfers(connection, [transfer], NOW)
                by_database = True
            except CHECK as refused:
                assert refused.constraint_name == "kind_fits_owners"
                by_database = False
            finally:
                await db_transaction.rollback()
            assert by_database is by_code, transfer
    assert allowed == set(TransferKind)


@pytest.mark.parametrize("act", [TransferKind.RELEASE, TransferKind.POST_HELD])
async def test_an_order_never_takes_more_than_its_own_hold(database: Database, act: TransferKind) -> None:
    """Held for another order, on another account, or taken already: it is not this order's, though the account has it."""
    btc = clearing(EXCHANGE, "live", "BTC")
    await _apply(database, _move(TransferKind.HOLD, "10", name="h1", order="o1"), _move(TransferKind.HOLD, "10", name="h2", order="o2"))
    await _apply(database, _move(TransferKind.HOLD, "1", name="h3", order="o3", debit=BTC))
    refused = (
        [_move(act, "10.000000000000000001", order="o1")],
        [_move(act, "6", order="o1", name="a"), _move(act, "6", order="o1", name="b")],
        [_move(act, "1", order="o3")],
        [_move(act, "1", order="o1", debit=BTC, credit=BTC if act is TransferKind.RELEASE else btc)],
        [_move(act, "1", order="unknown")],
    )
    before = await _balances(database)
    for transfers in refused:
        with pytest.raises(CHECK, match=r"more would be taken from the hold of (o1|o3|unknown)"):
            await _apply(database, *transfers)
        assert await _balances(database) == before
    await _apply(database, _move(act, "6", order="o1", name="a"), _move(TransferKind.POST_HELD, "4", order="o1", name="b"))
    with pytest.raises(CHECK, match="more would be taken from the hold of o1"):
        await _apply(database, _move(act, "0.000000000000000001", order="o1", name="c"))
    # A hold in the same statement counts.
    await _apply(database, _move(TransferKind.HOLD, "1", order="o4", name="d"), _move(act, "1", order="o4", name="e"))
    assert (await _balances(database))[USDT].pending == 10


async def test_checks_of_balances_stand_behind_the_trigger(database_url: str, database: Database) -> None:
    """Where somebody has switched the triggers off, what no balance may be is refused all the same."""
    forbidden = ("posted = -1", "pending = -1", "pending = posted + 0.000000000000000001", "book = 'play'", "posted = 1e-19")
    async with plain_connection(database_url) as connection:
        await connection.execute("SET session_replication_role = replica")
        for change in forbidden:
            with pytest.raises(CHECK):
                await connection.execute(f"UPDATE balances SET {change}")  # noqa: S608 — literals of the test


async def test_triggers_of_the_ledger_are_there_and_switched_on(database_url: str) -> None:
    """A trigger that a migration drops by mistake is missed here before money is."""
    async with plain_connection(database_url) as connection:
        rows = await connection.fetch(
            "SELECT tgname FROM pg_trigger "
            "WHERE tgrelid IN ('transfers'::regclass, 'balances'::regclass) AND NOT tgisinternal AND tgenabled = 'O'"
        )
    assert {row["tgname"] for row in rows} == {
        "append_only", "move_balances", "moved_by_transfers_alone", "begun_empty", "import_is_recorded",
    }  # fmt: skip


def test_opening_is_no_other_accounts_name() -> None:
    """The list of the system's accounts is the one that the functions make."""
    assert {make(EXCHANGE, "live", "USDT").owner for make in (clearing, fees, opening, shortfall)} == SYSTEM_OWNERS
