"""The checks of `doctor` that need no service, and how findings become an exit code."""

import os
from collections import namedtuple
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import SecretStr

from cli.access.installation import Installation
from cli.check import doctor, durability_checks, service_checks
from cli.check.doctor import (
    check_authentication,
    check_data_directory,
    check_file,
    check_master_key,
    check_python,
    check_settings,
    check_variables,
    run_doctor,
)
from cli.check.durability_checks import check_waiting_times, durability_findings
from cli.check.service_checks import check_exchange, offset_problems
from cli.terminal.exits import Exit
from cli.terminal.findings import Finding
from infra.exchange.venues.registry import venue
from infra.keyring import new_master_key
from infra.settings import Settings


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ORCHESTRATOR_"):
            monkeypatch.delenv(name)


def test_another_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """The locked libraries are tested with 3.11 alone."""
    assert check_python()[0].status == "ok"
    monkeypatch.setattr("cli.check.doctor.sys.version_info", (3, 12, 1))
    assert check_python()[0].status == "problem"


def test_misspelt_variable_is_named_with_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have no effect, and nothing else would tell."""
    monkeypatch.setenv("ORCHESTRATOR_EXCHANGE_URL", "{}")
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "")
    (finding,) = check_variables()
    assert "ORCHESTRATOR_EXCHANGE_URL is not a setting" in finding.detail
    assert finding.remedy == "did you mean ORCHESTRATOR_EXCHANGE_URLS?"


def test_misspelt_name_in_the_settings_file_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As for a variable."""
    file = tmp_path / "settings.toml"
    file.write_text("kafka_partition = 4\nlog_level = 'info'\n")
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", str(file))
    (finding,) = check_file()
    assert "kafka_partition is not a setting" in finding.detail
    assert finding.remedy == "did you mean kafka_partitions?"


def test_every_setting_is_a_known_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets all of them is told of none."""
    for name in Settings.model_fields:
        monkeypatch.setenv(f"ORCHESTRATOR_{name.upper()}", "x")
    assert check_variables() == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kafka_replication_factor": 1, "kafka_min_insync_replicas": 2}, "ORCHESTRATOR_KAFKA_MIN_INSYNC_REPLICAS"),
        ({"kafka_replication_factor": 3, "kafka_min_insync_replicas": 1}, "ORCHESTRATOR_KAFKA_MIN_INSYNC_REPLICAS"),
        ({"trade_usd_min": "5", "trade_usd_max": "4"}, "ORCHESTRATOR_TRADE_USD_MIN"),
    ],
)
def test_settings_that_do_not_fit_together_are_a_problem(settings: dict[str, object], named: str) -> None:
    """Each is valid alone."""
    (finding,) = check_settings(Settings.model_validate(settings))
    assert finding.status == "problem"
    assert named in finding.detail


@pytest.mark.parametrize(("factor", "replicas"), [(1, 1), (3, 2)])
def test_settings_that_fit_together_are_well(factor: int, replicas: int) -> None:
    """One broker for a trial, three with two in sync for money."""
    (finding,) = check_settings(Settings(kafka_replication_factor=factor, kafka_min_insync_replicas=replicas))
    assert finding.status == "ok"


def test_data_directory_that_does_not_exist_yet_is_judged_by_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it will be made counts; nothing is made."""
    settings = Settings(data_dir=tmp_path / "a" / "b")
    assert check_data_directory(settings)[0].status == "ok"
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr("cli.check.doctor.shutil.disk_usage", lambda _: usage(10 * 2**20))
    (finding,) = check_data_directory(settings)
    assert (finding.status, "10 MiB are free" in finding.detail) == ("problem", True)
    assert list(tmp_path.iterdir()) == []


def test_data_directory_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    """Nothing can be kept in it."""
    (tmp_path / "file").touch()
    assert check_data_directory(Settings(data_dir=tmp_path / "file"))[0].status == "problem"


def test_master_key_that_others_can_read_is_a_problem(tmp_path: Path) -> None:
    """It opens every stored exchange key."""
    file = tmp_path / "master.key"
    file.write_text(new_master_key())
    file.chmod(0o640)
    assert check_master_key(Settings(master_key_file=file))[0].status == "problem"
    file.chmod(0o600)
    assert check_master_key(Settings(master_key_file=file))[0].status == "ok"


@pytest.mark.parametrize("key", [None, "", "no base64!", "c2hvcnQ="])
def test_master_key_that_cannot_be_one_is_a_problem_and_is_not_shown(key: str | None) -> None:
    """Missing, malformed or too short."""
    (finding,) = check_master_key(Settings(master_key=None if key is None else SecretStr(key)))
    assert finding.status == "problem"
    assert not key or key not in finding.line()


