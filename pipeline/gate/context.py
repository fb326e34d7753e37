"""What the gate looks at: one request, the account that sent it, the market, and the limits that apply.

Invariants:
1. Checks read a `TradeContext` and change nothing. `AccountState` is changed by `accepted` and by the caller alone, between two requests,
   so that each request of a batch sees what those before it did.
2. Amounts are USD where the name says so, else base or quote units; fractions are of 1 (0.10 = 10 %); times are UTC.
3. A limit of 0 forbids; "no limit" is a very large number. What is not known (no price, no user) refuses, it never passes.

Start with `TradeContext`; the checks over it stand in `safety`, `api_key`, `risk`, `suspicion` and `connection`, their order in `ladder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pipeline.dollars import usd_rate_of
from pipeline.ledger import AccountKey, Balance
from pipeline.rules import Rules
from pipeline.venue import Market, MarketData, Quote
from schemas.commands import HaltLevel, HaltScope
from schemas.orders import Mode, OrderStatus, OrderType, Side
from schemas.reasons import ReasonCode
from schemas.requests import TradeRequest

if TYPE_CHECKING:
    from pipeline.second_factor import SecondFactor

ZERO: Final = Decimal(0)

# The longest time and the largest count that a limit may be set to: sums with them stay within what can be counted.
DURATION_MAX: Final = timedelta(days=3_650)
COUNT_MAX: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not executed: the code for programs, the reason for people (what happened, what of the money, what to do)."""

    code: ReasonCode
    reason: str


@dataclass(frozen=True, slots=True)
class ApiKeyState:
    """A stored exchange key: which exchange it is for and whether it may be used.

    `status` is `active`, `revoked`, `expired` or `refused` (by the exchange); `permissions` holds `trade` and `withdraw`; from `expires_at`
    on it is expired whatever its status says, None means never.
    """

    exchange: str
    status: str
    permissions: frozenset[str] = frozenset({"trade"})
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one user may do. The defaults are those of the contract (docs/checks.md); the others are chosen so that a user who keeps
    the contract's limits seldom meets them:

    - `position_usd_max`, `open_orders_usd_max`, `exchange_open_usd_max`: 5,000,000, half of a day's volume, so that one mistake cannot tie
      up a whole day's trading in one asset, in the order books, or at one exchange.
    - `open_orders_max`: 200, what Binance allows per symbol (filter MAX_NUM_ORDERS), so that we refuse before the exchange does.
    - `daily_loss_usd_max`: 250,000, a quarter of the largest order: a strategy that has lost as much in 24 hours waits for its operator.
    - `messages_per_second_max` 20 with a burst of 100: Binance takes 100 orders in 10 s per account (ORDERS rate limit); a quick
      strategy may use twice that for a moment, not for long.
    - `duplicate_window`: 2 s, longer than a client's quick repeat, shorter than a person's second decision.
    - `suspicion_flag` 50 and `suspicion_block` 100: no rule's score alone blocks, and few alone flag (see `suspicion`).

    A cooldown begins with the failure that makes `cooldown_failures` in a row. `price_band` is a fraction of the market's price to either
    side. `duplicate_window` of 0 switches that check off.
    """

    trade_usd_min: Decimal = Decimal("0.01")
    trade_usd_max: Decimal = Decimal(1_000_000)
    daily_volume_usd_max: Decimal = Decimal(10_000_000)
    hourly_trades_max: int = 100
    cooldown_failures: int = 3
    cooldown: timedelta = timedelta(minutes=5)
    daily_withdrawal_usd_max: Decimal = Decimal(500_000)
    price_band: Decimal = Decimal("0.10")
    position_usd_max: Decimal = Decimal(5_000_000)
    open_orders_max: int = 200
    open_orders_usd_max: Decimal = Decimal(5_000_000)
    exchange_open_usd_max: Decimal = Decimal(5_000_000)
    daily_loss_usd_max: Decimal = Decimal(250_000)
    messages_per_second_max: int = 20
    messages_burst_max: int = 100
    duplicate_window: timedelta = timedelta(seconds=2)
    suspicion_flag: int = 50
    suspicion_block: int = 100

    def with_overrides(self, overrides: Mapping[str, Decimal]) -> Limits:
        """These limits with some replaced: by field name; durations in seconds (ten years at most), counts as whole numbers (1,000,000,000
        at most).

        Raises ValueError for a name that is no limit and a value that the limit cannot have: ask before you store one.
        """
        if not overrides:
            return self
        # Any: each value has its own field's type, which `_as_limit` sees to.
        changed: dict[str, Any] = {name: _as_limit(name, value) for name, value in overrides.items()}
        return replace(self, **changed)


DEFAULT_LIMITS: Final = Limits()
_LIMIT_TYPES: Final[Mapping[str, type]] = {item.name: type(getattr(DEFAULT_LIMITS, item.name)) for item in fields(Limits)}


def _as_limit(name: str, value: Decimal) -> Decimal | int | timedelta:
    kind = _LIMIT_TYPES.get(name)
    if kind is None:
        raise ValueError(f"{name} is no limit; the limits are: {', '.join(_LIMIT_TYPES)}")
    if not value.is_finite() or value < 0:
        raise ValueError(f"{name} must be 0 or more; 0 allows nothing, and no limit is a very large number")
    if kind is Decimal:
        return value
    if kind is timedelta:
        if value > int(DURATION_MAX.total_seconds()):
            raise ValueError(f"{name} is a time in seconds, {int(DURATION_MAX.total_seconds())} at most")
        return timedelta(microseconds=int(value * 1_000_000))
    if value > COUNT_MAX or value % 1 != 0:
        raise ValueError(f"{name} must be a whole number, {COUNT_MAX} at most")
    return int(value)


@dataclass(slots=True)
class Usage:
    """What a user has used of the rolling limits, orders of this batch included.

    `volume_24h_usd` and `trades_1h` count orders by the time of their acceptance, at their value then, whatever became of them.
    `mean_daily_usd` is the mean of the 30 days before today, 0 when there is no history. `realised_loss_24h_usd` is positive for a loss.
    """

    volume_24h_usd: Decimal = ZERO
    trades_1h: int = 0
    mean_daily_usd: Decimal = ZERO
    realised_loss_24h_usd: Decimal = ZERO
    withdrawn_24h_usd: Decimal = ZERO


# Nobody changes one. It is not frozen because a batch makes thousands, and a frozen one takes three times as long to make.
@dataclass(slots=True)
class OpenOrder:
    """An order that is not over: accepted, on its way, in doubt, or resting at the exchange.

    `leaves_quantity` in base units, None for an order by quote amount; `usd_value` is that of the whole order at its acceptance.
    """

    order_id: str
    exchange: str
    symbol: str
    side: Side
    order_type: OrderType
    price: Decimal | None
    leaves_quantity: Decimal | None
    usd_value: Decimal
    status: OrderStatus


# Not frozen, as `OpenOrder` is not.
@dataclass(slots=True)
class RecentOrder:
    """An order of the last ten minutes, whatever became of it. `requested_at` is the broker's time of its record, `decided_at` ours."""

    exchange: str
    symbol: str
    side: Side
    order_type: OrderType
    quantity: Decimal | None
    quote_quantity: Decimal | None
    price: Decimal | None
    usd_value: Decimal
    requested_at: datetime
    decided_at: datetime


