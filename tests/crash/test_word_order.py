"""What topics say last about an order is what the database says: the words of two input partitions must not overtake each other."""

import asyncio
from pathlib import Path

import pytest

from tests.installation import ended, installation, order, unique_file
from tests.promises import assert_promises_hold


@pytest.mark.timeout(600)
async def test_word_of_a_resolved_order_is_not_overtaken_by_its_doubt(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A batch puts an interrupted order in doubt and then waits for a slow call; meanwhile a look-up resolves the order. The doubt, which
    is older, must not be what the topics say last."""
    async with installation(kafka, database_url, unique_prefix, tmp_path, kafka_partitions=1) as made:
        # While the first call is slow, the second order is queued behind it; then the worker dies.
        await made.faults({"kind": "slow", "next_n": 1, "delay_ms": 900})
        first = made.start_worker(TEST_AT="after_exchange_call@trade.orders.binance:1", TEST_THEN="kill", TEST_ONCE=unique_file(tmp_path))
        sent = await made.publish([order(0)])
        async with asyncio.timeout(30):
            while not await made.read(made.topics.orders("binance")):
                await asyncio.sleep(0.1)
        sent += await made.publish([order(1)])
        await ended(first, 30)
        # The next worker takes both in one batch: it puts the first in doubt and calls for the second, which hangs.
        await made.faults({"kind": "hang_before_accept", "next_n": 1})
        made.start_worker("agents")
        await made.final_results(sent, 120)
        await assert_promises_hold(made)
