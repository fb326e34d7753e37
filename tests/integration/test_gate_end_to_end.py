"""The gate from end to end: tokens, second factors, states of users and keys, misuse, at an installation that asks for all of it.

Each scene has users of its own, so that all of them play at one installation with two workers at the same time, and the promises are
checked once, over everything.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.integration.gate_installation import (
    PARTITIONS,
    Authenticator,
    GateInstallation,
    Outgoing,
    Result,
    bearer,
    cancel,
    gate_installation,
    order,
    resting,
    write_trusted_keys,
)
from tests.promises import assert_promises_hold
from tests.unit.tokens import Issuer, issuer

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
TRUSTED = [issuer(algorithm, algorithm.lower()) for algorithm in ALGORITHMS]
ROTATED_OUT, ROTATED_IN = issuer("EdDSA", "before"), issuer("ES256", "after")
SIGNER = TRUSTED[3]
_REASON = ("--reason", "a test", "--operator", "ana")


@dataclass
class Player:
    """A user with a second factor, and what is known of it afterwards."""

    gate: GateInstallation
    user_id: str
    authenticator: Authenticator

    def token(self, signer: Issuer = SIGNER, **claims: Any) -> bytes:
        return bearer(self.user_id, signer, **claims)

    async def answer(self, request: dict[str, Any], code: str | None = None, *, partition: int | None = None) -> Result:
        """The final answer to a request with a good token."""
        return await self.gate.answer(Outgoing(request, partition, self.token(), code))

    async def executes(self, key: str, **fields: Any) -> Result:
        """An order with a good token and code, which must be executed."""
        result = await self.answer(order(self.user_id, key, **fields), await self.authenticator.code())
        assert (result["status"], result["reason_code"]) == ("executed", None), result
        return result

    async def refused(self, code: str, request: dict[str, Any], totp: str | None = None) -> Result:
        result = await self.answer(request, totp)
        assert (result["status"], result["reason_code"]) == ("rejected", code), result
        return result

    async def event_types(self) -> list[str]:
        """The user's audit events after its opening balances, in order."""
        return [event["event_type"] for event in await self.gate.events(self.user_id)][1:]

    @property
    def orders(self) -> int:
        """How many orders the exchange has accepted of the user."""
        return len(self.gate.at_the_exchange(self.user_id))


Scene = Callable[[GateInstallation, dict[str, Player]], Awaitable[None]]
SCENES: list[tuple[Scene, tuple[str, ...]]] = []
_EXECUTED = ["ORDER_ACCEPTED", "ORDER_SUBMITTED", "ORDER_FILLED"]


def scene(*users: str) -> Callable[[Scene], Scene]:
    """Names the users of a scene."""

    def named(play: Scene) -> Scene:
        SCENES.append((play, users))
        return play

    return named


@scene(*(f"signed-{algorithm.lower()}" for algorithm in ALGORITHMS))
async def each_algorithm_is_taken(gate: GateInstallation, players: dict[str, Player]) -> None:
    """A token of each algorithm that is trusted gets its user's order executed."""
    for trusted in TRUSTED:
        player = players[f"signed-{trusted.algorithm.lower()}"]
        sent = Outgoing(order(player.user_id, "k"), None, player.token(trusted), await player.authenticator.code())
        assert (await gate.answer(sent))["status"] == "executed"


