"""What a market data feed knows, and what it says when the venue is silent, over real HTTP."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from structlog.testing import capture_logs

from agents.watches.networks import NetworkFeed
from infra.exchange.gateway import VenueUnavailable
from infra.exchange.market_data import MarketDataFeed
from pipeline.model.venue import Confirmed, Market, Quote
from schemas.orders import OrderType
from tests.integration.scripted_venue import answers, error, gateway_to, in_turn, running_venue, submission

PRICES = "/api/v3/ticker/price"


async def test_markets_are_read_exactly() -> None:
    """Steps, bounds and fee rate are the venue's own decimal strings."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        markets = await gateway.markets()
        assert markets["BTC/USDT"] == Market(
            symbol="BTC/USDT", base="BTC", quote="USDT", active=True, price_tick=Decimal("0.01"), quantity_step=Decimal("0.00001"),
            quantity_min=Decimal("0.00001"), quantity_max=Decimal(9000), notional_min=Decimal(5), taker_fee_rate=Decimal("0.001"),
            price_min=Decimal("0.01"), price_max=Decimal(1_000_000), notional_max=Decimal(9_000_000), quote_places=8,
            order_types=frozenset({OrderType.MARKET, OrderType.LIMIT, OrderType.LIMIT_MAKER}),
            market_id="BTCUSDT",
        )


NO_MARKETS: list[object] = [{}, [], "", "<html>", {"symbols": []}, {"symbols": [{}]}, {"symbols": [1]}, {"symbols": "x"}, {"symbols": None}]


@pytest.mark.parametrize("answer", NO_MARKETS)
async def test_markets_unreadable_raise(answer: object) -> None:
    """Whatever a venue sends in place of its markets, it is unavailable; the markets known before stay in use."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", "/api/v3/exchangeInfo"] = answers(200, answer)
        with pytest.raises(VenueUnavailable):
            await gateway.markets()
        assert isinstance(await gateway.submit(submission()), Confirmed)


async def test_quotes_are_as_old_as_the_question() -> None:
    """A price is exact, and never looks younger than the moment it was asked for."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        before = datetime.now(UTC)
        quotes = await gateway.quotes(["BTC/USDT", "NOT/THERE"])
        assert set(quotes) == {"BTC/USDT"}
        assert quotes["BTC/USDT"].price == Decimal("50000.01")
        assert before <= quotes["BTC/USDT"].observed_at <= datetime.now(UTC)


async def test_quotes_venue_silent_raises() -> None:
    """No answer is no price."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", PRICES] = error(503, -1008, "Server is currently overloaded.")
        with pytest.raises(VenueUnavailable):
            await gateway.quotes(["BTC/USDT"])


async def test_feed_venue_silent_keeps_old_prices_and_logs_each_change_once() -> None:
    """While the venue is down the snapshot keeps its old times; down and up are one log line each."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        feed = MarketDataFeed(gateway, timedelta(milliseconds=10))
        with capture_logs() as logs:
            assert await feed.poll()
            known = feed.snapshot
            venue.answers["GET", PRICES] = answers(502, "<html>Bad gateway</html>", "text/html")
            for _ in range(3):
                assert not await feed.poll()
            assert feed.snapshot == known
            del venue.answers["GET", PRICES]
            for _ in range(3):
                assert await feed.poll()
        assert feed.snapshot.quotes["BTC/USDT"].observed_at > known.quotes["BTC/USDT"].observed_at
        assert [line["event"] for line in logs] == ["market_data_silent", "market_data_answers_again"]


async def test_feed_never_answered_is_empty() -> None:
    """Nothing is invented: a venue that never answered leaves an empty snapshot, which refuses every trade."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", "/api/v3/exchangeInfo"] = error(503, -1008, "Server is currently overloaded.")
        feed = MarketDataFeed(gateway, timedelta(milliseconds=10))
        assert not await feed.poll()
        assert (feed.snapshot.exchange, feed.snapshot.markets, feed.snapshot.quotes) == ("binance", {}, {})


async def test_feed_a_price_left_out_keeps_its_old_time() -> None:
    """A symbol that the venue stops quoting grows old alone."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        feed = MarketDataFeed(gateway, timedelta(milliseconds=10))
        await feed.poll()
        first = feed.snapshot.quotes
        venue.answers["GET", PRICES] = answers(200, [{"symbol": "BTCUSDT", "price": "51000.00"}])
        await feed.poll()
        assert feed.snapshot.quotes["BTC/USDT"].price == Decimal(51_000)
        assert feed.snapshot.quotes["ETH/USDT"] == first["ETH/USDT"]


