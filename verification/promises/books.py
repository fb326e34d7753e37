"""Books: our orders and results against what the exchange says that it accepted and filled, in both directions.

Invariants that are checked:
1. One execution: no client order id and no `(user, key)` has two accepted orders.
2. What a result says happened, or what corrected it since, is what the exchange's books say: an order called rejected was never accepted,
   one called executed was.
3. Every order in the exchange's books is one of ours, sent as its user asked; none of them is a simulated one.
4. Each user's funds are the same at our ledger and at the exchange.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Final

from pipeline.model.money import round_down
from pipeline.model.order import Order
from schemas.decimals import format_decimal
from schemas.orders import Mode, OrderStatus, OrderType, RequestType, Side
from schemas.results import Result, ResultStatus
from verification.promises.answers import KEY_LIFETIME, Answers
from verification.promises.deposits import BookedDeposit
from verification.promises.finding import Check, Finding, skipped
from verification.promises.payouts import BookedPayout

_UNTOLD: Final = frozenset({OrderStatus.ACCEPTED, OrderStatus.SUBMITTING, OrderStatus.IN_DOUBT})
# A status that only the exchange can give.
_ACKNOWLEDGED: Final = frozenset({OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED, OrderStatus.FILLED, OrderStatus.EXPIRED})

_CLAIMS: Final = {
    "executed_twice": "no order was accepted twice by the exchange, and no key has two orders there",
    "rejected_but_executed": "no order that was called rejected or not sent was accepted by the exchange",
    "executed_but_unknown": "no order was called executed or open that the exchange does not know",
    "foreign_orders": "every order in the exchange's books that came from here is one of ours, as its user asked for it",
    "paper_stays_here": "no simulated order is in the exchange's own log",
    "figures_match_exchange": "status, quantity, price and fee of orders and results are those of the exchange's books",
    "balances_match_exchange": "each user's funds are the same in our ledger and at the exchange",
}


@dataclass(slots=True)
class BookedOrder:
    """One order as the exchange's own log has it. `cum_quantity` in base, `cum_quote` in quote units, `fees` per asset."""

    exchange_order_id: str
    client_order_id: str
    user_id: str
    symbol: str
    side: Side
    order_type: OrderType
    quantity: Decimal | None
    quote_quantity: Decimal | None
    price: Decimal | None
    status: OrderStatus = OrderStatus.NEW
    cum_quantity: Decimal = Decimal(0)
    cum_quote: Decimal = Decimal(0)
    fees: dict[str, Decimal] = field(default_factory=dict)
    # Made by its user elsewhere: none of ours, and none that ours may be taken for.
    foreign: bool = False


@dataclass(slots=True)
class ExchangeBooks:
    """Every accepted order and withdrawal, every deposit, and what each user owns per asset (free and locked together)."""

    orders: list[BookedOrder] = field(default_factory=list)
    balances: dict[tuple[str, str], Decimal] = field(default_factory=dict)
    payouts: list[BookedPayout] = field(default_factory=list)
    deposits: list[BookedDeposit] = field(default_factory=list)


def books_missing(why: str) -> list[Finding]:
    """The findings of this module where the exchange's own log cannot be read."""
    return [skipped(name, claim, why) for name, claim in _CLAIMS.items()]


