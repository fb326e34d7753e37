"""`balances import` and `verify balances`, from the arguments to the ledger, the audit topic and the exchange."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import pytest

from embedded.services import Endpoints
from infra.postgres.admin.administration import NotDone
from infra.postgres.admin.balance_imports import AskedAccount, chain_seq, import_balances
from infra.postgres.database import connect
from pipeline.model.venue import AccountBalances
from simulator.options import SimulatorOptions
from simulator.process import SimulatorProcess, start
from tests.claiming import claimed
from tests.integration.administered import Administered, administered
from tests.integration.simulator_client import SimulatorClient
from tests.servers import fresh_database
from tests.withdrawing import ADDRESS, APPLY

pytestmark = pytest.mark.xdist_group("balances_commands")

HELD = {"USDT": "1000.5", "BTC": "0.25"}
IMPORT = ("--exchange", "binance", "--key", "main", "--operator", "ana", "--yes")


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    process = start(SimulatorOptions(tmp_path_factory.mktemp("exchange"), walk_ms=0, withdrawal_ms=600_000, deposit_ms=600_000))
    yield process
    process.stop()


@pytest.fixture(scope="module")
def installed(
    servers: Endpoints, database_template: str | None, exchange: SimulatorProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Administered]:
    """One installation for all tests here; they keep apart by their users."""
    directory = tmp_path_factory.mktemp("balances")
    with (
        fresh_database(servers.database_url, database_template) as url,
        administered(url, servers.kafka_bootstrap_servers, f"t{uuid4().hex[:6]}.", exchange.url, directory) as made,
    ):
        yield made


@pytest.fixture
def user(installed: Administered, exchange: SimulatorProcess) -> str:
    """A user of this test's own, with a key of an exchange account of its own."""
    name = f"u{uuid4().hex[:10]}"
    installed.ran("users", "add", name, "--operator", "ana")
    at_exchange(exchange, name, lambda client: open_account(client, HELD))
    add_key(installed, name, "main", name)
    return name


def at_exchange(exchange: SimulatorProcess, name: str, work: Callable[[SimulatorClient], Awaitable[Any]]) -> Any:
    """Does something at the exchange with a user's first key, behind the system's back."""

    async def run() -> Any:
        async with aiohttp.ClientSession() as session:
            return await work(SimulatorClient(session, exchange.url, f"key-{name}", f"secret-{name}"))

    return asyncio.run(run())


async def open_account(client: SimulatorClient, balances: dict[str, str]) -> None:
    spec = {"label": client.api_key, "api_key": client.api_key, "secret": client.secret, "balances": balances}
    await client.admin("POST", "accounts", [spec])


def add_key(installed: Administered, user: str, key_id: str, name: str) -> None:
    """Stores the exchange key of this name for a user."""
    installed.ran("keys", "add", user, key_id, "--exchange", "binance", given=f"key-{name}\nsecret-{name}\n")


async def withdraw(client: SimulatorClient, amount: str) -> None:
    answer = await client.signed("POST", APPLY, coin="USDT", amount=amount, address=ADDRESS, network="ETH")
    assert answer.status == 200, answer.body


def balances(installed: Administered, user: str) -> dict[str, Decimal]:
    rows = installed.fetch("SELECT asset, posted FROM balances WHERE user_id = $1 AND book = 'live'", user)
    return {row["asset"]: row["posted"] for row in rows}


def test_balances_import_books_what_the_exchange_shows_once(installed: Administered, user: str) -> None:
    """Free and locked together, asset by asset, from @opening, audited and published; a second time it says what was imported and when."""
    done = installed.ran("balances", "import", user, *IMPORT, "--json")
    given = json.loads(done.output)
    assert given["amounts"] == HELD
    assert balances(installed, user) == {asset: Decimal(amount) for asset, amount in HELD.items()}
    event = installed.events(user)[-1]
    assert (event["event_type"], event["claimed_operator"], event["exchange"]) == ("BALANCES_IMPORTED", "ana", "binance")
    assert {(one["asset"], one["amount"], one["debit_account"].split(":")[0]) for one in event["transfers"]} == {
        ("USDT", "1000.5", "@opening"), ("BTC", "0.25", "@opening"),
    }  # fmt: skip
    assert event["event_id"] in installed.published_events(user)
    again = installed.run("balances", "import", user, *IMPORT)
    assert again.code == 1
    [kept] = installed.fetch("SELECT imported_at FROM balance_imports WHERE user_id = $1", user)
    for part in (given["account_id"], user, f"{kept['imported_at']:%Y-%m-%dT%H:%M:%S}", "by ana", "1000.5 USDT", "0.25 BTC"):
        assert part in again.errors
    assert len(installed.events(user)) == event["seq"]


def test_balances_import_of_an_empty_account_is_its_import(installed: Administered, exchange: SimulatorProcess) -> None:
    """Nothing is booked, and what arrives later comes as deposits: the account cannot be imported any more."""
    name = f"u{uuid4().hex[:10]}"
    installed.ran("users", "add", name, "--operator", "ana")
    at_exchange(exchange, name, lambda client: open_account(client, {}))
    add_key(installed, name, "main", name)
    assert "nothing" in installed.ran("balances", "import", name, *IMPORT).output
    assert balances(installed, name) == {}
    assert installed.run("balances", "import", name, *IMPORT).code == 1


