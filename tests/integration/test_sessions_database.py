"""Sessions on a real database: begun, used and ended by steps, by two partitions at once, and by what changes their user."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import asyncpg
import pytest

from infra.postgres.admin.administration import StatusChange, set_user_status
from infra.postgres.admin.session_administration import revoke_sessions
from infra.postgres.database import Database, InputPartition
from infra.postgres.gate import accounts, api_keys
from infra.postgres.sessions import sessions
from infra.postgres.step import StepTransaction, open_step
from pipeline.books.changes import Changes
from pipeline.intake import decide
from pipeline.requests.record import Arrival
from pipeline.requests.sessions import sessions_named
from schemas.reasons import ReasonCode
from schemas.requests import TradeRequest
from tests.claiming import claimed
from tests.integration.step_database import changes_in, open_database, plain_connection, taken
from tests.unit.builders import EXCHANGE, NOW, RULES, WIDE_LIMITS, intake_state, market_data, results_of, trade
from tests.unit.session_builders import ISSUER_KEY, SECRET, SESSION_ID, asking, code, proven

ENROLLED = """
    INSERT INTO second_factors (user_id, encryption_key_id, ciphertext, enrolled_at) VALUES ('alice', 'key', 'x', $1)
    ON CONFLICT (user_id) DO UPDATE SET enrolled_at = $1, last_step = -1
