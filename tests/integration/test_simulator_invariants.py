"""The simulated exchange's books under random sequences: conserved, never negative, and the same when rebuilt from the log."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.exchange import Exchange, Rules
from simulator.funding import Arrival, WithdrawalRequest
from simulator.horizon import Horizon
from simulator.invariants import log_violations, violations
from simulator.ledger import InvariantViolation
from simulator.options import SimulatorOptions
from simulator.orders import OrderRequest, status_row
from simulator.process import start
from simulator.records import Filled, OrderAccepted, Record, decode, encode
from simulator.refusals import Refusal
from simulator.symbols import make_symbols
from tests.integration.simulator_client import client_of

RULES = Rules(make_symbols(Decimal(0)), venue_timeout_ms=10_000, fill_steps=2)
STEP_US = 1_000_000
TYPES = {
    "market": ("MARKET", "GTC"),
    "quote": ("MARKET", "GTC"),
    "limit": ("LIMIT", "GTC"),
    "ioc": ("LIMIT", "IOC"),
    "fok": ("LIMIT", "FOK"),
    "maker": ("LIMIT_MAKER", "GTC"),
}

actions = st.lists(
    st.tuples(
        st.sampled_from([
            "market", "quote", "limit", "ioc", "fok", "maker", "cancel", "price", "withdraw", "deposit", "deposit word", "advance",
        ]),
        st.sampled_from(sorted(RULES.symbols)),
        st.sampled_from(["BUY", "SELL"]),
        st.integers(1, 2_000_000),
        st.integers(-300, 300),
        st.booleans(),
    ),
    max_size=60,
)


def _amounts(holder: Mapping[str, Decimal]) -> dict[str, Decimal]:
    return {asset: amount for asset, amount in holder.items() if amount}


def _state(exchange: Exchange) -> object:
    """All that a client could see."""
    return (
        {key: (_amounts(a.holding.free), _amounts(a.holding.locked)) for key, a in exchange.accounts.items()},
        [status_row(order) for order in exchange.orders.values()],
        _amounts(exchange.ledger.fees),
        _amounts(exchange.ledger.market_maker),
        sorted(exchange.funding.withdrawals),
        {key: deposit.status for key, deposit in exchange.funding.deposits.items()},
    )


def _act(exchange: Exchange, action: tuple[str, str, str, int, int, bool], now_us: int) -> None:
    kind, name, side, size, shift, partial = action
    symbol = exchange.rules.symbols[name]
    account = list(exchange.accounts.values())[size % len(exchange.accounts)]
    price = symbol.round_to_tick(exchange.prices[name] * (1 + Decimal(shift) / 1000))
    quantity = symbol.step * size
    if kind == "price":
        exchange.set_price(name, price, partial, None, now_us)
    elif kind == "advance":
        exchange.funding.advance(now_us, 0, 0)
    elif kind == "deposit":
        arrival = Arrival(symbol.base, quantity, "a", "n", held=partial, listings=1 + size % 2)
        exchange.funding.arrive(account.api_key, account.label, arrival, now_us)
    elif kind == "deposit word":
        deposits = list(exchange.funding.deposits.values())
        if deposits:
            deposit = deposits[size % len(deposits)]
            if partial:
                exchange.funding.credit(deposit, now_us)
            else:
                exchange.funding.mark(deposit, (0, 2, 6, 7, 8)[shift % 5], now_us)
    elif kind == "withdraw":
        address = "FAIL" if partial else "good"
        request = WithdrawalRequest(symbol.quote, Decimal(size), address, "", "n", "", Horizon(now_us // 1000, 5_000, now_us))
        exchange.funding.withdraw(account.api_key, account.label, request, now_us)
    elif kind == "cancel":
        if account.open_orders:
            exchange.cancel(account, list(account.open_orders.values())[size % len(account.open_orders)], now_us)
    else:
        order_type, tif = TYPES[kind]
        request_ = OrderRequest(
            name, side, order_type, tif, None if kind == "quote" else quantity, Decimal(size) / 100 if kind == "quote" else None,
            None if order_type == "MARKET" else price, f"c{size % 5}", Horizon(now_us // 1000, 5_000, now_us),
        )  # fmt: skip
        exchange.place(account, request_, now_us, partial)


def _open(records: list[Record]) -> Exchange:
    exchange = Exchange(RULES, records.append)
    for number in range(2):
        balances = {"USDT": Decimal(50_000), "BTC": Decimal(2), "ETH": Decimal(20), "SOL": Decimal(100), "BNB": Decimal("3.5")}
        exchange.open_account(f"key{number}", f"user{number}", balances, STEP_US)
    return exchange


@given(actions)
@settings(max_examples=80, deadline=None)
def test_books_hold_and_the_log_rebuilds_them_under_any_sequence(sequence: list[tuple[str, str, str, int, int, bool]]) -> None:
    """Invariants 3, 4 and 5 of the package: after each action the books hold; a refusal changes nothing; the log gives the same state."""
    records: list[Record] = []
    exchange = _open(records)
    for number, action in enumerate(sequence, 2):
        count = len(records)
        try:
            _act(exchange, action, number * STEP_US)
        except Refusal:
            assert len(records) == count
        assert violations(exchange) == []
    rebuilt = Exchange(RULES, lambda _: None)
    for record in records:
        again = decode(encode(record))
        assert again == record
        rebuilt.apply(again)
    assert _state(rebuilt) == _state(exchange)
    assert violations(rebuilt) == []


@given(actions)
@settings(max_examples=15, deadline=None)
def test_log_alone_proves_the_books(tmp_path_factory: pytest.TempPathFactory, sequence: list[tuple[str, str, str, int, int, bool]]) -> None:
    """The checker that needs no exchange finds nothing wrong in any log that the exchange writes."""
    records: list[Record] = []
    exchange = _open(records)
    for number, action in enumerate(sequence, 2):
        try:
            _act(exchange, action, number * STEP_US)
        except Refusal:
            continue
    path = tmp_path_factory.mktemp("log") / "exchange-log.jsonl"
    path.write_bytes(b"".join(map(encode, records)))
    assert log_violations(path, RULES.venue_timeout_ms) == []


def _limit_buy(horizon: Horizon) -> OrderRequest:
    return OrderRequest("BTCUSDT", "BUY", "LIMIT", "GTC", Decimal(1), None, Decimal(40_000), "c", horizon)


@pytest.mark.parametrize(
    ("late_us", "window_ms", "code"),
    [(10_000_000, 60_000, None), (10_000_001, 60_000, -1007), (5_000_999, 5_000, None), (5_001_000, 5_000, -1021)],
)
def test_horizon_ends_acceptance_exactly_where_the_client_computes_it(late_us: int, window_ms: int, code: int | None) -> None:
    """Invariant 1 of the package for orders and withdrawals: the last moment is accepted, the one after it is not."""
    records: list[Record] = []
    exchange = _open(records)
    account = exchange.accounts["key0"]
    horizon = Horizon(2_000, window_ms, 2 * STEP_US)
    withdrawal = WithdrawalRequest("USDT", Decimal(1), "a", "", "ETH", "", horizon)
    calls: list[Callable[[int], object]] = [
        lambda now_us: exchange.place(account, _limit_buy(horizon), now_us),
        lambda now_us: exchange.funding.withdraw(account.api_key, account.label, withdrawal, now_us),
    ]
    for call in calls:
        count = len(records)
        if code is None:
            call(2 * STEP_US + late_us)
            assert len(records) > count
        else:
            with pytest.raises(Refusal, match=str(code)):
                call(2 * STEP_US + late_us)
            assert len(records) == count


def _change(kind: type[Record], **values: object) -> Callable[[list[Record]], list[Record]]:
    def apply(records: list[Record]) -> list[Record]:
        return [replace(record, **values) if isinstance(record, kind) else record for record in records]  # type: ignore[arg-type]  # one row per kind

    return apply


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (_change(OrderAccepted, timestamp_ms=-9_000), "outside its receive window"),
        (_change(OrderAccepted, arrived_us=-90_000_000), "after the venue's time-out"),
        (_change(Filled, price=Decimal(50_000)), "worse than the limit"),
        (_change(Filled, quantity=Decimal(2)), "beyond its quantity"),
        (_change(Filled, quote_quantity=Decimal(60_000)), "account key0: USDT is -"),
        (_change(OrderAccepted, tape_price=Decimal(1)), "the tape's row says 1"),
        (_change(Filled, order_id=77), "never accepted"),
        (lambda records: [*records, replace(records[2], seq=5), replace(records[2], seq=6)], "with the same client order id was open"),
    ],
)
def test_log_checker_finds_what_is_wrong(tmp_path: Path, tamper: Callable[[list[Record]], list[Record]], words: str) -> None:
    """The checker can fail: each kind of wrong log is named."""
    records: list[Record] = []
    exchange = _open(records)
    request = _limit_buy(Horizon(2_000, 5_000, 2 * STEP_US))
    exchange.place(exchange.accounts["key0"], request, 2 * STEP_US)
    path = tmp_path / "exchange-log.jsonl"
    path.write_bytes(b"".join(map(encode, records)))
    assert log_violations(path, 10_000) == []
    path.write_bytes(b"".join(map(encode, tamper(records))))
    assert words in "\n".join(log_violations(path, 10_000))


def test_state_checker_finds_money_from_nowhere() -> None:
    """The running check can fail: one satoshi more than the records say is named."""
    exchange = _open([])
    exchange.accounts["key0"].holding.free["BTC"] += Decimal("0.00000001")
    assert len(violations(exchange)) == 2
    with pytest.raises(InvariantViolation):
        exchange.accounts["key0"].holding.take_free("BTC", Decimal(100))


async def test_books_hold_under_a_seeded_sequence_over_http_with_faults(tmp_path: Path) -> None:
    """Six clients, random orders and cancels, every fault with a chance of its own: the books and the log hold."""
    simulator = start(SimulatorOptions(tmp_path / "exchange", walk_ms=5, seed=3, fill_steps=2, venue_timeout_ms=300))
    kinds = ["drop_after_accept", "drop_before_accept", "http_503_after_accept", "truncated_body", "duplicate", "partial_fill", "slow"]

    async def trade(number: int) -> None:
        choice = random.Random(number)
        balances = {"USDT": "20000", "BTC": "0.5", "ETH": "5", "SOL": "50", "BNB": "10"}
        async with client_of(simulator.url, balances, f"trader-{number}") as client:
            for step in range(60):
                symbol, price, size = choice.choice([("BTCUSDT", "39400", "0.01"), ("ETHUSDT", "1225", "0.5"), ("ETHBTC", "0.0311", "0.7")])
                side = choice.choice(["BUY", "SELL"])
                tif = choice.choice(["GTC", "GTC", "IOC", "FOK"])
                with contextlib.suppress(aiohttp.ClientError):
                    match choice.randint(0, 9):
                        case 0:
                            await client.signed("DELETE", "/api/v3/openOrders", symbol=symbol)
                        case 1 | 2 | 3 | 4:
                            await client.limit(price, side, size, tif, symbol=symbol, newClientOrderId=f"l{step % 7}")
                        case _:
                            await client.order(side, size, symbol=symbol, newClientOrderId=f"m{step % 7}")

    async with client_of(simulator.url, {}) as client:
        rules = [{"kind": kind, "probability": 0.05, "seed": number, "delay_ms": 250 * number} for number, kind in enumerate(kinds)]
        await client.faults(*rules)
        await asyncio.gather(*(trade(number) for number in range(6)))
        await client.assert_books_hold()
        counts = await client.admin("GET", "faults")
    assert simulator.stop() == 0
    assert len(counts) >= 5
    assert log_violations(simulator.log_path, 300) == []