def check_books(
    books: ExchangeBooks,
    orders: Mapping[str, Order],
    answers: Answers,
    owned: Mapping[tuple[str, str], Decimal],
    in_flight: Set[str] = frozenset(),
) -> list[Finding]:
    """Every finding about orders at the exchange. `owned` is per user and asset what our ledger says lies there; `in_flight` are users
    whose funds may be on their way out or in."""
    booked: dict[str, list[BookedOrder]] = {}
    for row in books.orders:
        booked.setdefault(row.client_order_id, []).append(row)
    simulated = {order.client_order_id for order in orders.values() if order.mode is Mode.PAPER}
    told = [
        result
        for results in answers.finals.values()
        for result in results
        # Where an answer was corrected, what is true is what corrected it.
        if _is_word_about_an_order(result) and result.client_order_id not in simulated and result.order_id not in answers.corrected
    ]
    told += [result for result in answers.corrected.values() if result.client_order_id not in simulated]
    # From here on what was asked for in earnest: nothing else has a place in the exchange's books.
    orders = {order_id: order for order_id, order in orders.items() if order.mode is Mode.LIVE}
    return [
        _executed_twice(booked, orders),
        _rejected_but_executed(booked, orders, told),
        _executed_but_unknown(booked, orders, told),
        _foreign_orders(books, orders),
        _paper_stays_here(books, simulated),
        _figures_match(booked, orders, told),
        _balances_match(books, orders, owned, in_flight),
    ]


def _is_word_about_an_order(result: Result) -> bool:
    return result.type is RequestType.TRADE and result.client_order_id is not None and result.status is not ResultStatus.DUPLICATE


def _executed_twice(booked: Mapping[str, list[BookedOrder]], orders: Mapping[str, Order]) -> Finding:
    check = Check("executed_twice", _CLAIMS["executed_twice"], len(booked))
    for client_order_id, rows in booked.items():
        if len(rows) > 1:
            numbers = ", ".join(row.exchange_order_id for row in rows)
            check.breach(f"client order id {client_order_id} (user {rows[0].user_id}) was accepted {len(rows)} times: orders {numbers}")
    of_key: dict[tuple[str, str], list[Order]] = defaultdict(list)
    for order in orders.values():
        if order.client_order_id in booked:
            of_key[order.user_id, order.idempotency_key].append(order)
    for (user_id, key), sent in of_key.items():
        ordered = sorted(sent, key=lambda order: order.decided_at)
        for before, after in pairwise(ordered):
            if after.decided_at - before.decided_at < KEY_LIFETIME:
                check.breach(f"user {user_id}, key {key!r}: the exchange accepted both {before.order_id} and {after.order_id}")
    return check.finding()


def _rejected_but_executed(booked: Mapping[str, list[BookedOrder]], orders: Mapping[str, Order], told: Iterable[Result]) -> Finding:
    check = Check("rejected_but_executed", _CLAIMS["rejected_but_executed"])
    for order in orders.values():
        if order.status not in {OrderStatus.REJECTED, OrderStatus.ACCEPTED}:
            continue
        check.checked += 1
        for row in booked.get(order.client_order_id, ()):
            check.breach(f"order {order.order_id} is {order.status}, the exchange has it as {_describe(row)}")
    for result in told:
        if result.status is ResultStatus.REJECTED:
            check.checked += 1
            for row in booked.get(result.client_order_id or "", ()):
                check.breach(f"record {result.source} was told rejected ({result.reason_code}), the exchange has it as {_describe(row)}")
    return check.finding()


def _executed_but_unknown(booked: Mapping[str, list[BookedOrder]], orders: Mapping[str, Order], told: Iterable[Result]) -> Finding:
    check = Check("executed_but_unknown", _CLAIMS["executed_but_unknown"])
    for order in orders.values():
        if order.status not in _ACKNOWLEDGED and not order.cum_quantity:
            continue
        check.checked += 1
        if order.client_order_id not in booked:
            filled = format_decimal(order.cum_quantity)
            check.breach(f"order {order.order_id} is {order.status} with {filled} filled, the exchange knows none")
    for result in told:
        if result.status is ResultStatus.EXECUTED or result.filled_quantity:
            check.checked += 1
            if result.client_order_id not in booked:
                check.breach(f"record {result.source} was told {result.status}, the exchange knows no such order")
    return check.finding()


