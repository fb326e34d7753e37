"""Administration at the database: each change is one transaction under the user's lock, with its event; races have one winner."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from infra.keyring import Keyring, MasterKeyError, StoredSecret, master_keys, new_master_key
from infra.postgres.admin import administration
from infra.postgres.admin.administration import (
    ADMINISTRATION,
    NotDone,
    StatusChange,
    add_user,
    administration_events,
    enrol_second_factor,
    set_limit,
    set_user_status,
    unlock_second_factor,
)
from infra.postgres.admin.key_administration import NewKey, add_key, record_check, revoke_key, stored_key
from infra.postgres.admin.operators import By
from infra.postgres.admin.rotation import Rotation, rotate
from infra.postgres.database import Database, connect
from infra.postgres.keys import stored_keys
from infra.postgres.step import lock_chains
from pipeline.books.audit import hash_of_value
from schemas.audit import GENESIS_HASH, AuditEvent
from tests.claiming import claimed

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
ANA = claimed("ana", NOW, "a reason")
OLD, NEW = new_master_key(), new_master_key()
SECRET = StoredSecret("api-key-text", "secret-text")


def by(minutes: int, operator: str = "ana", reason: str | None = "a reason") -> By:
    return claimed(operator, NOW + timedelta(minutes=minutes), reason)


@asynccontextmanager
async def opened(url: str, *users: str) -> AsyncIterator[Database]:
    """A pool on the test's database, with these users."""
    database = await connect(url, 8, 5)
    try:
        for user in users:
            await add_user(database, user, "trader", pending=False, by=ANA)
        yield database
    finally:
        await database.close()


async def rows(database: Database, statement: str, *values: object) -> list[dict[str, Any]]:
    async with database.connection() as connection:
        return [dict(row) for row in await connection.fetch(statement, *values)]


async def events(database: Database, account: str) -> list[dict[str, Any]]:
    found = await rows(database, "SELECT body FROM audit_events WHERE account = $1 ORDER BY seq", account)
    return [json.loads(row["body"]) for row in found]


async def require_whole_chain(database: Database, account: str) -> None:
    """Every event is a valid one, hashed and chained, and the head is the newest."""
    found = await rows(database, "SELECT seq, hash, body FROM audit_events WHERE account = $1 ORDER BY seq", account)
    before = GENESIS_HASH
    for number, row in enumerate(found, 1):
        value = row["body"].encode()[:-1] + b',"hash":"' + row["hash"].encode() + b'"}'
        event = AuditEvent.model_validate_json(value)
        stated, computed = hash_of_value(value)
        assert (stated, event.seq, row["seq"], event.prev_hash) == (computed, number, number, before)
        before = stated
    (head,) = await rows(database, "SELECT seq, hash FROM audit_chains WHERE account = $1", account)
    assert (head["seq"], head["hash"]) == (len(found), before)


def keyring(*keys: tuple[str, str]) -> Keyring:
    return Keyring(master_keys(",".join(f"{key_id}:{key}" for key_id, key in keys)))


def a_key(user: str, key_id: str = "k1", ring: Keyring | None = None, **changes: Any) -> NewKey:
    ring = ring or keyring(("1", OLD))
    fields: dict[str, Any] = {
        "user_id": user,
        "api_key_id": key_id,
        "exchange": "binance",
        "permissions": frozenset({"trade"}),
        "expires_at": None,
        "encryption_key_id": ring.key_id,
        "ciphertext": ring.encrypt(user, key_id, SECRET),
    }
    return NewKey(**{**fields, **changes})


@pytest.mark.parametrize("role", ["trader", "operator"])
@pytest.mark.parametrize("pending", [True, False])
async def test_add_user_stores_role_and_state_with_its_event(database_url: str, role: Any, pending: bool) -> None:
    """Who added whom as what is in the user's own chain, from the first event on."""
    async with opened(database_url) as database:
        await add_user(database, "alice", role, pending=pending, by=ANA)
        (user,) = await rows(database, "SELECT * FROM users")
        assert (user["user_id"], user["role"], user["status"]) == ("alice", role, "pending" if pending else "active")
        (event,) = await events(database, "alice")
        assert (event["event_type"], event["claimed_operator"], event["user_id"]) == ("USER_ADDED", "ana", "alice")
        assert role in event["reason"]
        await require_whole_chain(database, "alice")


