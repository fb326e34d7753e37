"""Deposits through the gateway, over real HTTP: what the exchange's history says, as it lists it and as it does not."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from infra.exchange.ccxt.gateway import CcxtGateway
from infra.exchange.venues.binance.venue import BINANCE, BINANCE_US
from infra.exchange.venues.pages import by_offset
from infra.exchange.venues.reading import UnreadableBooks
from pipeline.model.deposit import VenueDeposit
from pipeline.model.venue import LookUpFailed
from schemas.orders import DepositStatus
from tests.depositing import ADDRESS, HISTORY
from tests.integration.scripted_venue import API_KEY
from tests.integration.test_gateway_simulator import Simulator, simulated

UNREADABLE = (
    "hang_before_accept", "drop_before_accept", "http_500_before_accept", "http_503_unavailable", "truncated_body", "cut_json", "html_200",
    "empty_json_200",
)  # fmt: skip


async def _arrive(simulator: Simulator, amount: str, **fields: Any) -> dict[str, str]:
    given = {"api_key": API_KEY, "asset": "USDT", "amount": amount, "network": "ETH", "address": ADDRESS, **fields}
    answer: dict[str, str] = await simulator.admin("POST", "deposits", given)
    return answer


async def _shown(gateway: CcxtGateway, since: timedelta = timedelta(minutes=5)) -> dict[str, VenueDeposit]:
    now = datetime.now(UTC)
    found = await gateway.deposit_history("alice", "main", now - since, now + timedelta(minutes=1))
    assert not isinstance(found, LookUpFailed) and not found.unreadable, found
    rows = {row.exchange_deposit_id: row for row in found.rows}
    assert len(rows) == len(found.rows)
    return rows


async def test_history_shows_each_deposit_once_with_the_exchange_s_word(tmp_path: Path) -> None:
    """Every status as documented, decimals exact, tag and times, listed twice or not; one that is listed late comes later."""
    async with simulated(tmp_path) as (simulator, gateway):
        began = datetime.now(UTC) - timedelta(seconds=1)
        held = await _arrive(simulator, "25.12345678", held=True, listings=3, address_tag="77")
        late = await _arrive(simulator, "3", listed_after_ms=700)
        rows = await _shown(gateway)
        assert rows.keys() == {held["id"]}
        row = rows[held["id"]]
        assert (row.transaction_id, row.amount, row.asset, row.network, row.address, row.address_tag) == (
            held["txId"], Decimal("25.12345678"), "USDT", "ETH", ADDRESS, "77",
        )  # fmt: skip
        assert row.arrived_at >= began and row.completed_at is None
        for number, status in ((8, DepositStatus.DETECTED), (6, DepositStatus.CONFIRMING), (7, DepositStatus.REJECTED)):
            await simulator.admin("POST", "deposits/mark", {"id": held["id"], "status": number})
            assert (await _shown(gateway))[held["id"]].status is status
        await simulator.admin("POST", "deposits/credit", {"id": held["id"]})
        credited = (await _shown(gateway))[held["id"]]
        assert credited.status is DepositStatus.CREDITED and credited.completed_at is not None and credited.completed_at >= began
        await simulator.admin("POST", "deposits/mark", {"id": held["id"], "status": 2})
        assert (await _shown(gateway))[held["id"]].status is DepositStatus.REJECTED
        async with asyncio.timeout(60):
            while late["id"] not in await _shown(gateway):
                await asyncio.sleep(0.05)
        # What came before the window is not shown.
        assert await _shown(gateway, timedelta(seconds=-30)) == {}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_answer_that_is_no_whole_list_tells_nothing(kind: str, tmp_path: Path) -> None:
    """Silence, errors and nonsense are not an empty list."""
    async with simulated(tmp_path) as (simulator, gateway):
        await simulator.admin("POST", "faults", [{"kind": kind, "next_n": 1, "method": "GET", "path": HISTORY}])
        now = datetime.now(UTC)
        assert isinstance(await gateway.deposit_history("alice", "main", now - timedelta(hours=1), now), LookUpFailed)


async def test_history_of_more_pages_than_allowed_tells_nothing() -> None:
    """Pages are bounded; up to the bound all of them are read, and a row that moves to the next page counts once."""
    rows = [{"id": str(number)} for number in range(20)]

    def pages_of(page: int) -> Callable[[int], Awaitable[list[dict[str, str]]]]:
        async def ask(offset: int) -> list[dict[str, str]]:
            return rows[max(0, offset - 1) :][:page]

        return ask

    assert await by_offset(pages_of(3), 3, "deposits") == rows
    with pytest.raises(UnreadableBooks):
        await by_offset(pages_of(2), 2, "deposits")


_ROW = {
    "id": "1", "amount": "1.5", "coin": "USDT", "network": "ETH", "status": 1, "address": "a", "addressTag": "", "txId": "t",
    "insertTime": 1_700_000_000_000,
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"status": 3}, {"status": None}, {"amount": 1.5}, {"amount": "0"}, {"amount": "-1"}, {"amount": None}, {"id": ""}, {"coin": ""},
        {"txId": ""}, {"insertTime": None}, {"insertTime": "soon"}, {"address": "a" * 600},
    ],
)  # fmt: skip
def test_entry_that_cannot_be_read_is_told_and_not_guessed_at(fields: dict[str, Any]) -> None:
    """A status that is not documented, a float, no amount, no id, no time."""
    assert BINANCE.deposits is not None
    with pytest.raises(UnreadableBooks):
        BINANCE.deposits.read({**_ROW, **fields}, timedelta(0))


def test_entry_on_its_way_without_a_transaction_is_waited_for() -> None:
    """It is known by its transaction: before there is one nothing is noted, so that it is never two deposits."""
    assert BINANCE.deposits is not None
    assert BINANCE.deposits.read({**_ROW, "status": 0, "txId": ""}, timedelta(0)) is None
    assert BINANCE_US.deposits is None
