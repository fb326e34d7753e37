"""No float reaches money: in no frame that runs, no value that is decided, no record that is published, no column that is stored."""

import asyncio
import dataclasses
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal, FloatOperation, getcontext
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import uvloop

from checks.floats import _LEFT_OUT, _PACKAGES, _TIME, _TIMES_OF, floats_in
from infra.exchange.ccxt.books import read_markets, read_order, with_fees
from infra.exchange.venues.binance.venue import BINANCE
from infra.exchange.venues.reading import UnreadableBooks, amount
from infra.postgres.step import open_step
from infra.postgres.withdrawals import withdrawals
from pipeline.books.changes import Changes
from pipeline.books.ledger import AccountKey
from pipeline.intake import decide
from pipeline.model.halts import NO_HALTS
from pipeline.model.money import DIGITS
from pipeline.model.venue import Confirmed, Quote, Submission
from pipeline.model.withdrawal import Taken
from pipeline.orders.execution import conclude, plan
from pipeline.orders.paper import at_submission
from pipeline.orders.settlement import apply_venue_order
from pipeline.withdrawals.settlement import apply_withdrawal_report, conclude_withdrawals, plan_withdrawals
from schemas.orders import Mode, OrderStatus
from schemas.routing import Action, RoutedOrder
from schemas.wire import SourceOffset
from tests.integration.step_database import changes_in, open_database, plain_connection, taken
from tests.unit.builders import (
    BTC_USDT,
    EXCHANGE,
    NOW,
    ORDER_ID,
    PRICE,
    RULES,
    TOPICS,
    USER,
    account_state,
    arrival,
    changes_of,
    limit,
    order_of,
    outputs_on,
    sale_of,
    told,
    trade,
)
from tests.unit.withdrawal_builders import asking, payee, report, withdrawing_state

ROOT = Path(__file__).parents[2]
ORDER = {"id": "1", "status": "closed", "filled": "2", "cost": "199.999999999999999999", "clientOrderId": "c", "timestamp": 1}
MARKET: dict[str, Any] = {
    "spot": True, "base": "BTC", "quote": "USDT", "active": True, "taker": "0.001", "precision": {"price": "0.01", "amount": "0.00001"},
    "info": {
        "status": "TRADING",
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000", "tickSize": "0.01"},
            {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000", "stepSize": "0.00001"},
            {"filterType": "NOTIONAL", "minNotional": "5", "applyMinToMarket": True},
        ],
    },
}  # fmt: skip


def _refuse_float(text: str) -> None:
    raise AssertionError(f"the JSON number {text} is on its way")


def _floats(value: object, path: str) -> Iterator[str]:
    """Where a float lies in a value, whatever it is made of."""
    if isinstance(value, float):
        yield path
    elif isinstance(value, bytes) and value[:1] == b"{":
        json.loads(value, parse_float=_refuse_float)
    elif dataclasses.is_dataclass(value):
        for found in dataclasses.fields(value):
            yield from _floats(getattr(value, found.name), f"{path}.{found.name}")
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _floats(part, f"{path}[{key}]")
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _floats(part, f"{path}[]")


@contextmanager
def _tripwire() -> Iterator[list[str]]:
    """Looks at every frame of the packages that money passes through when it ends: what it returns and what its names hold."""
    found: list[str] = []
    seen: set[str] = set()
    prefixes = tuple(f"{ROOT}/{package}/" for package in _PACKAGES)

    def look(frame: FrameType, event: str, result: object) -> None:
        code = frame.f_code
        if event != "return" or not code.co_filename.startswith(prefixes):
            return
        name = code.co_filename.removeprefix(f"{ROOT}/")
        seen.add(name)
        if name.startswith(_LEFT_OUT):
            return
        held = {**frame.f_locals, code.co_name: result}
        found.extend(
            f"{name}:{code.co_name}: {what} = {value!r}"
            for what, value in held.items()
            if isinstance(value, float) and not _TIME.search(what) and what not in _TIMES_OF.get(name, ())
        )

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(before)
    wanted = {"ledger", "settlement", "acceptance", "withdrawals", "payouts", "paper", "cost", "storing", "rows", "books", "money"}
    assert wanted <= {Path(name).stem for name in seen}


