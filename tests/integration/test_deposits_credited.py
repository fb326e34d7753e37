"""Deposits with real Kafka, PostgreSQL and the simulated exchange over HTTP: seen, credited once, taken back, and announced."""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path

import pytest

from tests.depositing import QUICK, announcement, arrive, credit, credited_amounts, deposits, mark
from tests.installation import OPENING, USERS, Installation, installation
from tests.promises import assert_promises_hold
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


@pytest.mark.timeout(120)
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
        final = (await made.final_results(sent, 30))[sent[0].partition, sent[0].offset]
        assert (final["status"], final["filled_quantity"], final["exchange_order_id"]) == ("completed", "25", first["id"])
        assert await credited_amounts(made) == {first["id"]: [Decimal(25)], other["id"]: [Decimal("7.5")]}
        assert (await balance(made, USERS[1]))[0] == OPENING["USDT"] + Decimal("7.5")
        await assert_promises_hold(made)


@pytest.mark.timeout(120)
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
