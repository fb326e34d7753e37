"""Sessions between two workers over four partitions: no bound is passed, copies use nothing, and what ends a session does so at once."""

import asyncio
import random
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.integration.gate_installation import PARTITIONS, GateInstallation, Outgoing, bearer, gate_installation, order, resting
from tests.promises import assert_promises_hold
from tests.unit.tokens import issuer

SEEDS = range(8)
COUNT = 24
# The price does not move; a purchase of 0.1 for 20,000 rests, and is worth 2,000 USD.
VALUE = Decimal(2_000)


def session(user_id: str, key: str, **fields: Any) -> dict[str, Any]:
    return {"schema_version": 1, "type": "session", "idempotency_key": key, "user_id": user_id, **fields}


def _bid(user_id: str, key: str) -> dict[str, Any]:
    return resting(user_id, key, "buy", "0.1", "20000")


async def _begin(gate: GateInstallation, user_id: str, **fields: Any) -> bytes:
    """Enrols the user, begins a session, and returns the header that names it."""
    authenticator = await gate.enrol(user_id)
    token = bearer(user_id, sid=f"login of {user_id}")
    answer = await gate.answer(Outgoing(session(user_id, "begin", **fields), None, token, await authenticator.code()))
    assert (answer["status"], answer["reason_code"]) == ("completed", None), answer
    return token


async def test_sessions_keep_their_bounds_over_all_partitions(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Orders and copies of them on four partitions at once: exactly as many are accepted as orders and US dollars of the session allow."""
    counted, valued = [f"counted-{seed}" for seed in SEEDS], [f"valued-{seed}" for seed in SEEDS]
    ended = ["revoked", "frozen", "enrolled"]
    async with gate_installation(
        kafka, database_url, unique_prefix, tmp_path, [*counted, *valued, *ended], "--walk-ms", "0", issuers=[issuer()],
        settings={"BATCH_SIZE_MAX": "12"},
    ) as gate:  # fmt: skip
        await gate.set_at_the_exchange("price", {"symbol": "BTCUSDT", "price": "40000"})
        gate.start_workers()
        await gate.until_shared()
        chance = random.Random(3)
        fits = {user_id: chance.randint(2, 10) for user_id in (*counted, *valued)}
        tokens = {user_id: await _begin(gate, user_id, orders_max=fits[user_id]) for user_id in counted}
        # One cent short of one more.
        tokens |= {
            user_id: await _begin(gate, user_id, amount_max_usd=f"{(fits[user_id] + 1) * VALUE - Decimal('0.01')}") for user_id in valued
        }
        records = [
            (user_id, Outgoing(_bid(user_id, f"{user_id}-{number}"), (number + copy) % PARTITIONS, token))
            for user_id, token in tokens.items()
            for number in range(COUNT)
            for copy in range(2)
        ]
        chance.shuffle(records)
        sent = await gate.send(*(record for _, record in records))
        answers: dict[str, list[dict[str, Any]]] = {user_id: [] for user_id in tokens}
        for (user_id, _), where in zip(records, sent, strict=True):
            answers[user_id].append(await gate.results.until(where, lambda one: bool(one["final"]) or one["status"] == "open", 90))
        for user_id, results in answers.items():
            made = {result["order_id"] for result in results if result["order_id"] is not None}
            assert len(made) == fits[user_id] == len(gate.at_the_exchange(user_id)), user_id
            codes = Counter(result["reason_code"] for result in results if result["order_id"] is None)
            assert set(codes) == {"SESSION_LIMIT_EXCEEDED"}, codes
            (row,) = await gate.fetch("SELECT orders_used, amount_usd_used FROM sessions WHERE user_id = $1", user_id)
            assert (row["orders_used"], row["amount_usd_used"]) == (fits[user_id], fits[user_id] * VALUE)
        await _check_ends(gate)
        await _check_constraints(gate, counted[0])
        await assert_promises_hold(gate.made)


async def _check_ends(gate: GateInstallation) -> None:
    """An operator revokes, a user is frozen and thawed, a factor is enrolled anew: each ends what was begun before."""
    tokens = {user_id: await _begin(gate, user_id) for user_id in ("revoked", "frozen", "enrolled")}
    for user_id, token in tokens.items():
        assert (await gate.answer(Outgoing(order(user_id, "good"), None, token)))["reason_code"] is None
    listed = await gate.command("sessions", "list", "--user", "revoked", "--json")
    assert '"standing":"open"' in listed.output and "login of revoked" not in listed.output
    await gate.command("sessions", "revoke", "revoked", "--reason", "its bot was sold")
    await gate.command("users", "freeze", "frozen", "--reason", "a look")
    await gate.command("users", "unfreeze", "frozen", "--reason", "looked")
    await gate.command("users", "enrol-totp", "enrolled", "--replace", "--yes", "--json")
    answers = await asyncio.gather(*(gate.answer(Outgoing(order(user_id, "late"), None, token)) for user_id, token in tokens.items()))
    assert [answer["reason_code"] for answer in answers] == ["SESSION_REVOKED"] * 3
    assert [event["event_type"] for event in await gate.events("revoked")].count("SESSION_ENDED") == 1
    (stored,) = await gate.fetch("SELECT row_to_json(sessions)::text AS row FROM sessions WHERE user_id = 'revoked'")
    assert "login of revoked" not in stored["row"]


async def _check_constraints(gate: GateInstallation, user_id: str) -> None:
    """What the code must never do the database refuses as well."""
    for change in (
        "orders_used = orders_max + 1", "amount_usd_used = amount_usd_max + 1", "orders_used = orders_used - 1",
        "orders_max = orders_max + 1", "expires_at = expires_at + interval '1 hour'", "symbols = '[\"ETH/USDT\"]'",
    ):  # fmt: skip
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await gate.pool.execute(f"UPDATE sessions SET {change} WHERE user_id = $1", user_id)  # noqa: S608 — literals of this test
    await gate.pool.execute("UPDATE sessions SET ended_at = now(), ended_because = 'test' WHERE user_id = $1", user_id)
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await gate.pool.execute("UPDATE sessions SET ended_at = NULL, ended_because = NULL WHERE user_id = $1", user_id)