"""


async def _decided(step: StepTransaction, batch: Sequence[Arrival]) -> Changes:
    changes = await changes_in(step, ["alice"])
    changes.claims = await step.claims({key for record in batch if (key := record.claim_key) is not None})
    changes.sessions = await sessions(step.connection, *sessions_named(batch), NOW)
    symbols = {(word.user_id, word.symbol) for record in batch if isinstance(word := record.decoded, TradeRequest)}
    state = intake_state(
        accounts=await accounts(step.connection, ["alice"], symbols, changes.conduct, WIDE_LIMITS, lambda user, key, text: SECRET, NOW),
        api_keys=await api_keys(step.connection, ["alice"]),
        market_data={EXCHANGE: market_data(observed_at=NOW)},
        issuer_keys=frozenset({ISSUER_KEY}),
    )
    decide(batch, state, changes)
    await step.store(changes, NOW - RULES.key_lifetime)
    return changes


async def _step(database: Database, owned: InputPartition, *batch: Arrival) -> list[ReasonCode | None]:
    """One intake batch; the reason codes of its answers."""
    async with open_step(database, owned) as step:
        changes = await _decided(step, batch)
        await step.finish(step.progress.next_offset + len(batch) + 1, changes.outputs, NOW)
    return [result.reason_code for result in results_of(changes)]


async def test_session_is_stored_with_what_it_confirmed(database_url: str) -> None:
    """Begin, use, narrow anew: each step reads what the one before has stored; an old one is removed when another begins."""
    async with open_database(database_url) as database, plain_connection(database_url) as look:
        await look.execute(ENROLLED, NOW - timedelta(days=1))
        owned = await taken(database)
        assert await _step(database, owned, proven(asking(orders_max=2, symbols=["BTC/USDT"]), code=code())) == [None]
        orders = [proven(trade(idempotency_key=f"k{number}"), number + 1) for number in range(3)]
        assert await _step(database, owned, *orders) == [None, None, ReasonCode.SESSION_LIMIT_EXCEEDED]
        row = await look.fetchrow("SELECT * FROM sessions")
        assert (row["orders_used"], row["amount_usd_used"], row["symbols"]) == (2, Decimal(100), '["BTC/USDT"]')
        again = proven(asking(idempotency_key="s2", orders_max=1), 9, code=code(steps=1))
        assert await _step(database, owned, again, proven(trade(idempotency_key="k4"), 10)) == [None, None]
        assert await look.fetchval("SELECT orders_used FROM sessions") == 1
        other = replace(proven(asking(idempotency_key="s3"), 11), token=None)
        assert sessions_named([other]) == ([], [])
        await look.execute("ALTER TABLE sessions DISABLE TRIGGER USER")
        await look.execute("UPDATE sessions SET started_at = started_at - interval '3 days', expires_at = expires_at - interval '3 days'")
        await look.execute(ENROLLED, NOW)
        token = replace(again.token, session_id="s" + "1" * 32) if again.token is not None else None
        renewed = replace(proven(asking(idempotency_key="s4"), 12, code=code()), token=token)
        assert await _step(database, owned, renewed) == [None]
        assert await look.fetchval("SELECT array_agg(session_id) FROM sessions") == ["s" + "1" * 32]


async def test_one_session_on_two_partitions_confirms_no_more_than_it_may(database_url: str) -> None:
    """Steps of two owners at once, each with orders that would fit alone: exactly as many are accepted as the session allows."""
    async with open_database(database_url) as database, plain_connection(database_url) as look:
        await look.execute(ENROLLED, NOW - timedelta(days=1))
        partitions = [await taken(database, number) for number in range(4)]
        assert await _step(database, partitions[0], proven(asking(orders_max=7), code=code())) == [None]
        for turn in range(3):
            batches = [
                [proven(trade(idempotency_key=f"{turn}-{number}-{place}"), place, partition=number) for place in range(2)]
                for number in range(4)
            ]
            await asyncio.gather(*(_step(database, owned, *batch) for owned, batch in zip(partitions, batches, strict=True)))
        assert await look.fetchval("SELECT count(*) FROM orders") == await look.fetchval("SELECT orders_used FROM sessions") == 7


@pytest.mark.parametrize("how", ["frozen and thawed", "enrolled anew", "factor removed", "revoked"])
async def test_session_ends_with_its_users_standing(database_url: str, how: str) -> None:
    """Whatever changes status or factor, by command or by hand, ends what was begun before."""
    by = claimed("test", NOW)
    async with open_database(database_url) as database, plain_connection(database_url) as look:
        await look.execute(ENROLLED, NOW - timedelta(days=1))
        owned = await taken(database)
        assert await _step(database, owned, proven(asking(), code=code()), proven(trade(), 1)) == [None, None]
        match how:
            case "frozen and thawed":
                await set_user_status(database, "alice", StatusChange.FREEZE, by)
                await set_user_status(database, "alice", StatusChange.UNFREEZE, by)
            case "enrolled anew":
                await look.execute(ENROLLED, NOW)
            case "factor removed":
                await look.execute("DELETE FROM second_factors")
                await look.execute(ENROLLED, NOW)
            case _:
                assert (await revoke_sessions(database, "alice", None, by)).changed
                assert not (await revoke_sessions(database, "alice", SESSION_ID, by)).changed
        late = proven(trade(idempotency_key="k2"), 2, at=NOW - timedelta(seconds=1))
        assert await _step(database, owned, late) == [ReasonCode.SESSION_REVOKED]


@pytest.mark.parametrize(
    "change",
    [
        "orders_used = orders_max + 1", "amount_usd_used = amount_usd_max + 1", "orders_used = orders_used - 1",
        "orders_max = orders_max + 1", "expires_at = expires_at + interval '1 hour'", "symbols = '[\"ETH/USDT\"]'", "symbols = '[]'",
        "generation = generation + 1", "ended_at = now()", "expires_at = started_at",
    ],
)  # fmt: skip
async def test_database_refuses_what_would_widen_or_refund_a_session(database_url: str, change: str) -> None:
    """Every invariant is a constraint as well."""
    async with open_database(database_url) as database, plain_connection(database_url) as look:
        await look.execute(ENROLLED, NOW - timedelta(days=1))
        assert await _step(database, await taken(database), proven(asking(), code=code()), proven(trade(), 1)) == [None, None]
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await look.execute(f"UPDATE sessions SET {change}")  # noqa: S608 — literals of this test