@scene("unproven", "other")
async def what_nobody_is_proven_to_have_sent_claims_nothing(gate: GateInstallation, players: dict[str, Player]) -> None:
    """Answered by its source alone, with the code; no event, no claim, no lock: the same key then works with a right token."""
    player, other = players["unproven"], players["other"]
    stranger = issuer("EdDSA", "nobody trusts this")
    forged = Issuer("EdDSA", issuer("EdDSA", "another key").private_key, SIGNER.key_id)
    unsigned = player.token().rpartition(b".")[0] + b"."
    attempts: list[tuple[bytes | None, str]] = [
        (None, "AUTH_TOKEN_MISSING"),
        (player.token(seconds=-120), "AUTH_TOKEN_EXPIRED"),
        (other.token(), "AUTH_USER_MISMATCH"),
        (player.token(stranger), "AUTH_TOKEN_INVALID"),
        (player.token(forged), "AUTH_TOKEN_INVALID"),
        (unsigned, "AUTH_TOKEN_INVALID"),
        (player.token(aud="another installation"), "AUTH_TOKEN_INVALID"),
        (player.token(iss="another issuer"), "AUTH_TOKEN_INVALID"),
        (player.token(scope="withdraw"), "AUTH_TOKEN_INVALID"),
    ]
    code = await player.authenticator.code()
    for number, (token, wanted) in enumerate(attempts):
        result = await gate.answer(Outgoing(order("unproven", "k"), number % PARTITIONS, token, code))
        assert (result["status"], result["reason_code"]) == ("rejected", wanted), result
        assert (result["user_id"], result["idempotency_key"], result["replayed"]) == (None, None, False)
        canceled = await gate.answer(Outgoing(cancel("unproven", "c", "k"), number % PARTITIONS, token))
        assert (canceled["reason_code"], canceled["user_id"]) == (wanted, None)
    # Not even a lock row is made for a user who is named and does not exist.
    await gate.answer(Outgoing(order("no-such-user", "k"), None, None, code))
    assert not await gate.fetch("SELECT FROM audit_chains WHERE account = 'no-such-user'")
    assert not await gate.fetch("SELECT FROM claims WHERE user_id = ANY($1::text[])", ["unproven", "no-such-user"])
    assert await player.event_types() == []
    # The code was not used up by those who had no token.
    result = await player.answer(order("unproven", "k"), code)
    assert result["status"] == "executed"
    assert (await player.event_types(), player.orders) == (_EXECUTED, 1)


@scene("rotating")
async def keys_are_rotated_while_workers_run(gate: GateInstallation, players: dict[str, Player]) -> None:
    """A token of the new key is refused until the file names the key, one of the old key from when it does not name it any more."""
    player = players["rotating"]
    code = await player.authenticator.code()
    early = await gate.answer(Outgoing(order("rotating", "k"), None, player.token(ROTATED_IN), code))
    assert early["reason_code"] == "AUTH_TOKEN_INVALID"
    old = await gate.answer(Outgoing(order("rotating", "first"), None, player.token(ROTATED_OUT), code))
    assert old["status"] == "executed"
    write_trusted_keys(gate.made.log_directory / "trusted.json", [*TRUSTED, ROTATED_IN])
    code = await player.authenticator.code()
    async with asyncio.timeout(30):
        for partition in range(PARTITIONS):
            # Each worker looks at the file once a second; what is refused until then keeps its key.
            while True:
                late = await gate.answer(Outgoing(order("rotating", f"late-{partition}"), partition, player.token(ROTATED_OUT)))
                if late["reason_code"] != "TOTP_MISSING":
                    break
            assert late["reason_code"] == "AUTH_TOKEN_INVALID"
    new = await gate.answer(Outgoing(order("rotating", "k"), None, player.token(ROTATED_IN), code))
    assert new["status"] == "executed"
    assert player.orders == 2


@scene("codes")
async def second_factor_refusals_leave_the_key_free(gate: GateInstallation, players: dict[str, Player]) -> None:
    """Missing, wrong, replayed: each audited and answered to the user, the key stays free, and the right code is then executed."""
    player = players["codes"]
    request = order("codes", "k")
    missing = await player.refused("TOTP_MISSING", request)
    assert (missing["user_id"], missing["idempotency_key"]) == ("codes", None)
    wrong = await player.refused("TOTP_INVALID", request, player.authenticator.wrong_code())
    assert (wrong["user_id"], wrong["idempotency_key"]) == ("codes", None)
    code = await player.authenticator.code()
    first = await player.answer(request, code)
    assert first["status"] == "executed"
    await player.refused("TOTP_REPLAYED", order("codes", "k2"), code)
    await player.executes("k2")
    assert player.orders == 2
    assert await player.event_types() == ["REQUEST_REJECTED", "REQUEST_REJECTED", *_EXECUTED, "REQUEST_REJECTED", *_EXECUTED]