def _foreign_orders(books: ExchangeBooks, orders: Mapping[str, Order]) -> Finding:
    check = Check("foreign_orders", _CLAIMS["foreign_orders"], len(books.orders))
    ours = {order.client_order_id: order for order in orders.values()}
    for row in books.orders:
        order = ours.get(row.client_order_id)
        if row.foreign and order is None:
            continue
        if order is None:
            name = f"order {row.exchange_order_id} ({row.client_order_id}) of {row.user_id}"
            check.breach(f"the exchange has {name}, {_describe(row)}; it is not ours")
        elif _as_asked(row) != (
            order.user_id, order.symbol, order.side, order.order_type, order.quantity, order.quote_quantity, order.price
        ):  # fmt: skip
            check.breach(f"order {order.order_id} was asked for otherwise than the exchange has it: {_as_asked(row)}")
    return check.finding()


def _paper_stays_here(books: ExchangeBooks, simulated: Set[str]) -> Finding:
    check = Check("paper_stays_here", _CLAIMS["paper_stays_here"], len(books.orders))
    for row in books.orders:
        if row.client_order_id in simulated:
            check.breach(f"the simulated order {row.client_order_id} of {row.user_id} is order {row.exchange_order_id} at the exchange")
    return check.finding()


def _as_asked(row: BookedOrder) -> tuple[object, ...]:
    return (row.user_id, row.symbol, row.side, row.order_type, row.quantity, row.quote_quantity, row.price)


def _figures_match(booked: Mapping[str, list[BookedOrder]], orders: Mapping[str, Order], told: Iterable[Result]) -> Finding:
    check = Check("figures_match_exchange", _CLAIMS["figures_match_exchange"])
    for order in orders.values():
        rows = booked.get(order.client_order_id, [])
        # Twice accepted is a breach of its own; which of the two the order should equal is not defined.
        if len(rows) != 1 or order.status in _UNTOLD or order.status is OrderStatus.REJECTED:
            continue
        row = rows[0]
        check.checked += 1
        ours = (order.status, order.exchange_order_id, order.cum_quantity, order.cum_quote, order.fee)
        theirs = (row.status, row.exchange_order_id, row.cum_quantity, row.cum_quote, row.fees.get(order.fee_asset or "", Decimal(0)))
        if ours != theirs or len(row.fees) > 1:
            check.breach(f"order {order.order_id}: ours {_figures(ours)}, the exchange's {_figures(theirs)}")
    for result in told:
        rows = booked.get(result.client_order_id or "", [])
        if len(rows) != 1 or result.status is ResultStatus.REJECTED:
            continue
        row = rows[0]
        check.checked += 1
        price = round_down(row.cum_quote / row.cum_quantity) if row.cum_quantity else None
        said = (result.order_status, result.exchange_order_id, result.filled_quantity, result.average_price, result.fee or Decimal(0))
        true = (row.status, row.exchange_order_id, row.cum_quantity, price, row.fees.get(result.fee_asset or "", Decimal(0)))
        if said != true:
            check.breach(f"record {result.source} was told {_figures(said)}, the exchange's books say {_figures(true)}")
    return check.finding()


def _balances_match(
    books: ExchangeBooks, orders: Mapping[str, Order], owned: Mapping[tuple[str, str], Decimal], in_flight: Set[str]
) -> Finding:
    check = Check("balances_match_exchange", _CLAIMS["balances_match_exchange"])
    # Nobody can say what an order in doubt has moved.
    unsettled = in_flight | {order.user_id for order in orders.values() if order.status in _UNTOLD}
    for account in sorted(owned.keys() | books.balances.keys()):
        if account[0] in unsettled:
            continue
        check.checked += 1
        ours, theirs = owned.get(account, Decimal(0)), books.balances.get(account, Decimal(0))
        if ours != theirs:
            check.breach(f"user {account[0]} owns {_text(ours)} {account[1]} in our ledger and {_text(theirs)} at the exchange")
    return check.finding()


def _describe(row: BookedOrder) -> str:
    return f"{row.status} with {format_decimal(row.cum_quantity)} filled"


def _figures(values: tuple[object, ...]) -> str:
    return " ".join(_text(value) if isinstance(value, Decimal) else str(value) for value in values)


def _text(amount: Decimal) -> str:
    return f"{amount.normalize():f}"
