"""The endpoints under /simulator/: accounts, orders made elsewhere, prices, the tape, faults, deposits, invariants and the log.

They answer to loopback addresses only.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from schemas.decimals import DecimalString
from simulator import refusals
from simulator.capital import NETWORKS
from simulator.exchange import Account, Exchange
from simulator.faults import RULES_MAX, FaultRule, Faults
from simulator.funding import Arrival, Deposit, Listing
from simulator.horizon import Horizon
from simulator.invariants import violations
from simulator.journal import Journal
from simulator.orders import OrderRequest
from simulator.prices import Tape
from simulator.signing import KeyStore, check_api_key
from simulator.symbols import ASSETS

PREFIX: Final = "/simulator/"
_BAD_REQUEST: Final = -1100
_FOREIGN_WINDOW_MS: Final = 5_000


class AccountSpec(BaseModel):
    """An account to open: `label` is whose it is, `balances` asset to decimal string."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(min_length=1, max_length=255)
    api_key: str
    secret: SecretStr
    balances: dict[str, DecimalString] = Field(default_factory=dict)


class KeySpec(BaseModel):
    """A further key for the account that has the key `account`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    account: str
    api_key: str
    secret: SecretStr


class ForeignOrderSpec(BaseModel):
    """A limit order that the owner of `api_key` makes elsewhere, as in the exchange's own app. `canceled_as`: canceled there at once, which
    gives it this client order id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key: str
    symbol: str
    side: Literal["BUY", "SELL"]
    quantity: DecimalString
    price: DecimalString
    client_order_id: str = Field(pattern=r"^[a-zA-Z0-9\-_]{1,36}$")
    canceled_as: str | None = Field(default=None, pattern=r"^[a-zA-Z0-9\-_]{1,36}$")


class PriceSpec(BaseModel):
    """A price to pin; null sets the symbol free at its current price."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    symbol: str
    price: DecimalString | None


class StepSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(default=1, ge=1, le=100_000)


class DepositSpec(BaseModel):
    """A deposit to send to the account of `api_key`. `held`: it is credited by `deposits/credit` alone. `listed_after_ms`: the history
    shows it so long after its arrival, with the time of its arrival. `listings`: how often the history shows it. `transaction_id` None
    draws one; two deposits may share one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key: str
    asset: str
    amount: DecimalString
    address: str = ""
    address_tag: str = ""
    network: str | None = None
    transaction_id: str | None = Field(default=None, min_length=1, max_length=255)
    held: bool = False
    listed_after_ms: int = Field(default=0, ge=0, le=600_000)
    listings: int = Field(default=1, ge=1, le=3)


class DepositName(BaseModel):
    """A deposit by its id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str


class DepositMark(DepositName):
    """The status to show of a deposit: 0, 6 or 8 while it is on its way, 2 or 7 when it is lost; a lost one that was credited is taken
    back."""

    status: Literal[0, 2, 6, 7, 8]


class ListingSpec(BaseModel):
    """In which order the history of deposits is shown from now on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Listing


_ACCOUNTS: Final[TypeAdapter[list[AccountSpec]]] = TypeAdapter(list[AccountSpec])
_RULES: Final[TypeAdapter[list[FaultRule]]] = TypeAdapter(list[FaultRule])


def _bad(message: str) -> refusals.Refusal:
    return refusals.Refusal(_BAD_REQUEST, message)


