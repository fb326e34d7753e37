"""Real input: recorded trades, sent as orders by two kinds of clients, come back with the prices of the tape that the exchange follows."""

import asyncio
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from confluent_kafka import Producer

from schemas.reasons import ReasonCode
from simulator.records import Filled, OrderAccepted, read_log
from tests import kcat
from tests.installation import Installation, installation, order
from tests.promises import assert_promises_hold

_ROOT = Path(__file__).parents[2]
# Trades of BTC/USDT at Binance, 8 January 2021. They lie beside the repository, with what other projects share.
_TAPE = _ROOT.parent / "shared" / "data" / "binance_btcusdt_trades_2021-01-08.csv"
_USERS = tuple(f"trader-{number:02}" for number in range(50))
# In USDT. No trade of the tape is worth about as much, at any price of the tape: which trades are below does not depend on the moment.
_LIMIT_MIN = Decimal("0.5")
_EXCHANGE_MIN = Decimal(5)
_LIMIT_MAX = Decimal(150_000)
_FEE_RATE = Decimal("0.001")
_SMALLEST_UNIT = Decimal("0.00000001")
_SUBMIT_SECONDS_MAX = 120


@dataclass(frozen=True)
class Trade:
    """A row of the tape."""

    trade_id: str
    price: Decimal
    quantity: Decimal
    side: str
    user: str

    @property
    def request(self) -> dict[str, Any]:
        text = f"{self.quantity:f}"
        return order(0, idempotency_key=f"trade-{self.trade_id}", user_id=self.user, side=self.side, quantity=text, symbol="BTC/USDT")


