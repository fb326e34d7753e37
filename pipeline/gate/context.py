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
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

from pipeline.books.ledger import AccountKey, Balance
from pipeline.gate.limits import DEFAULT_LIMITS, Limits
from pipeline.model.api_key import ApiKeyState
from pipeline.model.conduct import Conduct
from pipeline.model.dollars import usd_rate_of
from pipeline.model.halts import HaltBook
from pipeline.model.rules import Rules
from pipeline.model.venue import Market, MarketData, Quote
from schemas.orders import Mode, OrderStatus, OrderType, Side
from schemas.requests import DepositRequest, TradeRequest, WithdrawalRequest

if TYPE_CHECKING:
    from pipeline.model.second_factor import SecondFactor

ZERO: Final = Decimal(0)
UNTOUCHED: Final = "Nothing was sent or held."


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
    conduct: Conduct = field(default_factory=Conduct)
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


@dataclass(frozen=True, eq=False, kw_only=True)
class RequestContext:
    """What every gate may look at. `appended_at` is the broker's time of the record, `now` the decision's, both UTC.

    `untouched` says in a sentence what a refusal means for the money.
    """

    appended_at: datetime
    now: datetime
    rules: Rules
    account: AccountState

    untouched: ClassVar[str]

    @property
    def is_late(self) -> bool:
        """Whether the request's deadline has passed."""
        raise NotImplementedError

    @property
    def is_simulated(self) -> bool:
        """Whether no real money can move, so that its user need not be verified."""
        return False

    @property
    def revokes(self) -> bool:
        """Whether it only ends what its user has begun, which nobody must be kept from."""
        return False

    @property
    def reduces(self) -> bool:
        """Whether it can only make a position smaller."""
        return False


@dataclass(frozen=True, eq=False, kw_only=True)
class ExchangeContext(RequestContext):
    """What the gates of requests about an exchange account may look at, too. `api_key` is the stored key that the request names; None where
    there is none."""

    request: TradeRequest | WithdrawalRequest | DepositRequest
    api_key: ApiKeyState | None


@dataclass(frozen=True, eq=False, kw_only=True)
class TradeContext(ExchangeContext):
    """All that the checks of one trade may look at.

    `balances` must hold the user's accounts of the assets that the symbol names, at every exchange of the rules and in the request's book;
    one that is missing counts as empty. What is derived is computed once: make a new context for each request.
    """

    request: TradeRequest
    market_data: MarketData | None
    halts: HaltBook
    balances: Mapping[AccountKey, Balance]
    idempotency_key: str

    untouched: ClassVar = UNTOUCHED

    @property
    def expires_at(self) -> datetime:
        """The moment after which the order must not be sent any more: the producer's own, else the default after the broker's time."""
        return self.request.expires_at or self.appended_at + self.rules.submission_deadline

    @property
    def is_late(self) -> bool:
        return self.now > self.expires_at

    @property
    def is_simulated(self) -> bool:
        return self.request.mode is Mode.PAPER

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
        """It sells for dollars what the user has."""
        return self.request.side is Side.SELL and self.quote in self.rules.usd_assets
