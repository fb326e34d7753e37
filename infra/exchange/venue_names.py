"""Names on a venue's wire: what its requests about orders say, and how it shows what an account holds and what arrives.

The rows themselves stand in venues.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.orders import DepositStatus, OrderType, Side, TimeInForce


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