@pytest.mark.parametrize(
    ("committed", "stored", "problems"),
    [
        ({("t", 0): 5}, {("t", 0): (3, 5)}, 0),
        # The newest batch is stored and about to be published.
        ({("t", 0): 3}, {("t", 0): (3, 5)}, 0),
        # A partition that nobody has owned yet, or that has had no batch.
        ({("t", 0): -1}, {}, 0),
        ({("t", 0): -1}, {("t", 0): (-1, -1)}, 0),
        ({("t", 0): 0}, {("t", 0): (-1, 0)}, 0),
        # An offset that was reset, a database that was restored or is another installation's, partitions that were deleted.
        ({("t", 0): 0}, {("t", 0): (3, 5)}, 1),
        ({("t", 0): 4}, {("t", 0): (3, 5)}, 1),
        ({("t", 0): -1}, {("t", 0): (3, 5)}, 1),
        ({("t", 0): 5}, {}, 1),
        ({}, {("t", 0): (3, 5)}, 1),
    ],
)
def test_offsets_agree_when_equal_or_one_batch_apart(
    committed: dict[tuple[str, int], int], stored: dict[tuple[str, int], tuple[int, int]], problems: int
) -> None:
    """Everything else means that orders could be lost or executed twice."""
    assert len(offset_problems(committed, stored)) == problems


class _Venue:
    """Stands in for an exchange that answers, and notes whether it was asked. `clock_difference_ms` is ours to set."""

    asked: ClassVar[list[str | None]] = []
    clock_difference_ms = 3

    def __init__(self, *_: object, base_url: str | None, **__: object) -> None:
        self.asked.append(base_url)

    async def ready(self) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize("urls", [{}, {"binance": "https://api.binance.com"}])
