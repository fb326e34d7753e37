"""The gate and the exchange judge an order alike: what the gate lets pass the exchange takes, and what the exchange would refuse by a
filter the gate refuses before. The simulated exchange publishes its filters and keeps them by code that the gate does not share."""

from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from infra.exchange.venues.binance.market_rules import read_market
from pipeline.gate.check import Step
from pipeline.gate.context import TradeContext
from pipeline.gate.ladder import refusal_of
from schemas.orders import Mode, Side
from simulator import filters
from simulator.calls import Call
from simulator.horizon import Horizon
from simulator.orders import OrderRequest
from simulator.refusals import Refusal
from simulator.symbols import Symbol, exchange_info_row, make_symbols
from tests.unit.builders import market_data, trade
from tests.unit.gate_builders import context_of, open_order, owned

D = Decimal
BASE = next(iter(make_symbols(D(5)).values()))
SMALL = st.sampled_from([D("0.5"), D(1), D(2), D(5)])


@st.composite
def symbols(draw: st.DrawFn) -> Symbol:
    """A market whose bounds lie near one another, so that orders meet each of them often. Its price is 100."""
    return replace(
        BASE,
        tick=draw(st.sampled_from([D("0.01"), D("0.5")])),
        step=draw(st.sampled_from([D("0.001"), D("0.25")])),
        price_max=draw(st.sampled_from([D(110), D(1_000_000)])),
        quantity_max=draw(st.sampled_from([D(3), D(9_000)])),
        market_quantity_min=draw(st.sampled_from([D(0), D("0.5")])),
        market_quantity_max=draw(st.sampled_from([D(2), D(120)])),
        notional_min=draw(st.sampled_from([D(0), D(50)])),
        notional_max=draw(st.sampled_from([D(250), D(9_000_000)])),
        bid_multipliers=draw(st.sampled_from([(D("0.9"), D("1.05")), (D("0.2"), D(5))])),
        ask_multipliers=draw(st.sampled_from([(D("0.95"), D("1.1")), (D("0.2"), D(5))])),
        open_orders_max=draw(st.sampled_from([1, 2, 200])),
        position_max=draw(st.sampled_from([D(0), D(5)])),
    )  # fmt: skip


def _text(amount: Decimal) -> str:
    return f"{amount:f}"


@st.composite
def documents(draw: st.DrawFn, symbol: Symbol) -> dict[str, Any]:
    """A request near the market's bounds, now and then between its steps, or with more places than it takes."""
    side = draw(st.sampled_from(["buy", "sell"]))
    off = draw(st.sampled_from([D(0), D(0), D(0), D("0.0001"), D("0.000000001")]))
    near = st.sampled_from([D("0.25"), D("0.5"), D("0.75"), D(1), D(2), D("2.25"), D(3), D("3.25"), symbol.step])
    quantity = draw(near) + off
    match draw(st.sampled_from(["market", "quote", "limit"])):
        case "market":
            return trade(side=side, quantity=_text(quantity))
        case "quote":
            return trade(side=side, quantity=None, quote_quantity=_text(draw(near) * 100 + draw(st.sampled_from([D(0), D("0.03")])) + off))
        case _:
            price = draw(st.sampled_from([D(90), D(95), D(100), D(105), D(110), D("89.5"), D("105.5"), D("110.5"), D("94.5"), D("100.25")]))
            time_in_force = draw(st.sampled_from(["GTC", "IOC", "FOK"]))
            return trade(order_type="limit", side=side, quantity=_text(quantity), price=_text(price), time_in_force=time_in_force)


def exchange_refuses(symbol: Symbol, context: TradeContext, open_buys: int, funds: Decimal) -> str | None:
    """What the simulated exchange answers to the same order, from the text of its amounts on; None where it takes it."""
    request = context.request
    named = {"quantity": request.quantity, "quoteOrderQty": request.quote_quantity, "price": request.price}
    call = Call(None, {name: _text(value) for name, value in named.items() if value is not None}, None, Horizon(0, 0, 0), 0)  # type: ignore[arg-type]
    accepted = SimpleNamespace(symbol=symbol.name, side="BUY")
    opened: Any = [SimpleNamespace(accepted=accepted, leaves_quantity=D("0.001")) for _ in range(open_buys)]
    try:
        quantity, quote_quantity, price = (call.amount(name) for name in named)
        time_in_force = "GTC" if request.time_in_force is None else request.time_in_force.value
        side, kind = request.side.value.upper(), request.order_type.value.upper()
        order = OrderRequest(symbol.name, side, kind, time_in_force, quantity, quote_quantity, price, "co-1", Horizon(0, 0, 0))
        filters.check(symbol, order, D(100), opened, funds)
    except Refusal as refusal:
        return refusal.message
    return None


@settings(max_examples=600)
@given(data=st.data())
def test_gate_takes_what_the_exchange_takes(data: st.DataObject) -> None:
    """Random orders at random markets: the gate's step for the exchange refuses exactly those that the exchange's filters refuse."""
    symbol = data.draw(symbols())
    document = data.draw(documents(symbol))
    mode = data.draw(st.sampled_from(list(Mode)))
    open_buys, funds = data.draw(st.integers(0, 2)), data.draw(st.sampled_from([D(0), D("2.5"), D(4)]))
    market = read_market("BTC/USDT", {"base": "BTC", "quote": "USDT", "taker": "0.001", "info": exchange_info_row(symbol)})
    opened = [open_order(order_id=f"o{number}", side=Side.BUY) for number in range(open_buys)]
    context = context_of(
        {**document, "mode": mode.value},
        market_data=market_data(markets=[market], prices={"BTC/USDT": D(100)}),
        open_orders=opened,
        balances=owned(BTC=_text(funds), book=mode.value),
    )
    refusal = refusal_of(context, Step.CONNECTION)
    expected = exchange_refuses(symbol, context, open_buys, funds)
    event(str(expected))
    assert (refusal is None) == (expected is None), (refusal, expected)
