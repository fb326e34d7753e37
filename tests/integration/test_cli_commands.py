"""The commands against a running installation: what goes in by `submit` is what `orders`, `order`, `balances`, `lag` and `doctor` show."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from embedded.services import Endpoints
from infra.keyring import new_master_key
from tests.orchestrator import RunHere, Up, environment, running_here, running_up
from tests.servers import fresh_database

# One installation for all of them.
pytestmark = pytest.mark.xdist_group("cli_commands")

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Running:
    """`up` on the run's broker and a database of its own; `settings` name them as another shell would."""

    up: Up
    settings: dict[str, str]
    database_url: str
    prefix: str


@pytest.fixture(scope="module")
def running(servers: Endpoints, database_template: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One installation with one worker, the simulated exchange and the trial users."""
    directory = tmp_path_factory.mktemp("cli")
    prefix = f"t{uuid4().hex[:6]}."
    with fresh_database(servers.database_url, database_template) as database_url:
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": servers.kafka_bootstrap_servers,
            "DATABASE_URL": database_url,
            "TOPIC_PREFIX": prefix,
            "CONSUMER_GROUP": f"{prefix}workers",
            "KAFKA_PARTITIONS": "2",
            "SESSION_TIMEOUT_MS": "6000",
        }
        with running_up(directory / "data", directory / "errors", settings=settings) as up:
            yield Running(up, settings, database_url, prefix)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[RunHere]:
    with running_here(monkeypatch, capfd) as run:
        yield run


def _order(key: str, **fields: Any) -> str:
    request = {
        "schema_version": 1,
        "type": "trade",
        "idempotency_key": key,
        "user_id": "alice",
        "mode": "live",
        "exchange": "binance",
        "api_key_id": "main",
        "symbol": "BTC/USDT",
        "side": "buy",
        "order_type": "market",
        "quantity": "0.01",
        "expires_at": "2100-01-01T00:00:00Z",
        **fields,
    }
    return json.dumps(request) + "\n"


def _execute(database_url: str, statement: str, *values: object) -> None:
    async def execute() -> None:
        connection = await asyncpg.connect(database_url, timeout=10)
        try:
            await connection.execute(statement, *values)
        finally:
            await connection.close(timeout=10)

    asyncio.run(execute())


def test_up_writes_its_addresses_for_its_owner_alone_and_prints_no_password(running: Running) -> None:
    """The file that other commands go by has mode 0600; what is printed names every service."""
    file = running.up.data_dir / "endpoints.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    addresses = running.up.addresses
    assert addresses["kafka_bootstrap_servers"] == running.settings["KAFKA_BOOTSTRAP_SERVERS"]
    assert set(addresses["exchange_urls"]) == {"binance"}
    assert len(addresses["health"]) == 1
    assert addresses["users"] == ["alice", "bob", "carol", "dave", "erin"]


def test_submit_prints_the_final_answer_to_each_line_and_names_the_lines_it_left_out(running: Running) -> None:
    """A line that is no JSON is told by its number and not published; the others are answered, each by its own source."""
    lines = ["not json\n", _order("s-1"), "\n", _order("s-2", user_id="nobody"), '{"user_id": "bob"}\n', "[1]\n"]
    ended = running.up.run("submit", "-", "--wait", given="".join(lines))
    assert ended.code == 1
    assert "line 1: is not a JSON object; it was not published." in ended.errors
    assert "line 6: is not a JSON object; it was not published." in ended.errors
    assert "3 lines published" in ended.errors
    results = ended.json_lines
    assert all(result["final"] for result in results)
    assert sorted((result["user_id"] or "", result["status"], result["reason_code"] or "") for result in results) == [
        ("", "rejected", "SCHEMA_INVALID"),
        ("alice", "executed", ""),
        ("nobody", "rejected", "USER_UNKNOWN"),
    ]


def test_submit_of_a_repeated_line_matches_every_copy_to_its_own_answer(running: Running, tmp_path: Path) -> None:
    """Three equal lines are three records with three answers: one of them executed it, the others say so."""
    file = tmp_path / "requests.jsonl"
    file.write_text(_order("again") * 3)
    ended = running.up.run("submit", str(file), "--wait")
    assert ended.code == 0
    results = ended.json_lines
    assert len({tuple(result["source"].values()) for result in results}) == 3
    assert [result["replayed"] or result["status"] == "duplicate" for result in results].count(False) == 1
    assert len({result["order_id"] or result["duplicate_of"] for result in results} - {None}) >= 1


def test_submit_of_raw_lines_publishes_what_is_no_json(running: Running) -> None:
    """With --raw the line goes out as it stands, and is answered by its source, without a user."""
    ended = running.up.run("submit", "-", "--wait", "--raw", given="not json\n")
    assert ended.code == 0
    (result,) = ended.json_lines
    assert (result["status"], result["reason_code"], result["user_id"]) == ("rejected", "SCHEMA_INVALID", None)


def test_submit_says_where_each_line_went(running: Running) -> None:
    """Without --wait and with --json: the place of each record, by line."""
    ended = running.up.run("submit", "-", "--json", given="\n" + _order("where"))
    (placed,) = ended.json_lines
    assert ended.code == 0
    assert placed["line"] == 2
    assert placed["source"]["topic"] == f"{running.prefix}trade.requests"


def test_submit_of_nothing_ends_with_1(running: Running) -> None:
    """An empty file is most likely the wrong file."""
    ended = running.up.run("submit", "-", "--wait", given="\n")
    assert (ended.code, ended.output) == (1, "")
    assert "There is no line to publish." in ended.errors


def test_submit_with_an_open_order_at_the_limit_ends_with_1_and_says_that_it_rests(running: Running) -> None:
    """An order that rests in the book has no final answer yet; that is told apart from silence."""
    ended = running.up.run("submit", "-", "--wait", "--timeout", "6", given=_order("rest", order_type="limit", price="36000"))
    assert ended.code == 1
    assert ended.output == ""
    assert "1 line without a final answer after 6 s: line 1." in ended.errors
    assert "Among them orders that are open" in ended.errors
    canceled = running.up.run(
        *("submit", "-", "--wait"),
        given=json.dumps({
            "schema_version": 1, "type": "cancel", "idempotency_key": "cancel-rest", "user_id": "alice", "mode": "live",
            "target_idempotency_key": "rest", "expires_at": "2100-01-01T00:00:00Z",
        }),
    )  # fmt: skip
    assert canceled.code == 0, canceled.errors


def test_order_is_found_by_either_id_with_its_history_and_its_transfers(running: Running) -> None:
    """The listing, the order, its audit events and its ledger movements tell one story."""
    assert running.up.run("submit", "-", "--wait", given=_order("story", user_id="carol", side="sell")).code == 0
    listed = running.up.run("orders", "--user", "carol", "--status", "filled", "--json").json
    (order,) = [order for order in listed if order["idempotency_key"] == "story"]
    assert (order["quantity"], order["cum_quantity"], order["hold_amount"]) == ("0.01", "0.01", "0")
    shown = running.up.run("order", order["order_id"], "--json").json
    assert shown == running.up.run("order", order["client_order_id"], "--json").json
    assert [event["event_type"] for event in shown["history"]] == ["ORDER_ACCEPTED", "ORDER_SUBMITTED", "ORDER_FILLED"]
    kinds = {(transfer["kind"], transfer["asset"], transfer["amount"]) for transfer in shown["transfers"]}
    assert ("hold", "BTC", "0.01") in kinds
    assert ("post_held", "BTC", "0.01") in kinds
    text = running.up.run("order", order["order_id"]).output
    assert "== history" in text
    assert "submitting → filled" in text


def test_order_is_found_by_any_of_its_names(running: Running) -> None:
    """By the exchange's id, its request's id and its idempotency key as by its own; a name of two orders is told apart by the user."""
    for user in ("bob", "carol"):
        assert running.up.run("submit", "-", "--wait", given=_order("names", user_id=user)).code == 0
    (order,) = [row for row in running.up.run("orders", "--user", "bob", "--json").json if row["idempotency_key"] == "names"]
    for name in (order["order_id"], order["client_order_id"], order["request_id"]):
        assert running.up.run("order", name, "--json").json["order"]["order_id"] == order["order_id"]
    for name in (order["exchange_order_id"], "names"):
        found = running.up.run("order", name, "--user", "bob", "--json").json
        assert found["order"]["order_id"] == order["order_id"]
        assert [event["event_type"] for event in found["history"]] == ["ORDER_ACCEPTED", "ORDER_SUBMITTED", "ORDER_FILLED"]
    ambiguous = running.up.run("order", "names")
    assert (ambiguous.code, ambiguous.output) == (2, "")
    assert order["order_id"] in ambiguous.errors


def test_request_that_became_no_order_is_found_with_the_reason(running: Running) -> None:
    """By its key and by its request id: what was answered, and its event in the audit trail."""
    refused = running.up.run("submit", "-", "--wait", "--fail-on-reject", given=_order("too-large", quantity="90000"))
    assert refused.code == 1
    assert "1 line answered: 1 rejected (" in refused.errors
    (result,) = refused.json_lines
    for name in ("too-large", result["request_id"]):
        found = running.up.run("order", name, "--json")
        assert found.code == 0, found.errors
        assert found.json["order"] is None
        assert found.json["requests"][0]["result"]["reason_code"] == result["reason_code"]
        assert [event["event_type"] for event in found.json["history"]] == ["REQUEST_REJECTED"]
    assert "No order came of it." in running.up.run("order", "too-large").output
    # An id of somebody is no name of a request.
    assert running.up.run("order", "alice").code == 1


def test_results_are_read_from_the_beginning_and_followed(running: Running) -> None:
    """Without a consumer group: by key, by user and status; with --follow also what comes, until Ctrl-C."""
    assert running.up.run("submit", "-", "--wait", given=_order("told", user_id="bob")).code == 0
    (told,) = running.up.run("results", "--id", "told", "--final", "--json").json_lines
    assert (told["user_id"], told["status"]) == ("bob", "executed")
    assert {row["user_id"] for row in running.up.run("results", "--user", "bob", "--json").json_lines} == {"bob"}
    assert "told" in running.up.run("results", "--user", "bob", "--status", "executed").output
    nothing = running.up.run("results", "--id", "never")
    assert (nothing.code, nothing.output) == (0, "")
    command = [sys.executable, "-m", "cli", "results", "--follow", "--id", "followed", "--json", "--final"]
    with subprocess.Popen(
        command, cwd=_ROOT, env=environment(running.up.data_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        if process.stdout is None:
            raise RuntimeError("no pipe")
        assert running.up.run("submit", "-", "--wait", given=_order("followed")).code == 0
        assert json.loads(process.stdout.readline())["idempotency_key"] == "followed"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors


# What is not there: a user, a key, an order, an address, an exchange. One finding, one code, whichever command meets it.
_ABSENT = """
    users show nobody | users freeze nobody --reason x | users unfreeze nobody --reason x | users verify nobody --reason x
    users close nobody --yes --reason x | users unlock-totp nobody | users enrol-totp nobody | users publish nobody
    orders --user nobody | balances --user nobody | withdrawals --user nobody | withdrawals list --user nobody
    deposits --user nobody | deposits list --user nobody | deposits announced --user nobody | deposits disputed --user nobody
    keys list --user nobody | keys check nobody main | keys revoke nobody main --yes
    keys check alice no-key | keys revoke alice no-key --yes
    limits show nobody | limits set nobody trade_usd_max 5 --reason x | limits clear nobody trade_usd_max
    addresses list nobody | addresses add nobody ETH {address} --reason x | addresses remove alice ETH {address} --reason x
    balances fund-paper nobody USDT 5 --exchange binance | balances import nobody --exchange binance --key main --yes
    balances fund-paper alice USDT 5 --exchange nowhere | balances import alice --exchange nowhere --key main
    balances import alice --exchange binance --key no-key --yes | keys add alice other --exchange nowhere
    verify balances --user nobody | verify balances --exchange nowhere
    halt --user nobody --reason x | reduce --user nobody --reason x | resume --user nobody --reason x
    halt --exchange nowhere --reason x | resume --exchange nowhere --reason x
    order no-such-order | withdrawals show no-such-withdrawal | withdrawals approve no-such-withdrawal --reason x
    withdrawals refuse no-such-withdrawal --reason x | deposits show no-such-deposit
"""
_ADDRESS = "0x52908400098527886E0F7030069857D2E4169EE7"
_NOT_THERE = [line.strip().format(address=_ADDRESS) for line in _ABSENT.replace("|", "\n").strip().splitlines()]


@pytest.mark.parametrize("line", _NOT_THERE)
def test_what_does_not_exist_ends_with_1_and_says_so(running: Running, run_here: RunHere, line: str) -> None:
    """The same code in every command, nothing on standard output, and one sentence: nothing was done."""
    ended = run_here(running.up.data_dir, *line.split(), given="key\nsecret\n")
    assert (ended.code, ended.output) == (1, ""), ended.errors
    assert any(word in ended.errors for word in ("There is no ", " has no ", "is not on the list", "no orders can be sent to"))
    assert "Traceback" not in ended.errors


# What cannot be meant: a name that the program itself defines, a file that cannot be read, a value that is none.
_MEANINGLESS = """
    limits set alice no_such_limit 5 --reason x | limits clear alice no_such_limit | limits set alice trade_usd_max many --reason x
    users show @commands | users show {long} | verify --exchange-log /no/such/file | submit /no/such/file
    halt --reason x --token-file /no/such/file | tokens issue alice --signing-key /no/such/file
    keys add alice k --exchange binance --from /no/such/file
    balances fund-paper alice usdt 5 --exchange binance | addresses add alice ETH 0x12 --reason x | halt --user a --symbol B/C --reason x
    keys add alice k --exchange binance --permissions fly | keys add alice k --exchange binance --expires-at tomorrow
    tokens issue alice --signing-key README.md --scope fly
"""
_NOT_MEANT = [line.strip().format(long="u" * 129) for line in _MEANINGLESS.replace("|", "\n").strip().splitlines()]


@pytest.mark.parametrize("line", _NOT_MEANT)
def test_what_cannot_be_meant_ends_with_2(running: Running, run_here: RunHere, line: str) -> None:
    """The same code in every command, and no traceback."""
    ended = run_here(running.up.data_dir, *line.split(), given="key\nsecret\n")
    assert (ended.code, ended.output) == (2, ""), ended.errors
    assert "Traceback" not in ended.errors


def test_change_tells_programs_what_it_did(running: Running, run_here: RunHere) -> None:
    """One object: the command, what it was about, whether anything is different now, and the sentence that people read."""
    changes = [
        ("users add zoe --pending", "users add", "zoe", True),
        ("users verify zoe --reason seen", "users verify", "zoe", True),
        ("users freeze zoe --reason why", "users freeze", "zoe", True),
        ("users freeze zoe --reason again", "users freeze", "zoe", False),
        ("limits set zoe trade_usd_max 5 --reason why", "limits set", "zoe", True),
        ("balances fund-paper zoe USDT 5 --exchange binance", "balances fund-paper", "zoe", True),
    ]
    for line, command, target_id, changed in changes:
        ended = run_here(running.up.data_dir, *line.split(), "--json")
        assert ended.code == 0, ended.errors
        told = ended.json
        assert (told["command"], told["target_id"], told["changed"]) == (command, target_id, changed)
        assert told["what"]
    assert run_here(running.up.data_dir, "users", "publish", "zoe", "--json").json["published"] >= 1


def test_healthy_start_logs_no_error(running: Running) -> None:
    """What a person would have to look into is at level `error`, and a start in which nothing is wrong has nothing of it."""
    lines = (running.up.data_dir / "workers" / "worker-1.log").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert any(event["event"] == "worker_started" for event in events)
    assert [event for event in events if event["level"] in {"error", "critical"}] == []


def test_orders_with_hostile_keys_do_not_reach_the_terminal(running: Running) -> None:
    """An idempotency key with escape sequences is shown escaped; programs get it as it is."""
    key = "\x1b[2Jclear"
    assert running.up.run("submit", "-", "--wait", given=_order(key, user_id="dave")).code == 0
    (order,) = running.up.run("orders", "--user", "dave", "--json").json
    assert order["idempotency_key"] == key
    assert "\x1b" not in running.up.run("order", order["order_id"]).output


def test_balances_are_decimal_strings_that_add_up(running: Running) -> None:
    """posted − pending = available, per account, for one user or for all."""
    rows = running.up.run("balances", "--user", "erin", "--json").json
    assert {row["asset"]: row["posted"] for row in rows} == {"BTC": "5", "ETH": "50", "USDT": "100000"}
    everybody = running.up.run("balances", "--json").json
    # The test of changes adds a user of its own.
    assert {row["user_id"] for row in everybody} - {"zoe"} == {"alice", "bob", "carol", "dave", "erin"}
    for row in everybody:
        assert Decimal(row["posted"]) - Decimal(row["pending"]) == Decimal(row["available"])


def test_lag_is_zero_when_idle(running: Running) -> None:
    """Every input partition of every agent is listed; each commits what it has seen."""
    deadline = time.monotonic() + 30
    rows = running.up.run("lag", "--json").json
    while any(row["behind"] for row in rows) and time.monotonic() < deadline:
        rows = running.up.run("lag", "--json").json
    assert {row["topic"].removeprefix(running.prefix) for row in rows} == {
        "trade.requests", "trade.orders.binance", "trade.reports", "trade.commands",
    }  # fmt: skip
    assert [row["behind"] for row in rows] == [0] * 8


def test_lag_of_a_group_that_never_ran_is_every_record_with_the_age_of_the_first(running: Running) -> None:
    """Without a committed offset all that is there waits; the oldest one's age is told."""
    assert running.up.run("submit", "-", "--wait", given=_order("age")).code == 0
    settings = {**running.settings, "CONSUMER_GROUP": f"{running.prefix}nobody"}
    rows = running.up.run("lag", "--json", settings=settings).json
    requests = [row for row in rows if row["topic"] == f"{running.prefix}trade.requests"]
    assert [row["committed"] for row in requests] == [None, None]
    waiting = [row for row in requests if row["behind"] > 0]
    assert waiting
    for row in waiting:
        oldest = datetime.fromisoformat(row["oldest_at"])
        assert abs((datetime.now(UTC) - oldest).total_seconds() - row["age_seconds"]) < 60


def test_doctor_finds_a_running_installation_well(running: Running) -> None:
    """Every check is made and every one holds."""
    ended = running.up.run("doctor", "--json")
    assert ended.code == 0, ended.output
    assert {finding["check"] for finding in ended.json} == {
        "Python", "settings", "data directory", "master key", "authentication", "broker", "topics", "database", "schema", "append-only",
        "stored keys", "offsets", "exchange binance", "durability", "waiting times binance", "quarantine",
    }  # fmt: skip


def test_doctor_names_what_is_broken(running: Running) -> None:
    """A trigger that was disabled, a key that is another one, an offset that does not fit, a topic with another clean-up: exit code 1."""
    settings = {
        **running.settings,
        "MASTER_KEY": new_master_key(),
        "EXCHANGE_URLS": json.dumps(running.up.addresses["exchange_urls"]),
        "KAFKA_MIN_INSYNC_REPLICAS": "2",
        "KAFKA_REPLICATION_FACTOR": "2",
    }
    _execute(running.database_url, "ALTER TABLE transfers DISABLE TRIGGER append_only")
    _execute(
        running.database_url,
        "INSERT INTO input_partitions (consumer_group, topic, partition, fencing_epoch, base_offset, next_offset, updated_at) "
        "VALUES ($1, $2, 7, 1, 3, 5, now())",
        f"{running.prefix}workers",
        f"{running.prefix}trade.requests",
    )
    try:
        ended = running.up.run("doctor", "--json", settings=settings)
    finally:
        _execute(running.database_url, "ALTER TABLE transfers ENABLE TRIGGER append_only")
        _execute(running.database_url, "DELETE FROM input_partitions WHERE partition = 7")
    broken = {finding["check"]: finding for finding in ended.json if finding["status"] == "problem"}
    assert ended.code == 1
    assert set(broken) == {"append-only", "stored keys", "offsets", "topics"}
    assert "transfers can be rewritten" in broken["append-only"]["detail"]
    assert "does not decrypt 5 of 5" in broken["stored keys"]["detail"]
    assert f"{running.prefix}trade.requests/7" in broken["offsets"]["detail"]
    assert all(finding["remedy"] for finding in broken.values())


def test_verify_finds_every_promise_kept(running: Running) -> None:
    """What the commands above did leaves nothing broken, judged against the exchange's own log."""
    ended = running.up.run("verify")
    assert ended.code == 0, ended.output + ended.errors
    assert "not checked" not in ended.output
    from_topic = running.up.run("verify", "--from-topic", "--json")
    assert from_topic.code == 0, from_topic.output + from_topic.errors


def test_second_up_on_the_same_directory_is_refused_and_harms_nothing(running: Running) -> None:
    """It names the process that has it and a way out."""
    ended = running.up.run("up", settings=running.settings)
    assert ended.code == 3
    assert f"process {running.up.process.pid}" in ended.errors
    assert running.up.run("orders", "--limit", "1").code == 0


def test_worker_finds_the_installation_and_stops_when_asked(running: Running, tmp_path: Path) -> None:
    """A worker with no setting but the data directory joins in, and ends with 0."""
    log = tmp_path / "log"
    with log.open("wb") as errors:
        command = [sys.executable, "-m", "cli", "worker"]
        worker = subprocess.Popen(command, cwd=_ROOT, env=environment(running.up.data_dir), stdout=errors, stderr=errors)
    try:
        deadline = time.monotonic() + 60
        while "worker_started" not in log.read_text() and time.monotonic() < deadline and worker.poll() is None:
            time.sleep(0.1)
        assert "worker_started" in log.read_text()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    finally:
        worker.kill()


def test_submit_interrupted_while_it_waits_tells_what_was_published(running: Running) -> None:
    """Ctrl-C during --wait ends with 130; the published lines stay published and are counted."""
    command = [sys.executable, "-m", "cli", "submit", "-", "--wait", "--timeout", "60"]
    with subprocess.Popen(
        command, cwd=_ROOT, env=environment(running.up.data_dir), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise RuntimeError("no pipes")
        process.stdin.write(_order("interrupted").encode())
        process.stdin.flush()
        # The answer has come; standard input stays open.
        assert json.loads(process.stdout.readline())["idempotency_key"] == "interrupted"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"1 line published" in errors
    assert b"Traceback" not in errors


def test_submit_whose_reader_goes_away_ends_quietly(running: Running) -> None:
    """`submit --wait | head -0` publishes and ends with the code of a broken pipe."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    ran = subprocess.run(
        [sys.executable, "-m", "cli", "submit", "-", "--wait"],
        cwd=_ROOT,
        env=environment(running.up.data_dir),
        input=_order("unread").encode(),
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write_end)
    assert ran.returncode == 128 + signal.SIGPIPE
    assert b"Traceback" not in ran.stderr


def test_simulator_alone_tells_its_address_and_stops_when_asked(tmp_path: Path) -> None:
    """One line of JSON on standard output; its books lie in the data directory; SIGTERM ends it with 0."""
    command = [sys.executable, "-m", "cli", "simulator", "--port", "0"]
    with subprocess.Popen(command, cwd=_ROOT, env=environment(tmp_path), stdout=subprocess.PIPE) as simulator:
        if simulator.stdout is None:
            raise RuntimeError("no pipe")
        url = json.loads(simulator.stdout.readline())["url"]
        with urllib.request.urlopen(f"{url}/api/v3/time", timeout=10) as answer:  # noqa: S310 — the address it told
            assert "serverTime" in json.load(answer)
        simulator.send_signal(signal.SIGTERM)
        assert simulator.wait(90) == 0
    assert (tmp_path / "simulator").is_dir()
