"""Simulated orders with real workers, broker, database and a simulated exchange: they end as the market makes them, no exchange hears of
them, no real balance moves, and every promise holds."""

import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agents.process.app import utc_now
from cli.local.audit_publication import publish_audit_events
from infra.postgres.admin.administration import NotDone
from infra.postgres.admin.paper_funds import PaperFunds, fund_paper
from infra.postgres.database import connect
from pipeline.model.crash_points import CrashPoint
from tests.claiming import claimed
from tests.installation import OPENING, Installation, ended, installation, order, unique_file
from tests.integration.halted import Commands, commanding
from tests.promises import assert_promises_hold

_ALICE, _BOB = "user-0", "user-1"
_NO_PRICES = {"method": "GET", "path": "/api/v3/ticker/price", "kind": "drop_before_accept", "probability": 1}
_FUNDS = {"USDT": Decimal(1_000), "BTC": Decimal(1)}


@dataclass
class Simulation:
    """An installation with a user who has simulated money, in a market that stands at 40,000."""

    made: Installation
    commands: Commands

    async def price(self, price: str) -> None:
        await self.made.pin_price("BTCUSDT", price)

    async def balances(self, user: str, book: str) -> dict[str, tuple[Decimal, Decimal | int]]:
        """What the user owns and holds in a book, per asset."""
        statement = "SELECT asset, posted, pending FROM balances WHERE user_id = $1 AND book = $2"
        rows = await self.commands.rows(statement, user, book)
        return {row["asset"]: (row["posted"], row["pending"]) for row in rows}

    async def results(self) -> list[dict[str, Any]]:
        return await self.made.results()

    async def resting(self, count: int) -> None:
        await self.commands.until("they rest", "SELECT 1 FROM orders WHERE status = 'new' HAVING count(*) = $1", count)

    async def nothing_real_happened(self, *users: str) -> None:
        """The exchange has no order, the real book is as it was, what was said is marked, and all promises hold."""
        assert self.made.accepted_orders() == []
        for user in users:
            assert await self.balances(user, "live") == {asset: (amount, 0) for asset, amount in OPENING.items()}
        assert await self.commands.rows("SELECT 1 FROM user_days") == []
        assert await self.commands.rows("SELECT 1 FROM user_symbols") == []
        assert await self.commands.rows("SELECT 1 FROM realised_results") == []
        results = await self.results()
        assert {result["mode"] for result in results} == {"paper"}
        ids = [result["exchange_order_id"] for result in results if result["exchange_order_id"]]
        assert [name for name in ids if not name.startswith("paper-")] == []
        for user in users:
            for event in await self.commands.events(user):
                assert (event["real_money"], event["warning"]) == (False, None)
        await assert_promises_hold(self.made)


async def _fund(made: Installation, user: str, funds: Mapping[str, Decimal]) -> None:
    """As `balances fund-paper` does."""
    assert made.settings.database_url is not None
    database = await connect(made.settings.database_url.get_secret_value(), 2, 10)
    try:
        for asset, amount in funds.items():
            await fund_paper(database, user, PaperFunds("binance", asset, amount), claimed("ana", utc_now()))
        await publish_audit_events(made.settings, made.settings.kafka_bootstrap_servers or "", database)
    finally:
        await database.close()


@asynccontextmanager
async def _simulation(kafka: str, database_url: str, prefix: str, directory: Path) -> AsyncIterator[Simulation]:
    async with installation(kafka, database_url, prefix, directory) as made, commanding(made) as commands:
        await made.pin_price("BTCUSDT", "40000")
        await _fund(made, _ALICE, _FUNDS)
        yield Simulation(made, commands)


def _paper(number: int, **fields: Any) -> dict[str, Any]:
    """A simulated purchase of 0.001 BTC. Its key does not exist anywhere."""
    return order(number, **{"user_id": _ALICE, "mode": "paper", "api_key_id": "none", "side": "buy", **fields})