@scene("copied")
async def a_copy_gets_the_stored_answer_again(gate: GateInstallation, players: dict[str, Player]) -> None:
    """A producer that repeats a record, with the code that is used up by then or without any, gets the same answer and no second order."""
    player = players["copied"]
    request, code = order("copied", "k"), await player.authenticator.code()
    first = await player.answer(request, code, partition=0)
    assert first["status"] == "executed"
    for partition, again in ((0, code), (1, code), (2, None), (3, player.authenticator.wrong_code())):
        copy = await player.answer(request, again, partition=partition)
        assert copy == {
            **first,
            "replayed": True,
            "duplicate_of": first["request_id"],
            "source": copy["source"],
            "requested_at": copy["requested_at"],
        }
    # Somebody else's token does not get at it.
    stolen = await gate.answer(Outgoing(request, 0, bearer("somebody", SIGNER), code))
    assert (stolen["reason_code"], stolen["order_id"]) == ("AUTH_USER_MISMATCH", None)
    changed = await player.refused("IDEMPOTENCY_KEY_REUSED", {**request, "quantity": "0.002"}, code)
    assert changed["replayed"]
    assert player.orders == 1


@scene("guessed")
async def five_wrong_codes_lock_until_an_operator_unlocks(gate: GateInstallation, players: dict[str, Player]) -> None:
    """Over all partitions; the right code is refused as well then, and taken again once an operator has unlocked it."""
    player = players["guessed"]
    for number in range(5):
        request = order("guessed", f"guess-{number}")
        sent = Outgoing(request, number % PARTITIONS, player.token(), player.authenticator.wrong_code(number))
        result = await gate.answer(sent)
        assert result["reason_code"] == "TOTP_INVALID"
    code = await player.authenticator.code()
    for partition in range(PARTITIONS):
        locked = await player.answer(order("guessed", "k"), code, partition=partition)
        assert locked["reason_code"] == "TOTP_LOCKED"
    await gate.command("users", "unlock-totp", "guessed", *_REASON)
    result = await player.answer(order("guessed", "k"), code)
    assert result["status"] == "executed"
    types = await player.event_types()
    assert types == [*["REQUEST_REJECTED"] * 4, "USER_LOCKED_TOTP", *["REQUEST_REJECTED"] * 5, "USER_UNLOCKED_TOTP", *_EXECUTED]


@scene("pending", "frozen", "closed")
async def only_active_users_trade(gate: GateInstallation, players: dict[str, Player]) -> None:
    """Each state has its code, and the refusal claims the key: an order that was refused is not executed later by a copy."""
    for status, code in (("pending", "USER_UNVERIFIED"), ("frozen", "USER_INACTIVE"), ("closed", "USER_INACTIVE")):
        player = players[status]
        await gate.pool.execute("UPDATE users SET status = $2 WHERE user_id = $1", status, status)
        totp = await player.authenticator.code()
        await player.refused(code, order(status, "k"), totp)
        await gate.pool.execute("UPDATE users SET status = 'active' WHERE user_id = $1", status)
        copy = await player.refused(code, order(status, "k"), totp)
        assert copy["replayed"]
        # The code was not looked at, so it is still good.
        assert (await player.answer(order(status, "k2"), totp))["status"] == "executed"
        assert player.orders == 1


@scene("revoked", "expired", "run-out", "withdraw-only", "keyless")
async def only_keys_that_may_trade_are_used(gate: GateInstallation, players: dict[str, Player]) -> None:
    """Revoked, expired by status and by time, without the permission, unknown: refused before anything is held or sent."""
    changes = {
        "revoked": ("API_KEY_REVOKED", "UPDATE api_keys SET status = 'revoked' WHERE user_id = $1"),
        "expired": ("API_KEY_EXPIRED", "UPDATE api_keys SET status = 'expired' WHERE user_id = $1"),
        "run-out": ("API_KEY_EXPIRED", "UPDATE api_keys SET expires_at = now() WHERE user_id = $1"),
        "withdraw-only": ("API_KEY_PERMISSION", "UPDATE api_keys SET permissions = '{withdraw}' WHERE user_id = $1"),
        "keyless": ("API_KEY_UNKNOWN", "UPDATE api_keys SET api_key_id = 'other' WHERE user_id = $1"),
    }
    for user_id, (code, change) in changes.items():
        player = players[user_id]
        await gate.pool.execute(change, user_id)
        await player.refused(code, order(user_id, "k"), await player.authenticator.code())
        assert (await player.event_types(), player.orders) == (["REQUEST_REJECTED"], 0)