def _read_tape() -> list[Trade]:
    with _TAPE.open(newline="", encoding="utf-8") as file:
        return [
            # Two in a row, so that each user's requests come by both clients.
            Trade(row["trade_id"], Decimal(row["price"]), Decimal(row["quantity"]), row["side"], _USERS[number // 2 % len(_USERS)])
            for number, row in enumerate(csv.DictReader(file))
        ]


def _expected_refusal(trade: Trade, lowest: Decimal, highest: Decimal) -> tuple[ReasonCode, str] | None:
    """The reason code and a part of the reason; None for an order that must be executed."""
    below = (ReasonCode.AMOUNT_BELOW_MINIMUM, f"less than the minimum of {_LIMIT_MIN} USD"), _LIMIT_MIN
    small = (ReasonCode.AMOUNT_BELOW_MINIMUM, f"less than {_EXCHANGE_MIN} USDT"), _EXCHANGE_MIN
    for refusal, limit in (below, small):
        if trade.quantity * lowest < limit:
            assert trade.quantity * highest < limit, "choose a limit that no trade is worth"
            return refusal
    if trade.quantity * highest > _LIMIT_MAX:
        assert trade.quantity * lowest > _LIMIT_MAX, "choose a limit that no trade is worth"
        return ReasonCode.AMOUNT_ABOVE_MAXIMUM, f"more than the maximum of {_LIMIT_MAX} USD"
    return None


async def _submit(made: Installation, requests: Sequence[dict[str, Any]], directory: Path) -> list[dict[str, Any]]:
    """Runs `orchestrator submit --wait`; returns the answers that it prints."""
    file = directory / "requests.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", "submit", str(file), "--wait", "--timeout", str(_SUBMIT_SECONDS_MAX)),
        cwd=_ROOT,
        env=made.environment({"ORCHESTRATOR_DATA_DIR": str(directory / "none")}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_SUBMIT_SECONDS_MAX + 30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return [json.loads(line) for line in out.splitlines()]


async def _publish(bootstrap_servers: str, topic: str, lines: Sequence[tuple[str, str]]) -> None:
    """Publishes (key, value) pairs with kcat; where it is not installed, with the library that it is made of."""
    if kcat.IS_INSTALLED:
        await kcat.Kcat(bootstrap_servers, topic).publish_lines(lines, properties=["enable.idempotence=true"])
        return
    producer = Producer({"bootstrap.servers": bootstrap_servers, "enable.idempotence": True})
    for key, value in lines:
        producer.produce(topic, value, key)
    assert await asyncio.to_thread(producer.flush, 30) == 0


async def _balances(made: Installation) -> tuple[dict[tuple[str, str], Decimal], dict[tuple[str, str], Decimal]]:
    """(ours, the exchange's) by user and asset. Ours must hold nothing back."""
    if made.settings.database_url is None:
        raise RuntimeError("an installation has a database")
    connection = await asyncpg.connect(made.settings.database_url.get_secret_value(), timeout=10)
    try:
        rows = await connection.fetch("SELECT user_id, asset, posted, pending FROM balances WHERE user_id = ANY($1::text[])", _USERS)
    finally:
        await connection.close(timeout=10)
    assert {row["pending"] for row in rows} == {Decimal(0)}
    async with aiohttp.ClientSession() as session, session.get(f"{made.simulator_url}/simulator/accounts") as response:
        accounts = await response.json()
    theirs = {}
    for account in accounts:
        for asset, amounts in account["balances"].items():
            assert Decimal(amounts["locked"]) == 0
            theirs[account["label"], asset] = Decimal(amounts["free"])
    return {(row["user_id"], row["asset"]): row["posted"] for row in rows}, theirs


def _assert_executed_as_logged(
    tape: Sequence[Trade], executed: Sequence[tuple[Trade, dict[str, Any]]], accepted: Sequence[OrderAccepted], fills: Sequence[Filled]
) -> None:
    """Each executed result says what the exchange's own log says of that order, and the log what the tape says."""
    fills_of = defaultdict(list)
    for fill in fills:
        fills_of[fill.client_order_id].append(fill)
    log = {record.client_order_id: record for record in accepted}
    assert len(log) == len(accepted) == len(executed)
    for trade, result in executed:
        record = log[result["client_order_id"]]
        assert record.label == trade.user
        assert (record.side.lower(), record.type, record.quantity) == (trade.side, "MARKET", trade.quantity)
        assert record.tape_row is not None
        row = tape[record.tape_row]
        assert (record.tape_trade_id, record.tape_price) == (row.trade_id, row.price)
        assert Decimal(result["average_price"]) == row.price
        assert Decimal(result["filled_quantity"]) == trade.quantity
        assert (result["order_status"], result["remaining_quantity"]) == ("filled", "0")
        commission = sum(fill.commission for fill in fills_of[record.client_order_id])
        received = trade.quantity if trade.side == "buy" else trade.quantity * row.price
        assert Decimal(result["fee"]) == commission
        assert abs(commission - received * _FEE_RATE) < _SMALLEST_UNIT
        assert result["fee_asset"] == ("BTC" if trade.side == "buy" else "USDT")
    # Every row was the price of one order, none was left out.
    assert sorted(record.tape_row for record in accepted if record.tape_row is not None) == list(range(len(executed)))


@pytest.mark.skipif(not _TAPE.exists(), reason="the recorded trades do not lie beside the repository")
@pytest.mark.prefers_kcat
async def test_recorded_trades_as_requests_are_executed_at_the_prices_of_the_tape(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Each of 2,001 recorded trades, half sent with kcat and half with `orchestrator submit`, is answered once and as the exchange says."""
    tape = _read_tape()
    assert len(tape) == 2_001
    lowest, highest = min(trade.price for trade in tape), max(trade.price for trade in tape)
    options = ("--tape", str(_TAPE), "--tape-mode", "per-order", "--notional-min", str(_EXCHANGE_MIN))
    limits = {"trade_usd_min": _LIMIT_MIN, "trade_usd_max": _LIMIT_MAX}
    async with installation(kafka, database_url, unique_prefix, tmp_path, *options, users=_USERS, **limits) as made:
        made.start_worker()
        made.start_worker()
        printed, _ = await asyncio.gather(
            _submit(made, [trade.request for trade in tape[1::2]], tmp_path),
            _publish(kafka, made.topics.requests, [(trade.user, json.dumps(trade.request)) for trade in tape[::2]]),
        )
        sent = await made.read(made.topics.requests)
        finals = await made.final_results(sent, 120)
        assert len(sent) == len(finals) == len(tape)

        key_of = {(record.partition, record.offset): json.loads(record.value)["idempotency_key"] for record in sent}
        by_key = {key_of[source]: result for source, result in finals.items()}
        answers = [(trade, by_key[f"trade-{trade.trade_id}"]) for trade in tape]
        assert {result["idempotency_key"]: result for result in printed} == {
            result["idempotency_key"]: result for _, result in answers[1::2]
        }
        executed = []
        for trade, result in answers:
            refusal = _expected_refusal(trade, lowest, highest)
            if refusal is None:
                assert (result["status"], result["reason_code"]) == ("executed", None)
                executed.append((trade, result))
            else:
                assert (result["status"], result["reason_code"]) == ("rejected", refusal[0])
                assert refusal[1] in result["reason"]
        assert 0 < len(tape) - len(executed) < 100

        records = list(read_log(made.exchange_log))
        accepted = [record for record in records if isinstance(record, OrderAccepted)]
        _assert_executed_as_logged(tape, executed, accepted, [record for record in records if isinstance(record, Filled)])
        ours, theirs = await _balances(made)
        assert ours == theirs
        await assert_promises_hold(made)
