"""The commands of operators, from the arguments to the database, the audit topic and the exchange."""

import asyncio
import os
import pwd
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pyotp
import pytest

from embedded.services import Endpoints
from infra.keyring import Keyring, StoredSecret, master_keys, new_master_key
from infra.postgres.admin.administration import StatusChange, administration_events, set_user_status
from infra.postgres.database import connect
from simulator.options import SimulatorOptions
from simulator.process import SimulatorProcess, start
from tests.claiming import claimed
from tests.integration.administered import Administered, administered
from tests.integration.scripted_venue import answers, running_venue
from tests.orchestrator import Ended, orchestrator
from tests.servers import fresh_database

pytestmark = pytest.mark.xdist_group("administration_commands")

WHY = ("--reason", "as asked", "--operator", "ana")


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    process = start(SimulatorOptions(tmp_path_factory.mktemp("exchange"), walk_ms=0))
    yield process
    process.stop()


@pytest.fixture(scope="module")
def installed(
    servers: Endpoints, database_template: str | None, exchange: SimulatorProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Administered]:
    """One installation for all tests here; they keep apart by their users."""
    directory = tmp_path_factory.mktemp("administration")
    with (
        fresh_database(servers.database_url, database_template) as url,
        administered(url, servers.kafka_bootstrap_servers, f"t{uuid4().hex[:6]}.", exchange.url, directory) as made,
    ):
        yield made


@pytest.fixture
def user(installed: Administered, request: pytest.FixtureRequest) -> str:
    """A user of this test's own."""
    name = f"u{uuid4().hex[:10]}"
    installed.ran("users", "add", name, "--operator", "ana")
    return name


def ring(installed: Administered, **settings: str) -> Keyring:
    return Keyring(master_keys({**installed.settings, **settings}["MASTER_KEY"]))


def secret_lines(installed: Administered) -> tuple[StoredSecret, str]:
    """A new API key and secret, and the two lines that `keys add` reads."""
    secret = StoredSecret(f"K{uuid4().hex}", f"S{uuid4().hex}")
    installed.secrets |= {secret.api_key, secret.secret}
    return secret, f"{secret.api_key}\n{secret.secret}\n"


def open_account(exchange: SimulatorProcess, secret: StoredSecret) -> None:
    async def post() -> None:
        account = {"label": "x", "api_key": secret.api_key, "secret": secret.secret, "balances": {}}
        async with aiohttp.ClientSession() as http, http.post(f"{exchange.url}/simulator/accounts", json=[account]) as answer:
            assert answer.status == 200

    asyncio.run(post())


def test_added_user_is_listed_and_its_event_is_on_the_topic(installed: Administered) -> None:
    """What the command prints, what the lists show, what the database and what the topic hold say the same."""
    said = installed.ran("users", "add", "alice", "--role", "operator", "--pending", "--operator", "ana").output
    assert "alice (operator)" in said
    (listed,) = [row for row in installed.ran("users", "list", "--json", "--status", "pending").json if row["user_id"] == "alice"]
    shown = installed.ran("users", "show", "alice", "--json").json
    assert (listed["role"], listed["status"], listed["second_factor"], listed["active_keys"]) == ("operator", "pending", "none", 0)
    assert (shown["role"], shown["status"], shown["second_factor"], shown["keys"], shown["limits"]) == ("operator", "pending", None, [], [])
    assert [(event["event"], event["actor"]) for event in shown["history"]] == [("USER_ADDED", "ana (claimed)")]
    (stored,) = installed.events("alice")
    published = installed.published_events("alice")
    assert list(published) == ["alice:1"]
    assert {name: value for name, value in published["alice:1"].items() if name != "hash"} == stored
    assert "USER_ADDED" in installed.ran("users", "show", "alice").output


def test_user_who_is_there_is_not_added_again(installed: Administered, user: str) -> None:
    """Exit code 1, and the user is as it was."""
    ended = installed.run("users", "add", user, "--role", "operator")
    assert (ended.code, ended.output) == (1, "")
    assert "There is a user" in ended.errors
    assert "Nothing was changed" in ended.errors
    assert installed.ran("users", "show", user, "--json").json["role"] == "trader"
    assert len(installed.events(user)) == 1


def test_operator_is_the_login_name_unless_it_is_given(installed: Administered) -> None:
    """The audit trail always names somebody."""
    installed.ran("users", "add", "login")
    assert installed.events("login")[0]["claimed_operator"] == pwd.getpwuid(os.getuid()).pw_name


