"""Withdrawals in the database: what counts for the limit of a day, what is known of a user before one leaves, and how one may end."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest

from infra.postgres.withdrawals import WITHDRAWALS, payees, unfinished_withdrawals, withdrawn
from pipeline.gate.limits import Limits
from pipeline.model.withdrawal import Withdrawal
from schemas.orders import WithdrawalStatus
from schemas.wire import SourceOffset
from tests.integration.step_database import open_database, plain_connection
from tests.unit.builders import EXCHANGE, NOW, TOPICS, USER
from tests.unit.withdrawal_builders import ADDRESS, FEE, withdrawal_of

_S = WithdrawalStatus
WAIT = timedelta(hours=24)


def _one(number: int, status: WithdrawalStatus, *, usd: str = "100", sent: timedelta | None = None, **fields: object) -> Withdrawal:
    """A withdrawal asked for three days ago; `sent` is how long ago it was sent."""
    asked = NOW - timedelta(days=3)
    over = status in {_S.COMPLETED, _S.FAILED, _S.REJECTED}
    values: dict[str, object] = {
        "withdrawal_id": f"w{number:032x}", "status": status, "idempotency_key": f"k{number}", "requested_at": asked, "decided_at": asked,
        "source": SourceOffset(TOPICS.requests, 0, number), "usd_value": Decimal(usd), "updated_at": asked, "work_partition": 0,
        "submitting_at": None if sent is None else NOW - sent, "executed_at": NOW - timedelta(hours=30) if over else None,
        "client_withdrawal_id": f"cw{number:028x}", **fields,
    }  # fmt: skip
    return withdrawal_of(**values)


async def _stored(connection: asyncpg.Connection, *rows: Withdrawal) -> None:
    await connection.execute(WITHDRAWALS.insert(), *WITHDRAWALS.arrays(rows))


async def test_limit_of_a_day_counts_what_left_in_it_whenever_it_was_asked_for(database_url: str) -> None:
    """By the time of sending: one that was asked for three days ago and sent an hour ago counts, one sent 25 hours ago does not; what is
    accepted or waits for an operator may still leave, however old it is; what was not paid never counts."""
    hour = timedelta(hours=1)
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        await _stored(
            connection,
            _one(1, _S.COMPLETED, usd="1", sent=hour, executed_at=NOW),
            _one(2, _S.PROCESSING, usd="2", sent=hour),
            _one(3, _S.IN_DOUBT, usd="4", sent=hour),
            _one(4, _S.SUBMITTING, usd="8", sent=timedelta(0)),
            _one(5, _S.ACCEPTED, usd="16"),
            _one(6, _S.PENDING_APPROVAL, usd="32"),
            # Proven unsent and queued again: it has not left.
            _one(7, _S.ACCEPTED, usd="64", sent=hour, attempt=1),
            _one(8, _S.COMPLETED, usd="1000", sent=25 * hour),
            _one(9, _S.FAILED, usd="1000", sent=hour, executed_at=NOW),
            _one(10, _S.REJECTED, usd="1000", sent=hour, executed_at=NOW),
        )
        async with database.connection() as reading:
            counted = (await withdrawn(reading, [USER], NOW))[USER]
        assert (counted.left_usd, counted.queued_usd, counted.waiting_usd, counted.total_usd) == (15, 80, 32, 127)


async def test_what_is_known_of_a_payee_is_what_the_database_has_now(database_url: str) -> None:
    """Status, keys, addresses that have waited, the user's own limit, and what was sent; nobody is nobody."""
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        for address, added_at in ((ADDRESS, NOW - WAIT), ("0xde709f2102306220921060314715629080e2fb77", NOW - WAIT + timedelta(seconds=1))):
            allow = "INSERT INTO addresses (user_id, network, address, added_at, added_by) VALUES ($1, 'ETH', $2, $3, 'x')"
            await connection.execute(allow, USER, address, added_at)
        await _stored(connection, _one(1, _S.PROCESSING, usd="7", sent=timedelta(hours=1)))
        async with database.connection() as reading:
            known = await payees(reading, [USER, "nobody"], Limits(), WAIT, NOW)
            assert (known["nobody"].status, known["nobody"].addresses, known["nobody"].api_keys) == (None, (), {})
            assert known[USER].status == "active" and known[USER].left_usd == 7
            assert [one.address for one in known[USER].addresses] == [ADDRESS]
            assert known[USER].api_keys["k1"].exchange == EXCHANGE
            assert known[USER].daily_limit_usd == Limits().daily_withdrawal_usd_max
        await connection.execute("UPDATE users SET status = 'frozen' WHERE user_id = $1", USER)
        await connection.execute("UPDATE api_keys SET status = 'revoked' WHERE user_id = $1", USER)
        await connection.execute("UPDATE addresses SET removed_at = $2 WHERE user_id = $1", USER, NOW)
        limit = "INSERT INTO user_limits (user_id, name, amount, changed_at, changed_by) VALUES ($1, $2, 5, $3, 'x')"
        await connection.execute(limit, USER, "daily_withdrawal_usd_max", NOW)
        async with database.connection() as reading:
            now_known = (await payees(reading, [USER], Limits(), WAIT, NOW))[USER]
        assert (now_known.status, now_known.addresses, now_known.daily_limit_usd) == ("frozen", (), 5)
        assert now_known.api_keys["k1"].status == "revoked"


