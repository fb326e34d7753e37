"""Deposits with real Kafka, PostgreSQL and the simulated exchange over HTTP: seen, credited once, taken back, and announced."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from infra.postgres.database import connect
from infra.postgres.deposits import ANNOUNCEMENTS, DEPOSITS
from infra.postgres.migrate import migrate
from tests.depositing import QUICK, announcement, arrive, credit, credited_amounts, deposits, mark
from tests.installation import OPENING, USERS, Installation, installation
from tests.promises import assert_promises_hold
from tests.unit.builders import USER
from tests.unit.deposit_builders import OTHER, deposit_of
from tests.unit.sound_evidence import announcement_of
from tests.withdrawing import balance, run_sql


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    """Asks again until it holds."""
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.1)


async def shown_as(made: Installation, deposit: dict[str, str], status: str) -> None:
    """Waits until the database has a deposit in this status."""

    async def is_so() -> bool:
        return (await deposits(made)).get(deposit["id"], {}).get("status") == status

    await until(is_so)


@pytest.mark.timeout(600)
async def test_deposit_that_arrives_is_credited_once_and_answers_its_announcement(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Pending is shown as such; success credited_amounts; what was announced is answered; what was not is credited all the same."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        made.start_worker("agents", **QUICK)
        sent = await made.publish([announcement(0)])
        first = await arrive(made, USERS[0], held=True, listings=2)
        await shown_as(made, first, "confirming")
        assert (await balance(made, USERS[0]))[0] == OPENING["USDT"]
        await credit(made, first)
        other = await arrive(made, USERS[1], "7.5")
        await shown_as(made, first, "credited")
        await shown_as(made, other, "credited")
        final = (await made.final_results(sent, 120))[sent[0].partition, sent[0].offset]
        assert (final["status"], final["filled_quantity"], final["exchange_order_id"]) == ("completed", "25", first["id"])
        assert await credited_amounts(made) == {first["id"]: [Decimal(25)], other["id"]: [Decimal("7.5")]}
        assert (await balance(made, USERS[1]))[0] == OPENING["USDT"] + Decimal("7.5")
        await assert_promises_hold(made)


@pytest.mark.timeout(600)
async def test_deposit_that_is_taken_back_is_reversed_and_freezes_who_is_short(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Free funds pay it back; what is held is not touched: the house advances the rest, and the user is frozen."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, trade_usd_max=Decimal(10**8)) as made:
        made.start_worker("agents", **QUICK)
        small, large = await arrive(made, USERS[0], "25"), await arrive(made, USERS[1], "5000000")
        await shown_as(made, small, "credited")
        await shown_as(made, large, "credited")
        # All that there is rests in an order that nobody will fill.
        order = {
            "schema_version": 1, "type": "trade", "idempotency_key": "rests", "user_id": USERS[1], "mode": "live", "exchange": "binance",
            "api_key_id": "main", "symbol": "BTC/USDT", "side": "buy", "order_type": "limit", "quantity": "600", "price": "9000",
            "time_in_force": "GTC", "expires_at": "2100-01-01T00:00:00Z",
        }  # fmt: skip
        await made.publish([order])

        async def rests() -> bool:
            return bool(await run_sql(made, "SELECT FROM orders WHERE status = 'new'"))

        await until(rests)
        held_before = (await balance(made, USERS[1]))[1]
        await mark(made, small, 2)
        await mark(made, large, 7)
        await shown_as(made, small, "reversed")
        await shown_as(made, large, "reversed")
        assert (await balance(made, USERS[0]))[0] == OPENING["USDT"]
        assert (await balance(made, USERS[1])) == (held_before, held_before) and held_before > 5_000_000
        status = {row["user_id"]: row["status"] for row in await run_sql(made, "SELECT user_id, status FROM users")}
        assert (status[USERS[0]], status[USERS[1]]) == ("active", "frozen")
        advanced = (await deposits(made))[large["id"]]["advanced"]
        assert advanced == Decimal(5_000_000) - (OPENING["USDT"] + Decimal(5_000_000) - held_before)
        await assert_promises_hold(made)


@pytest.mark.timeout(600)
async def test_announcements_end_and_what_does_not_fit_is_disputed(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """One that comes late is answered at once, one that nobody sends expires, simulated money is refused; an equal output of the same
    transaction is not credited: its user is halted, once, and an operator can resume. A halt does not stop what arrives."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        made.start_worker("agents", **QUICK)
        first = await arrive(made, USERS[0])
        await shown_as(made, first, "credited")
        soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
        sent = await made.publish(
            [
                announcement(0),
                announcement(1, expires_at=soon),
                announcement(2, mode="paper"),
                announcement(8, idempotency_key="again", expires_at=soon),
            ]
        )
        finals = await made.final_results(sent, 120)
        told = [finals[one.partition, one.offset] for one in sent]
        assert [(one["status"], one["reason_code"]) for one in told] == [
            ("completed", None), ("failed", "REQUEST_EXPIRED"), ("rejected", "REQUEST_UNSUPPORTED"), ("failed", "REQUEST_EXPIRED"),
        ]  # fmt: skip
        twin = await arrive(made, USERS[0], transaction_id=first["txId"], held=True)
        await shown_as(made, twin, "confirming")
        await credit(made, twin)

        async def halted() -> bool:
            return bool(await run_sql(made, "SELECT FROM halts WHERE scope = 'user' AND target = $1", USERS[0]))

        await until(halted)
        [dispute] = await run_sql(made, "SELECT * FROM deposit_disputes")
        assert (dispute["user_id"], dispute["kind"]) == (USERS[0], "twin")
        assert (await deposits(made))[twin["id"]]["status"] == "confirming"
        other = await arrive(made, USERS[0], "11")
        await shown_as(made, other, "credited")
        assert (await balance(made, USERS[0]))[0] == OPENING["USDT"] + 36
        # Looked at again and again meanwhile, it is noted once.
        assert len(await run_sql(made, "SELECT FROM audit_events WHERE body LIKE '%DEPOSIT_DISPUTED%'")) == 1
        await assert_promises_hold(made)
        for arguments, key, count in (
            (["list"], "deposit_id", 3), (["announced"], "announcement_id", 3), (["disputed"], "kind", 1), (["--user", USERS[1]], "", 0),
        ):  # fmt: skip
            ran = await listed(made, *arguments)
            assert len(ran) == count and all(key in row for row in ran)
        shown = await listed(made, "show", first["id"])
        assert shown["deposit"]["amount"] == "25" and [event["event_type"] for event in shown["history"]][-1] == "DEPOSIT_CREDITED"


