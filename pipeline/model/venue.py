"""What an exchange (a venue) is asked, and what it can prove: the values that cross the gateway.

Invariants:
1. A submission has three outcomes: `Confirmed`, `Refused` (proven not accepted) and `InDoubt`. `InDoubt` is the default; `Refused`
   needs a reason from the venue's white list.
2. A look-up has three outcomes: `Found`, `Absent` and `LookUpFailed`. One `Absent` proves nothing: the venue's books may lag behind what it
   accepted. How far apart two must be is decided in pipeline/model/absence.
3. `submitting_at` is the time of the recorded intent, and it is the timestamp the signed request carries. A paused worker that wakes up
   later therefore sends a request whose receive window is over, and the venue itself refuses it.
4. The receive window ends at the deadline at the latest (`window_of`): the venue itself refuses what arrives after it.
5. `mode` has no default: nothing simulated is sent to an exchange because somebody forgot to say that it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from schemas.orders import Mode, OrderStatus, OrderType, Side, TimeInForce
from schemas.reasons import ReasonCode

# With less time left than this until its deadline a request is not sent: none reaches a venue in less.
WINDOW_MIN: Final = timedelta(milliseconds=100)


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """The account that something was sent with: which of the keys stored under the id it was, and the venue's own number of the account
    where it is known. What stands at a venue belongs to that account, whatever key is stored under the id later."""

    version: int
    account_id: str | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """One order to send. Amounts are in units of the base asset (`quantity`) or the quote asset (`quote_quantity`), exactly one of the
    two; `price` in quote per base, for limit orders. `submitting_at` and `expires_at`, from which on it must not be taken any more, are
    UTC. `market_id` is the venue's own name of the market when the order was accepted; None where it was not kept."""

    mode: Mode
    order_id: str
    client_order_id: str
    exchange: str
    user_id: str
    api_key_id: str
    symbol: str
    side: Side
    order_type: OrderType
    quantity: Decimal | None
    quote_quantity: Decimal | None
    price: Decimal | None
    time_in_force: TimeInForce | None
    submitting_at: datetime
    expires_at: datetime
    market_id: str | None = None
    sent_with: KeyVersion | None = None


@dataclass(frozen=True, slots=True)
class PaperTerms:
    """What a simulated limit order was asked for: `quantity` in base units, `price` in quote per base."""

    side: Side
    quantity: Decimal
    price: Decimal


@dataclass(frozen=True, slots=True)
class OrderTerms:
    """What an order was asked for, as a venue's list shows it too: units as in `Submission`."""

    side: Side
    order_type: OrderType
    quantity: Decimal | None
    quote_quantity: Decimal | None
    price: Decimal | None


