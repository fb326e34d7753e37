"""Whether the demonstration notices that an exchange was halted by the system itself."""

import json
from typing import Any

import asyncpg

from cli.local.demo_halts import OwnHalts
from schemas.commands import TRIPS_ACCOUNT
from tests.integration.step_database import open_database, plain_connection


async def _halted(connection: asyncpg.Connection, seq: int, **fields: Any) -> None:
    await connection.execute(
        "INSERT INTO audit_events (account, seq, event_id, hash, body, recorded_at) VALUES ($1, $2, $3, $4, $5, now())",
        TRIPS_ACCOUNT, seq, f"{TRIPS_ACCOUNT}:{seq}", "0" * 64, json.dumps({"reason": "25 orders are in doubt there", **fields}),
    )  # fmt: skip


async def test_exchange_that_was_halted_in_a_run_breaks_a_promise_by_name(database_url: str) -> None:
    """Halts of earlier runs in the same data directory do not count, nor do those of one user."""
    async with open_database(database_url) as database, plain_connection(database_url) as connection:
        await _halted(connection, 1, halt_scope="exchange", halt_target="binance")
        halts = await OwnHalts.watched(database)
        await _halted(connection, 2, halt_scope="user", halt_target="alice")
        assert (await halts.finding()).holds
        await _halted(connection, 3, halt_scope="exchange", halt_target="binance")
        finding = await halts.finding()
        assert (finding.name, finding.breaches) == ("no_exchange_halted", 1)
        assert finding.shown == ("binance was halted: 25 orders are in doubt there",)