def test_user_is_verified_frozen_unfrozen_and_closed(installed: Administered) -> None:
    """A user's whole life, each step with its reason on the topic, in one chain."""
    installed.ran("users", "add", "life", "--pending")
    for change, status in (("verify", "active"), ("freeze", "frozen"), ("unfreeze", "active"), ("close", "closed")):
        installed.ran("users", change, "life", *WHY, *(("--yes",) if change == "close" else ()))
        assert installed.ran("users", "show", "life", "--json").json["status"] == status
    refused = installed.run("users", "unfreeze", "life", *WHY)
    assert (refused.code, "closed for good" in refused.errors) == (1, True)
    published = installed.published_events("life")
    assert [published[f"life:{seq}"]["event_type"] for seq in range(1, 6)] == [
        "USER_ADDED", "USER_VERIFIED", "USER_FROZEN", "USER_UNFROZEN", "USER_CLOSED",
    ]  # fmt: skip
    assert all(published[f"life:{seq}"]["prev_hash"] == published[f"life:{seq - 1}"]["hash"] for seq in range(2, 6))
    assert published["life:3"]["reason"].endswith("as asked")


def test_change_that_is_so_already_ends_well_and_writes_nothing(installed: Administered, user: str) -> None:
    """A script can be run again."""
    installed.ran("users", "freeze", user, *WHY)
    assert "nothing was changed" in installed.ran("users", "freeze", user, *WHY).output
    assert len(installed.events(user)) == 2


def test_enrolment_shows_a_code_for_the_secret_that_is_stored_once(installed: Administered, user: str) -> None:
    """The URI's secret is the stored one, its codes are good, and neither lists nor events show it again."""
    shown = installed.run("users", "enrol-totp", user, "--operator", "ana")
    assert shown.code == 0
    (uri,) = re.findall(r"^otpauth://\S+$", shown.output, re.MULTILINE)
    totp = pyotp.parse_uri(uri)
    assert isinstance(totp, pyotp.TOTP)
    assert (totp.name, totp.digits, totp.interval) == (user, 6, 30)
    assert "will be shown again" in shown.output
    code = [line for line in shown.output.splitlines() if line and set(line) <= set("█▀▄ ")]
    assert len({len(line) for line in code}) == 1
    assert len(code) * 2 >= len(code[0])
    (factor,) = installed.fetch("SELECT * FROM second_factors WHERE user_id = $1", user)
    assert ring(installed).decrypt_second_factor(user, factor["encryption_key_id"], factor["ciphertext"]) == totp.secret
    # From here on it is nowhere: only the enrolment itself may show it.
    installed.said[-2:] = []
    installed.secrets.add(totp.secret)
    assert installed.ran("users", "show", user, "--json").json["second_factor"]["locked"] is False
    again = installed.run("users", "enrol-totp", user)
    assert (again.code, "otpauth" in again.output + again.errors) == (1, False)
    assert "--replace" in again.errors
    replaced = installed.ran("users", "enrol-totp", user, "--replace", "--yes", "--json").json
    installed.said[-2:] = []
    new_secret = re.search(r"secret=([A-Z2-7]+)", replaced["otpauth_uri"])
    assert new_secret is not None
    assert new_secret[1] != totp.secret
    installed.secrets.add(new_secret[1])


def test_locked_second_factor_is_unlocked(installed: Administered, user: str) -> None:
    """By an operator, with the operator's name in the trail; one without a second factor is told so."""
    assert installed.run("users", "unlock-totp", user).code == 1
    installed.ran("users", "enrol-totp", user)
    installed.said[-2:] = []
    installed.execute("UPDATE second_factors SET locked = true WHERE user_id = $1", user)
    assert [row["second_factor"] for row in installed.ran("users", "list", "--json").json if row["user_id"] == user] == ["locked"]
    installed.ran("users", "unlock-totp", user, "--operator", "ana")
    assert installed.fetch("SELECT locked FROM second_factors WHERE user_id = $1", user) == [{"locked": False}]
    assert (installed.events(user)[-1]["event_type"], installed.events(user)[-1]["claimed_operator"]) == ("USER_UNLOCKED_TOTP", "ana")


def test_status_tells_who_froze_a_user_when_and_why(installed: Administered, user: str) -> None:
    """The newest freeze of several, with a name that was claimed told as such; gone once the user may trade again."""
    installed.ran("users", "freeze", user, "--reason", "first look", "--operator", "bob")
    installed.ran("users", "unfreeze", user, *WHY)
    installed.ran("users", "freeze", user, "--reason", "his card was stolen", "--operator", "olga")
    report = installed.ran("status", "--json").json
    assert user in report["frozen_users"]
    (frozen,) = [row for row in report["freezes"] if row["user_id"] == user]
    assert (frozen["frozen_by"], frozen["reason"]) == ("olga (claimed)", "his card was stolen")
    newest = installed.events(user)[-1]
    assert (frozen["frozen_at"], newest["event_type"]) == (newest["ts_event"], "USER_FROZEN")
    (line,) = [line for line in installed.ran("status").output.splitlines() if line.startswith(user)]
    assert "olga (claimed)" in line and "his card was stolen" in line
    installed.ran("users", "unfreeze", user, *WHY)
    assert user not in [row["user_id"] for row in installed.ran("status", "--json").json["freezes"]]