@scene("refused-there")
async def a_key_that_the_exchange_refuses_is_marked(gate: GateInstallation, players: dict[str, Player]) -> None:
    """The user is told, the trail says it, and the next order is refused before it is sent; a check that finds the key good lifts it."""
    player = players["refused-there"]
    # What a key that was deleted at the exchange looks like from here.
    ciphertext = await gate.replace_key("refused-there", "a-key-that-was-deleted", "its-secret")
    await gate.until_keys_are_forgotten()
    first = await player.refused("API_KEY_PERMISSION", order("refused-there", "k"), await player.authenticator.code())
    assert "Invalid API-key" in first["reason"]
    assert await player.event_types() == ["ORDER_ACCEPTED", "ORDER_SUBMITTED", "KEY_REFUSED", "ORDER_REFUSED"]
    (row,) = await gate.fetch("SELECT status, status_reason FROM api_keys WHERE user_id = 'refused-there'")
    assert (row["status"], row["status_reason"]) == ("refused", first["reason"])
    second = await player.refused("API_KEY_PERMISSION", order("refused-there", "k2"), await player.authenticator.code())
    assert second["order_id"] is None
    assert (await player.event_types())[4:] == ["REQUEST_REJECTED"]
    assert not await gate.fetch("SELECT FROM balances WHERE user_id = 'refused-there' AND pending <> 0")
    assert player.orders == 0
    # The key is good again at the exchange: a check says so, and it may be used.
    await gate.pool.execute("UPDATE api_keys SET ciphertext = $1 WHERE user_id = 'refused-there'", ciphertext)
    await gate.command("keys", "check", "refused-there", "main", "--operator", "ana")
    assert await gate.fetch("SELECT FROM api_keys WHERE user_id = 'refused-there' AND status = 'active'")


@scene("changed-there")
async def a_key_whose_secret_was_changed_there_is_marked(gate: GateInstallation, players: dict[str, Player]) -> None:
    """An exchange that does not know the key, or does not take its signature, refuses the key as much as one that withdraws permissions."""
    player = players["changed-there"]
    await gate.replace_key("changed-there", "key-changed-there", "not-its-secret")
    await gate.until_keys_are_forgotten()
    first = await player.refused("API_KEY_UNKNOWN", order("changed-there", "k"), await player.authenticator.code())
    assert "Signature" in first["reason"]
    assert await player.event_types() == ["ORDER_ACCEPTED", "ORDER_SUBMITTED", "KEY_REFUSED", "ORDER_REFUSED"]
    await player.refused("API_KEY_PERMISSION", order("changed-there", "k2"), await player.authenticator.code())
    assert (await player.event_types())[4:] == ["REQUEST_REJECTED"]


@scene("suspicious")
async def what_fits_a_pattern_freezes_its_user(gate: GateInstallation, players: dict[str, Player]) -> None:
    """Refused with the evidence in the trail, then everything is, on every partition, until an operator lifts it."""
    player = players["suspicious"]
    await gate.limit("suspicious", suspicion_block=30)
    # A first order in a symbol that is worth 100,000 dollars and more.
    await player.refused("SUSPICIOUS_ACTIVITY", order("suspicious", "large", quantity="3"), await player.authenticator.code())
    for partition in range(PARTITIONS):
        frozen = await player.answer(order("suspicious", f"frozen-{partition}"), partition=partition)
        assert frozen["reason_code"] == "USER_INACTIVE"
    refusal, freeze = (await gate.events("suspicious"))[1:3]
    assert (refusal["event_type"], refusal["reason_code"]) == ("REQUEST_REJECTED", "SUSPICIOUS_ACTIVITY")
    assert [line.partition(" ")[0] for line in refusal["evidence"]] == ["first_use_of_symbol_at_size"]
    assert (freeze["event_type"], freeze["evidence"]) == ("USER_FROZEN", refusal["evidence"])
    assert player.orders == 0
    await gate.command("users", "unfreeze", "suspicious", *_REASON)
    await player.executes("small")
    assert player.orders == 1


