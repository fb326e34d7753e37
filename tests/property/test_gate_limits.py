"""Any sequence of requests keeps every limit: a naive model that looks at the whole history agrees with the gate, request by request."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.books.ledger import AccountKey, Balance
from pipeline.gate.context import AccountState, OpenOrder, RecentOrder, TradeContext, Usage
from pipeline.gate.limits import Limits
from pipeline.gate.throttle import COUNTS, after_failure, after_message, after_success
from pipeline.model.api_key import ApiKeyState
from pipeline.model.conduct import Conduct
from pipeline.model.halts import NO_HALTS
from schemas.orders import OrderStatus, OrderType, Side
from schemas.reasons import ReasonCode
from schemas.requests import TradeRequest
from tests.unit.builders import BTC_USDT, ETH_BTC, NOW, RULES, USER, market_data, trade
from tests.unit.gate_builders import first_refusal, request_of

R = ReasonCode
EXCHANGES: Final = ("binance", "kraken")
TWO_EXCHANGES: Final = replace(RULES, exchanges=frozenset(EXCHANGES))
MARKETS: Final = [replace(BTC_USDT, notional_min=Decimal(0)), replace(ETH_BTC, notional_min=Decimal(0))]
DOLLARS: Final = {"BTC": Decimal(50_000), "ETH": Decimal(2_500)}
MARKET_PRICE: Final = {"BTC/USDT": Decimal(50_000), "ETH/BTC": Decimal("0.05")}
LIMITED: Final = (
    R.AMOUNT_BELOW_MINIMUM, R.AMOUNT_ABOVE_MAXIMUM, R.MESSAGE_RATE_EXCEEDED, R.COOLDOWN_ACTIVE, R.PRICE_OUT_OF_BAND,
    R.HOURLY_TRADES_EXCEEDED, R.DAILY_VOLUME_EXCEEDED, R.LOSS_LIMIT_EXCEEDED, R.OPEN_ORDERS_EXCEEDED, R.EXPOSURE_EXCEEDED,
    R.POSITION_LIMIT_EXCEEDED, R.SELF_TRADE, R.DUPLICATE_ORDER,
)
HOUR, DAY = timedelta(hours=1), timedelta(hours=24)

# So low that a dozen requests meet each of them. What a limit of 10**6 means here is "not this time".
limits = st.builds(
    Limits,
    trade_usd_min=st.just(Decimal(50)),
    trade_usd_max=st.just(Decimal(1_000)),
    daily_volume_usd_max=st.sampled_from([Decimal(1_200), Decimal(10**6)]),
    hourly_trades_max=st.sampled_from([2, 10**6]),
    cooldown_failures=st.sampled_from([2, 10**6, 10**6]),
    cooldown=st.just(timedelta(minutes=5)),
    price_band=st.just(Decimal("0.10")),
    position_usd_max=st.sampled_from([Decimal(750), Decimal(10**6)]),
    open_orders_max=st.sampled_from([2, 10**6]),
    open_orders_usd_max=st.sampled_from([Decimal(1_500), Decimal(10**6)]),
    exchange_open_usd_max=st.sampled_from([Decimal(1_000), Decimal(10**6)]),
    daily_loss_usd_max=st.just(Decimal(500)),
    messages_per_second_max=st.just(1),
    messages_burst_max=st.sampled_from([2, 10**6]),
    duplicate_window=st.sampled_from([timedelta(0), timedelta(seconds=2)]),
    suspicion_block=st.just(10**6),
)


def _bitcoin(amount: tuple[str, str], price: str | None, side: str, exchange: str) -> dict[str, Any]:
    name, value = amount
    kind = {"order_type": "market"} if price is None or name == "quote_quantity" else {"order_type": "limit", "price": price}
    return trade(**{"quantity": None, name: value, "side": side, "exchange": exchange, **kind})


requests = st.one_of(
    st.builds(
        _bitcoin,
        st.sampled_from(
            [("quantity", amount) for amount in ("0.005", "0.01", "0.01", "0.018", "0.02", "0.00099", "0.02001")]
            + [("quote_quantity", amount) for amount in ("250", "500", "49.99", "1000.01")]
        ),
        st.sampled_from([None, None, "45000", "49000", "50000", "50000", "51000", "55000", "44999.99", "55000.01"]),
        st.sampled_from(["buy", "sell"]),
        st.sampled_from(EXCHANGES),
    ),
    st.builds(
        lambda quantity, side: trade(symbol="ETH/BTC", quantity=quantity, side=side),
        st.sampled_from(["0.02", "0.1", "0.2", "0.4"]),
        st.sampled_from(["buy", "sell"]),
    ),
)
gaps = st.sampled_from(
    [timedelta(0)] * 4
    + [timedelta(milliseconds=500), timedelta(seconds=1)] * 3
    + [timedelta(seconds=2), timedelta(minutes=5), HOUR, DAY]
    + [gap - timedelta(microseconds=1) for gap in (timedelta(seconds=2), timedelta(minutes=5), HOUR, DAY)]
)
# What happens between two requests: nothing, an order ends (filled or not), the day's realised loss is another one.
events = st.one_of(
    st.none(), st.tuples(st.integers(0, 5), st.booleans()), st.sampled_from([Decimal(-1), Decimal("499.99"), Decimal(500)])
)
Step = tuple[timedelta, tuple[int, bool] | Decimal | None, dict[str, Any], bool]
sequences = st.lists(st.tuples(gaps, events, requests, st.booleans()), min_size=5, max_size=30)


@dataclass
class Made:
    """An order that was accepted."""

    order_id: str
    request: TradeRequest
    value: Decimal
    at: datetime
    is_open: bool = True


def _assets(request: TradeRequest) -> tuple[str, str]:
    base, quote = request.symbol.split("/")
    return base, quote


def _value(request: TradeRequest) -> Decimal:
    """Dollars of an order, by its definition: the quote amount, at the better of its own price and the market's for a sale."""
    in_dollars = DOLLARS.get(_assets(request)[1], Decimal(1))
    if request.quantity is None:
        return (request.quote_quantity or Decimal(0)) * in_dollars
    market = MARKET_PRICE[request.symbol]
    price = request.price or market
    return request.quantity * (max(price, market) if request.side is Side.SELL else price) * in_dollars


