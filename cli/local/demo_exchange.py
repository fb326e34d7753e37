"""The demo's side of the simulated exchange: its accounts, its prices, the faults it is told to make, what it says it injected.

Talks to the endpoints under /simulator/, which no real exchange has.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import aiohttp
import orjson

from pipeline.model.invariants import Retryable
from simulator.faults import LOG_NAME, FaultKind
from simulator.funding import Listing
from simulator.symbols import make_symbols

_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)
# Of each order call, for each kind of fault. Twenty kinds: about one call in twenty meets one.
_ORDER_FAULT_PROBABILITY: Final = 0.0025
# Of each call that pays out, for each of the kinds that lose an answer or a request.
_PAYOUT_FAULT_PROBABILITY: Final = 0.01
_PAYOUT_PATH: Final = "/sapi/v1/capital/withdraw/apply"
# A pause that the exchange asks for holds up every account, so it is asked for rarely.
_PAUSE_PROBABILITY: Final = 0.0003
_LOOK_UP_FAULT_PROBABILITY: Final = 0.01
_DEPOSITS_PATH: Final = "/sapi/v1/capital/deposit/hisrec"
_SLOW_MS: Final = 900
# A fifth of the orders is hidden for a while, whatever else happens to them; the longest stays below what is known of the venue.
_READ_LAGS_MS: Final = (5_000, 30_000, 90_000)
_READ_LAG_PROBABILITY: Final = 0.07
_FOREIGN_SECONDS: Final = 0.25
# Far from the market, so that none of them is filled and every user's funds stay what they were.
_FOREIGN_PRICES: Final = {"BTCUSDT": {"BUY": "20000.00", "SELL": "90000.00"}, "ETHUSDT": {"BUY": "500.00", "SELL": "4000.00"}}
_LOOK_UP_KINDS: Final = (
    FaultKind.HANG_BEFORE_ACCEPT,
    FaultKind.DROP_BEFORE_ACCEPT,
    FaultKind.HTTP_500_BEFORE_ACCEPT,
    FaultKind.HTTP_503_UNAVAILABLE,
    FaultKind.TRUNCATED_BODY,
    FaultKind.CUT_JSON,
    FaultKind.HTML_200,
    FaultKind.EMPTY_JSON_200,
)
_CANCEL_KINDS: Final = (
    FaultKind.HANG_AFTER_ACCEPT,
    FaultKind.DROP_BEFORE_ACCEPT,
    FaultKind.DROP_AFTER_ACCEPT,
    FaultKind.HTTP_500_AFTER_ACCEPT,
    FaultKind.HTTP_504_BEFORE_ACCEPT,
    FaultKind.HTML_200,
)


@dataclass(frozen=True, slots=True)
class ExchangeAccount:
    """An account to open. The repr shows no secret."""

    user_id: str
    api_key: str
    secret: str
    balances: dict[str, Decimal]

    def __repr__(self) -> str:
        return f"ExchangeAccount({self.user_id})"


def fault_rules(seed: int) -> list[dict[str, object]]:
    """Every kind of fault on orders, cancels, look-ups, pay-outs and the history of deposits, each with a small probability."""
    rules: list[dict[str, object]] = []

    def add(kind: FaultKind, method: str, probability: float, **more: str) -> None:
        delay_ms = _SLOW_MS if kind is FaultKind.SLOW else 0
        seeded = {"seed": seed * 1000 + len(rules), **more}
        rules.append({"kind": kind, "method": method, "probability": probability, "delay_ms": delay_ms, **seeded})

    for lag_ms in _READ_LAGS_MS:
        lag = {"kind": FaultKind.READ_LAG, "method": "POST", "probability": _READ_LAG_PROBABILITY, "delay_ms": lag_ms}
        rules.append({**lag, "seed": seed * 1000 + len(rules)})
    for kind in FaultKind:
        if kind is FaultKind.READ_LAG:
            continue
        add(kind, "POST", _PAUSE_PROBABILITY if kind is FaultKind.RATE_LIMIT else _ORDER_FAULT_PROBABILITY)
    for kind in _LOOK_UP_KINDS:
        add(kind, "GET", _LOOK_UP_FAULT_PROBABILITY)
        add(kind, "GET", _LOOK_UP_FAULT_PROBABILITY, path=_DEPOSITS_PATH)
    for kind in _CANCEL_KINDS:
        add(kind, "DELETE", _LOOK_UP_FAULT_PROBABILITY)
    for kind in (*_CANCEL_KINDS, FaultKind.HANG_BEFORE_ACCEPT, FaultKind.TRUNCATED_BODY):
        add(kind, "POST", _PAYOUT_FAULT_PROBABILITY, path=_PAYOUT_PATH)
    return rules


class SimulatorAdmin:
    """Requests to a simulated exchange at `url`. Every call raises Retryable when it does not answer as it should."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def open_accounts(self, accounts: Sequence[ExchangeAccount]) -> None:
        rows = [
            {
                "label": account.user_id,
                "api_key": account.api_key,
                "secret": account.secret,
                "balances": {asset: f"{amount:f}" for asset, amount in account.balances.items()},
            }
            for account in accounts
        ]
        await self._call("POST", "accounts", rows)

    async def make_faults(self, seed: int) -> None:
        await self._call("POST", "faults", fault_rules(seed))

    async def end_faults(self) -> None:
        await self._call("DELETE", "faults", None)

    async def place_foreign(self, fields: Mapping[str, object]) -> None:
        """A user makes an order elsewhere. Raises Retryable also where the exchange does not take it."""
        await self._call("POST", "orders", fields)

    async def shuffle_deposits(self) -> None:
        """Has the history of deposits shown in another order at each look."""
        await self._call("POST", "deposits/listing", {"order": Listing.SHUFFLED})

    async def send_deposit(self, fields: Mapping[str, object]) -> str:
        """Somebody sends a deposit; returns the exchange's id of it."""
        return (await self._call("POST", "deposits", fields))["id"]

    async def mark_deposit(self, deposit_id: str, status: int) -> None:
        """Shows another status of a deposit, by Binance's number."""
        await self._call("POST", "deposits/mark", {"id": deposit_id, "status": status})

    async def hold_prices(self) -> None:
        """Pins every price where it is, so that resting orders stay as they are."""
        for name in make_symbols(Decimal(0)):
            # None sets a symbol free at its current price and answers it.
            answer = await self._call("POST", "price", {"symbol": name, "price": None})
            await self._call("POST", "price", {"symbol": name, "price": answer["price"]})

    async def _call(self, method: str, path: str, body: object) -> dict[str, str]:
        data = None if body is None else orjson.dumps(body)
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT) as session,
                session.request(method, f"{self._url}/simulator/{path}", data=data, headers={"content-type": "application/json"}) as answer,
            ):
                content = await answer.read()
                if answer.status != 200:
                    raise Retryable(f"the simulated exchange answered {answer.status} to {method} /simulator/{path}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Retryable(f"the simulated exchange is out of reach ({type(error).__name__}: {error})") from error
        found = orjson.loads(content)
        return found if isinstance(found, dict) else {}


class ForeignOrders:
    """Orders that users make elsewhere, in the same symbols; two of three are canceled there, which gives them another client order id.
    `counts` has them under the name that the summary shows."""

    def __init__(self, admin: SimulatorAdmin, seed: int, api_keys: Mapping[str, str]) -> None:
        self.counts: Counter[str] = Counter()
        self._admin = admin
        self._random = random.Random(seed)
        self._api_keys = sorted(api_keys.values())

    async def run(self, goes_on: Callable[[], bool]) -> None:
        """Makes some every second while `goes_on`. Raises Retryable without the exchange."""
        while goes_on():
            symbol, side = self._random.choice(sorted(_FOREIGN_PRICES)), self._random.choice(("BUY", "SELL"))
            number = self.counts["foreign_order"] + self._random.randrange(10**6) * 10**6
            await self._admin.place_foreign({
                "api_key": self._random.choice(self._api_keys),
                "symbol": symbol,
                "side": side,
                "quantity": "0.01",
                "price": _FOREIGN_PRICES[symbol][side],
                "client_order_id": f"web_{number}",
                "canceled_as": f"and_{number}" if self._random.random() < 2 / 3 else None,
            })
            self.counts["foreign_order"] += 1
            await asyncio.sleep(_FOREIGN_SECONDS)


def injected_faults(simulator_dir: Path) -> Counter[str]:
    """What the exchange's own log of faults counts, per kind."""
    log = simulator_dir / LOG_NAME
    lines = log.read_bytes().splitlines() if log.exists() else []
    return Counter(sorted(str(orjson.loads(line)["kind"]) for line in lines))
