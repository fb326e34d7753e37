"""Step 5 of the gate, risk: each limit, on both sides of its boundary."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.gate.context import Usage
from pipeline.gate.limits import Limits
from pipeline.gate.risk import withdrawal_is_within_limit
from pipeline.model.conduct import Conduct
from schemas.orders import OrderStatus, OrderType, Side
from schemas.reasons import ReasonCode
from tests.unit.builders import BTC_USDT, EXCHANGE, NOW, RULES, market_data, trade
from tests.unit.gate_builders import (
    MICROSECOND,
    NO_LIMITS,
    code_of,
    context_of,
    first_refusal,
    limit_at_market,
    open_order,
    owned,
    recent_order,
)

R = ReasonCode
CENT = Decimal("0.01")
COOLDOWN = timedelta(minutes=5)
WINDOW = timedelta(seconds=2)
BURST = timedelta(milliseconds=50) * 99
OWN_SALE = open_order(side=Side.SELL, price=Decimal(51_000))
OWN_PURCHASE = open_order(side=Side.BUY, price=Decimal(49_000))
TWO_EXCHANGES = replace(RULES, exchanges=frozenset({EXCHANGE, "kraken"}))
NO_DUPLICATES = {"duplicate_window": timedelta(0)}


def _limits(**limits: Any) -> dict[str, Any]:
    return {"limits": limits}


def _usage(**fields: Any) -> dict[str, Any]:
    return {"usage": Usage(**fields)}


def _opened(*orders: Any) -> dict[str, Any]:
    return {"open_orders": list(orders)}


def _recent(*orders: Any, **changes: Any) -> dict[str, Any]:
    return {"recent": list(orders), **changes}


@pytest.mark.parametrize(
    ("document", "changes", "code"),
    [
        # message rate: 20 a second, a burst of 100
        (trade(), {"conduct": Conduct(message_clock=NOW + BURST)}, None),
        (trade(), {"conduct": Conduct(message_clock=NOW + BURST + MICROSECOND)}, R.MESSAGE_RATE_EXCEEDED),
        (trade(), _limits(messages_per_second_max=0), R.MESSAGE_RATE_EXCEEDED),
        (trade(), _limits(messages_burst_max=0), R.MESSAGE_RATE_EXCEEDED),
        (trade(), _limits(messages_burst_max=1), None),
        (trade(), {"conduct": Conduct(message_clock=NOW), **_limits(messages_burst_max=1)}, None),
        (trade(), {"conduct": Conduct(message_clock=NOW + MICROSECOND), **_limits(messages_burst_max=1)}, R.MESSAGE_RATE_EXCEEDED),
        # cooldown
        (trade(), {"conduct": Conduct(2, NOW)}, None),
        (trade(), {"conduct": Conduct(3, NOW)}, R.COOLDOWN_ACTIVE),
        (trade(), {"conduct": Conduct(3, NOW - COOLDOWN)}, None),
        (trade(), {"conduct": Conduct(3, NOW - COOLDOWN + MICROSECOND)}, R.COOLDOWN_ACTIVE),
        (trade(), {"conduct": Conduct(3)}, None),
        (trade(side="sell"), {"conduct": Conduct(3, NOW)}, None),
        (trade(side="sell", symbol="ETH/BTC"), {"conduct": Conduct(3, NOW)}, R.COOLDOWN_ACTIVE),
        (trade(), {"conduct": Conduct(3, NOW - MICROSECOND), **_limits(cooldown=timedelta(0))}, None),
        # price band: 10 % to either side of 50,000
        (limit_at_market(price="55000"), {}, None),
        (limit_at_market(price="55000.01"), {}, R.PRICE_OUT_OF_BAND),
        (limit_at_market(price="45000"), {}, None),
        (limit_at_market(price="44999.99"), {}, R.PRICE_OUT_OF_BAND),
        (limit_at_market(price="55000.01", side="sell"), {}, R.PRICE_OUT_OF_BAND),
        (limit_at_market(price="44999.99", side="sell"), {}, R.PRICE_OUT_OF_BAND),
        (limit_at_market(price="50000"), _limits(price_band=Decimal(0)), None),
        (limit_at_market(price="50000.01"), _limits(price_band=Decimal(0)), R.PRICE_OUT_OF_BAND),
        (trade(), _limits(price_band=Decimal(0)), None),
        # duplicate: the same order within 2 s under another key, by the broker's times, before or after
        (trade(), _recent(recent_order(WINDOW)), None),
        (trade(), _recent(recent_order(WINDOW - MICROSECOND)), R.DUPLICATE_ORDER),
        (trade(), _recent(recent_order(-WINDOW)), None),
        (trade(), _recent(recent_order(-WINDOW + MICROSECOND)), R.DUPLICATE_ORDER),
        (trade(), _recent(recent_order(WINDOW, decided_at=NOW)), None),
        (trade(), _recent(recent_order(timedelta(0), exchange="kraken")), None),
        (trade(), _recent(recent_order(timedelta(0), symbol="BTC/USDC")), None),
        (trade(), _recent(recent_order(timedelta(0), side=Side.SELL)), None),
        (trade(), _recent(recent_order(timedelta(0), order_type=OrderType.LIMIT)), None),
        (trade(), _recent(recent_order(timedelta(0), quantity=Decimal("0.0011"))), None),
        (trade(), _recent(recent_order(timedelta(0), quantity=None, quote_quantity=Decimal(50))), None),
        (trade(), _recent(recent_order(timedelta(0), price=Decimal(50_000))), None),
        (trade(), _recent(recent_order(timedelta(0), quantity=Decimal("0.0010"))), R.DUPLICATE_ORDER),
        (trade(), _recent(recent_order(timedelta(0)), **_limits(**NO_DUPLICATES)), None),
        (trade(), _recent(recent_order(timedelta(0)), recent_order(timedelta(0), side=Side.SELL)), R.DUPLICATE_ORDER),
        # self-trade: a purchase against one's own sale at 51,000
        (limit_at_market(price="50999.99"), _opened(OWN_SALE), None),
        (limit_at_market(price="51000"), _opened(OWN_SALE), R.SELF_TRADE),
        (trade(), _opened(OWN_SALE), R.SELF_TRADE),
        (trade(quantity=None, quote_quantity="50"), _opened(OWN_SALE), R.SELF_TRADE),
        # a market order reaches as far as the slippage allowance of 5 % from 50,000
        (trade(), _opened(replace(OWN_SALE, price=Decimal(52_500))), R.SELF_TRADE),
        (trade(), _opened(replace(OWN_SALE, price=Decimal("52500.01"))), None),
        (trade(side="sell"), _opened(replace(OWN_PURCHASE, price=Decimal(47_500))), R.SELF_TRADE),
        (trade(side="sell"), _opened(replace(OWN_PURCHASE, price=Decimal("47499.99"))), None),
        (limit_at_market(price="51000"), _opened(OWN_PURCHASE), None),
        (limit_at_market(price="51000"), _opened(replace(OWN_SALE, symbol="BTC/USDC")), None),
        (limit_at_market(price="51000"), _opened(replace(OWN_SALE, exchange="kraken")), None),
        (limit_at_market(price="51000"), _opened(replace(OWN_SALE, price=None, order_type=OrderType.MARKET)), None),
        (limit_at_market(price="51000"), _opened(replace(OWN_SALE, status=OrderStatus.IN_DOUBT)), R.SELF_TRADE),
        (limit_at_market(price="51000"), _opened(OWN_PURCHASE, OWN_SALE), R.SELF_TRADE),
        # and a sale against one's own purchase at 49,000
        (limit_at_market(side="sell", price="49000.01"), _opened(OWN_PURCHASE), None),
        (limit_at_market(side="sell", price="49000"), _opened(OWN_PURCHASE), R.SELF_TRADE),
        (trade(side="sell"), _opened(OWN_PURCHASE), R.SELF_TRADE),
        (trade(side="sell"), _opened(OWN_SALE), None),
        # trades of an hour
        (trade(), _usage(trades_1h=99), None),
        (trade(), _usage(trades_1h=100), R.HOURLY_TRADES_EXCEEDED),
        (trade(), _limits(hourly_trades_max=1), None),
        (trade(), _limits(hourly_trades_max=0), R.HOURLY_TRADES_EXCEEDED),
        # volume of a day: this order adds 50 USD
        (trade(), _usage(volume_24h_usd=Decimal(9_999_950)), None),
        (trade(), _usage(volume_24h_usd=Decimal(9_999_950) + CENT), R.DAILY_VOLUME_EXCEEDED),
        (trade(side="sell"), _usage(volume_24h_usd=Decimal(9_999_950) + CENT), R.DAILY_VOLUME_EXCEEDED),
        (trade(), _limits(daily_volume_usd_max=Decimal(0)), R.DAILY_VOLUME_EXCEEDED),
        # loss of a day: at the limit only what reduces passes
        (trade(), _usage(realised_loss_24h_usd=Decimal(250_000) - CENT), None),
        (trade(), _usage(realised_loss_24h_usd=Decimal(250_000)), R.LOSS_LIMIT_EXCEEDED),
        (trade(side="sell"), _usage(realised_loss_24h_usd=Decimal(250_000)), None),
        (trade(symbol="ETH/BTC", quantity="1", side="sell"), _usage(realised_loss_24h_usd=Decimal(250_000)), R.LOSS_LIMIT_EXCEEDED),
        (trade(), _usage(realised_loss_24h_usd=Decimal(-250_000)), None),
        (trade(), _limits(daily_loss_usd_max=Decimal(0)), R.LOSS_LIMIT_EXCEEDED),
        # open orders by count
        (trade(), _opened(*[OWN_PURCHASE] * 199), None),
        (trade(), _opened(*[OWN_PURCHASE] * 200), R.OPEN_ORDERS_EXCEEDED),
        (trade(), _limits(open_orders_max=0), R.OPEN_ORDERS_EXCEEDED),
        # open orders by value, at all exchanges; a tenth of a bitcoin is small enough for the position limit
        (trade(), _opened(open_order(usd_value=Decimal(4_999_950))), None),
        (trade(), _opened(open_order(usd_value=Decimal(4_999_950) + CENT)), R.OPEN_ORDERS_EXCEEDED),
        (trade(), _opened(open_order(usd_value=Decimal(4_999_950) + CENT, exchange="kraken")), R.OPEN_ORDERS_EXCEEDED),
        (trade(), _limits(open_orders_usd_max=Decimal(0)), R.OPEN_ORDERS_EXCEEDED),
        # open orders by value, at the order's exchange
        (trade(), _opened(open_order(usd_value=Decimal(950))) | _limits(exchange_open_usd_max=Decimal(1_000)), None),
        (trade(), _opened(open_order(usd_value=Decimal(950) + CENT)) | _limits(exchange_open_usd_max=Decimal(1_000)), R.EXPOSURE_EXCEEDED),
        (
            trade(),
            _opened(open_order(usd_value=Decimal(950)), open_order(usd_value=Decimal(900), exchange="kraken"))
            | _limits(exchange_open_usd_max=Decimal(1_000)),
            None,
        ),
        (trade(), _limits(exchange_open_usd_max=Decimal(0)), R.EXPOSURE_EXCEEDED),
    ],
)
def test_risk_answers_each_side_of_a_boundary(document: dict[str, Any], changes: dict[str, Any], code: ReasonCode | None) -> None:
    """What just keeps a limit passes the whole gate, what just does not is refused with its own code."""
    assert code_of(document, **changes) is code


@pytest.mark.parametrize(
    ("document", "changes", "code"),
    [
        # what is owned: 99.999 BTC and 0.001 BTC are 5,000,000 USD
        (trade(), {"balances": owned(BTC="99.999")}, None),
        (trade(), {"balances": owned(BTC="99.99901")}, R.POSITION_LIMIT_EXCEEDED),
        (trade(quantity=None, quote_quantity="50"), {"balances": owned(BTC="99.999")}, None),
        (trade(quantity=None, quote_quantity="50.01"), {"balances": owned(BTC="99.999")}, R.POSITION_LIMIT_EXCEEDED),
        # a dear limit price is valued by the market
        (limit_at_market(price="55000"), {"balances": owned(BTC="99.999")}, None),
        (limit_at_market(price="45000"), {"balances": owned(BTC="99.99901")}, R.POSITION_LIMIT_EXCEEDED),
        # a sale for dollars makes nothing larger
        (trade(side="sell"), {"balances": owned(BTC="1000", USDT="9000000")}, None),
        # at every exchange of the rules, in the request's book, of the user alone
        (trade(), {"balances": owned("kraken", BTC="99.99901"), "rules": TWO_EXCHANGES}, R.POSITION_LIMIT_EXCEEDED),
        (trade(), {"balances": owned("kraken", BTC="50") | owned(BTC="49.99901"), "rules": TWO_EXCHANGES}, R.POSITION_LIMIT_EXCEEDED),
        (trade(), {"balances": owned("kraken", BTC="50") | owned(BTC="49.999"), "rules": TWO_EXCHANGES}, None),
        (trade(), {"balances": owned(BTC="100", book="paper") | owned(BTC="100", user="bob") | owned(ETH="9999999")}, None),
        # what open purchases will bring, at the market's price or, without a quantity, at their value
        (trade(), {"balances": owned(BTC="99.998"), **_opened(OWN_PURCHASE)}, None),
        (trade(), {"balances": owned(BTC="99.99801"), **_opened(OWN_PURCHASE)}, R.POSITION_LIMIT_EXCEEDED),
        (trade(), {"balances": owned(BTC="99.998"), **_opened(replace(OWN_PURCHASE, symbol="BTC/USDC"))}, None),
        (trade(), {"balances": owned(BTC="99.99801"), **_opened(replace(OWN_PURCHASE, symbol="BTC/USDC"))}, R.POSITION_LIMIT_EXCEEDED),
        (trade(), {"balances": owned(BTC="99.99801"), **_opened(replace(OWN_PURCHASE, symbol="WBTC/USDT"))}, None),
        (trade(), {"balances": owned(BTC="99.998"), **_opened(replace(OWN_PURCHASE, leaves_quantity=None, usd_value=Decimal(50)))}, None),
        (
            trade(),
            {"balances": owned(BTC="99.998"), **_opened(replace(OWN_PURCHASE, leaves_quantity=None, usd_value=Decimal(50) + CENT))},
            R.POSITION_LIMIT_EXCEEDED,
        ),
        # what open sales for the asset will bring, at their value
        (trade(), {"balances": owned(BTC="99.998"), **_opened(replace(OWN_SALE, symbol="ETH/BTC", usd_value=Decimal(50)))}, None),
        (
            trade(),
            {"balances": owned(BTC="99.998"), **_opened(replace(OWN_SALE, symbol="ETH/BTC", usd_value=Decimal(50) + CENT))},
            R.POSITION_LIMIT_EXCEEDED,
        ),
        # one's own open sales of the asset do not count
        (limit_at_market(), {"balances": owned(BTC="99.999"), **_opened(OWN_SALE)}, None),
        # a sale for what is no dollar gets its quote asset: 1 ETH brings 0.05 BTC, 2,500 USD
        (trade(symbol="ETH/BTC", quantity="1", side="sell"), {"balances": owned(BTC="99.95")}, None),
        (trade(symbol="ETH/BTC", quantity="1", side="sell"), {"balances": owned(BTC="99.95001")}, R.POSITION_LIMIT_EXCEEDED),
        # a purchase paid with what is no dollar is valued through it: 2,000 ETH are 5,000,000 USD
        (trade(symbol="ETH/BTC", quantity="1"), {"balances": owned(ETH="1999")}, None),
        (trade(symbol="ETH/BTC", quantity="1"), {"balances": owned(ETH="1999.00001")}, R.POSITION_LIMIT_EXCEEDED),
        (trade(), _limits(position_usd_max=Decimal(0)), R.POSITION_LIMIT_EXCEEDED),
        (trade(side="sell"), _limits(position_usd_max=Decimal(0)), None),
    ],
)
def test_position_answers_each_side_of_its_boundary(document: dict[str, Any], changes: dict[str, Any], code: ReasonCode | None) -> None:
    """What is owned, on its way and asked for may come to the limit, not beyond it."""
    assert code_of(document, **changes) is code


def test_purchase_of_dollars_is_no_position() -> None:
    """Buying one dollar asset with another is not limited as a position."""
    market = replace(BTC_USDT, symbol="USDT/USD", base="USDT", quote="USD")
    data = market_data(markets=[market], prices={"USDT/USD": Decimal(1)})
    document = trade(symbol="USDT/USD", quantity="100")
    assert code_of(document, market_data=data, balances=owned(USDT="9000000"), known_symbols={"USDT/USD"}) is None


@pytest.mark.parametrize(
    ("withdrawn", "value", "code"),
    [
        ("0", "500000", None),
        ("0", "500000.01", R.DAILY_WITHDRAWAL_EXCEEDED),
        ("499999.99", "0.01", None),
        ("499999.99", "0.02", R.DAILY_WITHDRAWAL_EXCEEDED),
    ],
)
def test_withdrawal_answers_each_side_of_its_boundary(withdrawn: str, value: str, code: ReasonCode | None) -> None:
    """What was withdrawn in 24 hours and what is asked for may come to the limit, not beyond it."""
    refusal = withdrawal_is_within_limit(Limits(), Usage(withdrawn_24h_usd=Decimal(withdrawn)), Decimal(value))
    assert (None if refusal is None else refusal.code) is code


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"conduct": Conduct(3, NOW)},
            "after 3 failures in a row only sales into US dollars and cancels are taken until 2026-11-24T07:05:00+00:00. Nothing was sent "
            "or held. See what the failures were, wait, and use a new key. An operator can end the cooldown.",
        ),
        (
            _opened(OWN_SALE),
            f"the order would trade with the user's own order {OWN_SALE.order_id}. Nothing was sent or held. Cancel that one, or send a "
            "price that does not meet it, under a new key.",
        ),
        (
            _recent(recent_order(timedelta(0))),
            "the same order was sent less than 2 s apart under another key. That one stands; nothing was sent or held for this one. Wait "
            "that long if you mean it twice, and use a new key.",
        ),
        (
            {"balances": owned(BTC="100"), **_limits(**{**NO_LIMITS, "position_usd_max": Decimal(5_000_000)})},
            "the user's BTC, with open orders, is worth 5000000 USD; more than 5000000 USD with this one are not allowed. Nothing was sent "
            "or held. Sell some or cancel orders, then use a new key.",
        ),
    ],
)
def test_refusal_names_what_stands_in_the_way(changes: dict[str, Any], text: str) -> None:
    """A refusal says what the limit is and what fills it, that no money moved, and what to do."""
    refusal = first_refusal(context_of(trade(), **changes))
    assert refusal is not None
    assert refusal.reason == text
