"""The exchange log's records: one frozen class per fact, one JSON line per record.

Invariants:
1. `seq` counts from 1 without a gap; times are microseconds since 1970, UTC, and never run backwards.
2. Records hold no secret. Amounts are decimal strings in JSON and Decimal here.
3. The records alone rebuild the exchange's state (secrets and injected faults lie elsewhere).

Start at `read_log`.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Final, get_type_hints

import orjson


@dataclass(frozen=True, slots=True)
class AccountOpened:
    """An account with its opening balances, asset to amount. `label` is whose it is (a user id)."""

    name: ClassVar[str] = "account"
    seq: int
    time_us: int
    api_key: str
    label: str
    balances: Mapping[str, Decimal]


@dataclass(frozen=True, slots=True)
class KeyAdded:
    """A further key of the account that was opened with the key `account`."""

    name: ClassVar[str] = "key"
    seq: int
    time_us: int
    api_key: str
    account: str


@dataclass(frozen=True, slots=True)
class OrderAccepted:
    """An order that entered the book. `quantity` and `quote_quantity`: what the request gave, one of the two.

    `timestamp_ms`, `receive_window_ms` and `arrived_us` prove invariant 1 of the package. The tape fields name the row that an order
    consumed in the tape mode `per-order`. `fill_steps` is in how many steps the resting part fills. `foreign`: its owner placed it by
    other means than a signed request.
    """

    name: ClassVar[str] = "order"
    seq: int
    time_us: int
    api_key: str
    label: str
    client_order_id: str
    order_id: int
    symbol: str
    side: str
    type: str
    time_in_force: str
    quantity: Decimal | None
    quote_quantity: Decimal | None
    price: Decimal | None
    timestamp_ms: int
    receive_window_ms: int
    arrived_us: int
    fill_steps: int
    tape_row: int | None
    tape_trade_id: str | None
    tape_price: Decimal | None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Filled:
    """One fill. `quantity` in base, `quote_quantity` in quote, `commission` in units of `commission_asset` (the received asset)."""

    name: ClassVar[str] = "fill"
    seq: int
    time_us: int
    order_id: int
    client_order_id: str
    api_key: str
    symbol: str
    side: str
    trade_id: int
    price: Decimal
    quantity: Decimal
    quote_quantity: Decimal
    commission: Decimal
    commission_asset: str
    maker: bool


@dataclass(frozen=True, slots=True)
class OrderCanceled:
    """The owner canceled the rest of an order."""

    name: ClassVar[str] = "cancel"
    seq: int
    time_us: int
    order_id: int
    client_order_id: str
    api_key: str


@dataclass(frozen=True, slots=True)
class OrderExpired:
    """The exchange ended the rest of an order: IOC or FOK without enough at its price, a market order that ran out of offers."""

    name: ClassVar[str] = "expire"
    seq: int
    time_us: int
    order_id: int
    client_order_id: str
    api_key: str


@dataclass(frozen=True, slots=True)
class PriceSet:
    """A price set by hand. `pinned`: it stays until set free; `tape_row`: the row that a step of the tape took it from."""

    name: ClassVar[str] = "price"
    seq: int
    time_us: int
    symbol: str
    price: Decimal
    pinned: bool
    tape_row: int | None


@dataclass(frozen=True, slots=True)
class WithdrawalAccepted:
    """A withdrawal that left the free balance. `withdraw_order_id` is the client's own id, empty if it gave none.

    `amount` is what left; the exchange keeps `fee` of it, and the rest arrives.
    """

    name: ClassVar[str] = "withdrawal"
    seq: int
    time_us: int
    api_key: str
    label: str
    withdrawal_id: str
    withdraw_order_id: str
    asset: str
    amount: Decimal
    address: str
    address_tag: str
    network: str
    timestamp_ms: int
    receive_window_ms: int
    arrived_us: int
    fee: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class WithdrawalEnded:
    """`completed` tells a withdrawal that was sent from one that failed and was paid back."""

    name: ClassVar[str] = "withdrawal_end"
    seq: int
    time_us: int
    api_key: str
    withdrawal_id: str
    completed: bool
    transaction_id: str


@dataclass(frozen=True, slots=True)
class DepositSeen:
    """A deposit on its way: not yet in the balance.

    `listed_from_us`: the history shows it from then on only. `listings`: how often the history shows it. `held`: it is credited when it is
    told so, not by itself.
    """

    name: ClassVar[str] = "deposit"
    seq: int
    time_us: int
    api_key: str
    label: str
    deposit_id: str
    asset: str
    amount: Decimal
    address: str
    network: str
    transaction_id: str
    address_tag: str = ""
    listed_from_us: int = 0
    listings: int = 1
    held: bool = False


@dataclass(frozen=True, slots=True)
class DepositMarked:
    """What the history shows of a deposit that is not credited, as Binance's number: pending, waiting for the user, wrong, rejected."""

    name: ClassVar[str] = "deposit_mark"
    seq: int
    time_us: int
    api_key: str
    deposit_id: str
    status: int