async def test_withdrawal_that_counts_as_not_executed_is_watched_until_its_time(database_url: str) -> None:
    """Beside those in doubt and being paid; one that was refused for another reason, or is no longer watched, is not asked about."""
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        hour = timedelta(hours=1)
        await _stored(
            connection,
            _one(1, _S.REJECTED, sent=hour, watched_until=NOW + hour),
            _one(2, _S.REJECTED, sent=hour, watched_until=NOW),
            _one(3, _S.REJECTED, sent=hour),
            _one(4, _S.IN_DOUBT, sent=hour, absent_since=NOW, first_submitting_at=NOW - 2 * hour),
            _one(5, _S.PENDING_APPROVAL),
        )
        found = await unfinished_withdrawals(database, EXCHANGE, [0], "", 10, NOW)
        assert [one.withdrawal_id[-1] for one in found] == ["1", "4"]
        assert (found[1].absent_since, found[1].first_submitting_at) == (NOW, NOW - 2 * hour)


@pytest.mark.parametrize(
    ("set_to", "allowed"),
    [
        ("status = 'completed', corrected_at = now(), exchange_withdrawal_id = 'x'", True),
        ("status = 'processing', executed_at = NULL, corrected_at = now(), exchange_withdrawal_id = 'x', hold_amount = 1", True),
        ("status = 'completed', exchange_withdrawal_id = 'x'", False),
        ("status = 'processing', executed_at = NULL, exchange_withdrawal_id = 'x', hold_amount = 1", False),
        ("status = 'processing', executed_at = NULL, corrected_at = now(), exchange_withdrawal_id = 'x', hold_amount = 1000", False),
    ],
)
@pytest.mark.parametrize("watched", [True, False])
async def test_end_of_a_withdrawal_is_left_by_a_correction_alone(database_url: str, set_to: str, allowed: bool, watched: bool) -> None:
    """The database refuses what the decisions must not do, and that more is held than leaves."""
    async with open_database(database_url), plain_connection(database_url) as connection:
        until: datetime | None = NOW + timedelta(hours=1) if watched else None
        await _stored(connection, replace(_one(1, _S.REJECTED, sent=timedelta(hours=1)), watched_until=until))
        move = f"UPDATE withdrawals SET {set_to}"  # noqa: S608 — literals of tests
        if allowed and watched:
            await connection.execute(move)
            return
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute(move)


async def test_what_runs_holds_all_of_it_unless_it_was_found_after_all(database_url: str) -> None:
    """Of every other the database still asks for amount and fee."""
    async with open_database(database_url), plain_connection(database_url) as connection:
        await _stored(connection, _one(1, _S.PROCESSING, sent=timedelta(hours=1)))
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("UPDATE withdrawals SET hold_amount = $1", 100 + FEE - 1)
