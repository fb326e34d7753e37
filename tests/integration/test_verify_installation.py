"""`verify` on a real installation: all holds; then one thing is changed by hand at a time, and it is reported by name."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from cli.check import verify
from cli.check.verify import VerifyOptions, run_verify
from embedded.services import Endpoints
from infra.settings import Settings
from pipeline.model.invariants import Retryable
from simulator.records import OrderAccepted, encode, read_log
from tests.installation import Installation, installation, order
from tests.promises import assert_promises_hold
from verification.evidence.database import read_database
from verification.evidence.evidence import gather_evidence
from verification.promises.promises import UNDER_WAY

# What somebody with the database's password could do, each with how it is undone and what must be reported.
DAMAGES = (
    (
        "UPDATE orders SET cum_quote = cum_quote + 1 WHERE status = 'filled'",
        "UPDATE orders SET cum_quote = cum_quote - 1 WHERE status = 'filled'",
        {"figures_match_exchange", "state_matches_database"},
    ),
    (
        "UPDATE balances SET posted = posted + 1 WHERE user_id = 'user-1' AND asset = 'BTC'",
        "UPDATE balances SET posted = posted - 1 WHERE user_id = 'user-1' AND asset = 'BTC'",
        {"ledger_sums_to_zero", "balances_match_transfers", "balances_match_exchange"},
    ),
    (
        "UPDATE balances SET pending = pending + 1 WHERE user_id = 'user-1' AND asset = 'BTC'",
        "UPDATE balances SET pending = pending - 1 WHERE user_id = 'user-1' AND asset = 'BTC'",
        {"holds_match_orders"},
    ),
    (
        "UPDATE audit_events SET body = replace(body, '\"symbol\":\"BTC/USDT\"', '\"symbol\":\"ETH/USDT\"')",
        "UPDATE audit_events SET body = replace(body, '\"symbol\":\"ETH/USDT\"', '\"symbol\":\"BTC/USDT\"')",
        {"audit_chain", "audit_on_topic_matches_database"},
    ),
    (
        "UPDATE claims SET result = replace(result, '\"executed\"', '\"rejected\"')",
        "UPDATE claims SET result = replace(result, '\"rejected\"', '\"executed\"') WHERE order_id IS NOT NULL",
        {"results_match_database"},
    ),
    (
        "UPDATE input_partitions SET next_offset = next_offset + 1",
        "UPDATE input_partitions SET next_offset = next_offset - 1",
        {"offsets_match_database"},
    ),
)




async def reported(made: Installation, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[int, set[str]]:
    """(exit code, names of the promises reported as broken)"""
    settings = made.settings
    assert settings.kafka_bootstrap_servers is not None
    assert settings.database_url is not None
    endpoints = Endpoints(settings.kafka_bootstrap_servers, settings.database_url.get_secret_value())
    options = VerifyOptions(settings, endpoints, exchange_log=made.exchange_log, as_json=True)
    capsys.readouterr()
    code = await run_verify(replace(options, **changes))
    printed = json.loads(capsys.readouterr().out)
    assert printed["holds"] is (code == 0)
    return code, {name for name, row in printed["promises"].items() if not row["holds"]}


async def _execute(made: Installation, *statements: str) -> None:
    assert made.settings.database_url is not None
    connection = await asyncpg.connect(made.settings.database_url.get_secret_value(), timeout=10)
    try:
        await connection.execute("SET session_replication_role = 'replica'")
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close(timeout=10)


@pytest.mark.timeout(600)
async def test_verify_reports_each_damage_by_name(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed row, a rewritten trail, an order behind our back, a second answer: each is found, and nothing is found before."""
    monkeypatch.setattr(verify, "_PAUSE_SECONDS", 0.01)
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        worker = made.start_worker("agents")
        resting = order(900, order_type="limit", side="buy", price="20000", time_in_force="GTC")
        sent = await made.publish([*(order(number) for number in range(24)), resting, order(3), {"user_id": 7}])
        await made.final_results([record for number, record in enumerate(sent) if number != 24], 60)
        await assert_promises_hold(made)
        worker.terminate()
        worker.wait(90)
        assert await reported(made, capsys) == (0, set())
        assert await reported(made, capsys, from_topic=True) == (0, set())
        for damage, repair, names in DAMAGES:
            await _execute(made, damage)
            code, broken = await reported(made, capsys)
            assert (code, names <= broken) == (1, True), (damage, broken)
            await _execute(made, repair)
        assert await reported(made, capsys) == (0, set())
        await _trail_is_cut(made, capsys)
        await _exchange_has_another_order(made, capsys, tmp_path)
        await _answer_comes_again(made, capsys)