async def test_add_user_goes_on_with_the_chain_of_refused_requests(database_url: str) -> None:
    """Requests in the name of somebody who is no user have events already: the chain has no gap and no second beginning."""
    async with opened(database_url) as database:
        async with database.connection() as connection, connection.transaction():
            await lock_chains(connection, ["alice"])
        await add_user(database, "alice", "trader", pending=False, by=ANA)
        await require_whole_chain(database, "alice")


async def test_two_that_add_the_same_user_add_it_once(database_url: str) -> None:
    """One wins, the other is told, and there is one event."""
    async with opened(database_url) as database:
        outcomes = await asyncio.gather(
            *[add_user(database, "alice", "trader", pending=False, by=by(n)) for n in range(6)], return_exceptions=True
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Done", *["NotDone"] * 5]
        assert len(await events(database, "alice")) == 1


# (status, change) → the status after it; None: refused; the same status: nothing to do.
_MOVES = {
    ("pending", "verify"): "active",
    ("pending", "freeze"): None,
    ("pending", "unfreeze"): None,
    ("pending", "close"): "closed",
    ("active", "verify"): "active",
    ("active", "freeze"): "frozen",
    ("active", "unfreeze"): "active",
    ("active", "close"): "closed",
    ("frozen", "verify"): None,
    ("frozen", "freeze"): "frozen",
    ("frozen", "unfreeze"): "active",
    ("frozen", "close"): "closed",
    ("closed", "verify"): None,
    ("closed", "freeze"): None,
    ("closed", "unfreeze"): None,
    ("closed", "close"): "closed",
}
_EVENT = {"verify": "USER_VERIFIED", "freeze": "USER_FROZEN", "unfreeze": "USER_UNFROZEN", "close": "USER_CLOSED"}


def test_user_status_table_covers_every_pair() -> None:
    """No state and no command is left out of the test below."""
    assert set(_MOVES) == {(status, change.value) for status in ("pending", "active", "frozen", "closed") for change in StatusChange}


async def test_user_status_moves_as_the_table_says(database_url: str) -> None:
    """A legal move has one event with the operator and the reason; an illegal one and one that is none write nothing."""
    async with opened(database_url) as database:
        for (status, change), after in _MOVES.items():
            user = f"{status}-{change}"
            await add_user(database, user, "trader", pending=False, by=ANA)
            await rows(database, "UPDATE users SET status = $2 WHERE user_id = $1", user, status)
            if after is None:
                with pytest.raises(NotDone, match="Nothing was changed"):
                    await set_user_status(database, user, StatusChange(change), by(1))
            else:
                done = await set_user_status(database, user, StatusChange(change), by(1))
                assert done.changed == (after != status), (status, change)
            ((stored),) = await rows(database, "SELECT status FROM users WHERE user_id = $1", user)
            assert stored["status"] == (after or status), (status, change)
            written = (await events(database, user))[1:]
            if after in {None, status}:
                assert written == [], (status, change)
            else:
                assert [(event["event_type"], event["claimed_operator"]) for event in written] == [(_EVENT[change], "ana")]
                assert written[0]["reason"] == f"{status} → {after}: a reason"
            await require_whole_chain(database, user)


async def test_two_that_freeze_a_user_write_one_event(database_url: str) -> None:
    """They queue up on the user's lock: the second finds it done."""
    async with opened(database_url, "alice") as database:
        done = await asyncio.gather(*[set_user_status(database, "alice", StatusChange.FREEZE, by(n)) for n in range(6)])
        assert sorted(outcome.changed for outcome in done) == [False] * 5 + [True]
        assert [event["event_type"] for event in await events(database, "alice")] == ["USER_ADDED", "USER_FROZEN"]
        await require_whole_chain(database, "alice")


_ORDER = """
    INSERT INTO orders (order_id, client_order_id, user_id, idempotency_key, request_id, source_topic, source_partition, source_offset,
        mode, exchange, api_key_id, symbol, side, order_type, quantity, status, cum_quantity, cum_quote, fee, hold_asset, hold_amount,
        attempt, fencing_epoch, work_partition, submitting_at, expires_at, requested_at, decided_at, updated_at, executed_at)
    VALUES ($1, $1, 'alice', $1, $1, 't', 0, 0, 'live', 'binance', 'k1', 'BTC/USDT', 'buy', 'limit', 1, $2, 0, 0, 0, 'USDT', 0, 1, 1, 0,
        $3, $3, $3, $3, $3, $4)
"""


async def test_closing_a_user_with_an_open_order_is_refused(database_url: str) -> None:
    """A closed user could not cancel it: as long as one order is not over, the user stays as it is."""
    async with opened(database_url, "alice") as database:
        await rows(database, _ORDER, "o1", "new", NOW, None)
        with pytest.raises(NotDone, match=r"1 order: o1 \(.*, new\)"):
            await set_user_status(database, "alice", StatusChange.CLOSE, by(1))
        await rows(database, "UPDATE orders SET status = 'canceled', executed_at = $1", NOW)
        assert (await set_user_status(database, "alice", StatusChange.CLOSE, by(1))).changed


async def test_enrolment_stores_the_secret_and_marks_the_credentials(database_url: str) -> None:
    """What is stored opens for this user alone, no step of it is used, and withdrawals know that credentials changed."""
    ring = keyring(("1", OLD))
    async with opened(database_url, "alice") as database:
        await enrol_second_factor(database, "alice", "1", ring.encrypt_second_factor("alice", "BASE32SECRET"), replace=False, by=by(1))
        (factor,) = await rows(database, "SELECT * FROM second_factors")
        assert ring.decrypt_second_factor("alice", factor["encryption_key_id"], factor["ciphertext"]) == "BASE32SECRET"
        assert (factor["last_step"], factor["wrong_at"], factor["locked"]) == (-1, [], False)
        (user,) = await rows(database, "SELECT credentials_changed_at FROM users")
        assert user["credentials_changed_at"] == by(1).at
        assert (await events(database, "alice"))[-1]["event_type"] == "USER_ENROLLED_TOTP"


async def test_enrolment_again_needs_replace_and_begins_anew(database_url: str) -> None:
    """Without it the old one stays as it is; with it steps begin at -1, with a new time of enrolment, unlocked."""
    async with opened(database_url, "alice") as database:
        await enrol_second_factor(database, "alice", "1", b"first", replace=False, by=by(1))
        await rows(database, "UPDATE second_factors SET last_step = 99, locked = true, wrong_at = $1", [NOW])
        with pytest.raises(NotDone, match="has a second factor already"):
            await enrol_second_factor(database, "alice", "1", b"second", replace=False, by=by(2))
        (factor,) = await rows(database, "SELECT * FROM second_factors")
        assert (factor["ciphertext"], factor["last_step"], factor["locked"]) == (b"first", 99, True)
        await enrol_second_factor(database, "alice", "1", b"second", replace=True, by=by(2))
        (factor,) = await rows(database, "SELECT * FROM second_factors")
        assert (factor["ciphertext"], factor["last_step"], factor["locked"], factor["wrong_at"]) == (b"second", -1, False, [])
        assert factor["enrolled_at"] == by(2).at


async def test_enrolment_by_a_clock_that_runs_behind_is_refused(database_url: str) -> None:
    """Steps begin anew with a later time of enrolment only: a clock that is behind must not free used codes."""
    async with opened(database_url, "alice") as database:
        await enrol_second_factor(database, "alice", "1", b"first", replace=False, by=by(5))
        for minutes in (5, 4):
            with pytest.raises(NotDone, match="clock"):
                await enrol_second_factor(database, "alice", "1", b"second", replace=True, by=by(minutes))


async def test_two_enrolments_at_once_store_one_secret(database_url: str) -> None:
    """The one that was shown to the winner is the one that is stored."""
    async with opened(database_url, "alice") as database:
        outcomes = await asyncio.gather(
            *[enrol_second_factor(database, "alice", "1", bytes([n]), replace=False, by=by(n)) for n in range(5)], return_exceptions=True
        )
        winners = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
        (factor,) = await rows(database, "SELECT ciphertext FROM second_factors")
        assert [bytes([n]) for n in winners] == [factor["ciphertext"]]


async def test_unlock_forgets_wrong_codes_and_keeps_the_used_steps(database_url: str) -> None:
    """A used code must not become good again by unlocking."""
    async with opened(database_url, "alice") as database:
        with pytest.raises(NotDone, match="no second factor"):
            await unlock_second_factor(database, "alice", by(1))
        await enrol_second_factor(database, "alice", "1", b"x", replace=False, by=by(1))
        assert not (await unlock_second_factor(database, "alice", by(1))).changed
        await rows(database, "UPDATE second_factors SET last_step = 77, locked = true, wrong_at = $1", [NOW] * 5)
        assert (await unlock_second_factor(database, "alice", by(2))).changed
        (factor,) = await rows(database, "SELECT * FROM second_factors")
        assert (factor["last_step"], factor["locked"], factor["wrong_at"]) == (77, False, [])
        assert (await events(database, "alice"))[-1]["event_type"] == "USER_UNLOCKED_TOTP"


async def test_key_is_stored_with_its_terms_and_marks_the_credentials(database_url: str) -> None:
    """Permissions and end of use are stored; the event names the key, and nothing of its secret."""
    async with opened(database_url, "alice") as database:
        until = NOW + timedelta(days=30)
        await add_key(database, a_key("alice", permissions=frozenset({"trade", "withdraw"}), expires_at=until), replace=False, by=by(1))
        stored = await stored_key(database, "alice", "k1")
        assert (stored.status, stored.exchange, stored.permissions, stored.expires_at) == (
            "active", "binance", frozenset({"trade", "withdraw"}), until,
        )  # fmt: skip
        assert keyring(("1", OLD)).decrypt("alice", "k1", stored.ciphertext, stored.encryption_key_id) == SECRET
        event = (await events(database, "alice"))[-1]
        assert (event["event_type"], event["exchange"]) == ("KEY_ADDED", "binance")
        assert "k1" in event["reason"]
        (user,) = await rows(database, "SELECT credentials_changed_at FROM users")
        assert user["credentials_changed_at"] == by(1).at


async def test_key_that_is_active_is_replaced_only_when_asked(database_url: str) -> None:
    """A second `keys add` by mistake must not exchange a key that orders go out with; nor one for another exchange ever."""
    ring = keyring(("1", OLD))
    other = ring.encrypt("alice", "k1", StoredSecret("other", "one"))
    async with opened(database_url, "alice") as database:
        await add_key(database, a_key("alice"), replace=False, by=by(1))
        with pytest.raises(NotDone, match="there already, and active"):
            await add_key(database, a_key("alice", ciphertext=other), replace=False, by=by(2))
        with pytest.raises(NotDone, match="is one for binance"):
            await add_key(database, a_key("alice", ciphertext=other, exchange="binanceus"), replace=True, by=by(2))
        assert (await stored_key(database, "alice", "k1")).ciphertext != other
        await add_key(database, a_key("alice", ciphertext=other), replace=True, by=by(2))
        assert (await stored_key(database, "alice", "k1")).ciphertext == other


@pytest.mark.parametrize("status", ["revoked", "expired", "refused"])
async def test_key_that_may_not_be_used_is_replaced_as_it_is(database_url: str, status: str) -> None:
    """It takes no `--replace`: nothing uses it."""
    async with opened(database_url, "alice") as database:
        await add_key(database, a_key("alice"), replace=False, by=by(1))
        await rows(database, "UPDATE api_keys SET status = $1, status_reason = 'old'", status)
        await add_key(database, a_key("alice"), replace=False, by=by(2))
        (row,) = await rows(database, "SELECT status, status_reason FROM api_keys")
        assert (row["status"], row["status_reason"]) == ("active", None)


@pytest.mark.parametrize("status", ["in_doubt", "new"])
@pytest.mark.parametrize(("new", "old"), [(None, None), ("8", "7"), (None, "7"), ("8", None)])
async def test_key_with_something_standing_is_not_replaced_by_one_that_could_not_answer(
    database_url: str, status: str, new: str | None, old: str | None
) -> None:
    """Another account's books would seem to prove that the order was never there. The refusal names what stands, and nothing changes."""
    async with opened(database_url, "alice") as database:
        await add_key(database, a_key("alice"), replace=False, by=by(1))
        await rows(database, _ORDER, "o1", status, NOW, None)
        before = await stored_key(database, "alice", "k1")
        with pytest.raises(NotDone, match=rf"o1 \({status}\)"):
            await add_key(database, a_key("alice", account_id=new, account_before=old), replace=True, by=by(2))
        await rows(database, "UPDATE api_keys SET status = 'revoked'")
        with pytest.raises(NotDone, match="Wait until they are over"):
            await add_key(database, a_key("alice", account_id=new, account_before=old), replace=False, by=by(2))
        await rows(database, "UPDATE api_keys SET status = 'active'")
        assert await stored_key(database, "alice", "k1") == before


async def test_key_of_another_account_takes_the_place_of_one_whose_orders_are_only_watched(database_url: str) -> None:
    """A key that somebody else may have must go at once; what the new one cannot find any more is said. One of the same account can."""
    async with opened(database_url, "alice") as database:
        await add_key(database, a_key("alice"), replace=False, by=by(1))
        await rows(database, _ORDER, "o1", "rejected", NOW, NOW)
        await rows(database, "UPDATE orders SET watched_until = $1", NOW + timedelta(hours=24))
        same = await add_key(database, a_key("alice", account_id="7", account_before="7", version_before=1), replace=True, by=by(2))
        assert "watched" not in same.what
        other = await add_key(database, a_key("alice", account_id="8", account_before="7"), replace=True, by=by(3))
        assert "1 orders or withdrawals that counted as not executed are still watched" in other.what
        await rows(database, "UPDATE orders SET watched_until = $1", NOW - timedelta(hours=24))
        over = await add_key(database, a_key("alice", account_id="9", account_before="8"), replace=True, by=by(4))
        assert "watched" not in over.what


async def test_key_of_the_same_account_takes_the_place_and_answers_for_what_stands(database_url: str) -> None:
    """The database counts replacements, and what was sent with the key before learns whose it is; encrypting anew is no replacement."""
    async with opened(database_url, "alice") as database:
        await add_key(database, a_key("alice"), replace=False, by=by(1))
        await rows(database, _ORDER, "o1", "in_doubt", NOW, None)
        await rows(database, "UPDATE orders SET key_version = 1")
        await rows(database, "UPDATE api_keys SET ciphertext = ciphertext || ciphertext")
        await add_key(database, a_key("alice", account_id="7", account_before="7", version_before=1), replace=True, by=by(2))
        key = await stored_key(database, "alice", "k1")
        assert (key.version, key.account_id) == (2, "7")
        (order,) = await rows(database, "SELECT key_version, account_id FROM orders")
        assert (order["key_version"], order["account_id"]) == (1, "7")
        assert (await stored_keys(database, [("alice", "k1")]))["alice", "k1"].account_id == "7"


async def test_order_that_is_not_sent_yet_keeps_no_key_in_its_place(database_url: str) -> None:
    """It goes out with the new one."""
    async with opened(database_url, "alice") as database:
        await add_key(database, a_key("alice"), replace=False, by=by(1))
        await rows(database, _ORDER, "o1", "accepted", NOW, None)
        await add_key(database, a_key("alice"), replace=True, by=by(2))
        assert (await stored_key(database, "alice", "k1")).version == 2


async def test_revoked_key_is_not_given_to_anybody_any_more(database_url: str) -> None:
    """What workers ask for right after the revocation no longer has it; a second revocation changes nothing."""
    async with opened(database_url, "alice") as database:
        await add_key(database, a_key("alice"), replace=False, by=by(1))
        assert set(await stored_keys(database, [("alice", "k1")])) == {("alice", "k1")}
        await rows(database, _ORDER, "o1", "new", NOW, None)
        done = await revoke_key(database, "alice", "k1", by(2))
        assert "1 orders with it are not over" in done.what
        assert await stored_keys(database, [("alice", "k1")]) == {}
        assert not (await revoke_key(database, "alice", "k1", by(3))).changed
        with pytest.raises(NotDone, match="has no key k2"):
            await revoke_key(database, "alice", "k2", by(3))
        assert [event["event_type"] for event in await events(database, "alice")] == ["USER_ADDED", "KEY_ADDED", "KEY_REVOKED"]


async def test_revocation_waits_for_a_batch_under_way_and_the_next_one_sees_it(database_url: str) -> None:
    """A step that holds the user's lock has decided by the key as it was; whoever gets the lock afterwards sees it revoked."""
    async with opened(database_url, "alice") as database:
        await add_key(database, a_key("alice"), replace=False, by=by(1))
        async with database.connection() as connection, connection.transaction():
            await lock_chains(connection, ["alice"])
            revoking = asyncio.create_task(revoke_key(database, "alice", "k1", by(2)))
            await _until_somebody_waits(database)
            assert await connection.fetchval("SELECT status FROM api_keys") == "active"
            assert not revoking.done()
        await revoking
        async with database.connection() as connection, connection.transaction():
            await lock_chains(connection, ["alice"])
            assert await connection.fetchval("SELECT status FROM api_keys") == "revoked"


_WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def _until_somebody_waits(database: Database) -> None:
    async with asyncio.timeout(60):
        while not await rows(database, _WAITING):
            await asyncio.sleep(0.02)


async def test_check_that_the_exchange_refuses_marks_the_key(database_url: str) -> None:
    """With the exchange's words as the reason; and a later check that it accepts makes it active again."""
    async with opened(database_url, "alice") as database:
        await add_key(database, a_key("alice"), replace=False, by=by(1))
        await record_check(database, await stored_key(database, "alice", "k1"), "HTTP 401: -2015", by(2))
        (row,) = await rows(database, "SELECT status, status_reason FROM api_keys")
        assert (row["status"], row["status_reason"]) == ("refused", "HTTP 401: -2015")
        assert await stored_keys(database, [("alice", "k1")]) == {}
        await record_check(database, await stored_key(database, "alice", "k1"), None, by(3))
        (row,) = await rows(database, "SELECT status, status_reason FROM api_keys")
        assert (row["status"], row["status_reason"]) == ("active", None)
        assert [event["event_type"] for event in await events(database, "alice")][-2:] == ["KEY_REFUSED", "KEY_CHECKED"]


async def test_check_of_a_key_that_was_changed_meanwhile_notes_nothing(database_url: str) -> None:
    """The exchange's word about the old key must neither condemn the new one nor undo a revocation."""
    async with opened(database_url, "alice") as database:
        await add_key(database, a_key("alice"), replace=False, by=by(1))
        asked = await stored_key(database, "alice", "k1")
        await add_key(database, a_key("alice"), replace=True, by=by(2))
        with pytest.raises(NotDone, match="changed by others"):
            await record_check(database, asked, "refused", by(3))
        asked = await stored_key(database, "alice", "k1")
        await revoke_key(database, "alice", "k1", by(4))
        with pytest.raises(NotDone, match="changed by others"):
            await record_check(database, asked, None, by(5))
        assert (await stored_key(database, "alice", "k1")).status == "revoked"


async def test_limit_is_set_changed_and_cleared_with_its_history(database_url: str) -> None:
    """Each event tells the amount before and after; what is so already writes none."""
    async with opened(database_url, "alice") as database:
        assert (await set_limit(database, "alice", "trade_usd_max", Decimal("500.50"), by(1))).changed
        assert not (await set_limit(database, "alice", "trade_usd_max", Decimal("500.5"), by(2))).changed
        (row,) = await rows(database, "SELECT * FROM user_limits")
        assert (row["amount"], row["changed_by"], row["changed_at"]) == (Decimal("500.5"), "ana (claimed)", by(1).at)
        await set_limit(database, "alice", "trade_usd_max", Decimal(0), by(3, "bo"))
        await set_limit(database, "alice", "trade_usd_max", None, by(4, reason=None))
        assert not (await set_limit(database, "alice", "trade_usd_max", None, by(5))).changed
        assert await rows(database, "SELECT * FROM user_limits") == []
        told = [(event["event_type"], event["claimed_operator"], event["reason"]) for event in (await events(database, "alice"))[1:]]
        assert told == [
            ("LIMIT_CHANGED", "ana", "trade_usd_max the default → 500.5: a reason"),
            ("LIMIT_CHANGED", "bo", "trade_usd_max 500.5 → 0: a reason"),
            ("LIMIT_CHANGED", "ana", "trade_usd_max 0 → the default"),
        ]


async def test_every_change_of_an_unknown_user_is_refused_and_leaves_nothing(database_url: str) -> None:
    """A misspelt user gets neither a row nor the beginning of a chain."""
    async with opened(database_url) as database:
        changes = [
            set_user_status(database, "nobody", StatusChange.FREEZE, ANA),
            enrol_second_factor(database, "nobody", "1", b"x", replace=True, by=ANA),
            unlock_second_factor(database, "nobody", ANA),
            add_key(database, a_key("nobody"), replace=True, by=ANA),
            revoke_key(database, "nobody", "k1", ANA),
            set_limit(database, "nobody", "trade_usd_max", Decimal(1), ANA),
            set_limit(database, "nobody", "trade_usd_max", None, ANA),
        ]
        for change in changes:
            with pytest.raises(NotDone, match="There is no user nobody"):
                await change
        assert await rows(database, "SELECT account FROM audit_chains UNION SELECT account FROM audit_events") == []


async def test_change_that_fails_leaves_neither_row_nor_event(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row and its event are one transaction: where the event cannot be stored, nothing was changed."""

    async def fails(*_: object) -> None:
        raise asyncpg.DiskFullError("no space left")

    async with opened(database_url, "alice") as database:
        monkeypatch.setattr(administration, "store_events", fails)
        with pytest.raises(Exception, match="no space left"):
            await set_user_status(database, "alice", StatusChange.FREEZE, by(1))
        assert await rows(database, "SELECT status FROM users") == [{"status": "active"}]
        assert len(await events(database, "alice")) == 1


async def _secrets(database: Database, ring: Keyring, users: int) -> None:
    for number in range(users):
        user = f"user-{number}"
        await add_user(database, user, "trader", pending=False, by=ANA)
        await add_key(database, a_key(user, ring=ring), replace=False, by=by(1))
        await enrol_second_factor(database, user, ring.key_id, ring.encrypt_second_factor(user, f"TOTP{number}"), replace=False, by=by(1))


async def _require_readable(database: Database, ring: Keyring) -> None:
    for key in await rows(database, "SELECT * FROM api_keys"):
        assert ring.decrypt(key["user_id"], key["api_key_id"], key["ciphertext"], key["encryption_key_id"]) == SECRET
    for factor in await rows(database, "SELECT * FROM second_factors"):
        number = factor["user_id"].removeprefix("user-")
        assert ring.decrypt_second_factor(factor["user_id"], factor["encryption_key_id"], factor["ciphertext"]) == f"TOTP{number}"


async def test_rotation_leaves_nothing_under_the_old_key(database_url: str) -> None:
    """Afterwards the new key alone opens everything; steps and status stay; there is one event, and none when it runs again."""
    async with opened(database_url) as database:
        await _secrets(database, keyring(("1", OLD)), 5)
        await rows(database, "UPDATE second_factors SET last_step = 5")
        await revoke_key(database, "user-3", "k1", by(1))
        both = keyring(("2", NEW), ("1", OLD))
        assert await rotate(database, both, by(2), users_per_batch=2) == Rotation("2", keys=5, factors=5)
        await _require_readable(database, keyring(("2", NEW)))
        assert {row["last_step"] for row in await rows(database, "SELECT last_step FROM second_factors")} == {5}
        assert [row["status"] for row in await rows(database, "SELECT status FROM api_keys ORDER BY user_id")] == [
            "active", "active", "active", "revoked", "active",
        ]  # fmt: skip
        assert await rotate(database, both, by(3)) == Rotation("2")
        (event,) = await events(database, ADMINISTRATION)
        assert (event["event_type"], event["claimed_operator"]) == ("KEY_ROTATED", "ana")
        assert event["reason"] == "5 API keys and 5 second factors are encrypted under master key 2 now"
        await require_whole_chain(database, ADMINISTRATION)


async def test_rotation_that_was_cut_off_goes_on_where_it_stopped(database_url: str) -> None:
    """What was done stays done and is not touched again; the whole is audited once, with everything in it."""

    class CutOff(Exception):
        pass

    class Fragile(Keyring):
        """Fails at the n-th secret, as a process that is killed there."""

        left = 4

        def renewed(self, *arguments: Any) -> bytes:
            Fragile.left -= 1
            if Fragile.left < 0:
                raise CutOff
            return super().renewed(*arguments)

    async with opened(database_url) as database:
        await _secrets(database, keyring(("1", OLD)), 7)
        keys = master_keys(f"2:{NEW},1:{OLD}")
        with pytest.raises(CutOff):
            await rotate(database, Fragile(keys), by(2), users_per_batch=2)
        done = {row["user_id"]: row["ciphertext"] for row in await rows(database, "SELECT * FROM api_keys WHERE encryption_key_id = '2'")}
        assert len(done) == 4
        assert await events(database, ADMINISTRATION) == []
        await _require_readable(database, Keyring(keys))
        assert (await rotate(database, Keyring(keys), by(3), users_per_batch=2)).keys == 3
        after = {row["user_id"]: row["ciphertext"] for row in await rows(database, "SELECT * FROM api_keys")}
        assert {user: after[user] for user in done} == done
        await _require_readable(database, keyring(("2", NEW)))
        (event,) = await events(database, ADMINISTRATION)
        assert event["reason"].startswith("7 API keys and 7 second factors")


async def test_rotation_names_what_it_cannot_decrypt_and_does_the_rest(database_url: str) -> None:
    """One row of a lost master key does not keep the others under the old one."""
    async with opened(database_url) as database:
        await _secrets(database, keyring(("1", OLD)), 3)
        lost = keyring(("0", new_master_key()))
        await add_key(database, a_key("user-1", "lost", ring=lost), replace=False, by=by(1))
        both = keyring(("2", NEW), ("1", OLD))
        assert await rotate(database, both, by(2), users_per_batch=1) == Rotation("2", 3, 3, ["user-1/lost"])
        assert (await stored_key(database, "user-1", "lost")).encryption_key_id == "0"
        (event,) = await events(database, ADMINISTRATION)
        assert "1 could not be decrypted" in event["reason"]


async def test_rotation_while_another_runs_is_refused(database_url: str) -> None:
    """Two at once would do everything twice: the second changes nothing and says so, and works when the first has ended."""
    async with opened(database_url) as database:
        await _secrets(database, keyring(("1", OLD)), 1)
        both = keyring(("2", NEW), ("1", OLD))
        async with database.connection() as connection, connection.transaction():
            await lock_chains(connection, ["user-0"])
            first = asyncio.create_task(rotate(database, both, by(2)))
            await _until_somebody_waits(database)
            with pytest.raises(NotDone, match="Another"):
                await rotate(database, both, by(2))
        assert (await first).keys == 1
        assert (await rotate(database, both, by(3))).keys == 0


async def test_rotation_does_not_overwrite_a_key_that_is_stored_meanwhile(database_url: str) -> None:
    """It reads behind the user's lock: a new secret that came first is what it finds."""
    replaced = StoredSecret("replaced", "meanwhile")
    old, both = keyring(("1", OLD)), keyring(("2", NEW), ("1", OLD))
    async with opened(database_url) as database:
        await _secrets(database, old, 1)
        async with database.connection() as connection, connection.transaction():
            await lock_chains(connection, ["user-0"])
            rotating = asyncio.create_task(rotate(database, both, by(2)))
            await _until_somebody_waits(database)
            await connection.execute("UPDATE api_keys SET ciphertext = $1", old.encrypt("user-0", "k1", replaced))
        await rotating
        key = await stored_key(database, "user-0", "k1")
        assert keyring(("2", NEW)).decrypt("user-0", "k1", key.ciphertext, key.encryption_key_id) == replaced


async def test_events_of_administration_are_given_again_as_they_were_stored(database_url: str) -> None:
    """The same keys and bytes each time, in the order of the chain, and of these accounts alone."""
    async with opened(database_url, "alice", "bob") as database:
        await set_user_status(database, "alice", StatusChange.FREEZE, by(1))
        first, second = [await administration_events(database, ["alice"]) for _ in range(2)]
        assert first == second
        assert [row.event_id for row in first] == ["alice:1", "alice:2"]
        stored = await rows(database, "SELECT hash, body FROM audit_events WHERE account = 'alice' ORDER BY seq")
        assert [(row.hash, row.body.decode()) for row in first] == [(row["hash"], row["body"]) for row in stored]


def test_master_key_error_is_told_for_a_key_of_another_installation() -> None:
    """A ciphertext of one installation does not open in another."""
    with pytest.raises(MasterKeyError):
        keyring(("1", NEW)).decrypt("alice", "k1", a_key("alice").ciphertext, "1")


_LEFT: dict[str, tuple[str, str]] = {
    "funds": (
        """
        INSERT INTO transfers (transfer_id, kind, exchange, book, asset, debit_owner, credit_owner, amount, recorded_at)
        VALUES ('opening:x', 'opening', 'binance', 'live', 'USDT', '@opening', 'alice', 12.5, now())
        """,
        "1 balance: 12.5 USDT at binance",
    ),
    "an active key": (
        """
        INSERT INTO api_keys (user_id, api_key_id, exchange, encryption_key_id, ciphertext, permissions, status, created_at)
        VALUES ('alice', 'main', 'binance', '1', 'x', '{trade}', 'active', now())
        """,
        r"1 key: main \(binance, active\)",
    ),
}


@pytest.mark.parametrize("left", _LEFT)
async def test_closing_a_user_who_has_something_left_is_refused_by_name(database_url: str, left: str) -> None:
    """Money and keys of a closed user could be reached by nobody: the refusal names them, and the user stays as it is."""
    statement, named = _LEFT[left]
    async with opened(database_url, "alice") as database:
        await rows(database, statement)
        with pytest.raises(NotDone, match=named):
            await set_user_status(database, "alice", StatusChange.CLOSE, by(1))
        assert await rows(database, "SELECT status FROM users") == [{"status": "active"}]
        assert [event["event_type"] for event in await events(database, "alice")] == ["USER_ADDED"]


@pytest.mark.parametrize("name", ["@commands", "@quarantine", "@shortfall"])
async def test_database_keeps_no_user_under_a_name_of_the_system(database_url: str, name: str) -> None:
    """Whoever writes the row: the second half of the rule that `schemas.requests.is_reserved` states."""
    async with opened(database_url) as database, database.connection() as connection:
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("INSERT INTO users (user_id, status, created_at) VALUES ($1, 'active', now())", name)
