"""Who changes something: a claim until the first operator is enrolled, and from then on nobody without token and code."""

import asyncio
import json
import os
import pwd
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from embedded.services import Endpoints
from infra.keyring import keyring_of
from infra.postgres.admin.administration import add_user, enrol_second_factor
from infra.postgres.database import connect
from infra.settings import Settings
from tests.claiming import claimed
from tests.integration.administered import Administered, administered
from tests.integration.halted import Person, token_settings
from tests.orchestrator import Ended
from tests.servers import fresh_database
from tests.unit.tokens import issuer

pytestmark = pytest.mark.xdist_group("administration_operators")

WHY = ("--reason", "as asked")


class Staffed:
    """An installation with operators. `people` have tokens and second factors."""

    def __init__(self, made: Administered, directory: Path) -> None:
        self.made = made
        self._directory = directory

    def run(self, *arguments: str, of: Person | None = None, code: bytes | None = None, token: bytes | None = None) -> Ended:
        """A command as somebody gives it. No `code`: the next of theirs."""
        if of is None:
            return self.made.run(*arguments)
        file = self._directory / f"token-{uuid4().hex}"
        file.write_bytes(of.token() if token is None else token)
        proof = ("--token-file", str(file), "--totp", (of.code() if code is None else code).decode())
        return self.made.run(*arguments, *proof)

    def newest(self, account: str) -> dict[str, Any]:
        return self.made.events(account)[-1]

    async def enrol(self, person: Person, role: Any) -> None:
        settings = Settings(database_url=self.made.database_url, master_key=self.made.settings["MASTER_KEY"])
        keyring = keyring_of(settings)
        database = await connect(self.made.database_url, 2, 10)
        try:
            by = claimed("test", datetime.now(UTC))
            await add_user(database, person.name, role, pending=False, by=by)
            sealed = keyring.encrypt_second_factor(person.name, person.secret)
            await enrol_second_factor(database, person.name, keyring.key_id, sealed, replace=False, by=by)
        finally:
            await database.close()


@pytest.fixture
def installed(servers: Endpoints, database_template: str | None, tmp_path: Path) -> Iterator[Staffed]:
    """An installation of each test's own: whether it has operators is what they are about."""
    with (
        fresh_database(servers.database_url, database_template) as url,
        administered(url, servers.kafka_bootstrap_servers, f"t{uuid4().hex[:6]}.", "http://127.0.0.1:9", tmp_path) as made,
    ):
        made.settings |= token_settings(issuer(), tmp_path)
        yield Staffed(made, tmp_path)


def person(installed: Staffed, name: str, role: str = "operator") -> Person:
    made = Person(name, issuer())
    asyncio.run(installed.enrol(made, role))
    return made


def test_claim_is_audited_as_a_claim_with_the_facts_beside_it(installed: Staffed) -> None:
    """Nobody can be asked yet: the typed name is the actor of nothing, the system's account and the database's role are in the event."""
    installed.made.ran("users", "add", "alice", "--operator", "the.cfo")
    event = installed.newest("alice")
    assert (event["actor"], event["claimed_operator"]) == ("@unverified", "the.cfo")
    assert event["system_user"] == pwd.getpwuid(os.geteuid()).pw_name
    assert event["database_role"]
    history = installed.made.ran("users", "show", "alice", "--json").json["history"]
    assert history[0]["actor"] == "the.cfo (claimed)"


def test_first_operator_ends_all_claims(installed: Staffed) -> None:
    """From the enrolment on, a change without a token is refused before anything is changed, whatever the settings say."""
    installed.made.ran("users", "add", "alice")
    installed.made.ran("users", "add", "ana", "--role", "operator")
    installed.made.ran("users", "enrol-totp", "ana")
    assert installed.newest("ana")["claimed_operator"]
    for settings in ({}, {"AUTHENTICATION": "sandbox", "EXCHANGES": '["binance"]'}):
        ended = installed.made.run("users", "freeze", "alice", *WHY, "--operator", "the.cfo", **settings)
        assert ended.code == 2, ended.errors
        assert "needs the token" in ended.errors
    unverifiable = installed.made.run("users", "freeze", "alice", *WHY, TOKEN_KEYS_FILE="")
    assert (unverifiable.code, "no token can be verified" in unverifiable.errors) == (2, True)
    assert [event["event_type"] for event in installed.made.events("alice")] == ["USER_ADDED"]
    assert installed.made.ran("users", "show", "alice", "--json").json["status"] == "active"


