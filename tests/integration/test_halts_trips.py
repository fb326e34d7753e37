"""The system stops trading by itself: once however many workers see the cause, until an operator resumes, and again while it is there."""

import asyncio
import os
import signal
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.installation import Installation, installation, order
from tests.integration.halted import Commands, cli_settings, commanding
from tests.orchestrator import orchestrator

_ALICE = "user-0"
# Several looks of each worker.
_LOOKS_SECONDS = 2.0


async def _tripped(commands: Commands, count: int) -> list[dict[str, Any]]:
    """Waits for so many stops by the system; returns the events."""
    statement = "SELECT 1 FROM audit_events WHERE account = '@trips' HAVING count(*) >= $1"
    await commands.until(f"{count} trips", statement, count, within_seconds=40)
    return await commands.events("@trips")


async def _answer(made: Installation, number: int, **fields: Any) -> str | None:
    """The reason code of the final answer to a new order."""
    (sent,) = await made.publish([order(number, user_id=_ALICE, **fields)])
    code: str | None = (await made.final_results([sent], 120))[sent.partition, sent.offset]["reason_code"]
    return code


async def _stays_lifted(commands: Commands, trips: int) -> None:
    await asyncio.sleep(_LOOKS_SECONDS)
    assert await commands.halts() == []
    assert len(await commands.events("@trips")) == trips


async def test_exchange_is_halted_by_orders_in_doubt_and_by_stale_prices(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Orders without an answer one after another, then an exchange that tells no prices: each halts that exchange once, though two workers
    run. A resume gives the exchange another chance."""
    async with (
        installation(
            kafka, database_url, unique_prefix, tmp_path, in_doubt_halt_orders=3, price_stale_halt_seconds=4, venue_timeout_ms=4_000
        ) as made,
        commanding(made) as commands,
    ):
        for _ in range(2):
            made.start_worker(ORCHESTRATOR_PRICE_STALE_HALT_SECONDS="4", ORCHESTRATOR_IN_DOUBT_HALT_ORDERS="3")
        assert await _answer(made, 0) is None
        await made.faults({"kind": "hang_before_accept", "next_n": 3})
        sent = []
        for number in range(1, 4):
            # One after another, so that each is a batch of its own: many at once are one interruption.
            sent += await made.publish([order(number, user_id=_ALICE)])
            in_doubt = "SELECT 1 FROM orders WHERE status = 'in_doubt' HAVING count(*) = $1"
            await commands.until(f"{number} in doubt", in_doubt, number, within_seconds=40)
        (event,) = await _tripped(commands, 1)
        assert (event["event_type"], event["halt_scope"], event["halt_target"], event["halt_level"]) == (
            "HALT_SET", "exchange", "binance", "halt",
        )  # fmt: skip
        assert "it loses answers" in event["reason"]
        assert [(row["target"], row["set_by"]) for row in await commands.halts()] == [("binance", "@trips")]
        assert await _answer(made, 5) == "TRADING_HALTED"
        finals = await made.final_results(sent, 120)
        assert {finals[record.partition, record.offset]["reason_code"] for record in sent} == {"ORDER_NOT_EXECUTED"}
        await commands.command("resume", scope="exchange", target="binance")
        await _stays_lifted(commands, 1)
        assert await _answer(made, 6) is None
        os.kill(made.simulator_pid, signal.SIGSTOP)
        try:
            event = (await _tripped(commands, 2))[-1]
        finally:
            os.kill(made.simulator_pid, signal.SIGCONT)
        assert "newest price is older than 4 s" in event["reason"]
        # The exchange answers again, but a worker may have heard no new price yet.
        async with asyncio.timeout(40):
            while await commands.halts():
                await commands.command("resume", scope="exchange", target="binance")
                await asyncio.sleep(_LOOKS_SECONDS)
        assert await _answer(made, 7) is None


async def test_user_is_reduced_by_losses_and_everybody_halted_by_a_changed_audit_event(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A sale that realises the limit lets its user only sell; a changed event halts everybody, as `verify --halt` does for a balance that
    does not add up. Once each, and a resume lasts when the limit is raised or the event fixed."""
    loss = Decimal(50)
    async with (
        installation(kafka, database_url, unique_prefix, tmp_path, daily_loss_usd_max=loss) as made,
        commanding(made) as commands,
    ):
        for _ in range(2):
            made.start_worker()
        await made.pin_price("BTCUSDT", "50000.00")
        assert await _answer(made, 0, side="buy", quantity="0.1") is None
        assert await _answer(made, 1, side="sell", quantity="0.01") is None
        await made.pin_price("BTCUSDT", "49000.00")
        assert await _answer(made, 2, side="sell", quantity="0.09") is None
        (event,) = await _tripped(commands, 1)
        assert (event["halt_scope"], event["halt_target"], event["halt_level"]) == ("user", _ALICE, "reduce")
        assert await _answer(made, 3, side="buy") == "REDUCE_ONLY"
        assert await _answer(made, 4, side="sell") is None
        await commands.command("resume", scope="user", target=_ALICE)
        assert len(await _tripped(commands, 2)) == 2
        raised = "INSERT INTO user_limits VALUES ($1, 'daily_loss_usd_max', 1000, now(), 'test')"
        await commands.rows(raised, _ALICE)
        await commands.command("resume", scope="user", target=_ALICE)
        await _stays_lifted(commands, 2)
        assert await _answer(made, 5, side="buy") is None

        seq = (await commands.events(_ALICE))[-1]["seq"]
        await _rewrite(commands, seq, '"filled_quantity":"0.001"', '"filled_quantity":"0.002"')
        event = (await _tripped(commands, 3))[-1]
        assert (event["halt_scope"], event["halt_level"]) == ("all", "halt")
        assert f"account {_ALICE} does not add up" in event["reason"]
        await commands.command("resume")
        await _tripped(commands, 4)
        await _rewrite(commands, seq, '"filled_quantity":"0.002"', '"filled_quantity":"0.001"')
        await commands.command("resume")
        await _stays_lifted(commands, 4)

        settings = cli_settings(made)
        ended = await asyncio.to_thread(orchestrator, tmp_path, "verify", "--halt", settings=settings)
        assert ended.code == 0, ended.output
        assert await commands.halts() == []
        await commands.rows("SET session_replication_role = replica")
        await commands.rows("UPDATE balances SET posted = posted + 1 WHERE user_id = $1 AND asset = 'BTC'", _ALICE)
        ended = await asyncio.to_thread(orchestrator, tmp_path, "verify", "--halt", settings=settings)
        assert ended.code == 1
        assert "halted for everybody" in ended.errors
        assert "balances_match_transfers" in (await _tripped(commands, 5))[-1]["reason"]


async def _rewrite(commands: Commands, seq: int, before: str, after: str) -> None:
    """Changes one of Alice's events behind the trigger that forbids it."""
    await commands.rows("SET session_replication_role = replica")
    try:
        changing = "UPDATE audit_events SET body = replace(body, $2, $3)"
        statement = f"{changing} WHERE account = $4 AND seq = $1 AND body LIKE '%' || $2 || '%' RETURNING 1"
        assert await commands.rows(statement, seq, before, after, _ALICE)
    finally:
        await commands.rows("SET session_replication_role = origin")


pytestmark = pytest.mark.timeout(600)