@dataclass(frozen=True, slots=True)
class Conduct:
    """What the account's lock row keeps of a user's behaviour; `conduct` moves it.

    `message_clock` is the generic cell rate algorithm's "theoretical arrival time" (ITU-T I.371, annex A): the time at which the messages
    let through so far would be used up at the allowed rate.
    """

    failures_in_row: int = 0
    failed_at: datetime | None = None
    message_clock: datetime | None = None


@dataclass(slots=True)
class AccountState:
    """One user as a batch sees it; mutable within the batch.

    `status` is None when there is no such user. `recent` runs from the oldest to the newest. Everything counts real orders alone, except
    `open_paper_orders`.
    """

    user_id: str
    status: str | None
    role: str = "trader"
    limits: Limits = DEFAULT_LIMITS
    factor: SecondFactor | None = None
    conduct: Conduct = Conduct()
    credentials_changed_at: datetime | None = None
    # Raised by the database with every change of the user's status or second factor; sessions of an older one are over.
    session_generation: int = 0
    usage: Usage = field(default_factory=Usage)
    open_orders: list[OpenOrder] = field(default_factory=list)
    recent: list[RecentOrder] = field(default_factory=list)
    known_symbols: set[str] = field(default_factory=set)
    open_paper_orders: list[OpenOrder] = field(default_factory=list)

    def in_mode(self, mode: Mode) -> AccountState:
        """The user as the checks of a request in this mode see it: real orders are judged by real ones alone.

        Of simulated orders only those that are open count, and only against simulated ones; no rolling limit counts them.
        """
        if mode is Mode.LIVE:
            return self
        return replace(self, usage=Usage(), open_orders=self.open_paper_orders, recent=[], known_symbols=set())

    def accepted(self, order_id: str, request: TradeRequest, usd_value: Decimal, requested_at: datetime, now: datetime) -> None:
        """Counts an order that was accepted, so that the next request of the same batch sees it. `usd_value` as `TradeContext` gives it,
        `requested_at` the broker's time of its record, `now` that of the decision."""
        self.usage.volume_24h_usd += usd_value
        self.usage.trades_1h += 1
        self.open_orders.append(
            OpenOrder(
                order_id,
                request.exchange,
                request.symbol,
                request.side,
                request.order_type,
                request.price,
                request.quantity,
                usd_value,
                OrderStatus.ACCEPTED,
            )
        )
        self.recent.append(
            RecentOrder(
                request.exchange,
                request.symbol,
                request.side,
                request.order_type,
                request.quantity,
                request.quote_quantity,
                request.price,
                usd_value,
                requested_at,
                now,
            )
        )
        self.known_symbols.add(request.symbol)

    def ended(self, order_id: str) -> None:
        """Takes an order off the open ones: it was cancelled before it was sent, by a later record of the same batch."""
        for orders in (self.open_orders, self.open_paper_orders):
            orders[:] = [order for order in orders if order.order_id != order_id]