def test_actor_is_the_subject_of_the_token(installed: Staffed) -> None:
    """With a fresh code, once; a name beside it that is not the token's is refused."""
    installed.made.ran("users", "add", "alice")
    ana = person(installed, "ana")
    another = installed.run("users", "freeze", "alice", *WHY, "--operator", "the.cfo", of=ana)
    assert (another.code, "another's name" in another.errors) == (2, True)
    code = ana.code()
    done = installed.run("users", "freeze", "alice", "--reason", "  as asked\nby\tlaw ", of=ana, code=code)
    assert done.code == 0, done.errors
    event = installed.newest("alice")
    assert (event["actor"], event["operator_reason"], event["target_id"]) == ("ana", "  as asked\nby\tlaw ", "alice")
    assert "claimed_operator" not in event
    again = installed.run("users", "unfreeze", "alice", *WHY, of=ana, code=code)
    assert (again.code, "TOTP_REPLAYED" in again.errors) == (1, True)
    assert installed.newest("alice")["event_type"] == "USER_FROZEN"


def test_nobody_but_an_active_operator_with_a_right_code_changes_anything(installed: Staffed) -> None:
    """Each try of somebody whose token holds is audited in their chain, with what it was about; wrong codes count and lock."""
    ana, tom, carl = person(installed, "ana"), person(installed, "tom", "trader"), person(installed, "carl")
    installed.made.execute("UPDATE users SET status = 'frozen' WHERE user_id = 'carl'")
    tries = [
        # Of these no code is tried.
        (ana, {"code": b"000000", "token": ana.token(issuer(key_id="k2", algorithm="ES256"))}, "AUTH_TOKEN_INVALID"),
        (ana, {"code": b"000000", "token": ana.token(scope="trade")}, "AUTH_TOKEN_INVALID"),
        (ana, {"code": b"000000", "token": ana.token(exp=1_700_000_000)}, "AUTH_TOKEN_EXPIRED"),
        (tom, {}, "USER_INACTIVE"),
        (carl, {}, "USER_INACTIVE"),
        *((ana, {"code": ana.wrong_code()}, "TOTP_INVALID") for _ in range(5)),
        (ana, {}, "TOTP_LOCKED"),
    ]
    for who, given, reason_code in tries:
        ended = installed.run("limits", "set", "tom", "trade_usd_max", "1", *WHY, of=who, **given)
        assert (ended.code, reason_code in ended.errors) == (1, True), ended.errors
    assert [event["event_type"] for event in installed.made.events("tom")] == ["USER_ADDED", "USER_ENROLLED_TOTP", "COMMAND_REFUSED"]
    refused = installed.newest("tom")
    assert (refused["command"], refused["target_id"], refused["operator_reason"]) == ("limits set", "tom", "as asked")
    types = [event["event_type"] for event in installed.made.events("ana")]
    assert types[-2:] == ["COMMAND_REFUSED", "COMMAND_REFUSED"]
    assert types.count("USER_LOCKED_TOTP") == 1
    published = installed.made.published_events("ana")
    assert len(published) == len(types)


@pytest.mark.parametrize("reason", ["", "   ", "x" * 301])
def test_words_that_cannot_be_kept_are_refused_and_not_cut(installed: Staffed, reason: str) -> None:
    """Exit code 2, before anything is opened."""
    ended = installed.made.run("users", "freeze", "alice", "--reason", reason, DATABASE_URL="", KAFKA_BOOTSTRAP_SERVERS="")
    assert (ended.code, "1 to 300 characters" in ended.errors) == (2, True)


def test_events_are_published_once(installed: Staffed) -> None:
    """Eight commands about one user: each event is on the topic once, whatever came before."""
    installed.made.ran("users", "add", "alice")
    for number in range(3):
        installed.made.ran("users", "freeze", "alice", *WHY)
        installed.made.ran("users", "unfreeze", "alice", *WHY)
        installed.made.ran("limits", "set", "alice", "open_orders_max", str(number + 1), *WHY)
    keys = [(key or b"").decode() for key, value in installed.made.published() if json.loads(value or b"{}")["account"] == "alice"]
    assert sorted(keys, key=lambda key: int(key.rpartition(":")[2])) == [f"alice:{seq}" for seq in range(1, 11)]
    assert installed.made.fetch("SELECT * FROM audit_outbox") == []


def _anew(installed: Staffed, *people: Person) -> None:
    """Codes from the first on again, as after half a minute: three within it are there, not more."""
    for each in people:
        installed.made.execute(
            "UPDATE second_factors SET enrolled_at = clock_timestamp(), last_step = -1 WHERE user_id = $1", each.name
        )
        each._last_step = -1


def _request_in(ended: Ended) -> str:
    assert (ended.code, "needs a second operator" in ended.errors) == (1, True), ended.errors
    found = re.search(r"waits as (a[0-9a-f]+) ", ended.errors)
    assert found is not None
    return found[1]