def test_cooldown_is_shown_and_cleared(installed: Administered, user: str) -> None:
    """`users show` and `status` tell a cooldown that runs by the user's own limits; `users clear-cooldown` ends it, with an event, once."""
    assert installed.ran("users", "show", user, "--json").json["cooldown"] is None
    installed.execute("UPDATE audit_chains SET failures_in_row = 3, failed_at = now() - interval '100 seconds' WHERE account = $1", user)
    shown = installed.ran("users", "show", user, "--json").json["cooldown"]
    assert (shown["failures_in_row"], shown["user_id"]) == (3, user)
    assert "== cooldown" in installed.ran("users", "show", user).output
    assert user in [row["user_id"] for row in installed.ran("status", "--json").json["cooldowns"]]
    installed.ran("limits", "set", user, "cooldown", "60", *WHY)
    assert installed.ran("users", "show", user, "--json").json["cooldown"] is None
    installed.ran("limits", "clear", user, "cooldown")
    installed.ran("limits", "set", user, "cooldown_failures", "4", *WHY)
    assert user not in [row["user_id"] for row in installed.ran("status", "--json").json["cooldowns"]]
    installed.ran("limits", "clear", user, "cooldown_failures")
    installed.ran("users", "clear-cooldown", user, *WHY)
    assert installed.ran("users", "show", user, "--json").json["cooldown"] is None
    assert installed.fetch("SELECT failures_in_row FROM audit_chains WHERE account = $1", user) == [{"failures_in_row": 0}]
    installed.ran("users", "clear-cooldown", user, *WHY)
    assert [event["event_type"] for event in installed.events(user)].count("USER_CLEARED_COOLDOWN") == 1


def test_key_is_read_from_standard_input_and_stored_encrypted(installed: Administered, user: str) -> None:
    """It is not in the arguments, opens with the master key, and is listed without its secret."""
    secret, lines = secret_lines(installed)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    options = ("--exchange", "binance", "--permissions", "trade,withdraw", "--expires-at", tomorrow.isoformat())
    installed.ran("keys", "add", user, "main", *options, given=lines)
    (row,) = installed.fetch("SELECT * FROM api_keys WHERE user_id = $1", user)
    assert ring(installed).decrypt(user, "main", row["ciphertext"], row["encryption_key_id"]) == secret
    (listed,) = installed.ran("keys", "list", "--user", user, "--json").json
    assert (listed["api_key_id"], listed["exchange"], listed["permissions"], listed["status"]) == (
        "main", "binance", "trade withdraw", "active",
    )  # fmt: skip
    assert datetime.fromisoformat(listed["expires_at"]) == tomorrow
    assert row["expires_at"] == tomorrow


def test_key_is_read_from_a_file_and_a_readable_one_is_warned_of(installed: Administered, user: str, tmp_path: Path) -> None:
    """The file of an API key must be for its owner alone."""
    secret, lines = secret_lines(installed)
    file = tmp_path / "key"
    file.write_text(lines.replace("\n", "\r\n"))
    file.chmod(0o600)
    assert "warning" not in installed.ran("keys", "add", user, "a", "--exchange", "binance", "--from", str(file)).errors
    file.chmod(0o644)
    assert "can be read by others" in installed.ran("keys", "add", user, "b", "--exchange", "binance", "--from", str(file)).errors
    (row,) = installed.fetch("SELECT * FROM api_keys WHERE user_id = $1 AND api_key_id = 'b'", user)
    assert ring(installed).decrypt(user, "b", row["ciphertext"]) == secret


def test_key_from_a_real_process_reads_its_standard_input(installed: Administered, user: str) -> None:
    """The same in a process of its own, as a shell's pipe gives it."""
    secret, lines = secret_lines(installed)
    ended = orchestrator(
        installed.directory, "keys", "add", user, "main", "--exchange", "binance", given=lines, settings=installed.settings
    )
    assert ended.code == 0, ended.errors
    installed.said += [ended.output, ended.errors]
    (row,) = installed.fetch("SELECT * FROM api_keys WHERE user_id = $1", user)
    assert ring(installed).decrypt(user, "main", row["ciphertext"]) == secret


def test_key_that_the_exchange_takes_is_checked(installed: Administered, exchange: SimulatorProcess, user: str) -> None:
    """Exit code 0, an event, and notes about what the key may do beyond its use here."""
    secret, lines = secret_lines(installed)
    open_account(exchange, secret)
    installed.ran("keys", "add", user, "main", "--exchange", "binance", given=lines)
    checked = installed.ran("keys", "check", user, "main", "--operator", "ana")
    assert "binance accepts key main" in checked.output
    assert "the key may withdraw too" in checked.errors
    assert "from any address" in checked.errors
    assert (installed.events(user)[-1]["event_type"], installed.events(user)[-1]["claimed_operator"]) == ("KEY_CHECKED", "ana")


