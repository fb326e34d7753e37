"""What tests of a rolling update share: an installation that begins with a worker of the last release, requests of every kind, and which
worker owns what."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final

from tests.installation import Installation, installation, order
from tests.last_release import source_of_last_release
from tests.withdrawing import QUICK, allow_withdrawals, run_sql, withdrawal

PARTITIONS: Final = 4
# A worker on a machine that is busy with other tests.
_STARTS_SECONDS_MAX: Final = 120
# A buy that far below the market rests.
RESTING: Final = {"side": "buy", "order_type": "limit", "price": "10000", "quantity": "0.001", "time_in_force": "GTC"}


def requests(first: int) -> list[dict[str, Any]]:
    """One of each eight users: orders that fill, orders that rest, and withdrawals."""
    numbers = range(first, first + 24)
    fields = [RESTING if number % 3 == 1 else {} for number in numbers]
    orders = [order(number, **given) for number, given in zip(numbers, fields, strict=True)]
    return orders + [withdrawal(number) for number in range(first, first + 8)]


def resting_of(first: int) -> list[int]:
    """The numbers of those that rest."""
    return [number for number in range(first, first + 24) if number % 3 == 1]


def cancel(number: int) -> dict[str, Any]:
    """A cancel of an order by its number."""
    named = {"schema_version": 1, "type": "cancel", "mode": "live", "expires_at": "2100-01-01T00:00:00Z"}
    return {
        **named, "idempotency_key": f"cancel-{number}", "user_id": order(number)["user_id"], "target_idempotency_key": f"key-{number}"
    }


async def until(made: Installation, statement: str, within_seconds: float, *values: object) -> None:
    """Waits for a statement to give true."""
    deadline = monotonic() + within_seconds
    while not (await run_sql(made, statement, *values))[0]["found"]:
        assert monotonic() < deadline, f"never true: {statement}"
        await asyncio.sleep(0.02)


def owned_by(made: Installation, number: int, topic: str) -> list[int]:
    """The partitions of a topic that a worker was assigned last."""
    newest = [event["partitions"] for event in made.events(number) if event.get("event") == "partitions_assigned"][-1]
    named = [name.rpartition("/") for name in newest]
    return [int(partition) for name, _, partition in named if name.endswith(topic)]


async def shared(made: Installation, numbers: Sequence[int]) -> None:
    """Waits until each of two workers owns some partitions of both topics."""
    deadline = monotonic() + _STARTS_SECONDS_MAX
    while True:
        assigned = [any(event.get("event") == "partitions_assigned" for event in made.events(number)) for number in numbers]
        if all(assigned):
            owned = [owned_by(made, number, topic) for number in numbers for topic in (made.topics.requests, made.topics.orders("binance"))]
            if all(owned) and sum(map(len, owned)) == 2 * PARTITIONS:
                return
        assert monotonic() < deadline, "the two never shared the partitions"
        await asyncio.sleep(0.1)


@asynccontextmanager
async def updating(kafka: str, database_url: str, prefix: str, directory: Path, **first: str) -> AsyncIterator[tuple[Installation, Path]]:
    """An installation whose database was made by the last release, with a worker of it (number 0) at work while the code here migrated it;
    and where the last release's source lies. `first` are the switches of that worker: without any it is the product's own."""
    source = source_of_last_release(directory / "last_release")

    async def begin(made: Installation) -> None:
        made.start_worker("tests.worker_under_test" if first else "agents", source, **QUICK, **first)
        await made.event(0, "worker_started", _STARTS_SECONDS_MAX)

    async with installation(kafka, database_url, prefix, directory, before_migration=begin, kafka_partitions=PARTITIONS) as made:
        await allow_withdrawals(made)
        yield made, source
