"""A replaced key: what it finds, and what it does not, is no word about what was sent with the one before it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from aiohttp import web

from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.gateway import Credentials
from pipeline.model.venue import Found, KeyVersion, LookUpFailed, Refused
from pipeline.model.withdrawal import WithdrawalHistory
from schemas.reasons import ReasonCode
from tests.integration.scripted_venue import ORDER, ScriptedVenue, answers, order_row, reference, running_venue, submission, trade_row


@dataclass
class _Replaced:
    venue: ScriptedVenue
    gateway: CcxtGateway
    key: Credentials


@asynccontextmanager
async def _replaced(account_id: str | None) -> AsyncIterator[_Replaced]:
    """A venue where an order stands, filled, in the account of the old key alone, and a gateway that has the new key."""
    async with running_venue() as venue:

        async def get_order(request: web.Request) -> web.StreamResponse:
            if request.headers["X-MBX-APIKEY"] == "other":
                return web.json_response({"code": -2013, "msg": "Order does not exist."}, status=400)
            return web.json_response(order_row("co-1", status="FILLED", executed="0.001", paid="50"))

        async def trades(_request: web.Request) -> web.StreamResponse:
            return web.json_response([trade_row()])

        venue.answers["GET", ORDER] = get_order
        venue.answers["GET", "/api/v3/myTrades"] = trades
        made = _Replaced(venue, None, Credentials("other", "secret", version=2, account_id=account_id))  # type: ignore[arg-type]  # below

        async def credentials(_user_id: str, _api_key_id: str) -> Credentials:
            return made.key

        made.gateway = CcxtGateway("binance", credentials, base_url=venue.url, rate_limit=False)
        try:
            await made.gateway.markets()
            venue.arrivals.clear()
            yield made
        finally:
            await made.gateway.close()


async def test_absence_in_another_account_is_no_answer() -> None:
    """Nothing is asked either: whatever the other account shows, it is not about this order."""
    for known, account in ((None, None), ("7", "8"), ("7", None)):
        async with _replaced(account) as made:
            outcome = await made.gateway.look_up(replace(reference(), sent_with=KeyVersion(1, known)))
            assert isinstance(outcome, LookUpFailed), outcome
            assert "not proven to be of the same account" in outcome.detail
            assert made.venue.arrivals == []


async def test_cancel_with_the_key_of_another_account_is_not_sent() -> None:
    """It would end another order of that name, or say of this one that it is gone."""
    async with _replaced(None) as made:
        outcome = await made.gateway.cancel(replace(reference(), sent_with=KeyVersion(1)))
        assert isinstance(outcome, Refused), outcome
        assert made.venue.arrivals == []


async def test_another_key_of_the_same_account_answers() -> None:
    """The account has the order, whichever of its keys asks."""
    async with _replaced("7") as made:
        made.key = Credentials("second", "secret", version=2, account_id="7")
        outcome = await made.gateway.look_up(replace(reference(), sent_with=KeyVersion(1, "7")))
        assert isinstance(outcome, Found), outcome


async def test_order_whose_key_is_replaced_between_intent_and_call_is_not_sent() -> None:
    """The stored intent would name an account that it was not sent with; its turn comes again."""
    async with _replaced(None) as made:
        outcome = await made.gateway.submit(replace(submission(), sent_with=KeyVersion(1)))
        assert isinstance(outcome, Refused), outcome
        assert outcome.reason_code is ReasonCode.EXCHANGE_UNAVAILABLE
        assert made.venue.orders_arrived() == []


async def test_history_of_another_accounts_withdrawals_is_no_answer() -> None:
    """A payout that was sent with the key before would look absent there; a key of the same account answers for it."""
    since, until = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC)
    for known, account, answered in ((None, None, False), ("7", "8", False), ("7", "7", True)):
        async with _replaced(account) as made:
            made.venue.answers["GET", "/sapi/v1/capital/withdraw/history"] = answers(200, [])
            found = await made.gateway.withdrawal_history("alice", "key-1", since, until, KeyVersion(1, known), until)
            assert isinstance(found, WithdrawalHistory if answered else LookUpFailed), found
            asked = [arrived.path for arrived in made.venue.arrivals if arrived.path.endswith("/withdraw/history")]
            assert bool(asked) is answered
