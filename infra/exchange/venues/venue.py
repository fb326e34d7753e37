"""What a venue's row holds, and what its answers prove.

Invariants:
1. `proven_refusal` answers None, which is *in doubt*, for everything that no rule names. No rule names an HTTP 5xx answer, a time-out or
   an answer that could not be read in full.
2. A rule goes by what was on the wire (HTTP status, the venue's code, its text), not by ccxt's exception class: executed orders were seen
   under RequestTimeout, ExchangeNotAvailable, OperationFailed, ExchangeError and InvalidOrder alike.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from infra.exchange.key_check import KeyQuestion
from schemas.orders import DepositStatus, OrderType, Side, TimeInForce, WithdrawalStatus
from schemas.reasons import ReasonCode


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one call left behind. `http_status` is set only when the whole answer was read; `code` and `message` are the venue's, empty
    where its answer has none."""

    handed_over: bool
    unconnected: bool
    http_status: int | None = None
    code: str = ""
    message: str = ""


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
class VenueWithdrawals:
    """How a venue pays out, and what it proves about it. Names are those on the wire; `path` is the endpoint's that pays out, and `others`
    are the fields of its request that decide nothing, with the values that they may have (None: any).

    `create_call`, `history_call` and `networks_call` are ccxt's names of the endpoints. `takes_fee_from_amount`: the amount asked for is
    what leaves the account, and the fee is kept of it. `refusals` is the white list of answers that prove that nothing was accepted.
    `statuses` are those of the history. `history_page` is its largest page.
    """

    path: str
    client_withdrawal_id: str
    asset: str
    network: str
    address: str
    address_tag: str
    amount: str
    others: Mapping[str, frozenset[str] | None]
    takes_fee_from_amount: bool
    refusals: tuple[RefusalRule, ...]
    statuses: Mapping[str, WithdrawalStatus]
    history_call: str
    history_page: int
    networks_call: str


@dataclass(frozen=True, slots=True)
class OrderOnTheWire:
    """The requests that create and cancel an order, which are compared whole before they are handed to the network (wire.py).

    `path` is the endpoint's, for both. The rest are names in them, and the venue's words for sides, types and times in force;
    `time_in_force_default` is what a limit order is sent with that names none. `others` are fields that decide nothing, with the values
    that they may have (None: any).
    """

    path: str
    symbol: str
    side: str
    sides: Mapping[Side, str]
    order_type: str
    order_types: Mapping[OrderType, str]
    time_in_force: str
    times_in_force: Mapping[TimeInForce, str]
    time_in_force_default: str
    client_order_id: str
    original_client_order_id: str
    exchange_order_id: str
    quantity: str
    quote_quantity: str
    price: str
    timestamp: str
    receive_window: str
    others: Mapping[str, frozenset[str] | None]


@dataclass(frozen=True, slots=True)
class VenueAccount:
    """How a venue shows what an account holds: ccxt's name of the endpoint, what it is asked with, and names on the wire.

    `account_id` names the account itself, the same for all of its keys; None where the venue publishes none.
    """

    call: str
    parameters: Mapping[str, str]
    balances: str
    asset: str
    free: str
    locked: str
    account_id: str | None


@dataclass(frozen=True, slots=True)
class VenueDepositList:
    """How a venue shows an account's deposits. Names are those on the wire; `history_call` is ccxt's name of the endpoint, `history_page`
    its largest page. `entry_id` is the venue's own id of an entry, `arrived` and `completed` are times in ms since 1970."""

    entry_id: str
    transaction_id: str
    asset: str
    network: str
    address: str
    address_tag: str
    amount: str
    arrived: str
    completed: str
    statuses: Mapping[str, DepositStatus]
    history_call: str
    history_page: int


@dataclass(frozen=True, slots=True)
class Venue:
    """One venue's row.

    `create_parameter`, `look_up_parameter` and `cancel_parameter` carry the client order id in ccxt's calls. `cancel_id_parameter` names
    the client order id that the venue puts on a canceled order in place of its own, None where it leaves that alone. `key_header` is the
    header that names the account by its key. `error_code` and `error_message` are keys of an error's JSON body. `history_page` is the
    largest page of the order and trade lists; `listed_quote_quantity` is what its orders call the quote amount that was asked for.
    `receive_window_max` is the venue's limit. `prices_call` is ccxt's name of the endpoint that lists `symbol` and `price` of every market.
    `request_timeout` is how long it may itself work on a request that it has taken in (Binance: error -1007, after 10 s).
    `read_lag` is how long after it has accepted an order its books may not show it: what they show is read from copies.
    `key_questions` are asked in turn, the next one where the venue has no such endpoint, as sandboxes do. `withdrawals` is None where
    nothing can be paid out, `deposits` where what arrives is not seen. `account` tells what an account holds.
    """

    exchange_id: str
    client_order_id_pattern: re.Pattern[str]
    create_parameter: str
    look_up_parameter: str
    cancel_parameter: str
    cancel_id_parameter: str | None
    key_header: str
    order: OrderOnTheWire
    error_code: str
    error_message: str
    refusals: tuple[RefusalRule, ...]
    unknown_order_codes: frozenset[str]
    not_cancelable_codes: frozenset[str]
    clock_refused_codes: frozenset[str]
    receive_window_max: timedelta
    history_page: int
    listed_quote_quantity: str
    prices_call: str
    key_questions: tuple[KeyQuestion, ...]
    options: Mapping[str, object]
    real_money_domains: frozenset[str]
    account: VenueAccount
    withdrawals: VenueWithdrawals | None = None
    deposits: VenueDepositList | None = None
    read_lag: timedelta = timedelta(seconds=60)
    request_timeout: timedelta = timedelta(seconds=10)


def canceled_id(client_order_id: str) -> str:
    """The client order id under which our own cancel leaves an order, at venues that replace it."""
    return f"{client_order_id}-c"


def proven_refusal(row: Venue, evidence: Evidence, refusals: tuple[RefusalRule, ...] | None = None) -> ReasonCode | None:
    """The reason why an order is proven not accepted, or None: in doubt. `refusals` in place of those for orders.

    Nothing handed to the network, or no connection to hand it to, is the strongest proof; after that the venue's own white list.
    """
    if not evidence.handed_over:
        return ReasonCode.EXCHANGE_REFUSED
    if evidence.unconnected:
        return ReasonCode.EXCHANGE_UNAVAILABLE
    for rule in row.refusals if refusals is None else refusals:
        if rule.covers(evidence):
            return rule.reason
    return None