def _limit(number: int, price: str, **fields: Any) -> dict[str, Any]:
    return _paper(number, order_type="limit", price=price, **fields)


def _cancel(number: int, target: int, **fields: Any) -> dict[str, Any]:
    return {
        "schema_version": 1, "type": "cancel", "idempotency_key": f"key-{number}", "user_id": _ALICE, "mode": "paper",
        "target_idempotency_key": f"key-{target}", **fields,
    }  # fmt: skip


async def test_paper_orders_end_as_the_market_makes_them(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Market, met and unmet IOC and FOK, resting then crossed, resting then canceled, by quote amount, and funds that do not suffice."""
    async with _simulation(kafka, database_url, unique_prefix, tmp_path) as simulation:
        made = simulation.made
        made.start_worker()
        requests = {
            "market": _paper(1),
            "sale": _paper(2, side="sell"),
            "by quote amount": _paper(3, quantity=None, quote_quantity="50"),
            "met at once": _limit(4, "40001"),
            "IOC met": _limit(5, "40000", time_in_force="IOC"),
            "IOC unmet": _limit(6, "39999", time_in_force="IOC"),
            "FOK met": _limit(7, "40000", time_in_force="FOK"),
            "FOK unmet": _limit(8, "39999", time_in_force="FOK"),
            "too much": _paper(9, quantity="1"),
        }
        sent = dict(zip(requests, await made.publish(list(requests.values())), strict=True))
        rests, stays = await made.publish([_limit(10, "39000"), _limit(11, "38000")])
        finals = await made.final_results(list(sent.values()), 60)
        told = {name: finals[record.partition, record.offset] for name, record in sent.items()}
        filled, ended = ("executed", "filled", "0.001", "40000"), ("canceled", "expired", "0", None)
        shown = ("status", "order_status", "filled_quantity", "average_price")
        assert {name: tuple(result[part] for part in shown) for name, result in told.items()} == {
            "market": filled, "sale": filled, "by quote amount": ("executed", "filled", "0.00125", "40000"), "met at once": filled,
            "IOC met": filled, "IOC unmet": ended, "FOK met": filled, "FOK unmet": ended, "too much": ("rejected", None, None, None),
        }  # fmt: skip
        assert told["too much"]["reason_code"] == "BALANCE_INSUFFICIENT"
        await simulation.resting(2)
        await simulation.price("39000")
        crossed = (await made.final_results([rests], 120))[rests.partition, rests.offset]
        assert tuple(crossed[part] for part in shown) == ("executed", "filled", "0.001", "39000")
        (canceled,) = await made.publish([_cancel(12, 11)])
        finals = await made.final_results([canceled, stays], 120)
        assert finals[canceled.partition, canceled.offset]["status"] == "executed"
        assert finals[stays.partition, stays.offset]["status"] == "canceled"
        rate = Decimal(told["sale"]["fee"]) / 40
        assert rate > 0
        bought = Decimal("0.00125") + 5 * Decimal("0.001")
        spent = 50 + 4 * Decimal(40) + 39
        assert await simulation.balances(_ALICE, "paper") == {
            "USDT": (_FUNDS["USDT"] - spent + 40 * (1 - rate), 0),
            "BTC": (_FUNDS["BTC"] - Decimal("0.001") + bought * (1 - rate), 0),
        }
        await simulation.nothing_real_happened(_ALICE)


async def test_paper_and_real_funds_do_not_help_each_other(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Bob has real money alone and cannot pay a simulated order; a simulated fortune pays for no real order. Copies get their answers
    again, and a cancel in the other mode ends nothing."""
    async with _simulation(kafka, database_url, unique_prefix, tmp_path) as simulation:
        made = simulation.made
        await _fund(made, _ALICE, {"ETH": Decimal(1_000)})
        made.start_worker()
        poor = _paper(1, user_id=_BOB)
        unpaid = {**order(2, user_id=_ALICE, side="sell", symbol="ETH/USDT"), "quantity": "1"}
        sent = await made.publish([poor, poor, unpaid, order(3, user_id=_ALICE, side="buy"), _limit(4, "39000")])
        finals = await made.final_results(sent[:4], 120)
        answers = [finals[record.partition, record.offset] for record in sent[:4]]
        assert [(answer["reason_code"], answer["mode"], answer["replayed"]) for answer in answers] == [
            ("BALANCE_INSUFFICIENT", "paper", False),
            ("BALANCE_INSUFFICIENT", "paper", True),
            ("BALANCE_INSUFFICIENT", "live", False),
            (None, "live", False),
        ]
        assert [record.client_order_id for record in made.accepted_orders()] == [answers[3]["client_order_id"]]
        await simulation.resting(1)
        (wrong,) = await made.publish([_cancel(5, 4, mode="live")])
        answer = (await made.final_results([wrong], 120))[wrong.partition, wrong.offset]
        assert answer["reason_code"] == "ORDER_NOT_FOUND"
        days = await simulation.commands.rows("SELECT user_id, trades, volume_usd FROM user_days")
        assert [(row["user_id"], row["trades"], row["volume_usd"]) for row in days] == [(_ALICE, 1, 40)]
        await assert_promises_hold(made)


@pytest.mark.parametrize("then", ["kill", "stop"])
@pytest.mark.parametrize("point", [CrashPoint.AFTER_SUBMITTING_COMMIT, CrashPoint.AFTER_EXCHANGE_CALL])
async def test_interrupted_paper_orders_are_executed_once(
    point: CrashPoint, then: str, kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """A worker that is killed, or paused until others have its work, between intent and outcome leaves orders in doubt. They are absent at
    once, and executed by the next one at the price of then; the paused one wakes up with outcomes in its hands and ends without a trace."""
    async with _simulation(kafka, database_url, unique_prefix, tmp_path) as simulation:
        made = simulation.made
        sent = await made.publish([_paper(number) for number in range(10)])
        first = made.start_worker(TEST_AT=f"{point}@trade.orders.binance:1", TEST_THEN=then, TEST_ONCE=unique_file(tmp_path))
        if then == "kill":
            assert await ended(first, 90) == -9, made.worker_log(0)
        else:
            await simulation.commands.until("it is at the point", "SELECT 1 FROM orders WHERE status = 'submitting'")
        await simulation.price("41000")
        made.start_worker()
        finals = await made.final_results(sent, 120)
        if then == "stop":
            first.send_signal(signal.SIGCONT)
            assert await ended(first, 90) != 0, made.worker_log(0)
        assert {result["status"] for result in finals.values()} == {"executed"}
        events = await simulation.commands.events(_ALICE)
        kinds = Counter(event["event_type"] for event in events)
        assert kinds["ORDER_IN_DOUBT"] == kinds["ORDER_REQUEUED"] > 0
        assert kinds["ORDER_FILLED"] == len(sent)
        assert Decimal(41_000) in {Decimal(result["average_price"]) for result in finals.values()}
        await simulation.nothing_real_happened(_ALICE)


async def test_stored_outcome_of_a_paper_order_survives_kill_9(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """A worker that dies right after the outcome is stored, before it is told, has executed: the next one tells it with its price."""
    async with _simulation(kafka, database_url, unique_prefix, tmp_path) as simulation:
        made = simulation.made
        point = f"{CrashPoint.AFTER_OUTCOME_COMMIT}@trade.orders.binance:1"
        sent = await made.publish([_paper(1)])
        first = made.start_worker(TEST_AT=point, TEST_THEN="kill", TEST_ONCE=unique_file(tmp_path))
        assert await ended(first, 90) == -9, made.worker_log(0)
        await simulation.price("41000")
        made.start_worker()
        (answer,) = (await made.final_results(sent, 120)).values()
        assert (answer["status"], answer["average_price"]) == ("executed", "40000")
        await simulation.nothing_real_happened(_ALICE)


async def test_resting_paper_order_is_not_filled_at_an_old_price(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """While the exchange tells no prices it rests, whatever the market does, and can be canceled; it is filled when they come again."""
    async with _simulation(kafka, database_url, unique_prefix, tmp_path) as simulation:
        made = simulation.made
        made.start_worker()
        rests, other = await made.publish([_limit(1, "39000"), _limit(2, "38500")])
        await simulation.resting(2)
        await made.faults(_NO_PRICES)
        await simulation.price("38000")
        canceled = await made.publish([_cancel(3, 2)])
        finals = await made.final_results([*canceled, other], 120)
        assert finals[other.partition, other.offset]["status"] == "canceled"
        assert (rests.partition, rests.offset) not in finals
        await made.faults()
        answer = (await made.final_results([rests], 120))[rests.partition, rests.offset]
        assert (answer["status"], answer["average_price"]) == ("executed", "39000")
        await simulation.nothing_real_happened(_ALICE)


async def test_paper_order_waits_for_a_price_until_its_deadline(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Accepted, and then no price: it is queued again and again. One ends at its deadline with its funds free, the other is executed when
    prices come again."""
    async with _simulation(kafka, database_url, unique_prefix, tmp_path) as simulation:
        made = simulation.made
        soon = (utc_now() + timedelta(seconds=45)).strftime("%Y-%m-%dT%H:%M:%SZ")
        ends, waits = await made.publish([_paper(1, expires_at=soon), _paper(2)])
        # Killed with the orders accepted: the next worker never hears a price.
        point = f"{CrashPoint.AFTER_INTAKE_COMMIT}@trade.requests:1"
        first = made.start_worker(TEST_AT=point, TEST_THEN="kill", TEST_ONCE=unique_file(tmp_path))
        assert await ended(first, 90) == -9, made.worker_log(0)
        await made.faults(_NO_PRICES)
        made.start_worker()
        finals = await made.final_results([ends], 90)
        expired = finals[ends.partition, ends.offset]
        assert (expired["status"], expired["reason_code"]) == ("rejected", "REQUEST_EXPIRED")
        assert (waits.partition, waits.offset) not in finals
        requeued = await simulation.commands.rows(
            "SELECT DISTINCT order_id FROM audit_events WHERE body::jsonb ->> 'event_type' = 'ORDER_REQUEUED'"
        )
        assert len(requeued) == 2
        await made.faults()
        answer = (await made.final_results([waits], 120))[waits.partition, waits.offset]
        assert answer["status"] == "executed"
        await simulation.nothing_real_happened(_ALICE)


async def test_paper_funds_add_up_and_refuse_what_cannot_be(database_url: str, kafka: str, unique_prefix: str, tmp_path: Path) -> None:
    """Twice is twice, in the book `paper` alone; an unknown user, nothing, and more than a balance may come to are refused."""
    async with _simulation(kafka, database_url, unique_prefix, tmp_path) as simulation:
        made = simulation.made
        await _fund(made, _ALICE, {"USDT": Decimal("0.5")})
        assert await simulation.balances(_ALICE, "paper") == {"USDT": (Decimal("1000.5"), 0), "BTC": (Decimal(1), 0)}
        assert await simulation.balances(_ALICE, "live") == {asset: (amount, 0) for asset, amount in OPENING.items()}
        for user, amount in (("nobody", "1"), (_ALICE, "0"), (_ALICE, "1000000000000000")):
            with pytest.raises(NotDone):
                await _fund(made, user, {"USDT": Decimal(amount)})
        events = [event for event in await simulation.commands.events(_ALICE) if event["event_type"] == "PAPER_FUNDED"]
        told = [(event["claimed_operator"], event["transfers"][0]["amount"]) for event in events]
        assert told == [("ana", "1000"), ("ana", "1"), ("ana", "0.5")]
        made.start_worker()
        await made.final_results(await made.publish([_paper(1)]), 60)
        await simulation.nothing_real_happened(_ALICE)