@scene("failing")
async def refusals_behind_the_code_begin_a_cooldown(gate: GateInstallation, players: dict[str, Player]) -> None:
    """Whatever a token alone is refused for counts nothing; the first refusal behind the code (the limit is one) begins a cooldown, and the
    best order is refused, also on another partition, until the time is over."""
    player = players["failing"]
    await gate.limit("failing", cooldown=3_600, cooldown_failures=1, trade_usd_max=50, daily_volume_usd_max=45)
    for number in range(3):
        too_large = await player.answer(order("failing", f"too-large-{number}", quantity="1"), partition=number)
        assert too_large["reason_code"] == "AMOUNT_ABOVE_MAXIMUM"
    no_key = await player.answer(order("failing", "no-key", api_key_id="none"), await player.authenticator.code(), partition=0)
    # A key that is not there is a mistake in typing: it counts nothing either.
    assert no_key["reason_code"] == "API_KEY_UNKNOWN"
    over = await player.answer(order("failing", "over", quantity="0.00115"), await player.authenticator.code(), partition=2)
    assert over["reason_code"] == "DAILY_VOLUME_EXCEEDED"
    early = await player.answer(order("failing", "early"), await player.authenticator.code(), partition=3)
    assert early["reason_code"] == "COOLDOWN_ACTIVE"
    assert player.orders == 0
    await gate.command("limits", "set", "failing", "cooldown", "0", *_REASON)
    await player.executes("late")
    assert player.orders == 1


@scene("resting")
async def cancels_need_no_second_factor(gate: GateInstallation, players: dict[str, Player]) -> None:
    """A resting order is canceled by a token alone, also by that of a user who was frozen meanwhile; without a token it stays."""
    player = players["resting"]
    sent = Outgoing(resting("resting", "k", "buy", "0.1", "30000"), None, player.token(), await player.authenticator.code())
    (where,) = await gate.send(sent)
    await gate.results.until(where, lambda result: result["status"] == "open", 60)
    await gate.pool.execute("UPDATE users SET status = 'frozen' WHERE user_id = 'resting'")
    unproven = await gate.answer(Outgoing(cancel("resting", "c", "k")))
    assert unproven["reason_code"] == "AUTH_TOKEN_MISSING"
    canceled = await player.answer(cancel("resting", "c", "k"))
    assert (canceled["status"], canceled["reason_code"], canceled["reason"]) == ("executed", None, None)
    ended = await gate.results.until(where, lambda result: bool(result["final"]), 60)
    assert ended["status"] == "canceled"


LATE = ("late-token", "expired-token", "late-code")
_SHORT_SECONDS = 3


async def _sent_before_any_worker(gate: GateInstallation, players: dict[str, Player]) -> Callable[[], Awaitable[None]]:
    """Publishes what is good for a moment only, and waits until it is not any more; returns what looks at the answers."""
    late, expired, coded = (players[user_id] for user_id in LATE)
    expires_at = int(time.time()) + _SHORT_SECONDS
    sent = await gate.send(
        Outgoing(order(late.user_id, "k"), None, late.token(exp=expires_at), await late.authenticator.code()),
        Outgoing(order(expired.user_id, "k"), None, expired.token(seconds=-1)),
        Outgoing(order(coded.user_id, "k"), None, coded.token(), await coded.authenticator.code()),
    )
    while time.time() <= expires_at:
        await asyncio.sleep(0.1)

    async def judge() -> None:
        answers = (("executed", None), ("rejected", "AUTH_TOKEN_EXPIRED"), ("executed", None))
        for where, answer in zip(sent, answers, strict=True):
            result = await gate.results.until(where, lambda result: bool(result["final"]), 60)
            assert (result["status"], result["reason_code"]) == answer, result
            assert datetime.fromisoformat(result["decided_at"]).timestamp() > expires_at

    return judge


async def test_gate_refuses_and_accepts_as_promised(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Every scene of this module, at one installation at the same time; what was sent while no worker ran is judged by its append time."""
    users = [*LATE, *(user for _, named in SCENES for user in named)]
    async with gate_installation(
        kafka, database_url, unique_prefix, tmp_path, users, "--walk-ms", "0",
        issuers=[*TRUSTED, ROTATED_OUT], settings={"TOKEN_LEEWAY_SECONDS": "0"}, cooldown_failures=3,
    ) as gate:  # fmt: skip
        await gate.set_at_the_exchange("price", {"symbol": "BTCUSDT", "price": "40000"})
        players = {user: Player(gate, user, await gate.enrol(user)) for user in users}
        judge_late = await _sent_before_any_worker(gate, players)
        gate.start_workers()
        await gate.until_shared()
        await judge_late()
        ended = await asyncio.gather(*(play(gate, players) for play, _ in SCENES), return_exceptions=True)
        failures = [
            f"{play.__name__}: {type(error).__name__}: {error}"
            for (play, _), error in zip(SCENES, ended, strict=True)
            if error is not None
        ]
        assert not failures, "\n\n".join(failures)
        await assert_promises_hold(gate.made)