class Admin:
    """Answers one admin request; `now_us` reads the server's clock."""

    def __init__(self, exchange: Exchange, keys: KeyStore, faults: Faults, journal: Journal, now_us: Callable[[], int]) -> None:
        self._exchange = exchange
        self._keys = keys
        self._faults = faults
        self._journal = journal
        self._now_us = now_us
        self._routes: dict[tuple[str, str], Callable[[bytes], object]] = {
            ("POST", "accounts"): self._open_accounts,
            ("GET", "accounts"): self._list_accounts,
            ("POST", "keys"): self._add_key,
            ("GET", "invariants"): self._invariants,
            ("POST", "orders"): self._place_foreign,
            ("POST", "price"): self._set_price,
            ("POST", "tape/step"): self._step_tape,
            ("GET", "tape"): self._show_tape,
            ("POST", "deposits"): self._send_deposit,
            ("POST", "deposits/credit"): self._credit_deposit,
            ("POST", "deposits/mark"): self._mark_deposit,
            ("POST", "deposits/listing"): self._list_deposits,
            ("POST", "faults"): self._set_faults,
            ("GET", "faults"): lambda _: dict(self._faults.counts),
            ("GET", "faults/rules"): lambda _: self._faults.rules(),
            ("DELETE", "faults"): self._clear_faults,
        }

    async def answer(self, method: str, path: str, body: bytes) -> bytes:
        """The answer's bytes: JSON, for GET /simulator/log JSON lines. Raises Refusal."""
        name = path.removeprefix(PREFIX)
        if (method, name) == ("GET", "log"):
            await self._journal.durable()
            return await asyncio.to_thread(self._journal.path.read_bytes)
        route = self._routes.get((method, name))
        if route is None:
            raise refusals.Refusal(_BAD_REQUEST, f"{method} {path} is not an endpoint of the simulator.", 404)
        try:
            answer = route(body)
        except ValidationError as error:
            # Without the input: it may hold secrets.
            details = error.errors(include_url=False, include_input=False, include_context=False)
            raise _bad("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in details)) from error
        await self._journal.durable()
        return orjson.dumps(answer)

    def _open_accounts(self, body: bytes) -> object:
        specs = _ACCOUNTS.validate_json(body)
        for spec in specs:
            check_api_key(spec.api_key)
            for asset, amount in spec.balances.items():
                if asset not in ASSETS or -int(amount.as_tuple().exponent) > 8:
                    raise _bad(f"balances of {spec.label}: {asset} {amount} is no asset of the exchange or has more than 8 places.")
        # The secrets first: an account without its secret could not be used after a crash between the two.
        self._keys.put({spec.api_key: spec.secret.get_secret_value() for spec in specs})
        now_us = self._now_us()
        return [self._account_row(self._exchange.open_account(s.api_key, s.label, dict(s.balances), now_us)) for s in specs]

    def _add_key(self, body: bytes) -> object:
        spec = KeySpec.model_validate_json(body)
        check_api_key(spec.api_key)
        account = self._exchange.accounts.get(spec.account)
        if account is None or self._exchange.account_of(spec.api_key) not in (None, account):
            raise _bad("A further key needs an account, and must not be the key of another one.")
        self._keys.put({spec.api_key: spec.secret.get_secret_value()})
        self._exchange.add_key(spec.api_key, account, self._now_us())
        return self._account_row(account)

    @staticmethod
    def _account_row(account: Account) -> dict[str, object]:
        holding = account.holding
        assets = sorted(holding.free.keys() | holding.locked.keys())
        return {
            "label": account.label,
            "api_key": account.api_key,
            "orders": len(account.orders),
            "open_orders": len(account.open_orders),
            "balances": {asset: {"free": f"{holding.free[asset]:.8f}", "locked": f"{holding.locked[asset]:.8f}"} for asset in assets},
        }

    def _list_accounts(self, _body: bytes) -> object:
        return [self._account_row(account) for account in self._exchange.accounts.values()]

    def _invariants(self, _body: bytes) -> object:
        found = violations(self._exchange)
        return {"holds": not found, "violations": found, "orders": len(self._exchange.orders)}

    def _place_foreign(self, body: bytes) -> object:
        spec = ForeignOrderSpec.model_validate_json(body)
        account = self._exchange.accounts.get(spec.api_key)
        if account is None or spec.symbol not in self._exchange.rules.symbols:
            raise _bad("An order needs an account and a symbol of the exchange.")
        now_us = self._now_us()
        horizon = Horizon(now_us // 1000, _FOREIGN_WINDOW_MS, now_us)
        request = OrderRequest(
            spec.symbol, spec.side, "LIMIT", "GTC", spec.quantity, None, spec.price, spec.client_order_id, horizon, foreign=True
        )
        order = self._exchange.place(account, request, now_us)
        if spec.canceled_as is not None:
            self._exchange.cancel(account, order, now_us)
            order.canceled_as = spec.canceled_as
        return {"orderId": order.accepted.order_id, "status": order.status}

    def _set_price(self, body: bytes) -> object:
        spec = PriceSpec.model_validate_json(body)
        symbol = self._exchange.rules.symbols.get(spec.symbol)
        if symbol is None:
            raise refusals.invalid_symbol()
        price = self._exchange.prices[symbol.name] if spec.price is None else spec.price
        if price <= 0 or not symbol.is_on_tick(price):
            raise refusals.filter_failure("PRICE_FILTER")
        self._exchange.set_price(symbol.name, price, spec.price is not None, None, self._now_us())
        return {"symbol": symbol.name, "price": f"{price:.8f}", "pinned": spec.price is not None}

    def _tape(self) -> Tape:
        if self._exchange.rules.tape is None:
            raise _bad("There is no tape; start the simulator with --tape.")
        return self._exchange.rules.tape

    def _tape_row(self) -> dict[str, object]:
        tape = self._tape()
        row = tape.row(self._exchange.tape_row)
        price = self._exchange.prices[tape.symbol]
        return {"row": self._exchange.tape_row, "trade_id": row.trade_id, "row_price": f"{row.price:f}", "price": f"{price:f}"}

    def _show_tape(self, _body: bytes) -> object:
        return self._tape_row()

    def _step_tape(self, body: bytes) -> object:
        spec = StepSpec.model_validate_json(body or b"{}")
        tape = self._tape()
        for _ in range(spec.rows):
            number = self._exchange.tape_row + 1
            self._exchange.set_price(tape.symbol, tape.row(number).price, False, number, self._now_us())
        return self._tape_row()

    def _send_deposit(self, body: bytes) -> object:
        spec = DepositSpec.model_validate_json(body)
        account = self._exchange.accounts.get(spec.api_key)
        if account is None or spec.asset not in ASSETS or spec.amount <= 0 or -int(spec.amount.as_tuple().exponent) > 8:
            raise _bad("A deposit needs an account, an asset of the exchange, and an amount above zero with at most 8 places.")
        arrival = Arrival(
            asset=spec.asset,
            amount=spec.amount,
            address=spec.address,
            network=spec.network or NETWORKS[spec.asset][0],
            address_tag=spec.address_tag,
            transaction_id=spec.transaction_id or "",
            listed_after_ms=spec.listed_after_ms,
            listings=spec.listings,
            held=spec.held,
        )
        deposit = self._exchange.funding.arrive(account.api_key, account.label, arrival, self._now_us())
        return {"id": deposit.seen.deposit_id, "txId": deposit.seen.transaction_id}

    def _deposit(self, deposit_id: str) -> Deposit:
        found = self._exchange.funding.deposits.get(deposit_id)
        if found is None:
            raise _bad("There is no deposit with this id.")
        return found

    def _credit_deposit(self, body: bytes) -> object:
        deposit = self._deposit(DepositName.model_validate_json(body).id)
        self._exchange.funding.credit(deposit, self._now_us())
        return {"status": deposit.status}

    def _mark_deposit(self, body: bytes) -> object:
        spec = DepositMark.model_validate_json(body)
        deposit = self._deposit(spec.id)
        self._exchange.funding.mark(deposit, spec.status, self._now_us())
        return {"status": deposit.status}

    def _list_deposits(self, body: bytes) -> object:
        self._exchange.funding.listing = ListingSpec.model_validate_json(body).order
        return {"order": self._exchange.funding.listing.value}

    def _set_faults(self, body: bytes) -> object:
        given: Any = orjson.loads(body) if body else []
        rules = _RULES.validate_python(given if isinstance(given, list) else [given])
        if len(rules) > RULES_MAX:
            raise _bad(f"At most {RULES_MAX} rules.")
        self._faults.set_rules(rules)
        return self._faults.rules()

    def _clear_faults(self, _body: bytes) -> object:
        self._faults.set_rules([])
        return []