def test_balances_import_by_a_second_key_or_user_of_one_account_is_refused(
    installed: Administered, exchange: SimulatorProcess, user: str
) -> None:
    """The exchange's own id of the account counts: neither another key nor another user imports the same money again."""
    installed.ran("balances", "import", user, *IMPORT)
    spec = {"account": f"key-{user}", "api_key": f"key-second-{user}", "secret": f"secret-second-{user}"}
    at_exchange(exchange, user, lambda client: client.admin("POST", "keys", spec))
    other = f"{user}b"
    installed.ran("users", "add", other, "--operator", "ana")
    for whose, key_id in ((user, "second"), (other, "main")):
        add_key(installed, whose, key_id, f"second-{user}")
        refused = installed.run("balances", "import", whose, "--exchange", "binance", "--key", key_id, "--yes")
        assert (refused.code, "imported already, for " + user in refused.errors) == (1, True), refused.errors
    assert balances(installed, other) == {}
    # Both keys of the first user show the same money, which counts once.
    assert installed.run("verify", "balances", "--user", user).code == 0


async def test_balances_import_by_two_at_once_books_once(database_url: str) -> None:
    """Two users with keys of one account, and one user twice: exactly one import is booked, the others are told of it."""
    database = await connect(database_url, 4, 10)
    shown = AccountBalances("77", {"USDT": Decimal(5)}, {})
    try:
        async with database.connection() as connection:
            for name in ("a", "b"):
                await connection.execute("INSERT INTO users (user_id, status, created_at) VALUES ($1, 'active', now())", name)
        for name in ("a", "b"):
            assert await chain_seq(database, name) == 0
        now = datetime.now(UTC)
        by = claimed("ana", now)
        asked = [AskedAccount(name, "binance", "main", 0, now) for name in ("a", "b", "a", "b")]
        outcomes = await asyncio.gather(*(import_balances(database, one, shown, by) for one in asked), return_exceptions=True)
        refused = [str(outcome) for outcome in outcomes if isinstance(outcome, NotDone)]
        assert len(refused) == 3, outcomes
        assert all("was imported already, for " in text for text in refused), refused
        async with database.connection() as connection:
            assert await connection.fetchval("SELECT sum(posted) FROM balances") == 5
            assert await connection.fetchval("SELECT count(*) FROM balance_imports") == 1
    finally:
        await database.close()


async def test_balances_import_after_the_user_moved_is_refused(database_url: str) -> None:
    """Whatever happened to the user since before the exchange was asked makes its answer void."""
    database = await connect(database_url, 2, 10)
    try:
        async with database.connection() as connection:
            await connection.execute("INSERT INTO users (user_id, status, created_at) VALUES ('a', 'active', now())")
            await connection.execute("INSERT INTO audit_chains (account, seq, hash) VALUES ('a', 3, $1)", "0" * 64)
        now = datetime.now(UTC)
        asked = AskedAccount("a", "binance", "main", 2, now)
        with pytest.raises(NotDone, match="Something happened"):
            await import_balances(database, asked, AccountBalances("78", {"USDT": Decimal(5)}, {}), claimed("ana", now))
        async with database.connection() as connection:
            assert await connection.fetchval("SELECT count(*) FROM balance_imports") == 0
    finally:
        await database.close()


def test_balances_import_of_an_account_that_is_not_idle_is_refused(
    installed: Administered, exchange: SimulatorProcess, user: str
) -> None:
    """Orders that stand at the exchange, a withdrawal under way, real balances in the ledger: each is refused and claims nothing."""
    ordered = at_exchange(exchange, user, lambda client: client.limit("10000", quantity="0.01"))
    refused = installed.run("balances", "import", user, *IMPORT)
    assert (refused.code, "locked by orders that this system did not make" in refused.errors) == (1, True), refused.errors
    order_id = ordered.body["orderId"]
    at_exchange(exchange, user, lambda client: client.signed("DELETE", "/api/v3/order", symbol="BTCUSDT", orderId=order_id))
    installed.execute(
        """
        INSERT INTO withdrawals (withdrawal_id, client_withdrawal_id, user_id, idempotency_key, request_id, source_topic, source_partition,
            source_offset, mode, exchange, api_key_id, asset, network, address, amount, fee, status, hold_amount, usd_value, attempt,
            fencing_epoch, work_partition, expires_at, requested_at, decided_at, updated_at)
        VALUES ($1, $1, $1, 'k', 'r', $1, 0, 0, 'live', 'binance', 'main', 'USDT', 'ETH', 'x', 1, 0, 'accepted', 1, 1, 0, 0, -1, now(),
            now(), now(), now())
        """,
        user,
    )
    refused = installed.run("balances", "import", user, *IMPORT)
    assert (refused.code, "0 orders and 1 withdrawals" in refused.errors) == (1, True), refused.errors
    installed.execute("DELETE FROM withdrawals WHERE user_id = $1", user)
    installed.ran("balances", "import", user, *IMPORT)
    # Another account of the same user: what the ledger has may be part of it.
    at_exchange(exchange, f"other-{user}", lambda client: open_account(client, HELD))
    add_key(installed, user, "other", f"other-{user}")
    refused = installed.run("balances", "import", user, "--exchange", "binance", "--key", "other", "--yes")
    assert (refused.code, "has real balances at binance already: 0.25 BTC, 1000.5 USDT" in refused.errors) == (1, True), refused.errors
    assert len(installed.fetch("SELECT 1 FROM balance_imports WHERE user_id = $1", user)) == 1