@dataclass(frozen=True, slots=True)
class DepositCredited:
    """A deposit that reached the free balance."""

    name: ClassVar[str] = "deposit_credit"
    seq: int
    time_us: int
    api_key: str
    deposit_id: str


@dataclass(frozen=True, slots=True)
class DepositTakenBack:
    """A deposit that had reached the free balance and is taken from it again, whatever is left there; `status` is what is shown then."""

    name: ClassVar[str] = "deposit_back"
    seq: int
    time_us: int
    api_key: str
    deposit_id: str
    status: int


Record = (
    AccountOpened
    | KeyAdded
    | OrderAccepted
    | Filled
    | OrderCanceled
    | OrderExpired
    | PriceSet
    | WithdrawalAccepted
    | WithdrawalEnded
    | DepositSeen
    | DepositMarked
    | DepositCredited
    | DepositTakenBack
)
_CLASSES: Final[tuple[type[Record], ...]] = (
    AccountOpened,
    KeyAdded,
    OrderAccepted,
    Filled,
    OrderCanceled,
    OrderExpired,
    PriceSet,
    WithdrawalAccepted,
    WithdrawalEnded,
    DepositSeen,
    DepositMarked,
    DepositCredited,
    DepositTakenBack,
)
# What logs of earlier versions do not have.
_ADDED: Final[dict[type[Record], dict[str, object]]] = {
    OrderAccepted: {"foreign": False},
    WithdrawalAccepted: {"fee": "0"},
    DepositSeen: {"address_tag": "", "listed_from_us": 0, "listings": 1, "held": False},
}
_CLASS_BY_NAME: Final[dict[str, type[Record]]] = {record.name: record for record in _CLASSES}
_FIELDS: Final[dict[type[Record], tuple[str, ...]]] = {record: tuple(f.name for f in fields(record)) for record in _CLASSES}
_DECIMAL_FIELDS: Final[dict[type[Record], frozenset[str]]] = {
    record: frozenset(name for name, hint in get_type_hints(record).items() if hint in (Decimal, Decimal | None)) for record in _CLASSES
}


class LogDamaged(Exception):
    """The log is broken before its end: state cannot be rebuilt from it, and the exchange must not go on with it."""


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return format(value, "f")
    raise TypeError(type(value).__name__)


def encode(record: Record) -> bytes:
    """One JSON line with its line end."""
    members = orjson.dumps(record, default=_plain, option=orjson.OPT_APPEND_NEWLINE)
    return b'{"record":"' + record.name.encode() + b'",' + members[1:]


def decode(line: bytes) -> Record:
    """Reads one line; raises ValueError for anything that `encode` did not write."""
    row: dict[str, Any] = orjson.loads(line)
    if not line.endswith(b"\n"):
        raise ValueError("no line end")
    if not isinstance(row, dict) or row.get("record") not in _CLASS_BY_NAME:
        raise ValueError("not a record of the exchange log")
    record = _CLASS_BY_NAME[row.pop("record")]
    row = {**_ADDED.get(record, {}), **row}
    if set(row) != set(_FIELDS[record]):
        raise ValueError(f"a {record.name} record with other fields than expected")
    for name in _DECIMAL_FIELDS[record]:
        if row[name] is not None:
            row[name] = Decimal(row[name])
    if record is AccountOpened:
        row["balances"] = {asset: Decimal(amount) for asset, amount in row["balances"].items()}
    return record(**row)


def read_with_end(path: Path) -> Iterator[tuple[Record, int]]:
    """Yields each record with the offset of its line's end; stops before a torn last line.

    Raises LogDamaged for a broken line that is not the last, and for a gap in `seq`.
    """
    offset = 0
    seq = 0
    with path.open("rb") as file:
        for line in file:
            try:
                record = decode(line)
            except ValueError as error:
                if file.read(1):
                    raise LogDamaged(f"{path}: line after seq {seq} is broken ({error}); restore the file from a copy") from error
                return
            if record.seq != seq + 1:
                raise LogDamaged(f"{path}: seq {record.seq} follows {seq}; records are missing; restore the file from a copy")
            seq = record.seq
            offset += len(line)
            yield record, offset


def read_log(path: Path) -> Iterator[Record]:
    """The records of an exchange log in order, for verification without HTTP; safe while the exchange runs.

    A torn last line (a kill in the middle of a write) is left out with a message on standard error: nobody was told of it. Raises
    LogDamaged as `read_with_end` does, FileNotFoundError where there is no log.
    """
    offset = 0
    for record, end in read_with_end(path):
        offset = end
        yield record
    torn = path.stat().st_size - offset
    if torn > 0:
        sys.stderr.write(f"{path.name}: the last {torn} bytes are no whole record and are left out\n")
