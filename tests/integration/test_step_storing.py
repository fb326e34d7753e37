"""What a step stores: exactly what was decided, once, and never what the database's own rules forbid."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest

from infra.postgres.admin.accounts import NewUser, add_users
from infra.postgres.database import Database, InputPartition
from infra.postgres.keys import stored_keys
from infra.postgres.retention import purge_claims
from infra.postgres.step import open_step
from pipeline.books.audit import hash_of_value
from pipeline.books.changes import Changes
from pipeline.books.ledger import AccountKey, Balance, clearing
from pipeline.intake import decide
from pipeline.model.halts import NO_HALTS
from pipeline.model.invariants import InvariantViolation
from pipeline.model.venue import Fee
from pipeline.orders.execution import plan
from pipeline.orders.settlement import apply_venue_order, end_order_unsent
from schemas.audit import EventType
from schemas.orders import OrderStatus
from schemas.reasons import ReasonCode
from schemas.results import ResultStatus
from schemas.routing import Action, RoutedOrder
from tests.integration.step_database import changes_in, counts, decide_in, open_database, plain_connection, take_in, taken
from tests.unit.builders import (
    EXCHANGE,
    NOW,
    RULES,
    USER,
    account,
    account_state,
    arrival,
    cancel,
    finals_of,
    intake_state,
    limit,
    results_of,
    told,
    trade,
)

DAY = timedelta(hours=24)
CUTOFF = NOW - DAY
# What this version does not offer.
UNSUPPORTED = {"order_type": "stop_loss", "stop_price": "1"}


async def _through(database: Database, topic: str, act: Callable[[Changes], object], orders: set[str]) -> Changes:
    """One step of another agent about alice's orders."""
    owned = await taken(database, topic=topic)
    async with open_step(database, owned) as step:
        changes = await changes_in(step, ["alice"], orders=orders)
        act(changes)
        await step.store(changes, CUTOFF)
        await step.finish(1, changes.outputs, NOW)
    return changes


async def test_batch_is_read_back_as_it_was_decided(database_url: str) -> None:
    """Orders, claims, balances, cancels and chain heads of the next step are those that this one decided, field by field."""
    documents = [
        limit(request_id="r", idempotency_key="ключ 🔑"),
        trade(),
        cancel(),
        limit(idempotency_key="k3", side="sell"),
        trade(side="x"),
    ]
    async with open_database(database_url) as database:
        owned = await taken(database)
        batch = [arrival(document, offset, headers=[("traceparent", b"0" * 55)]) for offset, document in enumerate(documents)]
        changes, _ = await take_in(database, owned, batch, 5)
        async with open_step(database, owned) as step:
            assert await step.orders(sorted(changes.orders)) == changes.orders
            assert await step.claims(changes.claims) == changes.claims
            balances = await step.balances(["alice"])
            assert balances == {key: balance for key, balance in changes.ledger.balances.items() if key.owner == "alice"}
            assert (await step.lock_accounts(["alice"])).heads == changes.trail.heads


