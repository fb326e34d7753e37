"""What cannot be at the exchange stops its user: a withdrawal that was accepted twice under one client id."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.installation import installation
from tests.integration.simulator_client import SimulatorClient
from tests.withdrawing import ADDRESS, APPLY, QUICK, allow_withdrawals, balance, run_sql, withdrawal


@pytest.mark.timeout(600)
async def test_withdrawal_that_the_exchange_has_twice_halts_its_user(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Somebody else sends the same client id again: nothing is concluded of it, its funds stay held, and its user is halted."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, "--withdrawal-ms", "600000") as made:
        await allow_withdrawals(made)
        made.start_worker("agents", **QUICK)
        await made.publish([withdrawal(0)])
        rows: list[dict[str, str]] = []
        async with asyncio.timeout(60):
            while not rows:
                rows = await run_sql(made, "SELECT client_withdrawal_id FROM withdrawals WHERE status = 'processing'")
                await asyncio.sleep(0.1)
        async with aiohttp.ClientSession() as session:
            client = SimulatorClient(session, made.simulator_url, "key-user-0", "secret-user-0")
            again = {"coin": "USDT", "amount": "100", "address": ADDRESS, "network": "ETH"}
            answer = await client.signed("POST", APPLY, withdrawOrderId=rows[0]["client_withdrawal_id"], **again)
            assert answer.status == 200, answer.body
        async with asyncio.timeout(30):
            while not await run_sql(made, "SELECT 1 FROM halts WHERE scope = 'user' AND target = 'user-0' AND level = 'halt'"):
                await asyncio.sleep(0.1)
        assert await balance(made, "user-0") == (1_000_000, 100)
        sent = await made.publish([withdrawal(8)])
        assert [result["reason_code"] for result in (await made.final_results(sent, 120)).values()] == ["TRADING_HALTED"]