async def listed(made: Installation, *arguments: str) -> Any:
    """What `orchestrator deposits … --json` prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", "deposits", *arguments, "--json", env=made.environment({}), cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


_REFUSED = (
    "UPDATE deposits SET amount = amount + 1",
    "UPDATE deposits SET user_id = 'bob'",
    "UPDATE deposits SET status = 'confirming', credited_at = NULL",
    "UPDATE deposits SET credited_at = credited_at + interval '1 second'",
    "UPDATE deposits SET advanced = 1",
    "UPDATE deposits SET status = 'reversed'",
    "INSERT INTO deposits SELECT 'd2', exchange, transaction_id, asset, address, output_index, 'e2', user_id, api_key_id, network, "
    "address_tag, amount, status, advanced, arrived_at, looked_up_at, detected_at, updated_at, credited_at, reversed_at FROM deposits",
    "INSERT INTO deposits SELECT 'd2', exchange, transaction_id, asset, address, '7', exchange_deposit_id, user_id, api_key_id, network, "
    "address_tag, amount, status, advanced, arrived_at, looked_up_at, detected_at, updated_at, credited_at, reversed_at FROM deposits",
    "UPDATE deposit_announcements SET status = 'expected', executed_at = NULL",
    "INSERT INTO deposit_announcements SELECT 'n2', user_id, 'other', request_id, source_topic, source_partition, source_offset + 1, mode, "
    "exchange, api_key_id, asset, amount, network, address, address_tag, status, reason_code, reason, deposit_id, exchange_deposit_id, "
    "expires_at, requested_at, decided_at, updated_at, executed_at, traceparent FROM deposit_announcements",
)


@pytest.mark.timeout(60)
async def test_database_refuses_what_no_deposit_can_be(database_url: str) -> None:
    """One credit per deposit and per entry of the history, one deposit per announcement, and nothing credited is ever another."""
    await migrate(database_url)
    database = await connect(database_url, 1, 10)
    try:
        async with database.connection() as connection:
            for user_id in (USER, OTHER):
                await connection.execute("INSERT INTO users (user_id, status, created_at) VALUES ($1, 'active', now())", user_id)
            made = deposit_of()
            await connection.execute(DEPOSITS.insert(), *DEPOSITS.arrays([made]))
            announced = announcement_of(deposit_id=made.deposit_id, exchange_deposit_id="e1")
            await connection.execute(ANNOUNCEMENTS.insert(), *ANNOUNCEMENTS.arrays([announced]))
            for statement in _REFUSED:
                with pytest.raises(asyncpg.IntegrityConstraintViolationError):
                    await connection.execute(statement)
    finally:
        await database.close()
