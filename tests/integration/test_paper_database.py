"""What the database keeps and tells of simulated orders: apart from all that limits real ones, and still from the index alone."""

from datetime import timedelta
from decimal import Decimal

from agents.process.app import utc_now
from infra.postgres.admin.paper_funds import PaperFunds, fund_paper
from infra.postgres.gate import accounts
from infra.postgres.trips import exchanges_in_doubt
from pipeline.model.conduct import Conduct
from tests.claiming import claimed
from tests.integration.step_database import open_database, plain_connection, take_in, taken
from tests.unit.builders import EXCHANGE, NOW, WIDE_LIMITS, arrival, limit

_SECOND = timedelta(seconds=1)


async def test_paper_orders_are_read_apart_from_real_ones(database_url: str) -> None:
    """One order of each mode: the real one is volume, trade, open, recent and a known symbol; the simulated one is an open one of its own.
    One in doubt in the simulation is no sign that the exchange is in trouble."""
    documents = [limit(), limit(idempotency_key="paper", mode="paper", symbol="BTC/USDT", quantity="0.002")]
    async with open_database(database_url) as database, plain_connection(database_url) as plain:
        await fund_paper(database, "alice", PaperFunds(EXCHANGE, "USDT", Decimal(1_000)), claimed("ana", NOW))
        await take_in(database, await taken(database), [arrival(document, offset) for offset, document in enumerate(documents)], 2)
        async with database.connection() as connection:
            asked = ["alice"], [("alice", "BTC/USDT")], {"alice": Conduct()}, WIDE_LIMITS
            states = await accounts(connection, *asked, lambda *_: "", NOW + _SECOND)
            assert await connection.fetchval("SELECT trades FROM user_days") == 1
            assert await connection.fetchval("SELECT count(*) FROM user_symbols") == 1
        state = states["alice"]
        assert (state.usage.volume_24h_usd, state.usage.trades_1h, len(state.recent)) == (Decimal(40), 1, 1)
        assert [order.leaves_quantity for order in state.open_orders] == [Decimal("0.001")]
        assert [order.leaves_quantity for order in state.open_paper_orders] == [Decimal("0.002")]
        doubt = "UPDATE orders SET status = 'in_doubt', submitting_at = now() WHERE mode = $1"
        for mode, found in (("paper", {}), ("live", {EXCHANGE: 1})):
            await plain.execute(doubt, mode)
            async with database.connection() as connection:
                assert await exchanges_in_doubt(connection, 1, utc_now() + _SECOND) == found
                # A worker that is killed puts a whole batch in doubt, and look-ups need their time.
                assert await exchanges_in_doubt(connection, 1, utc_now() - timedelta(minutes=1)) == {}


async def test_day_of_real_orders_is_read_from_the_index_alone(database_url: str) -> None:
    """The mode is part of the index, so that it costs no look at the table."""
    async with open_database(database_url), plain_connection(database_url) as plain:
        await plain.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        rows = await plain.fetch(
            "EXPLAIN SELECT sum(usd_value), count(*) FILTER (WHERE decided_at > now()) FROM orders "
            "WHERE user_id = 'alice' AND mode = 'live' AND decided_at > now()"
        )
        plan = "\n".join(row[0] for row in rows)
        assert "Index Only Scan using orders_decided" in plan, plan
