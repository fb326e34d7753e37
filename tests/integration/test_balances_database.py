"""What the comparison of balances reads from the database: one account at one moment, and which accounts are whose to look at."""

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import cast

import pytest
from aiokafka import AIOKafkaProducer

from agents.watches.balances import BalanceWatch
from agents.watches.watch import WatchContext
from infra.postgres.account_ledgers import compared_accounts, read_account
from infra.postgres.database import Database
from infra.postgres.drifts import drifts_of_users
from infra.postgres.step import open_step
from infra.postgres.transfers import apply_transfers
from pipeline.books.ledger import AccountKey, Transfer, TransferKind, clearing, opening, shortfall
from pipeline.model.venue import AccountBalances, LookUpFailed, LookUpOutcome, OrderReference
from pipeline.reconciliation.balances import ExchangeAccount, apply_balance_report
from schemas.balances import BalanceReport, ReportedDrift
from tests.integration.step_database import changes_in, open_database, taken
from tests.unit.builders import EXCHANGE, NOW, RULES, TOPICS

D = Decimal


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Alice and Bob with 100,000 USDT and 10 BTC each."""
    async with open_database(database_url) as opened:
        yield opened


async def test_account_is_read_as_owned_less_advanced_and_in_real_money(database: Database) -> None:
    """What the house paid for one user's order is that user's alone; holds and simulated money do not count."""
    alice, paper = AccountKey("alice", EXCHANGE, "live", "USDT"), AccountKey("alice", EXCHANGE, "paper", "USDT")
    taken = clearing(EXCHANGE, "live", "USDT")
    transfers = [
        Transfer("hold", TransferKind.HOLD, "o1", alice, alice, D(500)),
        Transfer("pay", TransferKind.POST_HELD, "o1", alice, taken, D(300)),
        Transfer("more", TransferKind.POST, "o1", shortfall(EXCHANGE, "live", "USDT"), taken, D(7)),
        Transfer("fund:1", TransferKind.OPENING, None, opening(EXCHANGE, "paper", "USDT"), paper, D(9)),
    ]
    async with database.connection() as connection, connection.transaction():
        await apply_transfers(connection, transfers, NOW)
    found = await read_account(database, ExchangeAccount("alice", EXCHANGE))
    assert (dict(found.owned), found.resting, found.unsettled) == ({"USDT": D(99_693), "BTC": D(10)}, (), 0)
    assert dict((await read_account(database, ExchangeAccount("bob", EXCHANGE))).owned) == {"USDT": D(100_000), "BTC": D(10)}


async def test_accounts_are_shared_out_so_that_each_is_looked_at_once(database: Database) -> None:
    """Every account falls in one share, in pages; who has no real balance is not compared, who has no usable key has none to ask with."""
    async with database.connection() as connection:
        for name in [f"u{number:02}" for number in range(20)]:
            await connection.execute("INSERT INTO users (user_id, status, created_at) VALUES ($1, 'active', now())", name)
            account = AccountKey(name, EXCHANGE, "live", "USDT")
            if name != "u19":
                await apply_transfers(
                    connection, [Transfer(f"opening:{account}", TransferKind.OPENING, None, opening(*account[1:]), account, D(1))], NOW
                )
        await connection.execute("UPDATE api_keys SET status = 'revoked' WHERE user_id = 'bob'")
    parts = []
    for share in range(3):
        after = ""
        while page := await compared_accounts(database, EXCHANGE, NOW, after_user_id=after, shares=([share], 3), limit=2):
            parts.append([account.user_id for account in page])
            after = page[-1].user_id
    users = sorted(user for part in parts for user in part)
    assert users == ["alice", "bob", *(f"u{number:02}" for number in range(19))]
    assert max(map(len, parts)) == 2
    keys = {account.user_id: account.api_key_ids for account in await compared_accounts(database, EXCHANGE, NOW, limit=100)}
    assert (len(keys["alice"]), keys["bob"]) == (1, ())
    later = await compared_accounts(database, "elsewhere", NOW + timedelta(days=1), limit=100)
    assert later == []


async def test_drifts_of_a_batch_are_stored_as_its_last_look_leaves_them(database: Database) -> None:
    """However often one comes and goes within a batch: the rows are those of the newest report, with what was known of them before."""
    looks = iter(range(1_000))

    def seen(*assets: str) -> BalanceReport:
        shown = tuple(ReportedDrift(asset=asset, ledger_amount=D(1), exchange_amount=D(3), usd=D(2)) for asset in assets)
        at = NOW + timedelta(seconds=next(looks))
        return BalanceReport(schema_version=1, user_id="alice", exchange=EXCHANGE, looked_up_at=at, drifts=shown)

    batches = [
        [seen("USDT"), seen()],
        [seen("USDT"), seen("BTC"), seen("BTC", "USDT")],
        [seen("USDT"), seen("BTC"), seen()],
        [seen("BTC"), seen()],
        [seen(), seen("BTC")],
        [seen(), seen("BTC")],
    ]
    owned = await taken(database)
    for reports in batches:
        async with open_step(database, owned) as step:
            changes = await changes_in(step, ["alice"])
            changes.drifts = await drifts_of_users(step.connection, ["alice"])
            for report in reports:
                apply_balance_report(report, changes, RULES)
            await step.store(changes, NOW - RULES.key_lifetime)
        async with database.connection() as connection:
            stored = (await drifts_of_users(connection, ["alice"])).get(("alice", EXCHANGE), {})
        assert stored == changes.drifts["alice", EXCHANGE]
        assert set(stored) == {drift.asset for drift in reports[-1].drifts}


class Venue:
    """An exchange that answers what the test says, and remembers whom it was asked about."""

    def __init__(self, answer: AccountBalances | LookUpFailed) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def account_balances(self, user_id: str, _api_key_id: str) -> AccountBalances | LookUpFailed:
        self.asked.append(user_id)
        return self.answer

    async def look_up(self, reference: OrderReference) -> LookUpOutcome:
        raise AssertionError(f"nobody has an order: {reference}")


class Producer:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def partitions_for(self, _topic: str) -> set[int]:
        return {0}

    async def send_and_wait(self, _topic: str, value: bytes, key: bytes) -> None:
        self.sent.append(value)


def watch_of(database: Database, venue: Venue, producer: Producer) -> BalanceWatch:
    context = WatchContext(database, cast("AIOKafkaProducer", producer), lambda _: [0], TOPICS, RULES, lambda: NOW)
    return BalanceWatch(context, EXCHANGE, venue, market_data=dict, interval_seconds=1, calls_max=7)


async def test_round_of_comparisons_is_bounded_and_goes_on_where_it_ended(database_url: str) -> None:
    """Seven questions each, so that ten accounts take two rounds, the second of which is short; only what differs is reported."""
    users = [f"u{number}" for number in range(10)]
    async with open_database(database_url, users=users) as database:
        producer, venue = Producer(), Venue(AccountBalances("1", {"USDT": D(100_000), "BTC": D(10)}, {}))
        watch = watch_of(database, venue, producer)
        for expected in (users[:7], users[7:], users[:7]):
            await watch.round()
            assert venue.asked == expected
            venue.asked.clear()
        assert producer.sent == []
        venue.answer = AccountBalances("1", {"USDT": D(100_000), "BTC": D(9)}, {})
        await watch.round()
        assert [BalanceReport.model_validate_json(value).drifts[0].exchange_amount for value in producer.sent] == [9, 9, 9]


async def test_exchange_that_does_not_answer_is_left_alone_until_the_next_round(database_url: str) -> None:
    """Five in a row are enough to know; nothing is reported, and the next round goes on with the next account."""
    users = [f"u{number}" for number in range(10)]
    async with open_database(database_url, users=users) as database:
        producer, venue = Producer(), Venue(LookUpFailed("no answer"))
        watch = watch_of(database, venue, producer)
        await watch.round()
        assert venue.asked == users[:5]
        await watch.round()
        assert (venue.asked, producer.sent) == (users, [])
