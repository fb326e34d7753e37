"""The simulated exchange's durability: what it told anybody is in its books after any end, and broken books are refused."""

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import aiohttp
import orjson
import pytest

from simulator.invariants import log_violations
from simulator.journal import Journal
from simulator.options import SimulatorOptions
from simulator.process import SimulatorNotReady, start
from simulator.records import AccountOpened, LogDamaged, OrderAccepted, read_log
from tests.integration.simulator_client import SimulatorClient, client_of, new_id, until


def _options(tmp_path: Path) -> SimulatorOptions:
    return SimulatorOptions(tmp_path / "exchange", walk_ms=0)


async def _send_until_it_dies(client: SimulatorClient, told: dict[str, object]) -> None:
    """Sends orders one after another and keeps every answer, until the exchange is gone."""
    for number in range(100_000):
        client_order_id = new_id()
        try:
            if number % 3:
                answer = await client.order("BUY" if number % 2 else "SELL", newClientOrderId=client_order_id)
            else:
                answer = await client.limit("30000", newClientOrderId=client_order_id)
        except aiohttp.ClientError:
            return
        assert answer.status == 200
        told[client_order_id] = answer.body


async def test_kill_under_load_loses_nothing_that_was_told(tmp_path: Path) -> None:
    """Eight clients send while the process is killed: each answer they got is in the books after the restart, word for word."""
    simulator = start(_options(tmp_path))
    told: dict[str, dict[str, object]] = {}
    async with client_of(simulator.url, {"USDT": "10000000", "BTC": "1000"}) as client:
        senders = [asyncio.create_task(_send_until_it_dies(client, told)) for _ in range(8)]

        async def enough() -> bool:
            return len(told) > 300

        await until(enough)
        simulator.kill()
        await asyncio.gather(*senders)
        simulator = start(simulator.options)
        client.url = simulator.url
        for client_order_id, answer in told.items():
            found = (await client.look_up(client_order_id)).body
            assert {name: found[name] for name in ("orderId", "status", "executedQty", "cummulativeQuoteQty")} == {
                name: answer[name] for name in ("orderId", "status", "executedQty", "cummulativeQuoteQty")
            }
        await client.assert_books_hold()
        assert (await client.order()).body["status"] == "FILLED"
        order_ids = [row["orderId"] for row in (await client.signed("GET", "/api/v3/allOrders", symbol="BTCUSDT", limit=1000)).body]
        assert len(set(order_ids)) == len(order_ids)
    assert simulator.stop() == 0
    assert log_violations(simulator.log_path, simulator.options.venue_timeout_ms) == []


async def test_further_key_names_the_same_account_before_and_after_a_restart(tmp_path: Path) -> None:
    """Both keys see one account under one number, and what one of them orders the other has; nobody else's key is taken for it."""
    simulator = start(_options(tmp_path))
    async with client_of(simulator.url) as client:
        spec = {"account": client.api_key, "api_key": f"{client.api_key}-b", "secret": "another secret"}
        other = SimulatorClient(client.session, client.url, spec["api_key"], spec["secret"])
        await client.admin("POST", "keys", spec)
        await client.admin("POST", "keys", spec)
        await other.order("BUY", "0.25")
        stranger = {**spec, "account": f"{client.api_key}-c"}
        assert (await client.raw("POST", "/simulator/keys", body=orjson.dumps(stranger).decode())).status == 400
        before = (await client.signed("GET", "/api/v3/account")).body
        simulator.kill()
        simulator = start(simulator.options)
        client.url = other.url = simulator.url
        for asked in (client, other):
            found = (await asked.signed("GET", "/api/v3/account")).body
            assert (found["uid"], found["balances"]) == (before["uid"], before["balances"])
        await client.assert_books_hold()
    assert simulator.stop() == 0


async def test_restart_brings_back_balances_locks_prices_faults_and_open_orders(tmp_path: Path) -> None:
    """After a kill the account, a resting order, a pinned price and the fault counts are as before, and the order still fills."""
    simulator = start(_options(tmp_path))
    async with client_of(simulator.url) as client:
        await client.pin("41000")
        await client.order("BUY", "0.25")
        resting = (await client.limit("40500", quantity="0.5")).body["clientOrderId"]
        await client.faults({"kind": "rate_limit", "next_n": 1})
        await client.order()
        before = await client.balances()
        simulator.kill()
        simulator = start(simulator.options)
        client.url = simulator.url
        assert await client.balances() == before
        assert (await client.raw("GET", "/api/v3/ticker/price", query="symbol=BTCUSDT")).body["price"] == "41000.00000000"
        assert await client.admin("GET", "faults") == {"rate_limit": 1}
        assert await client.admin("GET", "faults/rules") == []
        assert (await client.order(newClientOrderId=resting)).code == -2010
        await client.pin("40500")
        assert (await client.look_up(resting)).body["status"] == "FILLED"
        await client.assert_books_hold()
    assert simulator.stop() == 0