def test_key_that_the_exchange_refuses_is_marked_until_it_takes_it(
    installed: Administered, exchange: SimulatorProcess, user: str
) -> None:
    """Exit code 1 and the exchange's own words; when it takes the key later, a check makes it active again."""
    secret, lines = secret_lines(installed)
    installed.ran("keys", "add", user, "main", "--exchange", "binance", given=lines)
    refused = installed.run("keys", "check", user, "main")
    assert refused.code == 1
    assert "-2015" in refused.output
    (row,) = installed.fetch("SELECT status, status_reason FROM api_keys WHERE user_id = $1", user)
    assert row["status"] == "refused"
    assert "-2015" in row["status_reason"]
    assert installed.events(user)[-1]["event_type"] == "KEY_REFUSED"
    open_account(exchange, secret)
    assert "refused it before" in installed.ran("keys", "check", user, "main").output
    assert installed.fetch("SELECT status, status_reason FROM api_keys WHERE user_id = $1", user) == [
        {"status": "active", "status_reason": None}
    ]


def test_key_takes_anothers_place_only_where_the_exchange_says_that_both_are_of_one_account(
    installed: Administered, exchange: SimulatorProcess, user: str
) -> None:
    """While an order is in doubt: whose the keys are is asked of the exchange itself."""
    (mine, mine_lines), (other, other_lines) = secret_lines(installed), secret_lines(installed)
    _, unknown_lines = secret_lines(installed)
    for secret in (mine, other):
        open_account(exchange, secret)
    add = ("keys", "add", user, "main", "--exchange", "binance", "--replace", "--yes")
    installed.ran(*add, given=mine_lines)
    installed.execute(
        """
        INSERT INTO orders (order_id, client_order_id, user_id, idempotency_key, request_id, source_topic, source_partition,
            source_offset, mode, exchange, api_key_id, symbol, side, order_type, quantity, status, cum_quantity, cum_quote, fee,
            hold_asset, hold_amount, attempt, fencing_epoch, work_partition, submitting_at, expires_at, requested_at, decided_at,
            updated_at)
        VALUES ($1, $1, $2, $1, $1, $1, 0, 0, 'live', 'binance', 'main', 'BTC/USDT', 'buy', 'limit', 1, 'in_doubt', 0, 0, 0, 'USDT', 0, 1,
            1, 0, now(), now(), now(), now(), now())
        """,
        f"o-{user}",
        user,
    )
    refused = installed.run(*add, given=other_lines)
    assert refused.code == 1
    assert f"o-{user} (in_doubt)" in refused.errors
    assert "belongs to another account" in refused.errors
    unanswered = installed.run(*add, given=unknown_lines)
    assert unanswered.code == 1
    assert "did not tell whose account the new key is" in unanswered.errors
    assert "is not proven to belong to the same account" in unanswered.errors
    installed.ran(*add, given=mine_lines)
    (row,) = installed.fetch("SELECT version, account_id IS NOT NULL AS known FROM api_keys WHERE user_id = $1", user)
    assert row == {"version": 2, "known": True}


async def test_key_that_lacks_what_it_is_stored_for_is_refused(installed: Administered) -> None:
    """The exchange takes it, and does not let it withdraw: exit code 1, with the permission by name. For trading alone it is good."""
    granted = {"enableSpotAndMarginTrading": True, "enableWithdrawals": False, "ipRestrict": True}
    name = f"u{uuid4().hex[:10]}"

    async def run(*arguments: str, given: str = "") -> Ended:
        settings = {"EXCHANGE_URLS": f'{{"binance": "{venue.url}"}}'}
        return await asyncio.to_thread(installed.run, *arguments, given=given, **settings)

    async with running_venue(answers={("GET", "/sapi/v1/account/apiRestrictions"): answers(200, granted)}) as venue:
        await run("users", "add", name)
        for key_id, permissions in (("both", "trade,withdraw"), ("trade", "trade")):
            await run("keys", "add", name, key_id, "--exchange", "binance", "--permissions", permissions, given=secret_lines(installed)[1])
        refused, accepted = await run("keys", "check", name, "both"), await run("keys", "check", name, "trade")
    assert (refused.code, accepted.code) == (1, 0)
    assert "does not permit the key to withdraw" in refused.output
    assert accepted.errors == ""


def test_key_check_without_an_answer_changes_nothing(installed: Administered, user: str) -> None:
    """An exchange that is away must not cost a user the key: exit code 3, no event, still active."""
    _, lines = secret_lines(installed)
    installed.ran("keys", "add", user, "main", "--exchange", "binance", given=lines)
    before = installed.events(user)
    ended = installed.run("keys", "check", user, "main", EXCHANGE_URLS='{"binance": "http://127.0.0.1:9"}')
    assert (ended.code, "Nothing was changed" in ended.errors) == (3, True)
    assert installed.events(user) == before
    assert installed.fetch("SELECT status FROM api_keys WHERE user_id = $1", user) == [{"status": "active"}]