async def test_life_of_an_order_is_stored_step_by_step(database_url: str) -> None:
    """Accepted, sent, filled in parts with fees in two assets: each step finds what the one before left, money to the last place."""
    async with open_database(database_url) as database:
        accepted, _ = await take_in(database, await taken(database), [arrival(limit(quantity="2", price="400"))], 1)
        (order_id,) = accepted.orders.made
        work = [RoutedOrder(schema_version=1, action=Action.SUBMIT, order_id=order_id, user_id="alice", attempt=1)]
        await _through(database, "orders", lambda changes: plan(work, changes, 1, 3, NO_HALTS, RULES.usd_assets), {order_id})
        half = told(OrderStatus.PARTIALLY_FILLED, "1", "399.123456789012345678", {"BNB": "0.1", "BTC": "0.000000000000000001"})
        await _through(database, "reports", lambda changes: apply_venue_order(changes.orders[order_id], half, changes), {order_id})
        whole = told(OrderStatus.FILLED, "2", "799", {"BNB": "0.1", "BTC": "0.002"})
        ended = await _through(database, "reports", lambda changes: apply_venue_order(changes.orders[order_id], whole, changes), {order_id})
        async with open_step(database, await taken(database)) as step:
            (order,) = (await step.orders([order_id])).values()
            assert order == ended.orders[order_id]
            assert order.fees == (Fee("BNB", Decimal("0.1")), Fee("BTC", Decimal("0.002")))
            assert (order.work_partition, order.attempt, order.status) == (3, 1, OrderStatus.FILLED)
            (claim,) = (await step.claims([("alice", "key-1")])).values()
            assert claim.result == ended.finished["alice", "key-1"]
            balances = await step.balances(["alice"])
            assert balances[account("USDT")] == Balance(Decimal(100_000 - 799), Decimal(0))
            assert balances[account("BTC")] == Balance(Decimal("11.998"), Decimal(0), cost_quantity=Decimal("1.998"), cost_usd=Decimal(799))
        await _assert_ledger_adds_up(database_url)


async def _assert_ledger_adds_up(url: str) -> None:
    """Balances are the sums of their transfers, and every asset's sum is zero."""
    async with plain_connection(url) as connection:
        wrong = await connection.fetch(
            """
            WITH sides AS (
                SELECT credit_owner AS owner, exchange, book, asset, amount FROM transfers WHERE kind NOT IN ('hold', 'release')
                UNION ALL
                SELECT debit_owner, exchange, book, asset, -amount FROM transfers WHERE kind NOT IN ('hold', 'release')
            ), sums AS (SELECT owner, exchange, book, asset, sum(amount) AS posted FROM sides GROUP BY owner, exchange, book, asset)
            SELECT * FROM balances JOIN sums ON owner = user_id AND sums.exchange = balances.exchange AND sums.book = balances.book
                AND sums.asset = balances.asset WHERE sums.posted <> balances.posted
            """
        )
        assert wrong == []


@pytest.mark.parametrize("amount", ["12345678901234567890.123456789012345678", "99999999999999999999.999999999999999999", "1e-18"])
async def test_amounts_of_38_digits_are_exact(database_url: str, amount: str) -> None:
    """20 digits before and 18 after the point come back as they went, in balances, transfers and orders."""
    value = Decimal(amount)
    async with open_database(database_url, users=()) as database:
        await add_users(database, [NewUser("whale", EXCHANGE, "k1", "key", b"c", {"BTC": value})], NOW, "test")
        async with open_step(database, await taken(database)) as step:
            key = AccountKey("whale", EXCHANGE, "live", "BTC")
            assert await step.balances(["whale"]) == {key: Balance(value, Decimal(0))}
    async with plain_connection(database_url) as connection:
        assert await connection.fetchval("SELECT amount FROM transfers") == value


async def test_second_final_answer_is_refused_by_the_database(database_url: str) -> None:
    """Two steps that both end one request: the second is an invariant violation, and nothing of its batch stays."""
    async with open_database(database_url) as database:
        accepted, _ = await take_in(database, await taken(database), [arrival(trade())], 1)
        (order_id,) = accepted.orders.made
        result = replace(results_of(accepted)[0], final=True)

        def end(changes: Changes) -> None:
            changes.tell(result, None)

        await _through(database, "reports", end, {order_id})
        before = await counts(database_url, "audit_events", "transfers")
        with pytest.raises(InvariantViolation, match="0 rows were written where 1 were meant"):
            await _through(database, "reports", end, {order_id})
        assert await counts(database_url, "audit_events", "transfers") == before