@dataclass(frozen=True, slots=True)
class Halt:
    """A stop that an operator or a rule has set. `target` is '' for scope `all`, else the exchange, the symbol or the user."""

    scope: HaltScope
    target: str
    level: HaltLevel


@dataclass(frozen=True, slots=True)
class HaltBook:
    """All halts in force. `canceling` are those of them that ask for the cancel of what rests and would not pass."""

    rows: frozenset[Halt] = frozenset()
    canceling: frozenset[Halt] = frozenset()
    _levels: dict[tuple[HaltScope, str], HaltLevel] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if self._levels.get((row.scope, row.target)) is not HaltLevel.HALT:
                self._levels[row.scope, row.target] = row.level

    def level_for(self, exchange: str, symbol: str, user: str) -> HaltLevel | None:
        """What holds for a user's order in a symbol at an exchange: the strictest of the halts that cover it, None when none does."""
        if not self._levels:
            return None
        found: HaltLevel | None = None
        for scope, target in (
            (HaltScope.ALL, ""), (HaltScope.EXCHANGE, exchange), (HaltScope.SYMBOL, symbol), (HaltScope.USER, user)
        ):
            level = self._levels.get((scope, target))
            if level is HaltLevel.HALT:
                return level
            found = level or found
        return found


NO_HALTS: Final = HaltBook()


T = TypeVar("T")


class _Derived(Generic[T]):
    """A value that is computed when it is first asked for, and kept in the instance under its own name, where it is found from then on.

    `functools.cached_property` of Python 3.11 takes a lock each time, which costs more than most of these values.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, instance: object, owner: type[object] | None = None) -> T:
        value = self._compute(instance)
        instance.__dict__[self._name] = value
        return value


@dataclass(frozen=True, eq=False)
class TradeContext:
    """All that the checks of one request may look at. `appended_at` is the broker's time of the record, `now` the decision's, both UTC.

    `balances` must hold the user's accounts of the assets that the symbol names, at every exchange of the rules and in the request's book;
    one that is missing counts as empty. What is derived is computed once: make a new context for each request.
    """

    request: TradeRequest
    appended_at: datetime
    now: datetime
    rules: Rules
    account: AccountState
    api_key: ApiKeyState | None
    market_data: MarketData | None
    halts: HaltBook
    balances: Mapping[AccountKey, Balance]
    idempotency_key: str

    @_Derived
    def base(self) -> str:
        return self.request.symbol.partition("/")[0]

    @_Derived
    def quote(self) -> str:
        return self.request.symbol.partition("/")[2]

    @property
    def market(self) -> Market | None:
        """The exchange's trading rules for the symbol, None when it lists none."""
        return self.market_data.markets.get(self.request.symbol) if self.market_data else None

    def fresh_quote(self, symbol: str) -> Quote | None:
        """The market price of a symbol, None when there is none or it is older than the rules allow."""
        return self.market_data.fresh_quote(symbol, self.now, self.rules.price_age_max) if self.market_data else None

    @_Derived
    def market_price(self) -> Decimal | None:
        """The symbol's fresh market price in quote per base, None without one."""
        quote = self.fresh_quote(self.request.symbol)
        return quote.price if quote else None

    @_Derived
    def usd_rate(self) -> Decimal | None:
        """US dollars per unit of the quote asset: 1 for what the rules call dollars, else by fresh market prices; None without any."""
        return usd_rate_of(self.quote, self.market_data, self.now, self.rules.price_age_max, self.rules.usd_assets)

    @_Derived
    def quote_amount(self) -> Decimal | None:
        """What the order is worth in its quote asset, at its own price or the market's; None without a fresh price."""
        request = self.request
        if request.quote_quantity is not None:
            return request.quote_quantity
        price = request.price if request.price is not None else self.market_price
        return None if price is None or request.quantity is None else request.quantity * price

    @_Derived
    def usd_value(self) -> Decimal | None:
        """What the order is worth in US dollars; None when no fresh price says so.

        A limit sale is worth the market's price when that is higher than its own: that is what it brings when it is executed at once, and
        a low limit must not pass a large amount under the maximum.
        """
        amount = self.quote_amount
        if amount is None:
            return None
        request = self.request
        if request.side is Side.SELL and request.quantity is not None:
            if self.market_price is None:
                return None
            amount = max(amount, request.quantity * self.market_price)
        rate = self.usd_rate
        return None if rate is None else amount * rate

    @_Derived
    def open_usd(self) -> Decimal:
        """What the user's open orders are worth together, at their acceptance."""
        return sum([order.usd_value for order in self.account.open_orders], ZERO)

    @property
    def reduces(self) -> bool:
        """Whether the order can only make a position smaller: it sells for dollars what the user has."""
        return self.request.side is Side.SELL and self.quote in self.rules.usd_assets