def test_revoked_key_is_neither_used_nor_checked(installed: Administered, user: str) -> None:
    """Once revoked, a check does not bring it back."""
    _, lines = secret_lines(installed)
    installed.ran("keys", "add", user, "main", "--exchange", "binance", given=lines)
    assert "revoked" in installed.ran("keys", "revoke", user, "main", "--yes", *WHY).output
    ended = installed.run("keys", "check", user, "main")
    assert (ended.code, "is revoked" in ended.errors) == (1, True)
    assert installed.fetch("SELECT status, status_reason FROM api_keys WHERE user_id = $1", user) == [
        {"status": "revoked", "status_reason": "as asked"}
    ]


def test_key_under_another_master_key_is_not_sent_anywhere(installed: Administered, user: str) -> None:
    """A wrong master key is told as such, not as a key that the exchange refuses."""
    _, lines = secret_lines(installed)
    installed.ran("keys", "add", user, "main", "--exchange", "binance", given=lines)
    ended = installed.run("keys", "check", user, "main", MASTER_KEY=new_master_key())
    assert (ended.code, "cannot be decrypted" in ended.errors) == (1, True)
    assert installed.fetch("SELECT status FROM api_keys WHERE user_id = $1", user) == [{"status": "active"}]


def test_limit_is_set_shown_and_cleared(installed: Administered, user: str) -> None:
    """`limits show` tells what holds, what would hold otherwise, and who changed it."""
    installed.ran("limits", "set", user, "trade_usd_max", "2500.50", *WHY)
    installed.ran("limits", "set", user, "cooldown", "60", *WHY)
    shown = {row["name"]: row for row in installed.ran("limits", "show", user, "--json").json}
    own = shown["trade_usd_max"]
    assert (own["limit"], own["default"], own["own"]) == ("2500.5", "1000000", True)
    assert (own["changed_by"], shown["cooldown"]["limit"], shown["cooldown"]["unit"]) == ("ana (claimed)", "60", "seconds")
    assert (shown["hourly_trades_max"]["limit"], shown["hourly_trades_max"]["own"]) == ("100", False)
    installed.ran("limits", "clear", user, "trade_usd_max")
    shown = {row["name"]: row for row in installed.ran("limits", "show", user, "--json").json}
    assert (shown["trade_usd_max"]["limit"], shown["trade_usd_max"]["own"]) == ("1000000", False)
    assert [event["event_type"] for event in installed.events(user)] == ["USER_ADDED", *["LIMIT_CHANGED"] * 3]
    assert "TRADE_USD_MAX" not in installed.ran("limits", "show", user).errors


def test_master_key_is_replaced_without_losing_a_secret(installed: Administered, servers: Endpoints, database_template: str | None) -> None:
    """The whole way: both keys set, rotate, the old one taken out; workers can read throughout. In a database of its own."""
    old, new = new_master_key(), new_master_key()
    with fresh_database(servers.database_url, database_template) as url:
        settings = {**installed.settings, "DATABASE_URL": url, "MASTER_KEY": old}
        other = Administered(settings, url, installed.topics, installed.kafka, installed.directory)
        name = f"r{uuid4().hex[:8]}"
        other.ran("users", "add", name)
        secret = StoredSecret("api-key-of-r", "secret-of-r")
        other.ran("keys", "add", name, "main", "--exchange", "binance", given=f"{secret.api_key}\n{secret.secret}")
        other.ran("users", "enrol-totp", name)
        both = f"2:{new},1:{old}"
        rotated = other.ran("keys", "rotate", "--operator", "ana", MASTER_KEY=both)
        assert rotated.output == "1 API keys and 1 second factors were re-encrypted under master key 2.\n"
        assert "take it out" in rotated.errors
        assert "Nothing to do" in other.ran("keys", "rotate", MASTER_KEY=both).output
        for table in ("api_keys", "second_factors"):
            assert [row["encryption_key_id"] for row in other.fetch(f"SELECT encryption_key_id FROM {table}")] == ["2"]  # noqa: S608 — a literal
        (row,) = other.fetch("SELECT * FROM api_keys")
        alone = Keyring(master_keys(f"2:{new}"))
        assert alone.decrypt(name, "main", row["ciphertext"], "2") == secret
        # With the new one alone, and the old one lost, there is nothing left to rotate; a third key that nothing is under cannot do it.
        assert other.run("keys", "rotate", MASTER_KEY=f"2:{new}").code == 0
        lost = other.run("keys", "rotate", MASTER_KEY=f"3:{old}")
        assert (lost.code, f"{name}/main" in lost.errors) == (1, True)
        assert secret.secret not in "".join(other.said)


_DEAD = "127.0.0.1:9"
_TOKEN = ("tokens", "issue", "alice", "--signing-key", "/nonexistent")