async def test_key_that_another_step_claimed_meanwhile_is_never_claimed_twice(database_url: str) -> None:
    """A batch that was decided without having seen the claim cannot be stored."""
    async with open_database(database_url) as database:
        owned = await taken(database)
        await take_in(database, owned, [arrival(trade())], 1)
        with pytest.raises(InvariantViolation, match="0 rows were written where 1 were meant"):
            async with open_step(database, owned) as step:
                changes = await changes_in(step, ["alice"])
                state = intake_state(accounts={USER: account_state(known_symbols={"BTC/USDT"})})
                decide([arrival(trade(), 5)], state, changes)
                await step.store(changes, CUTOFF)


@pytest.mark.parametrize(("age", "again"), [(DAY - timedelta(microseconds=1), False), (DAY, True)])
async def test_expired_key_is_taken_over_with_its_row(database_url: str, age: timedelta, again: bool) -> None:
    """24 hours after the decision a key serves a new request; before, its answer is given again. One row per key, always."""
    async with open_database(database_url) as database:
        owned = await taken(database)
        first, _ = await take_in(database, owned, [arrival(trade(**UNSUPPORTED), 0)], 1)
        later = NOW + age
        second, _ = await take_in(database, owned, [arrival(trade(**UNSUPPORTED), 1, appended_at=later)], 2, now=later)
        (answer,) = finals_of(second)
        assert answer.replayed is not again
        assert finals_of(first)[0].reason_code is answer.reason_code is ReasonCode.REQUEST_UNSUPPORTED
        async with open_step(database, owned) as step:
            (claim,) = (await step.claims([("alice", "key-1")])).values()
            assert claim.source.offset == (1 if again else 0)
        assert await counts(database_url, "claims") == {"claims": 1}


@pytest.mark.parametrize("by_an_old_worker", [False, True])
async def test_key_of_a_request_that_ran_long_is_taken_over_a_day_after_its_end(database_url: str, by_an_old_worker: bool) -> None:
    """The database itself refuses what a decision that missed the end would store, and the purge keeps the row; also where a worker of an
    older release has ended the request, which keeps no time of it."""
    end = NOW + timedelta(hours=30)
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        owned = await taken(database)
        first, _ = await take_in(database, owned, [arrival(limit(), 0)], 1)
        (order_id,) = first.orders.made
        async with open_step(database, owned) as step:
            changes = await changes_in(step, ["alice"], now=end, orders=[order_id])
            changes.claims = await step.claims([("alice", "key-1")])
            order = changes.orders[order_id]
            canceled = replace(order, status=OrderStatus.CANCELED, updated_at=end, executed_at=end)
            end_order_unsent(canceled, order, EventType.ORDER_CANCELED, changes)
            await step.store(changes, end - RULES.key_lifetime)
        if by_an_old_worker:
            await connection.execute("UPDATE claims SET ended_at = NULL")
        assert await purge_claims(database, end - timedelta(microseconds=1)) == 0
        assert not await _decided_blindly(database, owned, end + DAY - timedelta(microseconds=1))
        assert await _decided_blindly(database, owned, end + DAY)
        assert await connection.fetchval("SELECT source_offset FROM claims") == 9


async def _decided_blindly(database: Database, owned: InputPartition, now: datetime) -> bool:
    """Whether a batch that never saw the claim of `key-1` could be stored."""
    try:
        async with open_step(database, owned) as step:
            changes = await changes_in(step, ["alice"], now=now)
            decide([arrival(trade(**UNSUPPORTED), 9, appended_at=now)], intake_state(), changes)
            await step.store(changes, now - RULES.key_lifetime)
    except InvariantViolation:
        return False
    return True


async def test_running_claim_is_neither_taken_over_nor_purged(database_url: str) -> None:
    """However old: its order still runs, and a copy is told so."""
    month = NOW + timedelta(days=30)
    async with open_database(database_url) as database:
        owned = await taken(database)
        await take_in(database, owned, [arrival(limit(), 0), arrival(trade(**UNSUPPORTED, idempotency_key="over"), 1)], 2)
        assert await purge_claims(database, month) == 1
        later, _ = await take_in(database, owned, [arrival(limit(), 2, appended_at=month)], 3, now=month)
        assert [result.status for result in finals_of(later)] == [ResultStatus.DUPLICATE]