def test_limit_beyond_the_settings_needs_a_second_operator(installed: Staffed) -> None:
    """Asked, approved by another, done by the first exactly as approved, once; the events name both with their words."""
    ana, olga = person(installed, "ana"), person(installed, "olga")
    person(installed, "tom", "trader")
    wide = ("limits", "set", "tom", "trade_usd_max", "2000000")
    request_id = _request_in(installed.run(*wide, "--reason", "his desk grows", of=ana))
    assert installed.made.fetch("SELECT * FROM user_limits") == []
    own = installed.run("approvals", "approve", request_id, *WHY, of=ana)
    assert (own.code, "your own" in own.errors) == (1, True)
    (waiting,) = installed.made.ran("approvals", "list", "--json").json
    assert (waiting["standing"], waiting["requested_by"], waiting["reason"]) == ("waiting", "ana", "his desk grows")
    assert installed.made.ran("status", "--json").json["approvals"] == [waiting]
    shown = installed.made.ran("status").output.partition("== approvals that are not over")[2].partition("==")[0]
    assert request_id in shown and "limits set" in shown and "his desk grows" in shown
    # Asked again while it waits, it is the same request.
    assert _request_in(installed.run(*wide, "--reason", "his desk grows", of=ana)) == request_id
    assert installed.run("approvals", "approve", request_id, "--reason", "seen his books", of=olga).code == 0
    _anew(installed, ana, olga)
    other = installed.run("limits", "set", "tom", "trade_usd_max", "2000001", *WHY, of=ana)
    assert _request_in(other) != request_id
    by_the_second = installed.run(*wide, *WHY, of=olga)
    assert _request_in(by_the_second) != request_id
    done = installed.run(*wide, *WHY, of=ana)
    assert done.code == 0, done.errors
    assert request_id not in installed.made.ran("status").output
    event = installed.newest("tom")
    assert (event["event_type"], event["actor"], event["approved_by"]) == ("LIMIT_CHANGED", "ana", "olga")
    given = [each for each in installed.made.events("olga") if each["event_type"] == "APPROVAL_GIVEN"]
    assert [(each["request_id"], each["operator_reason"], each["target_id"]) for each in given] == [(request_id, "seen his books", "tom")]
    used = "SELECT used_at IS NOT NULL AS used FROM administration_requests WHERE request_id = $1"
    assert installed.made.fetch(used, request_id) == [{"used": True}]
    assert installed.run("limits", "clear", "tom", "trade_usd_max", of=ana).code == 0
    _anew(installed, ana)
    assert _request_in(installed.run(*wide, *WHY, of=ana)) != request_id
    narrow = installed.run("limits", "set", "tom", "trade_usd_max", "1000000", *WHY, of=ana)
    assert narrow.code == 0, narrow.errors


def test_only_operator_makes_the_second_and_no_third_alone(installed: Staffed) -> None:
    """There would never be a second one otherwise; from then on both are needed, also for a refused request."""
    ana = person(installed, "ana")
    assert installed.run("users", "add", "olga", "--role", "operator", of=ana).code == 0
    assert installed.newest("olga")["evidence"] == ["by the only operator that there is"]
    assert installed.run("users", "enrol-totp", "olga", of=ana).code == 0
    request_id = _request_in(installed.run("users", "add", "carl", "--role", "operator", of=ana))
    assert installed.made.fetch("SELECT 1 FROM users WHERE user_id = 'carl'") == []
    _anew(installed, ana)
    assert installed.run("approvals", "refuse", request_id, *WHY, of=ana).code == 0
    again = installed.run("approvals", "approve", request_id, *WHY, of=ana)
    assert (again.code, "is refused" in again.errors) == (1, True)
    assert installed.made.ran("approvals", "list", "--json").json == []


def test_key_that_may_withdraw_needs_a_second_operator(installed: Staffed) -> None:
    """One for trading does not; no request holds a secret."""
    ana = person(installed, "ana")
    person(installed, "olga")
    person(installed, "tom", "trader")
    secret = installed._directory / "key"
    secret.write_text("api-key-of-tom\nsecret-of-tom\n")
    secret.chmod(0o600)
    add = ("keys", "add", "tom", "main", "--exchange", "binance", "--from", str(secret))
    _request_in(installed.run(*add, "--permissions", "trade,withdraw", of=ana))
    assert installed.made.fetch("SELECT 1 FROM api_keys") == []
    assert "of-tom" not in str(installed.made.fetch("SELECT * FROM administration_requests"))
    assert installed.run(*add, of=ana).code == 0