@pytest.mark.parametrize(
    ("arguments", "given", "says"),
    [
        (("users", "add", "@system"), "", "must not begin with @"),
        (("users", "add", "o" + "0" * 32), "", "must not look like an order id"),
        (("users", "add", "two words"), "", "The user id cannot be used"),
        (("users", "add", "ä"), "", "The user id cannot be used"),
        (("users", "add", "x" * 129), "", "The user id cannot be used"),
        (("users", "add", ""), "", "The user id cannot be used"),
        (("users", "add", "alice", "--operator", " "), "", "The operator's name must be"),
        (("users", "freeze", "alice", "--reason", ""), "", "The reason must be"),
        (("users", "freeze", "alice", "--reason", " \n\t"), "", "The reason must be"),
        (("users", "freeze", "alice", "--reason", "x" * 301), "", "The reason must be"),
        (("users", "freeze", "alice"), "", "Missing option '--reason'"),
        (("users", "add", "alice", "--role", "king"), "", "Invalid value for '--role'"),
        (("keys", "add", "alice", "k 1", "--exchange", "binance"), "a\nb", "The key id cannot be used"),
        (("keys", "add", "alice", "k1", "--exchange", "binance", "--permissions", "all"), "a\nb", "--permissions takes"),
        (("keys", "add", "alice", "k1", "--exchange", "binance", "--permissions", ""), "a\nb", "--permissions takes"),
        (("keys", "add", "alice", "k1", "--exchange", "binance", "--expires-at", "tomorrow"), "a\nb", "--expires-at takes a time"),
        (("keys", "add", "alice", "k1", "--exchange", "binance", "--expires-at", "2100-01-01"), "a\nb", "--expires-at takes a time"),
        (("keys", "add", "alice", "k1", "--exchange", "binance", "--expires-at", "2020-01-01T00:00:00Z"), "a\nb", "not in the future"),
        (("keys", "add", "alice", "k1", "--exchange", "binance"), "", "There are 0 lines"),
        (("keys", "add", "alice", "k1", "--exchange", "binance"), "line-1\n", "There are 1 lines"),
        (("keys", "add", "alice", "k1", "--exchange", "binance"), "line-1\nline-2\nline-3\n", "There are 3 lines"),
        (("keys", "add", "alice", "k1", "--exchange", "binance"), "same-line\nsame-line\n", "Both lines are the same"),
        (("keys", "add", "alice", "k1", "--exchange", "binance"), "secr3t with_gap\ntwo\n", "has blanks"),
        (("keys", "add", "alice", "k1", "--exchange", "binance"), "schlüssel\ntwo\n", "no ASCII text"),
        (("keys", "add", "alice", "k1", "--exchange", "binance"), "x" * 9_000, "more than 8192 bytes"),
        (("keys", "add", "alice", "k1", "--exchange", "binance", "--from", "/nonexistent/key"), "", "cannot be read"),
        (("limits", "set", "alice", "trade_max", "1", *WHY), "", "There is no limit of this name"),
        (("limits", "set", "alice", "trade_usd_max", "-1", *WHY), "", "No such option"),
        (("limits", "set", "alice", "trade_usd_max", "1e3", *WHY), "", "plain digits"),
        (("limits", "set", "alice", "trade_usd_max", "1" * 21, *WHY), "", "more than 20 digits"),
        (("limits", "set", "alice", "hourly_trades_max", "1.5", *WHY), "", "must be a whole number"),
        (("limits", "set", "alice", "price_band", "10", *WHY), "", "0.10 is 10 %"),
        (("limits", "set", "alice", "duplicate_window", "601", *WHY), "", "at most 600"),
        (("limits", "set", "alice", "suspicion_block", "10", *WHY), "", "below suspicion_flag"),
        (_TOKEN, "", "cannot be read"),
        ((*_TOKEN, "--scope", "everything"), "", "--scope takes"),
        ((*_TOKEN, "--hours", "0"), "", "--hours takes"),
        ((*_TOKEN, "--hours", "nan"), "", "--hours takes"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_opened(
    installed: Administered, arguments: tuple[str, ...], given: str, says: str
) -> None:
    """Exit code 2 and a sentence, with no service in reach: nothing was even asked for. What was written is not repeated."""
    ended = installed.run(*arguments, given=given, DATABASE_URL=f"postgresql://u:p@{_DEAD}/d", KAFKA_BOOTSTRAP_SERVERS=_DEAD)
    assert (ended.code, ended.output) == (2, ""), ended.errors
    assert says in ended.errors
    assert "Traceback" not in ended.errors
    for line in given.split():
        assert len(line) < 4 or line not in ended.errors


_CHANGES: list[tuple[tuple[str, ...], str]] = [
    (("users", "verify", "nobody", *WHY), ""),
    (("users", "freeze", "nobody", *WHY), ""),
    (("users", "unfreeze", "nobody", *WHY), ""),
    (("users", "close", "nobody", "--yes", *WHY), ""),
    (("users", "enrol-totp", "nobody"), ""),
    (("users", "unlock-totp", "nobody"), ""),
    (("keys", "add", "nobody", "k1", "--exchange", "binance"), "api\nsecret\n"),
    (("keys", "check", "nobody", "k1"), ""),
    (("keys", "revoke", "nobody", "k1", "--yes"), ""),
    (("limits", "set", "nobody", "trade_usd_max", "1", *WHY), ""),
    (("limits", "clear", "nobody", "trade_usd_max"), ""),
]
_READS: list[tuple[str, ...]] = [("users", "show", "nobody"), ("limits", "show", "nobody")]


def _name(value: Any) -> str:
    return "-".join(value[:2]) if isinstance(value, tuple) else ""


@pytest.mark.parametrize(("arguments", "given"), [*_CHANGES, *((read, "") for read in _READS)], ids=_name)
def test_unknown_user_is_told_and_nothing_is_left(installed: Administered, arguments: tuple[str, ...], given: str) -> None:
    """Exit code 1, and no row, chain or event of that name. A second factor is not shown either."""
    ended = installed.run(*arguments, given=given)
    assert (ended.code, ended.output) == (1, "")
    assert re.search("no user nobody|User nobody has no key", ended.errors)
    for table, column in (("users", "user_id"), ("audit_chains", "account"), ("audit_events", "account")):
        assert installed.fetch(f"SELECT 1 FROM {table} WHERE {column} = 'nobody'") == []  # noqa: S608 — literals


@pytest.mark.parametrize("away", ["DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"])
@pytest.mark.parametrize(("arguments", "given"), [*_CHANGES, (("keys", "rotate"), ""), (("users", "publish"), "")], ids=_name)
def test_service_that_is_away_ends_a_change_before_it_begins(
    installed: Administered, arguments: tuple[str, ...], given: str, away: str
) -> None:
    """Exit code 3, named, with no password in the text. A change without its event is not begun: the broker is reached first."""
    address = f"postgresql://user:hunter2@{_DEAD}/d" if away == "DATABASE_URL" else _DEAD
    ended = installed.run(*arguments, given=given, **{away: address})
    assert (ended.code, ended.output) == (3, ""), ended.errors
    assert _DEAD in ended.errors
    assert "hunter2" not in ended.errors


def test_user_is_as_it_was_where_the_broker_is_away(installed: Administered, user: str) -> None:
    """The database alone is in reach: nothing was changed in it."""
    ended = installed.run("users", "freeze", user, *WHY, KAFKA_BOOTSTRAP_SERVERS=_DEAD)
    assert (ended.code, "Nothing was changed" in ended.errors) == (3, True)
    assert installed.ran("users", "show", user, "--json").json["status"] == "active"


def test_database_without_tables_is_told(installed: Administered, empty_database_url: str) -> None:
    """Nobody has started a worker yet: exit code 3 and what to do."""
    for arguments in (("users", "add", "alice"), ("users", "list"), ("keys", "list"), ("limits", "show", "alice"), ("keys", "rotate")):
        ended = installed.run(*arguments, DATABASE_URL=empty_database_url)
        assert (ended.code, "no tables of this version" in ended.errors) == (3, True), ended.errors


def test_topic_that_is_missing_is_told_and_not_made(installed: Administered, user: str) -> None:
    """A broker would make it as it likes, and workers would refuse to start with it."""
    for _ in range(2):
        ended = installed.run("users", "freeze", user, *WHY, TOPIC_PREFIX=f"x{uuid4().hex[:6]}.")
        assert (ended.code, "has no topic" in ended.errors) == (3, True)
    assert len(installed.events(user)) == 1


def test_event_that_was_not_published_gets_there_later(installed: Administered, user: str) -> None:
    """A command that was cut off between database and broker leaves an event behind: the next change, or `users publish`, brings it."""
    for number, later in enumerate((("users", "publish", user), ("limits", "set", user, "trade_usd_max", "5", *WHY))):
        _freeze_or_unfreeze(installed, user, number)
        count = len(installed.events(user))
        assert f"{user}:{count}" not in installed.published_events(user)
        installed.ran(*later)
        assert f"{user}:{count}" in installed.published_events(user)
    stored = {f"{event['account']}:{event['seq']}": event for event in installed.events(user)}
    published = installed.published_events(user)
    assert {key: {**event, "hash": published[key]["hash"]} for key, event in stored.items()} == published


def _freeze_or_unfreeze(installed: Administered, user: str, number: int) -> None:
    """A change without its publication, as a command that is killed there leaves it."""
    async def change() -> None:
        database = await connect(installed.database_url, 2, 5)
        try:
            move = StatusChange.UNFREEZE if number % 2 else StatusChange.FREEZE
            assert (await set_user_status(database, user, move, claimed("ana", datetime.now(UTC), None))).changed
            assert await administration_events(database, [user])
        finally:
            await database.close()

    asyncio.run(change())


def test_the_same_event_is_published_with_the_same_bytes(installed: Administered, user: str) -> None:
    """However often it is published: compaction then removes copies and no history."""
    installed.ran("users", "freeze", user, *WHY)
    installed.ran("users", "publish", user)
    values: dict[bytes | None, set[bytes | None]] = {}
    for key, value in installed.published():
        values.setdefault(key, set()).add(value)
    assert len(values[f"{user}:1".encode()]) == 1
    assert all(len(found) == 1 for found in values.values())


def test_verify_finds_the_audit_trail_of_administration_whole(installed: Administered, user: str) -> None:
    """The independent verifier follows every chain on the topic, with all that was published twice, and finds none missing or changed."""
    installed.ran("limits", "set", user, "open_orders_max", "7", *WHY)
    ended = installed.run("verify", "--from-topic", "--json")
    assert ended.code == 0, ended.output


def test_no_secret_is_anywhere(installed: Administered, exchange: SimulatorProcess, user: str) -> None:
    """Nothing that was entered or made, here or by the tests before, is in what was printed, in any table, or on the topic."""
    refused, accepted = secret_lines(installed), secret_lines(installed)
    open_account(exchange, accepted[0])
    for key_id, (_, lines) in {"refused": refused, "accepted": accepted}.items():
        installed.ran("keys", "add", user, key_id, "--exchange", "binance", given=lines)
        installed.run("keys", "check", user, key_id)
        # What a mistake could show: lines in the wrong number, another master key.
        installed.run("keys", "add", user, key_id, "--exchange", "binance", given=lines * 2)
        installed.run("keys", "check", user, key_id, MASTER_KEY=new_master_key())
    installed.ran("keys", "list", "--json")
    installed.ran("users", "show", user, "--json")
    installed.run("keys", "rotate", MASTER_KEY=f"9:{installed.settings['MASTER_KEY']}x")
    tables = [row["name"] for row in installed.fetch("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")]
    dump = [
        row["text"] for table in tables for row in installed.fetch(f'SELECT "{table}"::text AS text FROM "{table}"')  # noqa: S608 — of the catalogue
    ]
    assert any(user in text for text in dump)
    records = [str((key or b"") + (value or b"")) for key, value in installed.published()]
    assert any(user in record for record in records)
    for place, texts in (("output", installed.said), ("tables", dump), ("topic", records)):
        everything = "\n".join(texts)
        for secret in installed.secrets:
            # As text, and as bytea shows bytes.
            for form in (secret, secret.encode().hex()):
                assert form not in everything, f"a secret is in the {place}"


def test_balances_fund_paper_gives_simulated_money_alone(installed: Administered, user: str) -> None:
    """In the book `paper`, each time anew, audited and published with its transfer; the listing says which book it is."""
    fund = ("balances", "fund-paper", user, "USDT", "1000.5", "--exchange", "binance", *WHY)
    installed.ran(*fund)
    said = installed.ran(*fund).output
    assert "2001 USDT in the book paper" in said
    assert "No real money was moved" in said
    rows = installed.fetch("SELECT exchange, book, asset, posted, pending FROM balances WHERE user_id = $1", user)
    assert [tuple(row.values()) for row in rows] == [("binance", "paper", "USDT", 2001, 0)]
    listed = installed.ran("balances", "--user", user, "--json").json
    assert [(row["book"], row["available"]) for row in listed] == [("paper", "2001")]
    events = [event for event in installed.published_events(user).values() if event["event_type"] == "PAPER_FUNDED"]
    assert [(event["claimed_operator"], event["real_money"], event["transfers"][0]["debit_account"]) for event in events] == [
        ("ana", False, "@opening:binance:paper:USDT")
    ] * 2
    assert events[0]["transfers"][0]["transfer_id"] != events[1]["transfers"][0]["transfer_id"]


@pytest.mark.parametrize(
    ("asset", "amount", "exchange_id", "code"),
    [
        ("usdt", "1", "binance", 2),
        ("USDT", "1e3", "binance", 2),
        ("USDT", "-1", "binance", 2),
        ("USDT", "1", "kraken", 1),
        ("USDT", "0", "binance", 1),
        ("USDT", "1000000000000000.1", "binance", 1),
    ],
)
def test_balances_fund_paper_refuses_what_cannot_be_meant(
    installed: Administered, user: str, asset: str, amount: str, exchange_id: str, code: int
) -> None:
    """Nothing is changed, and no event is written."""
    # `--` so that a sign is no option.
    ended = installed.run("balances", "fund-paper", "--exchange", exchange_id, *WHY, "--", user, asset, amount)
    assert (ended.code, "Nothing was changed" in ended.errors) == (code, True), ended.errors
    assert installed.fetch("SELECT 1 FROM balances WHERE user_id = $1", user) == []
    assert [event["event_type"] for event in installed.events(user)] == ["USER_ADDED"]
