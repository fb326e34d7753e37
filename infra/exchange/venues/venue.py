"""What a venue is to the gateway: facts, and its dialect. The rules of proof stand in the gateway; a venue says what its answers are.

Invariants:
1. `proven_refusal` answers None, which is *in doubt*, for everything that no rule names. No rule names an HTTP 5xx answer, a time-out or
   an answer that could not be read in full.
2. A rule goes by what was on the wire (HTTP status, the venue's code, its text), not by ccxt's exception class: executed orders were seen
   under RequestTimeout, ExchangeNotAvailable, OperationFailed, ExchangeError and InvalidOrder alike.
3. A call that creates, cancels or pays makes one request; more than one is stopped before it leaves.
4. Whatever reads an answer raises UnreadableBooks for what it cannot read; what calls raises ccxt's errors as they come.

`exchange` is ccxt's instance of one account, `public` the one without a key. Orders and trades have ccxt's unified form, which is the same
for all venues. Times in ms since 1970 are by the venue's clock, amounts as in pipeline/model/venue.

Start with `Venue`; the shortest way to see a whole one is the made-up one of tests/integration/listing_venue.py.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from infra.exchange.key_check import KeyAccepted
from infra.exchange.venues.wire import WireForm
from pipeline.model.deposit import VenueDeposit
from pipeline.model.venue import AccountBalances, Market, OrderReference, Submission
from pipeline.model.withdrawal import Network, VenueWithdrawal, WithdrawalSubmission
from schemas.orders import OrderType, TimeInForce
from schemas.reasons import ReasonCode

Order = dict[str, Any]
Trade = dict[str, Any]
# Of a list in the venue's own form.
Row = dict[str, Any]

# What this system's own client withdrawal ids look like (pipeline.model.identifiers).
OUR_WITHDRAWAL_ID: Final = re.compile(r"cw[0-9a-f]{28}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one call left behind. `http_status` is set only when the whole answer was read; `code` and `message` are the venue's, empty
    where its answer has none."""

    handed_over: bool
    unconnected: bool
    http_status: int | None = None
    code: str = ""
    message: str = ""


WhiteList = Callable[[Evidence], ReasonCode | None]


@dataclass(frozen=True, slots=True)
class RefusalRule:
    """An answer that proves the order was not accepted: all of the conditions given must hold. `codes` None means any code; `texts` None
    any text, else the message must begin with one of them."""

    reason: ReasonCode
    http_statuses: frozenset[int]
    codes: frozenset[str] | None = None
    texts: tuple[str, ...] | None = None

    def covers(self, evidence: Evidence) -> bool:
        if evidence.http_status not in self.http_statuses:
            return False
        if self.codes is not None and evidence.code not in self.codes:
            return False
        return self.texts is None or evidence.message.startswith(self.texts)


@dataclass(frozen=True, slots=True)
class KeyQuestion:
    """A signed read that tells what a key may do: ccxt's name of the endpoint, and what its answer says; None where it is not what the
    venue's documentation says it is."""

    call: str
    read: Callable[[Any], KeyAccepted | None]


class Withdrawals(ABC):
    """How a venue pays out."""

    @abstractmethod
    def refusal(self, evidence: Evidence) -> ReasonCode | None:
        """The white list of answers that prove that nothing was accepted."""

    @abstractmethod
    def form(self, submission: WithdrawalSubmission, signed_ms: int, window_ms: int, key: str) -> WireForm:
        """The request that pays this out, as it must leave: signed for `signed_ms`, not to be taken in later than `window_ms` after."""

    @abstractmethod
    async def pay(self, exchange: Any, submission: WithdrawalSubmission, signed_ms: int, window_ms: int) -> Mapping[str, Any]:
        """Makes that request. The answer's `id` is the venue's id of the withdrawal."""

    @abstractmethod
    async def history(self, exchange: Any, since_ms: int, until_ms: int) -> list[Row]:
        """Every withdrawal of the account between the two times, whole, in the venue's form."""

    @abstractmethod
    def read(self, row: Row) -> VenueWithdrawal | None:
        """One row of it; None for one that carries no client id of ours."""

    @abstractmethod
    async def networks(self, exchange: Any, observed_at: datetime) -> dict[tuple[str, str], Network]:
        """What is paid out over which networks, by asset and network. One whose figures cannot be read is left out."""


class Deposits(ABC):
    """How a venue shows an account's deposits."""

    @abstractmethod
    async def history(self, exchange: Any, since_ms: int, until_ms: int) -> list[Row]:
        """Every deposit of the account between the two times, whole, in the venue's form."""

    @abstractmethod
    def read(self, row: Row, clock_difference: timedelta) -> VenueDeposit | None:
        """One row of it; None for one on its way that has no transaction yet. `clock_difference` is how far the venue's clock is ahead."""