@dataclass(frozen=True, slots=True)
class OrderReference:
    """Enough to find one order in a venue's books. `exchange_order_id` is None where the venue never told us one. `submitting_at`, UTC,
    bounds the search of the venue's lists to the time in which it can have accepted the order; without it their newest page is read.

    `paper` comes with a simulated order that may rest: no exchange has it in its books, so whoever asks for it brings it along. `market_id`
    is the venue's own name of the market when the order was accepted: an order must be found whatever has become of its market since. By
    `terms` another order that has lost its client order id is told from this one; without them every such order may be this one.

    `cancel_before`, UTC: a cancel that was asked for by then alone is not handed over later. None: it was asked for without end."""

    mode: Mode
    order_id: str
    client_order_id: str
    exchange_order_id: str | None
    exchange: str
    user_id: str
    api_key_id: str
    symbol: str
    submitting_at: datetime | None = None
    paper: PaperTerms | None = None
    terms: OrderTerms | None = None
    sent_with: KeyVersion | None = None
    market_id: str | None = None
    cancel_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Fee:
    """What the venue kept: `amount` in units of `asset`."""

    asset: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class VenueOrder:
    """An order as the venue's own books show it. `cum_quantity` in base, `cum_quote` in quote units, both since the order began;
    `fees` one entry per asset, totals since the order began."""

    client_order_id: str
    exchange_order_id: str
    order_status: OrderStatus
    cum_quantity: Decimal
    cum_quote: Decimal
    fees: tuple[Fee, ...]
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The venue accepted the order; `order` is what it said of it."""

    order: VenueOrder


@dataclass(frozen=True, slots=True)
class Refused:
    """Proven not accepted. `detail` is the venue's own text, cut to 300 characters and free of secrets. `by_venue`: the venue itself said
    so; else it was stopped on this side."""

    reason_code: ReasonCode
    detail: str
    by_venue: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class InDoubt:
    """No proof either way: the order may or may not stand at the venue."""

    detail: str


SubmissionOutcome = Confirmed | Refused | InDoubt


@dataclass(frozen=True, slots=True)
class Found:
    order: VenueOrder


@dataclass(frozen=True, slots=True)
class Absent:
    """Neither the venue's orders nor its trade history know the client order id. `looked_up_at` is when the look-up began by the venue's
    own clock, UTC."""

    looked_up_at: datetime


@dataclass(frozen=True, slots=True)
class LookUpFailed:
    """The venue did not answer the question; it is asked again later."""

    detail: str


LookUpOutcome = Found | Absent | LookUpFailed


@dataclass(frozen=True, slots=True)
class AccountBalances:
    """What a venue shows of one account, by asset: `totals` is free and locked together, `locked` what its open orders have locked of that.

    `account_id` is the venue's own name of the account, the same for all of its keys; None where the venue tells none.
    """

    account_id: str | None
    totals: Mapping[str, Decimal]
    locked: Mapping[str, Decimal]
    # Which of the keys stored under its id was asked with.
    key_version: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Lot:
    """Which quantities a venue takes, in base units. A step or least of zero bounds nothing; `greatest` None neither."""

    step: Decimal = Decimal(0)
    least: Decimal = Decimal(0)
    greatest: Decimal | None = None


@dataclass(frozen=True, slots=True)
class PriceBand:
    """How far from the market price the price of an order may lie, by side, as multiples of it (0.2 = a fifth, 5 = five times)."""

    buy_min: Decimal
    buy_max: Decimal
    sell_min: Decimal
    sell_max: Decimal

    def of(self, side: Side) -> tuple[Decimal, Decimal]:
        return (self.buy_min, self.buy_max) if side is Side.BUY else (self.sell_min, self.sell_max)


@dataclass(frozen=True, slots=True)
class Market:
    """A venue's trading rules for one symbol, in the units of the fields they bound. `taker_fee_rate` is a fraction (0.001 = 0.1 %).

    A bound that is None, and a least or a step of zero, bounds nothing. `market_lot` is for market orders, beside the rule for all;
    `notional_*_on_market`: whether the bound is one of market orders, too. `quote_places`: how many decimal places a quote quantity may
    have. `order_types` None: the venue does not say. `resting_orders_max` and `position_max` (base units) are per account.
    `market_id` is the venue's own name of the market.
    """

    symbol: str
    base: str
    quote: str
    active: bool
    price_tick: Decimal
    quantity_step: Decimal
    quantity_min: Decimal
    quantity_max: Decimal | None
    notional_min: Decimal
    taker_fee_rate: Decimal
    price_min: Decimal = Decimal(0)
    price_max: Decimal | None = None
    percent_band: PriceBand | None = None
    market_lot: Lot = Lot()
    notional_min_on_market: bool = True
    notional_max: Decimal | None = None
    notional_max_on_market: bool = False
    quote_places: int | None = None
    quote_quantity_taken: bool = True
    order_types: frozenset[OrderType] | None = None
    resting_orders_max: int | None = None
    position_max: Decimal | None = None
    market_id: str | None = None


@dataclass(frozen=True, slots=True)
class Quote:
    """A price with its age: `price` in quote per base, `observed_at` when the venue told it, UTC."""

    price: Decimal
    observed_at: datetime


@dataclass(frozen=True, slots=True)
class MarketData:
    """What intake knows of one venue when it decides a batch; an empty one refuses everything (`PRICE_UNAVAILABLE`)."""

    exchange: str
    markets: Mapping[str, Market] = field(default_factory=dict)
    quotes: Mapping[str, Quote] = field(default_factory=dict)

    def fresh_quote(self, symbol: str, now: datetime, age_max: timedelta) -> Quote | None:
        """The market price of a symbol, None when there is none or it is older than `age_max`.

        A price from the future is of no known age either; one that is not above zero values nothing.
        """
        quote = self.quotes.get(symbol)
        return None if quote is None or quote.price <= 0 or abs(now - quote.observed_at) > age_max else quote


def window_of(submitting_at: datetime, expires_at: datetime, receive_window: timedelta) -> timedelta | None:
    """How long after the intent the venue may take a request in: the receive window, and never beyond the deadline; None where so little is
    left that it is not sent."""
    window = min(receive_window, expires_at - submitting_at)
    return None if window < WINDOW_MIN else window


def acceptance_horizon(submitting_at: datetime, receive_window: timedelta, venue_timeout: timedelta) -> datetime:
    """The moment after which a venue can no longer accept a request whose signed timestamp is `submitting_at`.

    Binance refuses a request whose timestamp is older than `recvWindow` when it arrives, and ends one it took in within its own
    time-out of 10 s, "UNKNOWN" execution status included (Binance spot API, General information, Timing security and HTTP 5XX).
    """
    return submitting_at + receive_window + venue_timeout