def _buy_and_sell(changes: Changes) -> None:
    """From the exchange's answers, as ccxt gives them, to postings: bought with a fee in a third asset, sold in two parts."""
    bought = with_fees(read_order(ORDER, NOW), [{"id": "1", "amount": "2", "fee": {"currency": "BNB", "cost": "0.1"}}])
    buy = order_of(status=OrderStatus.NEW)
    changes.ledger.hold("h", buy.order_id, AccountKey(USER, EXCHANGE, "live", "USDT"), buy.hold_amount)
    changes.orders.keep(buy.order_id, buy)
    apply_venue_order(buy, bought, changes)
    source = SourceOffset(TOPICS.requests, 0, 8)
    sale = sale_of(order_id="o2", idempotency_key="k2", source=source, status=OrderStatus.NEW, hold_amount=Decimal(1))
    changes.ledger.hold("h2", "o2", AccountKey(USER, EXCHANGE, "live", "BTC"), Decimal(1))
    changes.orders.keep("o2", sale)
    apply_venue_order(sale, told(OrderStatus.PARTIALLY_FILLED, "0.3", "31.1", {"USDT": "0.0311"}), changes)
    apply_venue_order(changes.orders["o2"], told(OrderStatus.CANCELED, "0.7", "70", {"USDT": "0.07"}), changes)


async def test_no_float_is_reachable_where_money_passes(database_url: str) -> None:
    """Orders, a withdrawal and a simulated order, from the record's bytes through acceptance, settlement and the database and back."""
    accounts = {"alice": account_state(known_symbols={"BTC/USDT"})}
    async with open_database(database_url) as database:
        owned = await taken(database)
        with _tripwire() as found:
            async with open_step(database, owned) as step:
                changes = await changes_in(step, [USER])
                documents = [
                    trade(quantity="0.001"), limit(idempotency_key="k2"), trade(idempotency_key="k3", side="sell", quantity="0.002"),
                    trade(idempotency_key="k4", mode="paper", api_key_id="k1"), asking(idempotency_key="k5"),
                ]  # fmt: skip
                batch = [arrival(document, offset) for offset, document in enumerate(documents)]
                decide(batch, withdrawing_state(accounts=accounts), changes)
                await step.store(changes, NOW - RULES.key_lifetime)
                await step.finish(len(batch), changes.outputs, NOW)
            assert len(changes.orders.made) == 3
            assert len(changes.withdrawals.made) == 1
            async with open_step(database, owned) as step:
                sent = await changes_in(step, [USER], orders=changes.orders.made)
                sent.withdrawals = await withdrawals(step.connection, sorted(changes.withdrawals.made))
                work = [RoutedOrder(schema_version=1, action=Action.SUBMIT, order_id=name, user_id=USER, attempt=1) for name in sent.orders]
                plan(work, sent, 1, 0, NO_HALTS, RULES.usd_assets)
                outcomes = {
                    name: Confirmed(dataclasses.replace(told(OrderStatus.FILLED, str(order.quantity), "40"), client_order_id=name))
                    for name, order in sent.orders.items()
                }
                conclude(outcomes, {}, sent, RULES)
                (withdrawal_id,) = sent.withdrawals
                routed = RoutedOrder(schema_version=1, action=Action.WITHDRAW, order_id=withdrawal_id, user_id=USER, attempt=1)
                sent.payees = {USER: payee()}
                plan_withdrawals([routed], sent, 1, 0, NO_HALTS)
                conclude_withdrawals({withdrawal_id: Taken("x1")}, sent)
                apply_withdrawal_report(report(sent.withdrawals[withdrawal_id]), sent, RULES)
                await step.store(sent, NOW - RULES.key_lifetime)
                await step.finish(len(batch) + 1, sent.outputs, NOW)
            traded = changes_of()
            _buy_and_sell(traded)
            simulated = _simulated()
            markets = read_markets(BINANCE, {"BTC/USDT": MARKET})
        assert found == []
        for name, value in (("decided", changes), ("sent", sent), ("traded", traded), ("simulated", simulated), ("markets", markets)):
            assert list(_floats(value, name)) == []
        assert outputs_on(sent, "t.trade.results")
    async with plain_connection(database_url) as connection:
        columns = await connection.fetch(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'public' AND data_type IN ('real', 'double precision', 'money')"
        )
        assert columns == []


