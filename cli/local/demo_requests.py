"""The demo's requests: of every kind that producers send, good and bad, drawn from a seed.

Invariants:
1. The same seed, run name and count give the same records, byte by byte (`expires_at` aside, which follows the clock).
2. From `len(KINDS) + 1` requests on, every kind occurs at least once (a concurrent copy makes two).
3. A copy follows its original; a concurrent copy goes to another partition, as it has another record key.

Start with `Generator`.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import orjson

from cli.local.demo_deposits import ADDRESS as DEPOSIT_ADDRESS
from cli.local.demo_deposits import ASSET, NETWORK, DemoDeposit
from cli.local.demo_identities import Proof
from cli.local.demo_members import BY_NAME, OF_MEMBERS, member_id
from cli.local.demo_mistakes import NO_SESSION, UNREASONABLE, WRONG_DECIMALS, Fields
from schemas.wire import format_time
from simulator.symbols import Symbol, make_symbols

API_KEY_ID: Final = "demo"
EXCHANGE: Final = "binance"
# Both sides start with this; a demo of 20,000 requests moves a small part of it.
OPENING_BALANCES: Final = {
    "USDT": Decimal(500_000),
    "BTC": Decimal(8),
    "ETH": Decimal(120),
    "SOL": Decimal(1_500),
    "BNB": Decimal(300),
}  # fmt: skip

# Where the demo pays out to: on every user's list.
ADDRESS_NETWORK: Final = "ETH"
ADDRESS: Final = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"

# Far enough ahead that lag does not expire an order; the kind `expired` says otherwise.
_DEADLINE: Final = timedelta(hours=6)
# An announced deposit that nobody sends is waited for so long.
_EXPECTED: Final = timedelta(seconds=15)
# Of so many records each one deposit comes that nobody announced.
_RECORDS_PER_DEPOSIT: Final = 20
_RESTING_KEPT_MAX: Final = 400
_ORIGINALS_KEPT_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class DemoRecord:
    """One record to publish. `key` is the record key, `value` None for a tombstone. `signer` is the user whose token goes with it, None for
    none; `proof` what that token and the code beside it are like."""

    kind: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    signer: str | None = None
    proof: Proof = Proof.SESSION


# Of so many users one begins no session, and sends a code with each order.
_WITH_CODES: Final = 5


def begins_session(number: int) -> bool:
    """Whether the user of this number (from 0) trades with a session."""
    return number % _WITH_CODES != 0


class Generator:
    """Makes records for users that exist under `user_ids`; `run` tells this run's keys from those of other runs.

    `deposits` are those that somebody must send to the exchange meanwhile; they are complete when all records are made.
    """

    def __init__(self, seed: int, run: str, user_ids: list[str], now: datetime) -> None:
        self._random = random.Random(seed)
        self._run = run
        self._users = user_ids
        self._in_session = [user for number, user in enumerate(user_ids) if begins_session(number)] or user_ids
        self._with_codes = [user for number, user in enumerate(user_ids) if not begins_session(number)]
        # Those who need a code come in turn: each user has one per 30 seconds.
        self._turns: dict[str, int] = {}
        self._expires_at = format_time(now + _DEADLINE)
        self._given_up_at = format_time(now + _EXPECTED)
        self._expired_at = format_time(now - timedelta(minutes=1))
        self._symbols = list(make_symbols(Decimal(5)).values())
        self._number = 0
        self._resting: list[Fields] = []
        self._originals: list[Fields] = []
        self._ended: Fields | None = None
        self._made: list[DemoRecord] = []
        self._yielded = self._count = 0
        self.deposits: list[DemoDeposit] = []

    def records(self, count: int) -> Iterator[DemoRecord]:
        """Exactly `count` records, each kind once first, then drawn by weight."""
        kinds = [kind for kind, _ in KINDS]
        weights = [weight for _, weight in KINDS]
        # Copies and cancels need something to refer to.
        first = iter(sorted(kinds, key=lambda kind: kind in _REFERRING))
        self._yielded, self._count = 0, count
        while self._yielded < count:
            kind = next(first, None) or self._random.choices(kinds, weights)[0]
            self._made.clear()
            _MAKERS[kind](self, kind)
            for record in self._made[: count - self._yielded]:
                self._yielded += 1
                if self._yielded % _RECORDS_PER_DEPOSIT == 0:
                    self._send(self._random.choice(self._users), self._yielded)
                yield record

    # What the kinds are made of

    def _base(self, request_type: str) -> Fields:
        self._number += 1
        user_id = self._random.choice(self._users)
        return {
            "schema_version": 1,
            "type": request_type,
            "request_id": f"{self._run}-{self._number}",
            "idempotency_key": f"{self._run}:{self._number}",
            "user_id": user_id,
            "mode": "live",
            "exchange": EXCHANGE,
            "api_key_id": API_KEY_ID,
        }

    def _trade(self, side: str, order_type: str, **more: object) -> Fields:
        base = {**self._base("trade"), "user_id": self._random.choice(self._in_session)}
        return {**base, "side": side, "order_type": order_type, "expires_at": self._expires_at, **more}

    def _turn(self, kind: str, among: list[str]) -> str:
        turn = self._turns[kind] = self._turns.get(kind, -1) + 1
        return among[turn % len(among)]

    def _side(self) -> str:
        return self._random.choice(("buy", "sell"))

    def _lot(self, symbol: Symbol) -> str:
        """A quantity worth about 10 to 150 dollars."""
        price = symbol.start_price if symbol.quote == "USDT" else symbol.start_price * Decimal(39_000)
        quantity = symbol.floor_to_step(Decimal(self._random.randint(10, 150)) / price)
        return f"{max(quantity, symbol.step):f}"

    def _limit(self, symbol: Symbol, factor: str) -> str:
        return f"{symbol.round_to_tick(symbol.start_price * Decimal(factor)):f}"

    def _emit(
        self, kind: str, fields: Fields, *, key: bytes | None = b"", original: bool = False, proof: Proof = Proof.SESSION
    ) -> None:
        """`key` empty: the user's id."""
        user_id = fields.get("user_id")
        record_key = str(user_id).encode() if key == b"" else key
        signer = user_id if isinstance(user_id, str) else None
        self._made.append(DemoRecord(kind, record_key, orjson.dumps(fields), self._headers(), signer, proof))
        if original:
            self._keep(self._originals, fields, _ORIGINALS_KEPT_MAX)

    def _emit_bytes(self, kind: str, value: bytes | None, signer: str | None = None) -> None:
        self._made.append(DemoRecord(kind, self._random.choice(self._users).encode(), value, signer=signer))

    def _headers(self) -> tuple[tuple[str, bytes], ...]:
        if self._random.random() >= 0.1:
            return ()
        trace, span = self._random.getrandbits(128), self._random.getrandbits(64)
        return (("traceparent", f"00-{trace:032x}-{span:016x}-01".encode()),)

    @staticmethod
    def _keep(kept: list[Fields], fields: Fields, at_most: int) -> None:
        kept.append(fields)
        if len(kept) > at_most:
            kept.pop(0)

    # The kinds

    def market(self, kind: str) -> None:
        symbol = self._random.choice(self._symbols)
        fields = self._trade(self._side(), "market", symbol=_pair(symbol), quantity=self._lot(symbol))
        self._emit(kind, fields, original=True, key=None if kind == "null_key" else b"")

    def quote_amount(self, kind: str) -> None:
        symbol = self._random.choice([symbol for symbol in self._symbols if symbol.quote == "USDT"])
        amount = f"{self._random.randint(10, 200)}.50"
        self._emit(kind, self._trade(self._side(), "market", symbol=_pair(symbol), quote_quantity=amount), original=True)

    def limit(self, kind: str) -> None:
        symbol, side = self._random.choice(self._symbols), self._side()
        better, worse = ("1.05", "0.80") if side == "buy" else ("0.95", "1.20")
        takes = kind == "limit_marketable" or (kind in {"ioc", "fok"} and self._random.random() < 0.6)
        factor = {"limit_resting": worse, "limit_near": "1"}.get(kind, better if takes else worse)
        time_in_force = {"ioc": "IOC", "fok": "FOK"}.get(kind, "GTC")
        price = self._limit(symbol, factor)
        fields = self._trade(
            side, "limit", symbol=_pair(symbol), quantity=self._lot(symbol), price=price, time_in_force=time_in_force
        )
        self._emit(kind, fields, original=True)
        if kind in {"limit_resting", "limit_near"}:
            self._keep(self._resting, fields, _RESTING_KEPT_MAX)

    def paper(self, kind: str) -> None:
        """A simulated order: at the market, or a limit that is met at once, rests, or ends unmet."""
        symbol, side = self._random.choice(self._symbols), self._side()
        fields = self._trade(side, "market", symbol=_pair(symbol), quantity=self._lot(symbol), mode="paper")
        if self._random.random() < 0.5:
            # Far from the price that it moves around, so that what rests does so until the end.
            factor, time_in_force = self._random.choice(("0.80", "1.20")), self._random.choice(("GTC", "IOC", "FOK"))
            fields |= {"order_type": "limit", "price": self._limit(symbol, factor), "time_in_force": time_in_force}
        self._emit(kind, fields, original=True)

    def cancel(self, kind: str) -> None:
        fields = self._base("cancel")
        del fields["exchange"], fields["api_key_id"]
        if kind == "cancel_unknown" or not self._resting:
            fields["target_idempotency_key"] = f"{self._run}:none"
        else:
            # Often the newest, which may not have been sent yet.
            newest = self._random.random() < 0.5
            target = self._resting.pop() if newest else self._resting.pop(self._random.randrange(len(self._resting)))
            fields |= {"user_id": target["user_id"], "target_idempotency_key": target["idempotency_key"]}
        self._emit(kind, fields, original=True)

    def copy(self, kind: str) -> None:
        if not self._originals:
            self.market(kind)
            return
        original = self._random.choice(self._originals[-50:] if self._random.random() < 0.5 else self._originals)
        if kind == "key_reused":
            if original["type"] == "trade" and "quantity" in original:
                original = {**original, "quantity": f"{Decimal(str(original['quantity'])) * 2:f}"}
            else:
                original = {**original, "expires_at": self._expired_at}
        elif self._random.random() < 0.3:
            # A client library that draws a new request_id for its retry means the same order.
            original = {**original, "request_id": f"{original['request_id']}-again"}
        self._emit(kind, original)

    def concurrent_copy(self, kind: str) -> None:
        symbol = self._random.choice(self._symbols)
        fields = self._trade(self._side(), "market", symbol=_pair(symbol), quantity=self._lot(symbol))
        self._emit(kind, fields, original=True)
        self._emit(kind, fields, key=f"elsewhere-{self._random.randrange(64)}".encode())

    def unreasonable(self, kind: str) -> None:
        fields = self._trade("buy", "market", symbol="BTC/USDT", quantity="0.001")
        if kind == "missing_field":
            del fields[self._random.choice(("symbol", "side", "idempotency_key", "user_id", "mode"))]
        elif kind == "expired":
            fields["expires_at"] = self._expired_at
        else:
            fields |= self._random.choice(UNREASONABLE[kind])
        self._emit(kind, fields, key=b"elsewhere")

    def _send(self, user_id: str, after: int, amount: str | None = None) -> None:
        """Has somebody send a deposit when `after` records are published."""
        self.deposits.append(
            DemoDeposit(
                after=min(after, self._count),
                user_id=user_id,
                # Each another, so that it fits the announcement that is about it and no other.
                amount=amount or f"17.{len(self.deposits):06}",
                listed_after_ms=self._random.choice((0, 0, 0, 1_500)),
                listings=self._random.choice((1, 1, 1, 2)),
                # An announcement whose deposit was lost before anybody saw it would be waited for.
                taken_back=amount is None and self._random.random() < 0.15,
            )
        )

    def announcement(self, kind: str) -> None:
        named = {"asset": ASSET, "network": NETWORK, "address": DEPOSIT_ADDRESS}
        fields = {**self._base("deposit"), **named, "amount": f"25.{self._number:06}"}
        if kind == "deposit_missing":
            fields["expires_at"] = self._given_up_at
        else:
            # Some arrive before they are announced.
            self._send(str(fields["user_id"]), max(0, self._yielded + self._random.choice((-40, 0, 0, 40))), str(fields["amount"]))
        self._emit(kind, fields, original=True)

    def bad_decimal(self, kind: str) -> None:
        fields = self._trade("buy", "market", symbol="BTC/USDT", quantity=self._random.choice(WRONG_DECIMALS))
        self._emit(kind, fields)

    def transfer(self, kind: str) -> None:
        fields = {**self._base("withdrawal"), "asset": "USDT", "amount": "25.5", "network": ADDRESS_NETWORK}
        fields |= {"expires_at": self._expires_at, "user_id": self._turn("transfer", self._users)}
        if kind == "withdrawal":
            fields["address"] = ADDRESS
        elif kind == "withdrawal_elsewhere":
            # A good address that is on nobody's list.
            fields["address"] = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
        else:
            fields |= {"address": ADDRESS, "user_id": member_id(self._run, "payouts")}
        self._emit(kind, fields, original=True, proof=Proof.CODE)

    def with_code(self, kind: str) -> None:
        """An order of a user who has no session."""
        symbol = self._random.choice(self._symbols)
        fields = self._trade(self._side(), "market", symbol=_pair(symbol), quantity=self._lot(symbol))
        self._emit(kind, {**fields, "user_id": self._turn(kind, self._with_codes or self._users)}, original=True, proof=Proof.CODE)

    def unproven(self, kind: str) -> None:
        """A good order whose token or code is not."""
        fields, proof = self._trade("buy", "market", symbol="BTC/USDT", quantity="0.0005"), Proof(kind)
        if proof is Proof.WRONG_CODE:
            fields["user_id"] = member_id(self._run, f"guesser-{self._random.choice((1, 1, 2))}")
        self._emit(kind, fields, proof=proof)

    def of_member(self, kind: str) -> None:
        """An order of the one user who may not make it."""
        name, alternatives = OF_MEMBERS[kind]
        turn = self._turns[kind] = self._turns.get(kind, -1) + 1
        fields = self._trade("buy", "market", symbol="BTC/USDT", quantity="0.001", user_id=member_id(self._run, name))
        proof = Proof.CODE if BY_NAME[name].session is None else Proof.SESSION
        self._emit(kind, {**fields, **alternatives[min(turn, len(alternatives) - 1)]}, proof=proof)

    def session(self, kind: str) -> None:
        """A session that asks for more than may be, or is not there to be revoked."""
        base = self._base("session")
        fields = {name: base[name] for name in ("schema_version", "type", "request_id", "idempotency_key", "user_id")}
        fields |= {"orders_max": 1_000_000_000, "amount_max_usd": "99999999999999999999"} if kind == "session_too_wide" else NO_SESSION
        self._emit(kind, fields)

    def cancel_again(self, kind: str) -> None:
        """Cancels what was canceled, or filled, before: the second of two for one order."""
        if self._ended is None:
            self.limit(kind)
            self._ended = self._resting.pop() if self._resting else self._originals[-1]
            return
        fields = self._base("cancel")
        del fields["exchange"], fields["api_key_id"]
        self._emit(kind, {**fields, "user_id": self._ended["user_id"], "target_idempotency_key": self._ended["idempotency_key"]})

    def unreadable(self, kind: str) -> None:
        order = self._trade("buy", "market", symbol="BTC/USDT", quantity="0.001")
        valid, user_id = orjson.dumps(order), str(order["user_id"])
        match kind:
            case "tombstone":
                self._emit_bytes(kind, None)
            case "broken_json":
                self._emit_bytes(kind, self._random.choice((valid[:-20], b"{", b"", b"[1, 2]", b'"text"', b"null", valid + valid)))
            case "not_a_number":
                self._emit_bytes(kind, valid.replace(b'"0.001"', self._random.choice((b"NaN", b"-Infinity", b"1e400"))))
            case "not_utf8":
                self._emit_bytes(kind, valid.replace(b"BTC", b"\xff\xfe"))
            case "oversized":
                self._emit_bytes(kind, valid[:-1] + b',"note":"' + b"x" * 70_000 + b'"}', user_id)


