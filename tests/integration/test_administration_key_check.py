"""Asking a venue about a key: what it accepts, what it refuses, and what proves nothing."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.gateway import Credentials
from infra.exchange.key_check import KeyAccepted, KeyRefused, KeyUnanswered
from schemas.reasons import ReasonCode
from simulator.options import SimulatorOptions
from simulator.process import start
from tests.integration.scripted_venue import API_KEY, SECRET, Answer, answers, drop, error, gateway_to, hang, running_venue, truncate
from tests.integration.simulator_client import client_of

RESTRICTIONS = ("GET", "/sapi/v1/account/apiRestrictions")
ACCOUNT = ("GET", "/api/v3/account")
GRANTED = {
    "ipRestrict": True, "createTime": 1_698_645_219_000, "enableReading": True, "enableWithdrawals": False, "enableFutures": False,
    "enableMargin": False, "enableSpotAndMarginTrading": True, "tradingAuthorityExpirationTime": 1_893_456_000_000,
}  # fmt: skip


async def test_key_check_reads_what_the_key_may_do() -> None:
    """Permissions, restriction to addresses and the end of the trading permission come from the venue's own answer, in one signed read."""
    async with running_venue(answers={RESTRICTIONS: answers(200, GRANTED)}) as venue, gateway_to(venue) as gateway:
        answer = await gateway.check_key("alice", "key-1")
        assert answer == KeyAccepted(frozenset({"trade"}), True, True, datetime(2030, 1, 1, tzinfo=UTC))
        (arrival,) = venue.arrivals
        assert (arrival.method, arrival.path) == RESTRICTIONS
        assert arrival.headers["X-MBX-APIKEY"] == API_KEY
        assert "signature" in arrival.query


async def test_key_check_where_there_are_no_wallet_endpoints_asks_about_the_account() -> None:
    """A sandbox has no such endpoint: its account tells that the key is taken, and the answer says that it is about no more."""
    given = {
        RESTRICTIONS: answers(404, "<html>not found</html>", "text/html"),
        ACCOUNT: answers(200, {"canTrade": True, "canWithdraw": True}),
    }
    async with running_venue(answers=given) as venue, gateway_to(venue) as gateway:
        assert await gateway.check_key("alice", "key-1") == KeyAccepted(frozenset({"trade", "withdraw"}), is_of_key=False)
    async with running_venue(answers={ACCOUNT: given[ACCOUNT]}) as venue, gateway_to(venue, "binanceus") as gateway:
        assert isinstance(await gateway.check_key("alice", "key-1"), KeyAccepted)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (error(401, -2015, "Invalid API-key, IP, or permissions for action."), ReasonCode.API_KEY_PERMISSION),
        (error(401, -2014, "API-key format invalid."), ReasonCode.API_KEY_UNKNOWN),
        (error(400, -1022, "Signature for this request is not valid."), ReasonCode.API_KEY_UNKNOWN),
    ],
)
async def test_key_check_refused_by_the_venue_says_so_in_its_words(answer: Answer, reason: ReasonCode) -> None:
    """Only these prove that the key may not be used; neither key nor secret is in what is told."""
    async with running_venue(answers={RESTRICTIONS: answer}) as venue, gateway_to(venue) as gateway:
        found = await gateway.check_key("alice", "key-1")
        assert isinstance(found, KeyRefused), found
        assert found.reason is reason
        assert "binance HTTP 40" in found.detail
        assert API_KEY not in repr(found)
        assert SECRET not in repr(found)


@pytest.mark.parametrize(
    "answer",
    [
        hang, drop, truncate,
        error(503, -1000, "Unknown error"), error(429, -1003, "Too much request weight used."), error(400, -1021, "Timestamp."),
        error(418, -2015, "banned"), answers(200, {}), answers(200, []), answers(200, {**GRANTED, "enableWithdrawals": "yes"}),
        answers(403, "<html>denied</html>", "text/html"),
    ],
)  # fmt: skip
async def test_key_check_without_a_proof_says_nothing_about_the_key(answer: Answer) -> None:
    """A venue that is down, busy or unreadable must not cost a user a good key."""
    async with running_venue(answers={RESTRICTIONS: answer}) as venue, gateway_to(venue, timeout_ms=300) as gateway:
        found = await gateway.check_key("alice", "key-1")
        assert isinstance(found, KeyUnanswered), found
        assert SECRET not in repr(found)


async def test_key_check_of_a_key_that_is_not_there_asks_nobody() -> None:
    """Without credentials nothing goes out."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        assert isinstance(await gateway.check_key("alice", "other"), KeyUnanswered)
        assert not venue.arrivals


async def test_key_check_of_a_venue_that_is_away_says_nothing_about_the_key() -> None:
    """Nobody listens: unanswered, not refused."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        await venue.stop()
        assert isinstance(await gateway.check_key("alice", "key-1"), KeyUnanswered)


async def test_key_check_at_the_simulated_exchange_knows_its_accounts(tmp_path: Path) -> None:
    """It takes a key that it has made, and refuses another, and a wrong secret, in Binance's words."""
    process = start(SimulatorOptions(tmp_path, walk_ms=0))
    try:
        async with client_of(process.url) as client:
            known = {
                "good": Credentials(client.api_key, client.secret),
                "unknown": Credentials("nobody", client.secret),
                "forged": Credentials(client.api_key, "x" * 32),
            }

            async def credentials(_user_id: str, api_key_id: str) -> Credentials | None:
                return known.get(api_key_id)

            gateway = CcxtGateway("binance", credentials, base_url=process.url, rate_limit=False)
            try:
                assert await gateway.check_key("u", "good") == KeyAccepted(frozenset({"trade", "withdraw"}), True, False, None)
                unknown, forged = await gateway.check_key("u", "unknown"), await gateway.check_key("u", "forged")
            finally:
                await gateway.close()
        assert isinstance(unknown, KeyRefused)
        assert "-2015" in unknown.detail
        assert isinstance(forged, KeyRefused)
        assert "-1022" in forged.detail
    finally:
        process.stop()