async def test_feed_runs_until_stopped() -> None:
    """`start` polls by itself, `stop` ends it."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        feed = MarketDataFeed(gateway, timedelta(milliseconds=5))
        feed.start()
        assert await feed.first_answer(timeout_seconds=10)
        with pytest.raises(RuntimeError):
            feed.start()
        await feed.stop()
        asked = len(venue.arrivals)
        await asyncio.sleep(0.05)
        assert len(venue.arrivals) == asked
        await feed.stop()


async def test_feed_first_answer_of_a_silent_venue_times_out() -> None:
    """Waiting for the first answer is bounded."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", PRICES] = error(503, -1008, "Server is currently overloaded.")
        feed = MarketDataFeed(gateway, timedelta(milliseconds=5))
        feed.start()
        assert not await feed.first_answer(timeout_seconds=0.1)
        await feed.stop()


@pytest.mark.parametrize("answer", [
    [{"symbol": "BTCUSDT", "price": "nonsense"}], [{"symbol": "BTCUSDT"}], [{"symbol": "BTCUSDT", "price": None}], {"price": "1"}, {},
])
async def test_quotes_unreadable_raise(answer: object) -> None:
    """A price that cannot be read is no price, and the venue counts as silent."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", PRICES] = answers(200, answer)
        with pytest.raises(VenueUnavailable):
            await gateway.quotes(["BTC/USDT"])


@pytest.mark.parametrize("price", ["0", "0.00000000", "-1", "0.0000000000000000001", "1" + "0" * 20])
async def test_quotes_that_are_no_price_are_left_out(price: str) -> None:
    """A market without a trade shows zero, and a price may have more digits than an amount of ours; nothing can be valued with that."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", PRICES] = answers(200, [{"symbol": "BTCUSDT", "price": price}, {"symbol": "ETHUSDT", "price": "2"}])
        assert set(await gateway.quotes(["BTC/USDT", "ETH/USDT"])) == {"ETH/USDT"}


async def test_quotes_number_in_json_stays_exact() -> None:
    """A venue that sends a JSON number is read without passing through a float."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        venue.answers["GET", PRICES] = answers(200, '[{"symbol": "BTCUSDT", "price": 50000.123456789012345678}]')
        assert (await gateway.quotes(["BTC/USDT"]))["BTC/USDT"].price == Decimal("50000.123456789012345678")


async def test_feed_defect_is_logged_and_raised_by_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect does not die silently: it is logged at once and raised at the end."""
    async with running_venue() as venue, gateway_to(venue) as gateway:
        async def defect(_symbols: object) -> dict[str, Quote]:
            raise LookupError("a defect")

        monkeypatch.setattr(gateway, "quotes", defect)
        feed = MarketDataFeed(gateway, timedelta(milliseconds=5))
        with capture_logs() as logs:
            feed.start()
            task = feed._task
            assert task is not None
            await asyncio.wait([task], timeout=60)
            with pytest.raises(Exception, match="a defect"):
                await feed.stop()
        assert "market_data_stopped" in [line["event"] for line in logs]


@pytest.mark.parametrize("body", [[None], ["x"], [{"coin": "BTC", "networkList": [None]}], [{"coin": "BTC", "networkList": 5}]])
async def test_network_feed_goes_on_after_nonsense(body: list[object]) -> None:
    """An exchange that tells its networks in a shape of no kind leaves what was known, and the next answer is read."""
    async def keys() -> list[tuple[str, str]]:
        return [("alice", "key-1")]

    networks = [{
        "coin": "BTC", "withdrawAllEnable": True,
        "networkList": [{"network": "BTC", "withdrawEnable": True, "withdrawFee": "0.0002", "withdrawMin": "0.001"}],
    }]  # fmt: skip
    async with running_venue() as venue, gateway_to(venue) as gateway:
        feed = NetworkFeed("binance", gateway, keys)
        venue.answers[("GET", "/sapi/v1/capital/config/getall")] = in_turn(answers(200, body), answers(200, networks))
        assert isinstance(await feed.look(), VenueUnavailable)
        assert not feed.snapshot
        assert await feed.look() is True
        assert list(feed.snapshot) == [("BTC", "BTC")]