def _pair(symbol: Symbol) -> str:
    return f"{symbol.base}/{symbol.quote}"


_Make = Callable[[Generator, str], None]
# Kind, weight, how it is made. Weights add up to about 1,300; six in ten requests are orders that reach the exchange, one in twenty is paid
# out: each of these needs a code, and a user has one per 30 seconds. For ten requests one deposit arrives; half of them are announced.
_TABLE: Final[tuple[tuple[str, int, _Make], ...]] = (
    ("market", 340, Generator.market),
    ("null_key", 20, Generator.market),
    ("quote_amount", 50, Generator.quote_amount),
    ("limit_marketable", 90, Generator.limit),
    ("limit_resting", 70, Generator.limit),
    ("limit_near", 30, Generator.limit),
    ("ioc", 40, Generator.limit),
    ("fok", 30, Generator.limit),
    ("paper", 40, Generator.paper),
    ("cancel", 55, Generator.cancel),
    ("cancel_unknown", 5, Generator.cancel),
    ("exact_copy", 50, Generator.copy),
    ("concurrent_copy", 30, Generator.concurrent_copy),
    ("key_reused", 20, Generator.copy),
    *((kind, 7, Generator.unreasonable) for kind in (
        *UNREASONABLE, "expired", "missing_field",
    )),
    ("bad_decimal", 25, Generator.bad_decimal),
    ("withdrawal", 75, Generator.transfer),
    ("withdrawal_elsewhere", 5, Generator.transfer),
    ("withdrawal_too_large", 3, Generator.transfer),
    ("with_code", 20, Generator.with_code),
    ("session_too_wide", 3, Generator.session),
    ("session_unknown", 3, Generator.session),
    ("cancel_again", 4, Generator.cancel_again),
    ("wrong_code", 12, Generator.unproven),
    *((proof.value, 4, Generator.unproven) for proof in (
        Proof.ANONYMOUS, Proof.ALTERED, Proof.STRANGER, Proof.LATE, Proof.FOREIGN, Proof.UNSCOPED,
        Proof.NO_CODE, Proof.USED_CODE, Proof.OTHER_LOGIN,
    )),
    *((kind, 4, Generator.of_member) for kind in OF_MEMBERS),
    ("deposit", 55, Generator.announcement),
    ("deposit_missing", 5, Generator.announcement),
    *((kind, 4, Generator.unreadable) for kind in ("tombstone", "broken_json", "not_a_number", "not_utf8")),
    ("oversized", 1, Generator.unreadable),
)  # fmt: skip
KINDS: Final = tuple((kind, weight) for kind, weight, _ in _TABLE)
_MAKERS: Final[dict[str, _Make]] = {kind: make for kind, _, make in _TABLE}
_REFERRING: Final = frozenset({"cancel", "exact_copy", "key_reused"})
