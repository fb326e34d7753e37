"""`up` from nothing: embedded services, an order, every way to end it, and the next start."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from embedded.ports import free_port, is_free
from tests.orchestrator import environment, start_up, until_ready
from tests.processes import processes_naming, until_none_named

_ROOT = Path(__file__).parents[2]
_SETTINGS = {"KAFKA_PARTITIONS": "1", "SESSION_TIMEOUT_MS": "6000"}


def _order(key: str) -> str:
    request = {
        "schema_version": 1, "type": "trade", "idempotency_key": key, "user_id": "alice", "mode": "live", "exchange": "binance",
        "api_key_id": "main", "symbol": "BTC/USDT", "side": "buy", "order_type": "market", "quantity": "0.01",
        "expires_at": "2100-01-01T00:00:00Z",
    }  # fmt: skip
    return json.dumps(request) + "\n"


async def _nothing_is_left(data_dir: Path, descendants: list[psutil.Process]) -> None:
    """No server, guard or simulator that names the directory, and no worker."""
    await until_none_named(str(data_dir))
    _, alive = psutil.wait_procs(descendants, timeout=30)
    assert alive == []


async def test_up_survives_its_own_kill_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """kill -9 ends everything; the next start finds orders, users and answers as they were; two Ctrl-C end it at once."""
    data_dir, errors = tmp_path / "data", tmp_path / "errors"
    up = start_up(data_dir, errors, settings=_SETTINGS)
    try:
        until_ready(up)
        first = up.run("submit", "-", "--wait", given=_order("once"))
        assert first.code == 0, first.errors
        descendants = psutil.Process(up.process.pid).children(recursive=True)
        assert len(descendants) > 5
        up.process.kill()
        up.wait()
        await _nothing_is_left(data_dir, descendants)
    finally:
        up.process.kill()
    # The file is still there; what it names is not used any more.
    assert (data_dir / "endpoints.json").exists()
    assert up.run("orders").code == 3

    again = start_up(data_dir, errors, settings=_SETTINGS)
    try:
        until_ready(again)
        # Whoever wrote the addresses down finds the same services there.
        for name in ("kafka_bootstrap_servers", "exchange_urls", "health"):
            assert again.addresses[name] == up.addresses[name]
        repeated = again.run("submit", "-", "--wait", given=_order("once"))
        (was,), (result,) = first.json_lines, repeated.json_lines
        assert (result["replayed"], result["order_id"], result["average_price"]) == (True, was["order_id"], was["average_price"])
        assert len(again.run("orders", "--json").json) == 1
        assert again.run("verify").code == 0
        descendants = psutil.Process(again.process.pid).children(recursive=True)
        again.process.send_signal(signal.SIGINT)
        while "Stopping" not in again.errors:
            time.sleep(0.01)
        again.process.send_signal(signal.SIGINT)
        assert again.wait() in {0, 130}
        await _nothing_is_left(data_dir, descendants)
    finally:
        again.process.kill()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=5) as answer:  # noqa: S310 — a worker's own address
            return bool(answer.status == 200)
    except OSError:
        return False


async def test_up_serves_at_the_ports_that_were_asked_for_also_after_a_worker_died(tmp_path: Path) -> None:
    """Broker, exchange and worker n (the first one's port and n - 1) are where they were asked to be; a worker that is started again has
    its own port again, so what `endpoints.json` says stays true."""
    data_dir = tmp_path / "data"
    kafka, exchange = free_port(), free_port()
    web = next(port for port in iter(free_port, 0) if is_free(port + 1))
    ports = ["--kafka-port", str(kafka), "--exchange-port", str(exchange), "--web-port", str(web)]
    up = start_up(data_dir, tmp_path / "errors", *ports, workers=2, settings=_SETTINGS)
    try:
        until_ready(up)
        health = [f"http://127.0.0.1:{web}", f"http://127.0.0.1:{web + 1}"]
        assert up.addresses["kafka_bootstrap_servers"] == f"127.0.0.1:{kafka}"
        assert up.addresses["exchange_urls"] == {"binance": f"http://127.0.0.1:{exchange}"}
        assert up.addresses["health"] == health
        below = psutil.Process(up.process.pid).children(recursive=True)
        # Their guards have the same words at the end of their command lines, and a child.
        workers = [each for each in below if each.cmdline()[-2:] == ["-m", "agents"] and not each.children()]
        assert len(workers) == 2
        for worker in workers:
            worker.kill()
        psutil.wait_procs(workers, timeout=30)
        deadline = time.monotonic() + 90
        while not all(map(_answers, health)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert all(map(_answers, health)), up.errors
        written = json.loads((data_dir / "endpoints.json").read_text())
        assert (written["health"], written["pid"]) == (health, up.process.pid)
        # A healthy start, and a start after a kill, have nothing for a person to look into.
        for number in (1, 2):
            log = (data_dir / "workers" / f"worker-{number}.log").read_text().splitlines()
            assert [line for line in log if '"level":"error"' in line or '"level":"critical"' in line] == []
        up.process.send_signal(signal.SIGTERM)
        assert up.wait() == 0
    finally:
        up.process.kill()
    assert not (data_dir / "endpoints.json").exists()


async def test_up_whose_port_is_taken_ends_with_3_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that was asked for is not replaced by another in silence."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        up = start_up(tmp_path / "data", tmp_path / "errors", "--kafka-port", str(port), settings=_SETTINGS)
        try:
            assert up.wait() == 3
        finally:
            up.process.kill()
    assert f"Port {port} of 127.0.0.1 is taken by another program." in up.errors
    assert "--kafka-port" in up.errors
    assert "Traceback" not in up.errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_up_interrupted_while_it_starts_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Ended before it was ready: another exit code, no traceback, no process."""
    data_dir = tmp_path / "data"
    up = start_up(data_dir, tmp_path / "errors", settings=_SETTINGS)
    try:
        deadline = time.monotonic() + 60
        # A server is on its way.
        while not processes_naming(str(data_dir)) and time.monotonic() < deadline:
            time.sleep(0.01)
        up.process.send_signal(number)
        assert up.wait() == 130
        await until_none_named(str(data_dir))
    finally:
        up.process.kill()
    assert "Traceback" not in up.errors


async def test_up_stopped_by_ctrl_c_in_a_terminal_lets_workers_finish_first(tmp_path: Path) -> None:
    """The terminal sends the interrupt to the whole group; only `up` takes it, stops the others in order, and ends with 0."""
    data_dir = tmp_path / "data"
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "cli", "up", "--workers", "2"]
    # A session of its own with this terminal as its controlling one: Ctrl-C typed there is a signal to its foreground group.
    program = f"import fcntl, os, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv({sys.executable!r}, {command!r})"
    up = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=_ROOT,
        env=environment(data_dir, _SETTINGS),
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
    )
    os.close(child)
    try:
        shown = _read_until(parent, b"Ctrl-C stops everything.", 120)
        assert shown.count(b"/readyz") == 2
        assert b"no real money" in shown
        descendants = psutil.Process(up.pid).children(recursive=True)
        os.write(parent, b"\x03")
        shown = _read_until(parent, b"Everything has stopped.", 60)
        assert b"ended by itself" not in shown
        assert b"Traceback" not in shown
        assert up.wait(90) == 0
        await _nothing_is_left(data_dir, descendants)
    finally:
        up.kill()
        os.close(parent)
    assert not (data_dir / "endpoints.json").exists()
    for number in (1, 2):
        assert "worker_stops" in (data_dir / "workers" / f"worker-{number}.log").read_text()


def _read_until(descriptor: int, text: bytes, seconds_max: float) -> bytes:
    found = b""
    deadline = time.monotonic() + seconds_max
    while text not in found and (left := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            try:
                found += os.read(descriptor, 65_536)
            except OSError:
                # Nobody has the terminal open any more.
                break
    assert text in found, found.decode(errors="replace")
    return found