def test_balances_import_while_a_deposit_is_on_its_way_is_refused(
    installed: Administered, exchange: SimulatorProcess, user: str
) -> None:
    """Nobody can tell whether the balances show it, and it would be credited besides: not while it is pending, not right after."""
    deposit = {"api_key": f"key-{user}", "asset": "USDT", "amount": "5", "network": "ETH", "address": ADDRESS}
    arrived = at_exchange(exchange, user, lambda client: client.admin("POST", "deposits", deposit))
    refused = installed.run("balances", "import", user, *IMPORT)
    assert (refused.code, "A deposit of 5 USDT is on its way" in refused.errors) == (1, True), refused.errors
    at_exchange(exchange, user, lambda client: client.admin("POST", "deposits/credit", {"id": arrived["id"]}))
    assert installed.run("balances", "import", user, *IMPORT).code == 1
    assert installed.fetch("SELECT 1 FROM balance_imports WHERE user_id = $1", user) == []


def test_balances_of_an_exchange_that_is_away_are_neither_imported_nor_judged(installed: Administered, user: str) -> None:
    """Both commands end with 3, and nothing is changed."""
    away = json.dumps({"binance": "http://127.0.0.1:1"})
    refused = installed.run("balances", "import", user, *IMPORT, EXCHANGE_URLS=away)
    assert (refused.code, "Nothing was changed" in refused.errors) == (3, True), refused.errors
    assert installed.fetch("SELECT 1 FROM balance_imports WHERE user_id = $1", user) == []
    installed.ran("balances", "import", user, *IMPORT)
    asked = installed.run("verify", "balances", "--user", user, EXCHANGE_URLS=away)
    assert (asked.code, f"no answer     {user}" in asked.errors) == (3, True), asked.errors
    assert installed.run("verify", "balances", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none").code == 3


def test_verify_balances_shows_what_changed_behind_the_systems_back(
    installed: Administered, exchange: SimulatorProcess, user: str
) -> None:
    """A withdrawal that this system did not make is one line with amounts, worth and age; simulated money is not compared."""
    installed.ran("balances", "import", user, *IMPORT)
    installed.ran("balances", "fund-paper", user, "ETH", "7", "--exchange", "binance")
    assert installed.ran("verify", "balances", "--user", user).output == ""
    at_exchange(exchange, user, lambda client: withdraw(client, "100.25"))
    installed.execute(
        """
        INSERT INTO balance_drifts (user_id, exchange, asset, ledger_amount, exchange_amount, first_seen_at, last_seen_at)
        VALUES ($1, 'binance', 'USDT', 2, 1, now() - interval '90 s', now())
        """,
        user,
    )
    shown = installed.run("verify", "balances", "--user", user, "--exchange", "binance", "--json")
    assert shown.code == 1
    found = json.loads(shown.output)
    [drift] = found["drifts"]
    assert {name: drift[name] for name in ("asset", "ledger", "at_exchange", "difference", "usd")} == {
        "asset": "USDT", "ledger": "1000.5", "at_exchange": "900.25", "difference": "-100.25", "usd": "100.25",
    }  # fmt: skip
    assert 90 <= drift["age_seconds"] < 300
    lines = installed.run("verify", "balances", "--user", user).output.splitlines()
    assert [line.split()[:6] for line in lines[1:]] == [[user, "binance", "USDT", "1000.5", "900.25", "-100.25"]]


def test_verify_takes_its_own_options_not_for_balances(installed: Administered) -> None:
    """`verify --halt balances` is not silently something else."""
    wrong = installed.run("verify", "--halt", "balances")
    assert (wrong.code, "put its own behind it" in wrong.errors) == (2, True)


@pytest.mark.parametrize(
    ("transfer_id", "book"), [("money", "live"), ("fund:x", "live"), ("import:binance:1:USDT", "paper"), ("import:binance:1:USDT", "live")]
)
def test_opening_transfer_from_elsewhere_is_refused_by_the_database(
    installed: Administered, user: str, transfer_id: str, book: str
) -> None:
    """Money begins by an import that is recorded, by funds for playing, or with a user that is added: no other id passes."""
    statement = "INSERT INTO transfers VALUES ($1, 'opening', NULL, 'binance', $2, 'USDT', '@opening', $3, 1, now())"
    with pytest.raises((asyncpg.CheckViolationError, asyncpg.RestrictViolationError)):
        installed.execute(statement, transfer_id, book, user)