def _brings(request: TradeRequest, value: Decimal) -> tuple[str, Decimal]:
    """(asset, dollars at the market) of what an order gets."""
    base, quote = _assets(request)
    if request.side is Side.SELL:
        return quote, value
    return base, value if request.quantity is None else request.quantity * DOLLARS[base]


@dataclass
class Model:
    """The whole history, looked through for every request."""

    limits: Limits
    now: datetime = NOW
    made: list[Made] = field(default_factory=list)
    owned: Counter[tuple[str, str]] = field(default_factory=Counter)
    loss: Decimal = Decimal(0)
    row: int = 0
    failed_at: datetime | None = None
    bucket: Fraction = Fraction(0)
    emptied_at: datetime = NOW

    def open_orders(self) -> list[Made]:
        return [made for made in self.made if made.is_open]

    def level(self) -> Fraction:
        """A leaky bucket of the messages that were let through."""
        leaked = Fraction((self.now - self.emptied_at) // timedelta(microseconds=1), 1_000_000) * self.limits.messages_per_second_max
        return max(Fraction(0), self.bucket - leaked)

    def violations(self, request: TradeRequest) -> set[ReasonCode]:
        """Every limit that the request breaks, whatever the order of the checks."""
        top, value, opened = self.limits, _value(request), self.open_orders()
        market = MARKET_PRICE[request.symbol]
        asset, brings = _brings(request, value)
        position = brings + sum(
            (self.owned[exchange, asset] * DOLLARS[asset] for exchange in EXCHANGES) if asset in DOLLARS else (), Decimal(0)
        )
        on_the_way = [_brings(made.request, made.value) for made in opened]
        position += sum((dollars for name, dollars in on_the_way if name == asset), Decimal(0))
        reduces = request.side is Side.SELL and _assets(request)[1] == "USDT"
        found = {
            R.AMOUNT_BELOW_MINIMUM: value < top.trade_usd_min,
            R.AMOUNT_ABOVE_MAXIMUM: value > top.trade_usd_max,
            R.MESSAGE_RATE_EXCEEDED: self.level() + 1 > top.messages_burst_max,
            R.COOLDOWN_ACTIVE: self.cools_down() and not reduces,
            R.PRICE_OUT_OF_BAND: request.price is not None and not Decimal("0.9") <= request.price / market <= Decimal("1.1"),
            R.HOURLY_TRADES_EXCEEDED: sum(self.now - made.at < HOUR for made in self.made) + 1 > top.hourly_trades_max,
            R.DAILY_VOLUME_EXCEEDED: self.volume(value) > top.daily_volume_usd_max,
            R.LOSS_LIMIT_EXCEEDED: self.loss >= top.daily_loss_usd_max and not reduces,
            R.OPEN_ORDERS_EXCEEDED: len(opened) + 1 > top.open_orders_max
            or sum(made.value for made in opened) + value > top.open_orders_usd_max,
            R.EXPOSURE_EXCEEDED: sum(made.value for made in opened if made.request.exchange == request.exchange) + value
            > top.exchange_open_usd_max,
            R.POSITION_LIMIT_EXCEEDED: asset in DOLLARS and position > top.position_usd_max,
            R.SELF_TRADE: any(_match(request, made.request) for made in opened),
            R.DUPLICATE_ORDER: any(
                self.now - made.at < top.duplicate_window and _content(made.request) == _content(request) for made in self.made
            ),
        }
        return {code for code, is_broken in found.items() if is_broken}

    def volume(self, value: Decimal) -> Decimal:
        return value + sum((made.value for made in self.made if self.now - made.at < DAY), Decimal(0))

    def cools_down(self) -> bool:
        return self.row >= self.limits.cooldown_failures and self.failed_at is not None and self.now < self.failed_at + self.limits.cooldown

    def answered(self, request: TradeRequest, code: ReasonCode | None) -> None:
        if self.level() + 1 <= self.limits.messages_burst_max:
            self.bucket, self.emptied_at = self.level() + 1, self.now
        if code is None:
            self.made.append(Made(f"o{len(self.made)}", request, _value(request), self.now))
        elif COUNTS[code]:
            is_new_row = self.row >= self.limits.cooldown_failures and not self.cools_down()
            self.row, self.failed_at = (1 if is_new_row else self.row + 1), self.now

    def end(self, place: int, filled: bool) -> bool:
        """Ends an order; whether there was one."""
        opened = self.open_orders()
        if not opened:
            return False
        made = opened[place % len(opened)]
        made.is_open = False
        asset, brings = _brings(made.request, made.value)
        if filled and asset in DOLLARS:
            self.owned[made.request.exchange, asset] += brings / DOLLARS[asset]
        self.row = 0
        return True

    def loaded(self, conduct: Conduct) -> AccountState:
        """What the database would give for a batch: rolling sums, open and recent orders."""
        return AccountState(
            USER,
            "active",
            limits=self.limits,
            conduct=conduct,
            usage=Usage(self.volume(Decimal(0)), sum(self.now - made.at < HOUR for made in self.made), Decimal(0), self.loss),
            open_orders=[_as_open(made) for made in self.open_orders()],
            recent=[_as_recent(made) for made in self.made if self.now - made.at < timedelta(minutes=10)],
            known_symbols={made.request.symbol for made in self.made},
        )

    def balances(self) -> dict[AccountKey, Balance]:
        return {AccountKey(USER, exchange, "live", asset): Balance(amount) for (exchange, asset), amount in self.owned.items()}


def _content(request: TradeRequest) -> tuple[object, ...]:
    return request.exchange, request.symbol, request.side, request.order_type, request.quantity, request.quote_quantity, request.price


def _match(new: TradeRequest, resting: TradeRequest) -> bool:
    if resting.price is None or new.side is resting.side or (new.exchange, new.symbol) != (resting.exchange, resting.symbol):
        return False
    reach = MARKET_PRICE[new.symbol] * (Decimal("1.05") if new.side is Side.BUY else Decimal("0.95"))
    price = reach if new.price is None else new.price
    bid, ask = (price, resting.price) if new.side is Side.BUY else (resting.price, price)
    return bid >= ask


def _as_open(made: Made) -> OpenOrder:
    request = made.request
    status = OrderStatus.NEW if request.order_type is OrderType.LIMIT else OrderStatus.SUBMITTING
    return OpenOrder(
        made.order_id,
        request.exchange,
        request.symbol,
        request.side,
        request.order_type,
        request.price,
        request.quantity,
        made.value,
        status,
    )


def _as_recent(made: Made) -> RecentOrder:
    request = made.request
    return RecentOrder(
        request.exchange,
        request.symbol,
        request.side,
        request.order_type,
        request.quantity,
        request.quote_quantity,
        request.price,
        made.value,
        made.at,
        made.at,
    )


def _decide(model: Model, account: AccountState, request: TradeRequest) -> ReasonCode | None:
    """One request through the whole ladder, as intake does it."""
    context = TradeContext(
        request=request,
        appended_at=model.now,
        now=model.now,
        rules=TWO_EXCHANGES,
        account=account,
        api_key=ApiKeyState(request.exchange, "active"),
        market_data=market_data(markets=MARKETS, observed_at=model.now),
        halts=NO_HALTS,
        balances=model.balances(),
        idempotency_key=request.idempotency_key,
    )
    refusal = first_refusal(context)
    account.conduct = after_message(account.conduct, account.limits, model.now, model.now)
    if refusal is not None:
        account.conduct = after_failure(account.conduct, account.limits, refusal.code, model.now)
        return refusal.code
    assert context.usd_value is not None
    account.accepted(f"o{len(model.made)}", request, context.usd_value, model.now, model.now)
    return None


def _answers(top: Limits, sequence: Sequence[Step]) -> Iterator[tuple[ReasonCode | None, set[ReasonCode]]]:
    """For each request of a sequence: what the gate answers, and what the model finds broken."""
    model = Model(top)
    account = model.loaded(Conduct())
    for gap, event, document, new_batch in sequence:
        model.now += gap
        ended = isinstance(event, tuple) and model.end(*event)
        if isinstance(event, Decimal):
            model.loss = event
        conduct = after_success(account.conduct) if ended else account.conduct
        if gap or event is not None or new_batch:
            account = model.loaded(conduct)
        request = request_of(document)
        code, broken = _decide(model, account, request), model.violations(request)
        model.answered(request, code)
        yield code, broken


@given(limits, sequences)
def test_any_sequence_keeps_every_limit(top: Limits, sequence: Sequence[Step]) -> None:
    """However requests fall into batches: what is accepted breaks no limit, what is refused breaks the one that its code names."""
    for code, broken in _answers(top, sequence):
        assert (code is None) == (not broken), (code, broken)
        assert code is None or code in broken


def test_sequences_meet_every_limit() -> None:
    """The sequences of the property above are such that each limit is met, so that it is about all of them."""
    met: Counter[ReasonCode | None] = Counter()

    @settings(max_examples=300, derandomize=True, database=None)
    @given(limits, sequences)
    def meet(top: Limits, sequence: Sequence[Step]) -> None:
        met.update(code for code, _ in _answers(top, sequence))

    meet()
    assert {code for code in LIMITED if code not in met} == set()
    assert met[None] > 0
