"""What the database says a user has used of the rolling limits is what the user's orders add up to, whatever the time of day."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import pytest

from infra.postgres.database import Database
from infra.postgres.gate import accounts
from pipeline.gate.context import Usage
from pipeline.model.conduct import Conduct
from tests.integration.step_database import open_database, take_in, taken
from tests.unit.builders import PRICE, WIDE_LIMITS, arrival, trade

_MIDNIGHT: Final = datetime(2026, 11, 24, tzinfo=UTC)
_MOMENT: Final = timedelta(microseconds=1)
_DAY: Final = timedelta(hours=24)
# Around midnight, a day and an hour before the moments that are asked about, and on both ends of the month.
_DECIDED_AT: Final = sorted(
    {
        *(_MIDNIGHT + timedelta(days=days) for days in (-32, -31, -30, -2, -1, 0, 1)),
        *(_MIDNIGHT + timedelta(days=days) - _MOMENT for days in (-30, -29, -1, 0, 1)),
        *(_MIDNIGHT + timedelta(hours=hours) for hours in (-23, -14, -10, -1, 0.5, 9, 9.5, 10)),
        *(_MIDNIGHT + timedelta(hours=hours) + _MOMENT for hours in (-14, 9)),
    }
)


async def _usage(database: Database, now: datetime) -> Usage:
    async with database.connection() as connection:
        found = await accounts(connection, ["alice"], [], {"alice": Conduct()}, WIDE_LIMITS, lambda user, key, text: "", now)
    return found["alice"].usage


@pytest.mark.parametrize("hours", [0, 0.5, 10, 23.9])
async def test_usage_is_the_sum_of_the_orders(database_url: str, hours: float) -> None:
    """Volume of 24 hours and trades of one, by the time of acceptance and without the first moment; the mean of the 30 days before today.
    Orders that another worker's clock has put ahead of this one's, past midnight too, count as of now."""
    now = _MIDNIGHT + timedelta(hours=hours)
    decided: list[tuple[datetime, Decimal]] = []
    async with open_database(database_url) as database:
        owned = await taken(database)
        for number, at in enumerate(_DECIDED_AT):
            quantity = Decimal(number + 1) / 1_000
            record = arrival(trade(idempotency_key=f"k{number}", quantity=str(quantity)), number, appended_at=at)
            changes, _ = await take_in(database, owned, [record], number + 1, now=at)
            assert len(changes.orders.made) == 1
            decided.append((at, quantity * PRICE))
        usage = await _usage(database, now)
    assert usage.volume_24h_usd == sum(value for at, value in decided if at > now - _DAY)
    assert usage.trades_1h == sum(at > now - timedelta(hours=1) for at, _ in decided)
    today = now.date()
    assert usage.mean_daily_usd * 30 == sum(value for at, value in decided if today - timedelta(days=30) <= at.date() < today)


async def test_usage_of_who_never_traded_is_nothing(database_url: str) -> None:
    """No orders, no rows of sums."""
    async with open_database(database_url) as database:
        assert await _usage(database, _MIDNIGHT) == Usage()
