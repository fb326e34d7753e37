"""The emergency stop with real workers, broker, database and a simulated exchange: what is stopped, what passes, and what stays."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.installation import ended, installation, order
from tests.integration.halted import commanding

# Far below the market, so that it rests.
_RESTING = {"order_type": "limit", "side": "buy", "price": "20000", "quantity": "0.001"}
_ALICE, _BOB = "user-0", "user-1"


def _codes(finals: dict[tuple[int, int], dict[str, Any]], sent: list[Any]) -> list[str | None]:
    """The reason code of each record's final answer; None for what was executed."""
    return [finals[record.partition, record.offset]["reason_code"] for record in sent]


async def test_halt_of_each_scope_stops_what_it_covers_and_nothing_else(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Everybody, an exchange, a symbol, a user: refused at intake while in force, taken again after `resume`; `reduce` lets only sales into
    dollars pass. Nothing that was refused reached the exchange."""
    alice, ether = {"user_id": _ALICE, "side": "buy"}, {"user_id": _BOB, "side": "buy", "symbol": "ETH/USDT", "quantity": "0.01"}
    sale = {"user_id": _BOB, "side": "sell"}
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made, commanding(made) as commands:
        made.start_worker()
        number = 0
        seen: dict[str, list[str | None]] = {}
        for name, scope in (
            ("all", {}),
            ("exchange", {"scope": "exchange", "target": "binance"}),
            ("other exchange", {"scope": "exchange", "target": "kraken"}),
            ("symbol", {"scope": "symbol", "target": "BTC/USDT"}),
            ("user", {"scope": "user", "target": _ALICE}),
            ("reduce", {}),
        ):
            word = "reduce" if name == "reduce" else "halt"
            applied = await commands.command(word, **scope)
            assert (applied.event["event_type"], applied.event["account"], applied.event["actor"]) == ("HALT_SET", "ana", "@unverified")
            sent = await made.publish([order(number + each, **fields) for each, fields in enumerate((alice, ether, sale))])
            seen[name] = _codes(await made.final_results(sent, 120), sent)
            lifted = await commands.command("resume", **scope)
            assert lifted.event["event_type"] == "HALT_LIFTED"
            assert await commands.halts() == []
            number += 3
        sent = await made.publish([order(number + each, **fields) for each, fields in enumerate((alice, ether, sale))])
        seen["resumed"] = _codes(await made.final_results(sent, 120), sent)
        halted, reduced = "TRADING_HALTED", "REDUCE_ONLY"
        assert seen == {
            "all": [halted, halted, halted],
            "exchange": [halted, halted, halted],
            "other exchange": [None, None, None],
            "symbol": [halted, None, halted],
            "user": [halted, None, None],
            "reduce": [reduced, reduced, None],
            "resumed": [None, None, None],
        }
        executed = [code for codes in seen.values() for code in codes if code is None]
        assert len(made.accepted_orders()) == len(executed)


async def test_halt_stops_orders_that_wait_for_their_turn_and_lets_cancels_pass(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """One account's orders are sent one after another. When the halt comes some are sent, some wait within the batch and some in the queue:
    none of those is sent any more, all are answered, all funds are free, and a resting order can be canceled."""
    async with (
        installation(kafka, database_url, unique_prefix, tmp_path, "--distance-ms", "100") as made,
        commanding(made) as commands,
    ):
        made.start_worker()
        (resting,) = await made.publish([order(0, user_id=_ALICE, **_RESTING)])
        await commands.until("the order rests", "SELECT 1 FROM orders WHERE status = 'new'")
        sent = await made.publish([order(number, user_id=_ALICE, side="buy") for number in range(1, 200)])
        await commands.until("some are sent", "SELECT 1 FROM orders WHERE status = 'submitting'")
        applied = await commands.command("halt")
        assert applied.event["event_type"] == "HALT_SET"
        finals = await made.final_results(sent, 120)
        codes = _codes(finals, sent)
        accepted = made.accepted_orders()
        assert set(codes) == {None, "TRADING_HALTED"}
        assert codes.count(None) == len(accepted) - 1
        # More than a batch waits, so that orders of both kinds were there.
        assert codes.count("TRADING_HALTED") > 128
        requeued = await commands.rows("SELECT 1 FROM audit_events WHERE body::jsonb ->> 'event_type' = 'ORDER_REQUEUED'")
        assert requeued, "no order was stopped within its batch"
        # One request may have been on its way when the command was applied.
        latest = max(record.time_us for record in accepted) / 1_000_000
        assert latest - applied.appended_at < 1.0
        assert finals.get((resting.partition, resting.offset)) is None
        cancel = {"schema_version": 1, "type": "cancel", "idempotency_key": "c", "user_id": _ALICE, "mode": "live"}
        (canceled,) = await made.publish([{**cancel, "target_idempotency_key": "key-0"}])
        finals = await made.final_results([canceled, resting], 120)
        assert finals[canceled.partition, canceled.offset]["status"] == "executed"
        assert finals[resting.partition, resting.offset]["status"] == "canceled"
        assert await commands.rows("SELECT sum(pending) AS held FROM balances") == [{"held": 0}]


@pytest.mark.parametrize(("word", "canceled"), [("halt", {"buys", "sales"}), ("reduce", {"buys"})])
async def test_cancel_open_ends_at_the_exchange_what_would_not_pass(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path, word: str, canceled: set[str]
) -> None:
    """`halt --cancel-open` ends every resting order of the scope at the exchange, `reduce --cancel-open` leaves sales into dollars; those
    of others rest on. A cancel that the exchange does not answer is sent again."""
    sale = {**_RESTING, "side": "sell", "price": "100000"}
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made, commanding(made) as commands:
        made.start_worker()
        requests = [order(0, user_id=_ALICE, **_RESTING), order(1, user_id=_ALICE, **sale), order(2, user_id=_BOB, **_RESTING)]
        sent = dict(zip(("buys", "sales", "others"), await made.publish(requests), strict=True))
        await commands.until("all rest", "SELECT 1 FROM orders WHERE status = 'new' HAVING count(*) = 3")
        await made.faults({"method": "DELETE", "kind": "drop_before_accept", "next_n": 1})
        await commands.command(word, scope="user", target=_ALICE, cancel_open=True)
        finals = await made.final_results([sent[name] for name in canceled], 120)
        for name, record in sent.items():
            answer = finals.get((record.partition, record.offset))
            assert (answer or {}).get("status") == ("canceled" if name in canceled else None)
        # What is queued at once is in one page: nobody else was to be canceled.
        queued = [json.loads(record.value) for record in await made.read(made.topics.orders("binance"))]
        named = {work["order_id"] for work in queued if work["action"] == "cancel"}
        assert named == {finals[sent[name].partition, sent[name].offset]["order_id"] for name in canceled}
        left = await commands.rows("SELECT user_id, side FROM orders WHERE status = 'new' ORDER BY user_id")
        assert [(row["user_id"], row["side"]) for row in left] == ([] if "sales" in canceled else [(_ALICE, "sell")]) + [(_BOB, "buy")]


async def test_halt_survives_the_restart_of_every_worker(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """It is in the database: workers that are killed and started anew refuse as before, until an operator resumes."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made, commanding(made) as commands:
        workers = [made.start_worker(), made.start_worker()]
        await commands.command("halt")
        for worker in workers:
            worker.kill()
            await ended(worker, 10)
        made.start_worker()
        sent = await made.publish([order(number) for number in range(4)])
        assert _codes(await made.final_results(sent, 120), sent) == ["TRADING_HALTED"] * 4
        await commands.command("resume")
        sent = await made.publish([order(number) for number in range(4, 8)])
        assert _codes(await made.final_results(sent, 120), sent) == [None] * 4
        assert len(made.accepted_orders()) == 4
