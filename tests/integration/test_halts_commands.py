"""`halt`, `reduce`, `resume` and `status` where no worker runs or a service is away: what is said, and how they end."""

import json
from pathlib import Path

import pytest

import cli.access.operator_commands
from tests.integration.administered import administered

_WHY = ("--reason", "a test", "--operator", "ana")


def test_command_without_a_worker_ends_with_3_and_is_on_the_topic(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is said to be stopped before it is; a stop for what does not exist is not sent; what cannot be meant is wrong usage."""
    monkeypatch.setattr(cli.access.operator_commands, "APPLIED_SECONDS_MAX", 0.5)
    with administered(database_url, kafka, unique_prefix, "http://127.0.0.1:9", tmp_path) as made:
        ended = made.run("halt", *_WHY)
        assert (ended.code, ended.output) == (3, "")
        assert "NOT in force" in ended.errors
        assert made.ran("status", "--json").json["halts"] == []
        assert "Nothing is stopped." in made.ran("status").output
        for scope in (("--user", "nobody"), ("--exchange", "bynance")):
            ended = made.run("halt", *scope, *_WHY)
            assert ended.code == 1
            assert "Nothing was sent or stopped" in ended.errors
        token = tmp_path / "token"
        token.write_text("no token")
        for wrong in (
            ("--user", "a", "--symbol", "BTC/USDT"),
            ("--symbol", "btc/usdt"),
            ("--token-file", str(tmp_path / "none")),
            ("--token-file", str(token), "--reason", "x"),
        ):
            ended = made.run("halt", "--reason", "a test", *wrong)
            assert ended.code == 2, wrong
            assert ended.output == ""


def test_command_without_a_broker_ends_with_3_and_names_the_safe_way(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Workers that do not run send nothing."""
    with administered(database_url, kafka, unique_prefix, "http://127.0.0.1:9", tmp_path) as made:
        ended = made.run("halt", *_WHY, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
        assert ended.code == 3
        assert "stop the workers" in ended.errors


def test_command_without_a_database_is_sent_all_the_same(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is all that a stop needs; that nobody knows yet whether it is in force is said."""
    monkeypatch.setattr(cli.access.operator_commands, "APPLIED_SECONDS_MAX", 0.5)
    with administered(database_url, kafka, unique_prefix, "http://127.0.0.1:9", tmp_path) as made:
        ended = made.run("halt", "--user", "alice", *_WHY, DATABASE_URL="postgresql://postgres@127.0.0.1:9/none")
        assert ended.code == 3
        assert "The command is sent" in ended.errors


def test_status_shows_what_keeps_orders_from_being_sent(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """Stops with who, when and why; frozen users and locked second factors."""
    with administered(database_url, kafka, unique_prefix, "http://127.0.0.1:9", tmp_path) as made:
        made.execute("INSERT INTO halts VALUES ('all', '', 'halt', 'prices look wrong', '@trips', 'c1', now())")
        made.execute("INSERT INTO halts VALUES ('user', 'alice', 'reduce', 'margin\x1b call', 'ana', 'c2', now(), true)")
        made.execute("INSERT INTO users (user_id, status, created_at) VALUES ('alice', 'frozen', now())")
        report = json.loads(made.ran("status", "--json").output)
        assert [(halt["scope"], halt["target"], halt["set_by"], halt["cancel_open"]) for halt in report["halts"]] == [
            ("all", None, "@trips", False),
            ("user", "alice", "ana", True),
        ]
        assert (report["frozen_users"], report["locked_second_factors"]) == (["alice"], [])
        shown = made.ran("status").output
        assert "the system" in shown
        assert "prices look wrong" in shown
        assert "\x1b" not in shown