@dataclass(frozen=True, kw_only=True)
class Venue(ABC):
    """One venue. Its facts:

    `exchange_id` is ccxt's. `order_types` and `times_in_force` are those that can be sent. `receive_window_max` is the longest time that a
    request may claim to be taken in after it was signed, and `request_timeout` how long the venue may itself work on one that it has taken
    in: together the acceptance horizon. `read_lag` is how long after it has accepted an order its books may not show it: what they show is
    read from copies. `history_span` is the longest time that one question about withdrawals or deposits may cover, and `listed_within` how
    long after it was sent a withdrawal may be dated there. `replaces_canceled_id`: a canceled order is shown under another client order
    id. The codes are those of `error_of` that say that there is no such order, that there is nothing to cancel, and that the time of the
    request was wrong. `key_questions` are asked in turn, the next one where the venue has no such endpoint, as sandboxes do. `withdrawals`
    is None where nothing can be paid out, `deposits` where what arrives is not seen.
    """

    exchange_id: str
    client_order_id_pattern: re.Pattern[str]
    order_types: frozenset[OrderType]
    times_in_force: frozenset[TimeInForce]
    receive_window_max: timedelta
    request_timeout: timedelta
    read_lag: timedelta
    history_span: timedelta
    listed_within: timedelta
    replaces_canceled_id: bool
    unknown_order_codes: frozenset[str]
    not_cancelable_codes: frozenset[str]
    clock_refused_codes: frozenset[str]
    key_questions: tuple[KeyQuestion, ...]
    real_money_domains: frozenset[str]
    withdrawals: Withdrawals | None = None
    deposits: Deposits | None = None

    @abstractmethod
    def options(self, receive_window_ms: int) -> Mapping[str, object]:
        """ccxt's options for it."""

    def replaced(self, base: Any) -> Mapping[str, Any]:
        """What of ccxt's class (`base`) is replaced, by name. The transport's own replacements come after it."""
        return {}

    @abstractmethod
    def error_of(self, answer: Any) -> tuple[str, str]:
        """The code and the text of an answer that is an error, '' where there is none."""

    @abstractmethod
    def refusal(self, evidence: Evidence) -> ReasonCode | None:
        """The white list of answers that prove that an order was not accepted, or a cancel not taken."""

    @abstractmethod
    def order_form(self, submission: Submission, market_id: str, signed_ms: int, window_ms: int, key: str) -> WireForm:
        """The request that creates this order, as it must leave: signed for `signed_ms`, not to be taken in later than `window_ms` after.
        `market_id` is the venue's own name of the market."""

    @abstractmethod
    def cancel_form(self, reference: OrderReference, market_id: str, key: str) -> WireForm:
        """The request that cancels this order."""

    @abstractmethod
    async def create(self, exchange: Any, submission: Submission, signed_ms: int, window_ms: int) -> Order | str:
        """Creates the order. A venue that says no more of what it took than its id answers with that: its books are asked then."""

    @abstractmethod
    async def cancel(self, exchange: Any, reference: OrderReference, window_ms: int | None) -> Mapping[str, Any]:
        """Cancels the order, not to be taken in later than `window_ms` after it is signed (None: no bound of its own). The answer's `id` is
        the venue's id of the order."""

    @abstractmethod
    async def order(self, exchange: Any, reference: OrderReference) -> Order | None:
        """The order by the venue's id where that is known, and by that alone; else by our client order id. A venue that has no such order
        says so by one of `unknown_order_codes`, or None."""

    @abstractmethod
    async def orders(self, exchange: Any, symbol: str, window_ms: tuple[int, int] | None) -> list[Order]:
        """Every order that the account made between the two times, whole; the newest page where there are none."""

    @abstractmethod
    async def trades(self, exchange: Any, symbol: str, window_ms: tuple[int, int] | None) -> list[Trade]:
        """Every trade of the account, in the same way."""

    @abstractmethod
    async def trades_of(self, exchange: Any, symbol: str, exchange_order_id: str) -> list[Trade]:
        """Every trade of one order."""

    @abstractmethod
    def quote_quantity_of(self, order: Order) -> object:
        """The quote amount that a listed order was asked for; None where it does not show it."""

    @abstractmethod
    def market_id(self, symbol: str) -> str:
        """Its name of a market that it does not list, as it names the others."""

    @abstractmethod
    def market(self, symbol: str, row: Mapping[str, Any]) -> Market:
        """The market of one row of ccxt's table, whose `info` is the venue's own row, by the venue's own numbers."""

    @abstractmethod
    def unknown_rules(self, rows: Iterable[Mapping[str, Any]]) -> set[str]:
        """The names of trading rules that some of these rows have and nobody here knows."""

    @abstractmethod
    async def prices(self, public: Any, wanted: Mapping[str, str]) -> dict[str, Decimal]:
        """Last prices in quote per base, by symbol, of the markets in `wanted` (the venue's market id → symbol). A row that cannot be read
        costs its own market its price."""

    @abstractmethod
    async def balances(self, exchange: Any) -> AccountBalances:
        """What the account holds, whole, under the codes that symbols have; without `key_version`."""


def canceled_id(client_order_id: str) -> str:
    """The client order id under which our own cancel leaves an order, at venues that replace it."""
    return f"{client_order_id}-c"


def first_of(rules: Iterable[RefusalRule], evidence: Evidence) -> ReasonCode | None:
    """The reason of the first rule that covers the evidence; None where none does."""
    return next((rule.reason for rule in rules if rule.covers(evidence)), None)


def proven_refusal(white_list: WhiteList, evidence: Evidence) -> ReasonCode | None:
    """The reason why something is proven not accepted, or None: in doubt.

    Nothing handed to the network, or no connection to hand it to, is the strongest proof; after that the venue's own white list.
    """
    if not evidence.handed_over:
        return ReasonCode.EXCHANGE_REFUSED
    if evidence.unconnected:
        return ReasonCode.EXCHANGE_UNAVAILABLE
    return white_list(evidence)