async def test_torn_last_line_is_cut_off_with_a_message(tmp_path: Path) -> None:
    """Half a line at the end is what a crash leaves: it is dropped, said, and the log goes on behind it."""
    simulator = start(_options(tmp_path))
    async with client_of(simulator.url) as client:
        first = (await client.order()).body["clientOrderId"]
        simulator.kill()
        whole = simulator.log_path.read_bytes()
        simulator.log_path.write_bytes(whole + b'{"record":"fill","seq":99,"time')
        errors = tmp_path / "errors"
        with errors.open("wb") as file:
            simulator = start(simulator.options, file)
        client.url = simulator.url
        assert "are cut off" in errors.read_text()
        assert (await client.look_up(first)).body["status"] == "FILLED"
        await client.order()
    assert simulator.stop() == 0
    seqs = [record.seq for record in read_log(simulator.log_path)]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_order_cut_off_between_its_records_ends_expired(tmp_path: Path) -> None:
    """A market order whose fills did not reach the disk cannot stay open: it ends without a fill, and its money is free."""
    simulator = start(_options(tmp_path))
    async with client_of(simulator.url) as client:
        client_order_id = (await client.order()).body["clientOrderId"]
        simulator.kill()
        lines = simulator.log_path.read_bytes().splitlines(keepends=True)
        [place] = [number for number, line in enumerate(lines) if orjson.loads(line)["record"] == "order"]
        simulator.log_path.write_bytes(b"".join(lines[: place + 1]))
        simulator = start(simulator.options)
        client.url = simulator.url
        found = (await client.look_up(client_order_id)).body
        assert (found["status"], found["executedQty"]) == ("EXPIRED", "0.00000000")
        assert await client.balances() == {"USDT": (Decimal(100000), Decimal(0)), "BTC": (Decimal(10), Decimal(0))}
        await client.assert_books_hold()
    assert simulator.stop() == 0


@pytest.mark.parametrize("damage", [lambda lines: [lines[0], b"{broken\n", *lines[2:]], lambda lines: [lines[0], *lines[2:]]])
async def test_damage_before_the_end_is_refused(tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]]) -> None:
    """A broken or missing line in the middle: the exchange does not start on such books, and the reader says so too."""
    simulator = start(_options(tmp_path))
    async with client_of(simulator.url) as client:
        for _ in range(3):
            await client.order()
    assert simulator.stop() == 0
    lines = simulator.log_path.read_bytes().splitlines(keepends=True)
    simulator.log_path.write_bytes(b"".join(damage(lines)))
    with (tmp_path / "errors").open("wb") as file, pytest.raises(SimulatorNotReady, match="exit status 1"):
        start(simulator.options, file)
    assert "restore the file from a copy" in (tmp_path / "errors").read_text()
    with pytest.raises(LogDamaged):
        list(read_log(simulator.log_path))


def test_second_process_on_the_same_data_directory_is_refused(tmp_path: Path) -> None:
    """Two exchanges on one set of books would corrupt it: the second one says whose it is and ends."""
    simulator = start(_options(tmp_path))
    with (tmp_path / "errors").open("wb") as file, pytest.raises(SimulatorNotReady):
        start(simulator.options, file)
    assert "is used by another simulated exchange" in (tmp_path / "errors").read_text()
    assert simulator.stop() == 0


def test_end_of_the_parents_pipe_stops_it_cleanly(tmp_path: Path) -> None:
    """A parent that dies takes the exchange with it."""
    simulator = start(_options(tmp_path))
    assert simulator.child.stdin is not None
    simulator.child.stdin.close()
    assert simulator.child.wait(90) == 0
    simulator.stop()