def _simulated() -> Any:
    submission = Submission(
        mode=Mode.PAPER, order_id=ORDER_ID, client_order_id="c", exchange=EXCHANGE, user_id=USER, api_key_id="k1", symbol="BTC/USDT",
        side=order_of().side, order_type=order_of().order_type, quantity=Decimal("0.3"), quote_quantity=None, price=PRICE,
        time_in_force=None, submitting_at=NOW, expires_at=NOW + timedelta(seconds=30),
    )  # fmt: skip
    return at_submission(submission, BTC_USDT, Quote(PRICE, datetime.now(UTC)))


@pytest.mark.parametrize("value", [0.1, 1.0, float("nan"), None, True])
def test_a_float_in_an_exchanges_answer_is_no_amount(value: object) -> None:
    """ccxt runs with strings for numbers; one that comes otherwise proves nothing."""
    with pytest.raises(UnreadableBooks):
        amount(value, "executed quantity")


@pytest.mark.parametrize(("greatest", "listed"), [("9" * 20, True), ("1" + "0" * 30, False), ("0." + "0" * 18 + "1", False)])
def test_market_with_too_many_digits_is_left_out_alone(greatest: str, listed: bool) -> None:
    """A coin with a supply of 10^30, or a step below 18 places, is not traded; the others are."""
    price, lot, notional = MARKET["info"]["filters"]
    market = {**MARKET, "info": {**MARKET["info"], "filters": [price, {**lot, "maxQty": greatest}, notional]}}
    assert set(read_markets(BINANCE, {"BTC/USDT": MARKET, "X/USDT": market})) == ({"BTC/USDT", "X/USDT"} if listed else {"BTC/USDT"})


def _mixes() -> list[str]:
    """Which ways of making an amount of a float are open here, and whether sums are exact."""
    open_ways = []
    tenth: Any = 0.1
    for name, way in (("make", Decimal), ("compare", Decimal(1).__lt__), ("add", lambda other: Decimal(1) + other)):
        try:
            way(tenth)
        except (FloatOperation, TypeError):
            continue
        open_ways.append(name)
    if getcontext().prec != DIGITS:
        open_ways.append("round")
    return open_ways


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_decimal_refuses_floats_in_threads_tasks_and_loops(run: Any) -> None:
    """The trap and the precision are where code runs: here, in a new thread, a task, an executor's thread, a callback, on either loop."""
    found: list[list[str]] = [_mixes()]
    thread = threading.Thread(target=lambda: found.append(_mixes()))
    thread.start()
    thread.join()

    async def everywhere() -> None:
        found.append(_mixes())
        found.append(await asyncio.create_task(asyncio.to_thread(_mixes)))
        loop = asyncio.get_running_loop()
        found.append(await loop.run_in_executor(None, _mixes))
        called = loop.create_future()
        loop.call_soon(lambda: called.set_result(_mixes()))
        found.append(await called)

    run(everywhere())
    assert found == [[]] * 6


def test_check_finds_the_floats_of_a_file(tmp_path: Path) -> None:
    """A division of integers, a literal, a call and an annotation are found; a time is not, whatever it is called with."""
    lines = {
        "total: int = 5": False,
        "half = total / 2": True,
        "price = 0.1": True,
        "read = float": True,
        "fee: float": True,
        "pause_seconds = 0.5": False,
        "whole = total // 2": False,
        "both = [total, 1e3]": True,
    }
    module = tmp_path / "amounts.py"
    module.write_text("\n".join(lines) + "\n")
    found = floats_in([module], tmp_path)
    assert [line.split(": ", 1)[1] for line in found] == [text for text, flagged in lines.items() if flagged]