@pytest.mark.timeout(600)
async def test_verify_while_requests_arrive_takes_none_for_broken(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is under way differs from look to look: it is no breach, and an operator can verify a system that works."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        made.start_worker("agents")
        await made.final_results(await made.publish([order(0)]), 60)
        published = [0]

        async def arrive() -> None:
            while True:
                published[0] += 5
                await made.publish([order(published[0] + number) for number in range(5)])

        arriving = asyncio.create_task(arrive())
        try:
            code, broken = await reported(made, capsys)
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)
        assert published[0] >= 10
        assert (code, broken - UNDER_WAY) == (0, set())


async def _trail_is_cut(made: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    """A trail that was shortened so that its chain is whole is found from Kafka, which has the rest."""
    cut = (
        "DELETE FROM audit_events e USING audit_chains c WHERE c.account = 'user-1' AND e.account = c.account AND e.seq = c.seq",
        "UPDATE audit_chains c SET seq = e.seq, hash = e.hash FROM audit_events e "
        "WHERE c.account = 'user-1' AND e.account = c.account AND e.seq = c.seq - 1",
    )
    await _execute(made, "CREATE TABLE kept AS SELECT * FROM audit_events WHERE account = 'user-1'")
    await _execute(made, "CREATE TABLE kept_head AS SELECT * FROM audit_chains WHERE account = 'user-1'")
    await _execute(made, *cut)
    code, broken = await reported(made, capsys)
    assert code == 1
    assert "audit_chain" not in broken
    assert "audit_on_topic_matches_database" in broken
    await _execute(made, "DELETE FROM audit_events WHERE account = 'user-1'", "INSERT INTO audit_events SELECT * FROM kept")
    await _execute(made, "DELETE FROM audit_chains WHERE account = 'user-1'", "INSERT INTO audit_chains SELECT * FROM kept_head")
    assert await reported(made, capsys) == (0, set())


async def _exchange_has_another_order(made: Installation, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An order that the exchange accepted twice, and one that nobody asked for, in a copy of its log."""
    records = list(read_log(made.exchange_log))
    accepted = next(record for record in records if isinstance(record, OrderAccepted))
    log = tmp_path / "other.jsonl"
    again = replace(accepted, seq=records[-1].seq + 1, order_id=10**6)
    foreign = replace(accepted, seq=records[-1].seq + 2, order_id=10**6 + 1, client_order_id="by-hand")
    log.write_bytes(made.exchange_log.read_bytes() + encode(again) + encode(foreign))
    code, broken = await reported(made, capsys, exchange_log=log)
    assert (code, broken) == (1, {"executed_twice", "foreign_orders"})


async def _answer_comes_again(made: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    """Another final result for a record that has one."""
    first = next(record for record in await made.read(made.topics.results) if json.loads(record.value)["final"])
    producer = AIOKafkaProducer(bootstrap_servers=made.settings.kafka_bootstrap_servers)
    await producer.start()
    try:
        await producer.send_and_wait(made.topics.results, first.value, key=first.key)
        await producer.send_and_wait(made.topics.results, b"{}", key=first.key)
    finally:
        await producer.stop()
    code, broken = await reported(made, capsys)
    assert code == 1
    assert {"answered_twice", "results_match_database"} <= broken


async def test_evidence_without_services_says_what_is_out_of_reach(kafka: str, unique_prefix: str) -> None:
    """A broker, topics or a database that are not there are named, and the reading ends."""
    settings = Settings(topic_prefix=unique_prefix, kafka_bootstrap_servers=None, database_url=None)
    with pytest.raises(Retryable, match="broker"):
        await gather_evidence(settings, "127.0.0.1:1", "postgresql://nobody@127.0.0.1:1/none", None)
    with pytest.raises(Retryable, match="topics are missing"):
        await gather_evidence(settings, kafka, "postgresql://nobody@127.0.0.1:1/none", None)
    with pytest.raises(Retryable, match="database"):
        await read_database("postgresql://nobody@127.0.0.1:1/none", "group")