def test_wrong_tape_is_refused_with_its_reason(tmp_path: Path) -> None:
    """A file that is no tape: exit status 1 and the header that it should have."""
    tape = tmp_path / "tape.csv"
    tape.write_text("time,price\n1,2\n")
    with (tmp_path / "errors").open("wb") as file, pytest.raises(SimulatorNotReady):
        start(SimulatorOptions(tmp_path / "exchange", tape=tape), file)
    assert "timestamp,trade_id,price,quantity,side" in (tmp_path / "errors").read_text()


async def test_secrets_are_kept_out_of_the_log_and_readable_by_the_owner_only(tmp_path: Path) -> None:
    """The log can be shown to anybody: the account's secret is in a file of mode 0600 beside it."""
    simulator = start(_options(tmp_path))
    async with client_of(simulator.url) as client:
        await client.order()
        log = await client.raw("GET", "/simulator/log")
        assert client.secret.encode() not in simulator.log_path.read_bytes()
        assert [orjson.loads(line)["record"] for line in log.body.splitlines()] == ["account", "order", "fill"]
        [account, order, _] = read_log(simulator.log_path)
        assert isinstance(account, AccountOpened)
        assert isinstance(order, OrderAccepted)
        assert (account.balances["USDT"], order.label, order.quantity) == (Decimal(100000), f"user-{client.api_key}", Decimal("0.001"))
    assert simulator.stop() == 0
    assert (simulator.options.data_dir / "keys.json").stat().st_mode & 0o777 == 0o600


async def test_nothing_is_durable_before_its_fdatasync_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`durable` waits for the fdatasync that covers what was appended, also for records that come while another one runs."""
    failures: list[BaseException] = []
    journal, records = Journal.open(tmp_path, failures.append)
    assert list(records) == []
    loop = asyncio.get_running_loop()
    started: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    def held(_descriptor: int) -> None:
        async def hold() -> None:
            released = asyncio.Event()
            await started.put(released)
            await released.wait()

        asyncio.run_coroutine_threadsafe(hold(), loop).result(10)

    monkeypatch.setattr(os, "fdatasync", held)
    async with asyncio.timeout(60):
        writer = asyncio.create_task(journal.run())
        journal.append(AccountOpened(1, 1, "k", "u", {}))
        first = asyncio.create_task(journal.durable())
        release_first = await started.get()
        journal.append(AccountOpened(2, 2, "k2", "u", {}))
        second = asyncio.create_task(journal.durable())
        await asyncio.sleep(0)
        assert not first.done()
        release_first.set()
        await first
        release_second = await started.get()
        assert not second.done()
        release_second.set()
        await second
        journal.stop()
        await writer
    journal.close()
    assert failures == []


async def test_write_that_fails_ends_the_exchange_and_confirms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the failure is reported to the process, and whoever waits for the record is left without an answer."""
    failures: list[BaseException] = []
    journal, records = Journal.open(tmp_path, failures.append)
    assert list(records) == []

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    writer = asyncio.create_task(journal.run())
    journal.append(AccountOpened(1, 1, "k", "u", {}))
    waiting = asyncio.create_task(journal.durable())
    await asyncio.wait_for(writer, 60)
    await asyncio.sleep(0)
    assert not waiting.done()
    assert [str(failure) for failure in failures] == ["[Errno 28] No space left on device"]
    waiting.cancel()
    journal.close()


async def test_exchange_that_cannot_write_ends_and_answers_nobody(tmp_path: Path) -> None:
    """The log file may grow no more: the order gets no answer, the process ends with status 1 and says why, the books are whole."""
    errors = tmp_path / "errors"
    with errors.open("wb") as file:
        simulator = start(_options(tmp_path), file)
    async with client_of(simulator.url) as client:
        size = simulator.log_path.stat().st_size
        resource.prlimit(simulator.child.pid, resource.RLIMIT_FSIZE, (size, size))
        client_order_id = new_id()
        with pytest.raises(aiohttp.ClientError):
            await client.order(newClientOrderId=client_order_id)
        assert await asyncio.to_thread(simulator.child.wait, 10) == 1
        assert "books could not be kept" in errors.read_text()
        simulator = start(simulator.options)
        client.url = simulator.url
        assert (await client.look_up(client_order_id)).code == -2013
        await client.assert_books_hold()
    assert simulator.stop() == 0


def test_help_names_every_option() -> None:
    """`--help` answers without starting anything."""
    command = [sys.executable, "-m", "simulator", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    for option in ("--data-dir", "--tape-mode", "--venue-timeout-ms", "--parent-pipe"):
        assert option in shown.stdout