async def test_purge_keeps_what_is_younger(database_url: str) -> None:
    """The boundary is the moment itself."""
    async with open_database(database_url) as database:
        await take_in(database, await taken(database), [arrival(trade(**UNSUPPORTED))], 1)
        assert await purge_claims(database, NOW - timedelta(microseconds=1)) == 0
        assert await purge_claims(database, NOW) == 1


async def test_purge_goes_on_until_nothing_expired_is_left(database_url: str) -> None:
    """More than one part at once: a busy installation's claims do not pile up."""
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        await connection.execute(
            "INSERT INTO claims SELECT 'u', 'k' || n, 't', 0, n, 'r', NULL, 'f', NULL, $1, '{}' FROM generate_series(1, 12000) AS n", NOW
        )
        assert await purge_claims(database, NOW) == 12_000
        assert await purge_claims(database, NOW) == 0


async def test_append_only_tables_refuse_every_change(database_url: str) -> None:
    """UPDATE, DELETE and TRUNCATE, also by the owner of the tables, also when no row is meant."""
    statements = ("UPDATE {} SET recorded_at = now()", "UPDATE {} SET recorded_at = now() WHERE false", "DELETE FROM {}")
    statements += ("DELETE FROM {} WHERE false", "TRUNCATE {}", "TRUNCATE {} CASCADE")
    async with open_database(database_url), plain_connection(database_url) as connection:
        for table in ("audit_events", "transfers"):
            for statement in statements:
                with pytest.raises(asyncpg.RestrictViolationError, match=f"{table} is append-only"):
                    await connection.execute(statement.format(table))
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") > 0  # noqa: S608 — a literal of the test


CHECK, UNIQUE, FOREIGN_KEY = asyncpg.CheckViolationError, asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError
_FORBIDDEN = (
    ("UPDATE orders SET status = 'filled'", CHECK),
    ("UPDATE orders SET status = 'received'", CHECK),
    ("UPDATE orders SET executed_at = now()", CHECK),
    ("UPDATE orders SET hold_amount = -1", CHECK),
    ("UPDATE orders SET cum_quantity = quantity + 0.000000000000000001", CHECK),
    ("UPDATE orders SET cum_quantity = -1", CHECK),
    ("UPDATE orders SET quote_quantity = 1", CHECK),
    ("UPDATE orders SET quantity = NULL", CHECK),
    ("UPDATE orders SET status = 'submitting'", CHECK),
    ("UPDATE audit_chains SET seq = -1", CHECK),
    ("INSERT INTO users VALUES ('@fees', 'active', now())", CHECK),
    ("INSERT INTO users VALUES ('', 'active', now())", CHECK),
    ("INSERT INTO audit_events SELECT * FROM audit_events LIMIT 1", UNIQUE),
    ("INSERT INTO transfers SELECT * FROM transfers LIMIT 1", UNIQUE),
    ("DELETE FROM users", FOREIGN_KEY),
)


async def test_database_refuses_what_the_code_must_never_write(database_url: str) -> None:
    """Each invariant a second time, as a constraint: every one of these statements is refused, for its own reason."""
    async with open_database(database_url) as database:
        await take_in(database, await taken(database), [arrival(limit())], 1)
        async with plain_connection(database_url) as connection:
            for statement, error in _FORBIDDEN:
                with pytest.raises(error):
                    await connection.execute(statement)


