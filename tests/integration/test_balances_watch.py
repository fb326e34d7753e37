"""The timer that compares the ledger with the exchange: quiet while everything moves, loud when something changed behind its back."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import pytest

from tests.depositing import QUICK as QUICK_DEPOSITS
from tests.depositing import arrive, credited_amounts
from tests.installation import Installation, installation, order
from tests.integration.halted import cli_settings
from tests.integration.simulator_client import SimulatorClient
from tests.orchestrator import orchestrator
from tests.withdrawing import APPLY, FAILING, QUICK, allow_withdrawals, run_sql, withdrawal

COMPARING = {
    **QUICK,
    **QUICK_DEPOSITS,
    "ORCHESTRATOR_BALANCE_CHECK_MS": "250",
    "ORCHESTRATOR_BALANCE_DRIFT_AGE_SECONDS": "1",
    "ORCHESTRATOR_BALANCE_DRIFT_HALT_USD": "50",
}
# So long both the legitimate withdrawals are under way and what is taken behind the system's back stays away.
WITHDRAWAL_MS = 12_000
# What was ever noted, whether it went again or not.
NOTING = (
    "CREATE TABLE noted (user_id text, asset text)",
    """
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO noted VALUES (NEW.user_id, NEW.asset);
        RETURN NULL;
    END $$
    """,
    "CREATE TRIGGER note AFTER INSERT ON balance_drifts FOR EACH ROW EXECUTE FUNCTION note()",
)
FOUND = """
    SELECT * FROM balance_drifts
    WHERE found_at IS NOT NULL AND (SELECT count(*) FROM balance_drifts WHERE found_at IS NOT NULL) = 2 ORDER BY user_id
"""


async def until(made: Installation, what: str, holds: Callable[[], Awaitable[Any]], within_seconds: float = 30.0) -> Any:
    """Waits for something true and returns it."""
    deadline = monotonic() + within_seconds
    while not (found := await holds()):
        assert monotonic() < deadline, f"{what}: not in time\n{made.worker_log(0)[-3_000:]}"
        await asyncio.sleep(0.1)
    return found


async def metrics(made: Installation) -> dict[str, float]:
    """What the worker tells of its comparisons, by the metric's name."""
    address = (await made.event(0, "worker_started", 60))["health"]
    async with aiohttp.ClientSession() as session, session.get(f"{address}/metrics") as answer:
        text = await answer.text()
    found = re.findall(r'^orchestrator_(balance\w+)\{exchange="binance"\} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def wait_for_rounds(made: Installation, rounds: int) -> None:
    """Waits until so many complete rounds have ended."""
    seen: set[float] = set()

    async def enough() -> bool:
        seen.add((await metrics(made)).get("balance_round_timestamp_seconds", 0.0))
        return len(seen - {0.0}) >= rounds

    await until(made, f"{rounds} rounds", enough, 60)


async def take(session: aiohttp.ClientSession, made: Installation, user: str, amount: str) -> None:
    """Withdraws behind the system's back; the exchange fails to pay it and gives it back."""
    client = SimulatorClient(session, made.simulator_url, f"key-{user}", f"secret-{user}")
    answer = await client.signed("POST", APPLY, coin="USDT", amount=amount, address=FAILING, network="ETH")
    assert answer.status == 200, answer.body


async def events(made: Installation, user: str) -> list[str]:
    rows = await run_sql(made, "SELECT body FROM audit_events WHERE account = $1 ORDER BY seq", user)
    return [event["event_type"] for event in (json.loads(row["body"]) for row in rows) if "DRIFT" in event["event_type"]]


@pytest.mark.timeout(150)
async def test_balance_watch_is_quiet_while_all_moves_and_halts_who_was_robbed(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Orders that fill and rest, withdrawals and deposits under way are no drift in any round, nor for the command. Then two accounts lose
    money behind the system's back: both are found when they are old enough, the one above the threshold is halted, and both are gone when
    the money is back."""
    # A deposit is pending longer than it takes to look for it.
    options = ("--withdrawal-ms", str(WITHDRAWAL_MS), "--withdrawal-fee", "1", "--deposit-ms", "4000")
    async with installation(kafka, database_url, unique_prefix, tmp_path, *options) as made:
        await allow_withdrawals(made)
        for statement in NOTING:
            await run_sql(made, statement)
        made.start_worker("agents", **COMPARING)
        await made.event(0, "worker_started", 60)
        resting = order(1_000, user_id="user-5", order_type="limit", time_in_force="GTC", quantity="0.001", price="10000")
        await made.publish([resting, withdrawal(3), withdrawal(4, address=FAILING)])
        await asyncio.gather(*(arrive(made, user, "11.5") for user in ("user-1", "user-2")))
        moving = asyncio.create_task(keep_moving(made))
        try:
            now = await asyncio.to_thread(orchestrator, tmp_path, "verify", "balances", "--json", settings=cli_settings(made))
            await wait_for_rounds(made, 8)
        finally:
            moving.cancel()
            with suppress(asyncio.CancelledError):
                await moving
        assert await run_sql(made, "SELECT * FROM noted") == []
        assert sorted((await credited_amounts(made)).values()) == [[Decimal("11.5")]] * 2
        assert (now.code, now.json["accounts"], now.json["drifts"], now.json["unanswered"]) == (0, 8, [], []), now.errors
        assert len(await run_sql(made, "SELECT 1 FROM orders WHERE executed_at IS NOT NULL AND status = 'filled'")) > 10
        async with aiohttp.ClientSession() as session:
            await take(session, made, "user-6", "60")
            await take(session, made, "user-7", "40")
        [halt] = await until(made, "a halt", lambda: run_sql(made, "SELECT * FROM halts"))
        assert (halt["scope"], halt["target"], halt["level"], halt["set_by"]) == ("user", "user-6", "halt", "@trips")
        assert "USDT 999940 at the exchange, 1000000 in the ledger (-60, worth 60 USD)" in halt["reason"]
        found = await until(made, "two drifts", lambda: run_sql(made, FOUND))
        assert [(row["user_id"], row["exchange_amount"] - row["ledger_amount"], row["above_since"] is None) for row in found] == [
            ("user-6", Decimal(-60), False), ("user-7", Decimal(-40), True),
        ]  # fmt: skip
        await until(made, "no drift", lambda: run_sql(made, "SELECT 1 WHERE NOT EXISTS (SELECT FROM balance_drifts)"), 40)
        assert [await events(made, user) for user in ("user-6", "user-7")] == [["BALANCE_DRIFT_FOUND", "BALANCE_DRIFT_GONE"]] * 2
        assert [row["target"] for row in await run_sql(made, "SELECT target FROM halts")] == ["user-6"]


async def keep_moving(made: Installation) -> None:
    """Purchases and sales of four users, until it is cancelled."""
    number = 0
    while True:
        side = "sell" if number // 8 % 2 else "buy"
        await made.publish([order(number + user, user_id=f"user-{user}", side=side) for user in range(4)])
        number += 8
        await asyncio.sleep(0.4)