async def test_real_exchange_without_tokens_is_a_problem_and_is_not_asked(urls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers refuse it: nobody is asked who sends, so there must be no real money."""
    monkeypatch.setattr(service_checks, "VenueConnection", _Venue)
    monkeypatch.setattr(_Venue, "asked", [])
    (finding,) = await check_exchange(Installation(Settings(authentication="sandbox", exchange_urls=urls)), "binance")
    assert (finding.status, finding.out_of_reach) == ("problem", False)
    assert "ORCHESTRATOR_EXCHANGE_URLS" in finding.remedy
    assert _Venue.asked == []


@pytest.mark.parametrize(("urls", "asked"), [({}, None), ({"binance": "https://api.binance.com"}, "https://api.binance.com")])
async def test_real_exchange_where_tokens_are_required_is_well_when_it_answers(
    urls: dict[str, str], asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what workers trade at: it is asked for its markets and its clock, and the line says that the money is real."""
    monkeypatch.setattr(service_checks, "VenueConnection", _Venue)
    monkeypatch.setattr(_Venue, "asked", [])
    (finding,) = await check_exchange(Installation(Settings(authentication="required", exchange_urls=urls)), "binance")
    assert finding.status == "ok"
    assert "REAL MONEY" in finding.detail
    assert _Venue.asked == [asked]


async def test_sandbox_is_not_called_real_money(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where tokens are required."""
    monkeypatch.setattr(service_checks, "VenueConnection", _Venue)
    settings = Settings(authentication="required", exchange_urls={"binance": "https://testnet.binance.vision"})
    (finding,) = await check_exchange(Installation(settings), "binance")
    assert (finding.status, "REAL" in finding.detail) == ("ok", False)


_DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}


def test_durable_commits_are_shown_as_they_are_set() -> None:
    """One line with the three settings; a stronger one is well too."""
    (finding,) = durability_findings(_DURABLE)
    assert (finding.status, finding.detail.partition(":")[0]) == ("ok", "fsync on, full_page_writes on, synchronous_commit on")
    (finding,) = durability_findings({**_DURABLE, "synchronous_commit": "remote_apply"})
    assert finding.status == "ok" and "synchronous_commit remote_apply" in finding.detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fsync", "off"), ("full_page_writes", "off"), ("synchronous_commit", "off"), ("synchronous_commit", "local"),
        ("synchronous_commit", "remote_write"),
    ],
)
def test_commit_that_can_be_lost_is_named_with_what_it_costs(name: str, value: str) -> None:
    """Each of the settings, and not only where it is off."""
    (finding,) = durability_findings({**_DURABLE, name: value})
    assert (finding.status, finding.check) == ("problem", "durability")
    assert finding.detail.startswith(f"{name} is {value}: a power failure") and "postgresql.conf" in finding.remedy


def test_waiting_times_are_shown_with_the_settings_that_change_them() -> None:
    """As they are shipped they are well, for a real exchange too."""
    (finding,) = check_waiting_times(Settings())
    assert (finding.check, finding.status) == ("waiting times binance", "ok")
    for told in ("receive window 5000 ms (ORCHESTRATOR_RECEIVE_WINDOW_MS)", "time-out 10000 ms", "read lag 120000 ms"):
        assert told in finding.detail


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"venue_timeout_ms": 0}, "ORCHESTRATOR_VENUE_TIMEOUT_MS must be 10000 or more"),
        ({"venue_read_lag_ms": 0}, "ORCHESTRATOR_VENUE_READ_LAG_MS must be 120000 or more"),
    ],
)
def test_waiting_time_that_a_real_exchange_needs_longer_is_a_problem_there_alone(given: dict[str, Any], named: str) -> None:
    """An order that the exchange still works on would count as not executed; a sandbox may be quicker, and the line says that it is."""
    (real,) = check_waiting_times(Settings(**given))
    assert (real.status, real.detail.startswith(named)) == ("problem", True)
    assert "workers refuse it" in real.remedy
    (sandbox,) = check_waiting_times(Settings(exchange_urls={"binance": "http://127.0.0.1:9"}, **given))
    assert (sandbox.status, "a sandbox may have" in sandbox.detail) == ("ok", True)


async def test_receive_window_that_the_exchange_refuses_is_a_problem_and_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limit is named, and no call is made that it would refuse."""
    monkeypatch.setattr(service_checks, "VenueConnection", _Venue)
    monkeypatch.setattr(_Venue, "asked", [])
    monkeypatch.setattr(durability_checks, "venue", lambda exchange: replace(venue(exchange), receive_window_max=timedelta(seconds=4)))
    monkeypatch.setattr(service_checks, "venue", durability_checks.venue)
    settings = Settings(exchange_urls={"binance": "http://127.0.0.1:9"})
    (finding,) = check_waiting_times(settings)
    assert finding.detail == "ORCHESTRATOR_RECEIVE_WINDOW_MS is 5000, it takes 4000 at most"
    (skipped,) = await check_exchange(Installation(settings), "binance")
    assert (skipped.status, _Venue.asked) == ("skipped", [])


def test_authentication_names_the_keys_and_whose_tokens_are_taken(tmp_path: Path) -> None:
    """A person sees what workers ask of a token; a file that cannot be used is a problem."""
    (missing,) = check_authentication(Settings(authentication="required"))
    assert missing.status == "problem"
    keys = tmp_path / "keys"
    keys.write_bytes(b"s" * 48)
    issuer, audience = "https://issuer.example", "orchestrator"
    settings = Settings(authentication="required", token_keys_file=keys, token_issuer=issuer, token_audience=audience)
    (well,) = check_authentication(settings)
    assert well.status == "ok"
    for named in (str(keys), "from https://issuer.example", "for orchestrator"):
        assert named in well.detail
    assert "sss" not in well.detail


def test_settings_that_workers_refuse_with_real_money_are_a_problem(tmp_path: Path) -> None:
    """What stops a worker at its start is told before."""
    keys = tmp_path / "keys"
    keys.write_bytes(b"s" * 48)
    (finding,) = check_authentication(Settings(authentication="required", token_keys_file=keys, address_wait_hours=0))
    assert (finding.status, finding.check) == ("problem", "settings")


async def test_exchange_that_is_unknown_is_a_problem() -> None:
    """No proof table, no orders."""
    (finding,) = await check_exchange(Installation(Settings(exchanges=("mtgox",))), "mtgox")
    assert finding.status == "problem"


async def test_exchange_with_another_clock_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of orders go by this machine's clock."""

    monkeypatch.setattr(service_checks, "VenueConnection", _Venue)
    monkeypatch.setattr(_Venue, "clock_difference_ms", 90_000)
    (finding,) = await check_exchange(Installation(Settings(exchange_urls={"binance": "http://127.0.0.1:1"})), "binance")
    assert finding.status == "problem"
    assert "90000 ms" in finding.detail


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([Finding.ok("a", "well")], Exit.DONE),
        ([Finding.ok("a", "well"), Finding.problem("b", "bad", "fix")], Exit.NOT_SO),
        ([Finding.skipped("a", "why")], Exit.NOT_SO),
        ([Finding.problem("b", "bad", "fix"), Finding.unreachable("c", "away", "start")], Exit.OUT_OF_REACH),
    ],
)
async def test_doctor_ends_with_the_code_of_its_worst_finding(
    monkeypatch: pytest.MonkeyPatch, findings: list[Finding], code: Exit
) -> None:
    """A service out of reach weighs more than a problem; a check that was skipped is no success."""

    async def found() -> list[Finding]:
        return findings

    monkeypatch.setattr(doctor, "examine", found)
    assert await run_doctor(as_json=True) == code