async def test_transfer_written_twice_stops_the_batch(database_url: str) -> None:
    """Two causes with one id are a defect; the batch is rolled back and says what the database refused."""
    async with open_database(database_url) as database:
        owned = await taken(database)

        async def post() -> None:
            async with open_step(database, owned) as step:
                changes = await changes_in(step, ["alice"])
                changes.ledger.post("same", None, account("USDT"), clearing(EXCHANGE, "live", "USDT"), Decimal(1))
                await step.store(changes, CUTOFF)

        await post()
        with pytest.raises(InvariantViolation, match="transfers_pkey"):
            await post()
        async with open_step(database, owned) as step:
            assert (await step.balances(["alice"]))[account("USDT")].posted == 99_999


async def test_audit_rows_are_the_published_bytes(database_url: str) -> None:
    """The stored body and hash are those of the record on the topic, and the chain's head is the last of them."""
    async with open_database(database_url) as database:
        changes, outputs = await take_in(
            database, await taken(database), [arrival(trade(request_id="r"), 0), arrival(trade(symbol="BTC\x00"), 1)], 2
        )
        published = {output.key: output.value for output in outputs if output.topic.endswith("audit")}
        async with plain_connection(database_url) as connection:
            rows = await connection.fetch("SELECT * FROM audit_events WHERE account = 'alice' ORDER BY seq")
            head = await connection.fetchrow("SELECT seq, hash FROM audit_chains WHERE account = 'alice'")
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
        assert (head["seq"], head["hash"]) == (rows[-1]["seq"], rows[-1]["hash"])
        for row in rows[1:]:
            value = row["body"].encode()[:-1] + b',"hash":"' + row["hash"].encode() + b'"}'
            assert published[row["event_id"].encode()] == value
            assert hash_of_value(value) == (row["hash"], row["hash"])
        assert len(published) == len(rows) - 1 == len(changes.trail.rows)


async def test_users_are_added_once_and_go_on_with_their_chain(database_url: str) -> None:
    """Adding them again changes nothing; a stranger's rejected request began the chain that the user goes on with."""
    async with open_database(database_url) as database:
        await take_in(database, await taken(database), [arrival(trade(user_id="carol"))], 1)
        new = [NewUser(user, EXCHANGE, "k1", "key", b"c", {"USDT": Decimal(5)}) for user in ("alice", "carol")]
        rows = await add_users(database, new, NOW, "test")
        assert [(row.account, row.seq) for row in rows] == [("carol", 2)]
        assert await add_users(database, new, NOW, "test") == []
        found = await stored_keys(database, [("carol", "k1"), ("carol", "k2"), ("dave", "k1")])
        assert {key: (sealed.ciphertext, sealed.version) for key, sealed in found.items()} == {("carol", "k1"): (b"c", 1)}


async def test_users_with_impossible_balances_are_not_added(database_url: str) -> None:
    """Nothing is no transfer; less than nothing, or the same user twice, is refused before anything is written."""

    def new(user: str, **balances: str) -> NewUser:
        return NewUser(user, EXCHANGE, "k1", "key", b"c", {asset: Decimal(amount) for asset, amount in balances.items()})

    async with open_database(database_url, users=()) as database:
        for users in ([new("a", USDT="-1")], [new("a", USDT="1"), new("a", USDT="1")]):
            with pytest.raises(ValueError, match="nobody was added"):
                await add_users(database, users, NOW, "test")
        (row,) = await add_users(database, [new("a", USDT="1", BTC="0")], NOW, "test")
        assert row.body.count(b'"kind":"opening"') == 1
        assert await counts(database_url, "users", "transfers", "balances") == {"users": 1, "transfers": 1, "balances": 1}


async def test_revoked_key_is_not_handed_out(database_url: str) -> None:
    """A key that may not be used is as good as none."""
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        await connection.execute("UPDATE api_keys SET status = 'revoked' WHERE user_id = 'alice'")
        assert await stored_keys(database, [("alice", "k1")]) == {}
        async with open_step(database, await taken(database)) as step:
            changes = await decide_in(step, [arrival(trade())])
        assert finals_of(changes)[0].reason_code is ReasonCode.API_KEY_REVOKED
        assert RULES.key_lifetime == DAY
