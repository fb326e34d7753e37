"""Who may command: an operator with a token for it and a code of a second factor; nobody else changes anything, and each try is audited."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from pydantic import ValidationError

from schemas.commands import COMMAND
from tests.installation import installation, order
from tests.integration.halted import Commands, Person, add_people, cli_settings, command_of, commanding, token_settings
from tests.orchestrator import orchestrator
from tests.unit.tokens import issuer

Headers = list[tuple[str, bytes]]


async def _refused(commands: Commands, value: dict[str, Any] | bytes | None, headers: Headers) -> tuple[str, str]:
    """(reason code, account) of what became of a record, which must be a refusal."""
    encoded = json.dumps(value).encode() if isinstance(value, dict) else value
    place, _ = await commands.send(encoded, headers)
    try:
        named = COMMAND.validate_json(encoded or b"").command_id
    except ValidationError:
        named = place
    event = await commands.event_of(named)
    assert event["event_type"] == "COMMAND_REFUSED"
    return event["reason_code"], event["account"]


async def test_only_an_operator_with_token_and_code_changes_anything(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Each other record changes nothing and has one audit event with its reason, in its operator's chain once that one is proven; the
    worker goes on to the next."""
    trusted, stranger = issuer(), issuer(key_id="k2")
    tokens = token_settings(trusted, tmp_path)
    ana, olga, carl, alice = (Person(name, trusted) for name in ("ana", "olga", "carl", "alice"))
    async with (
        installation(kafka, database_url, unique_prefix, tmp_path, users=("alice",), authentication="required") as made,
        commanding(made) as commands,
    ):
        await add_people(made, {ana: "operator", olga: "operator", carl: "operator", alice: "trader"}, frozen=[carl])
        made.start_worker(**{f"ORCHESTRATOR_{name}": value for name, value in tokens.items()})

        def named(person: Person) -> dict[str, Any]:
            return command_of("halt", operator=person.name)

        def resuming(person: Person) -> dict[str, Any]:
            return command_of("resume", operator=person.name)

        small = {"scope": "symbol", "target": "btc/usdt"}
        refused: list[tuple[str, Callable[[], tuple[dict[str, Any] | bytes | None, Headers]], tuple[str, str]]] = [
            ("unsigned", lambda: (named(ana), []), ("AUTH_TOKEN_MISSING", "@commands")),
            ("another issuer", lambda: (named(ana), ana.headers(issuer=stranger)), ("AUTH_TOKEN_INVALID", "@commands")),
            ("expired", lambda: (named(ana), ana.headers(exp=1_700_000_000)), ("AUTH_TOKEN_EXPIRED", "@commands")),
            ("no scope", lambda: (named(ana), ana.headers(scope="trade withdraw")), ("AUTH_TOKEN_INVALID", "@commands")),
            ("another's token", lambda: (named(ana), olga.headers()), ("AUTH_USER_MISMATCH", "@commands")),
            ("a trader", lambda: (named(alice), alice.headers()), ("USER_INACTIVE", "alice")),
            ("a frozen operator", lambda: (named(carl), carl.headers()), ("USER_INACTIVE", "carl")),
            ("no code", lambda: (resuming(ana), ana.headers()[:1]), ("TOTP_MISSING", "ana")),
            ("a wrong code", lambda: (resuming(ana), ana.headers(ana.wrong_code())), ("TOTP_INVALID", "ana")),
            ("broken JSON", lambda: (b'{"schema_version": 1, "command', ana.headers()), ("SCHEMA_INVALID", "@commands")),
            ("no value", lambda: (None, ana.headers()), ("SCHEMA_INVALID", "@commands")),
            ("a field too many", lambda: ({**named(ana), "until": "x"}, ana.headers()), ("SCHEMA_INVALID", "@commands")),
            ("no symbol", lambda: ({**named(ana), **small}, ana.headers()), ("SCHEMA_INVALID", "@commands")),
            ("huge", lambda: (b'{"a": "' + b"x" * 20_000 + b'"}', ana.headers()), ("SCHEMA_INVALID", "@commands")),
        ]
        seen = {name: await _refused(commands, *made_of()) for name, made_of, _ in refused}
        assert seen == {name: expected for name, _, expected in refused}
        assert await commands.halts() == []

        # Easy to stop: the token is enough, and a code that comes with it is not used up.
        code = ana.code()
        applied = await commands.command("halt", ana.headers()[:1])
        assert (applied.event["event_type"], applied.event["actor"]) == ("HALT_SET", "ana")
        lifted = await commands.command("resume", ana.headers(code))
        assert (lifted.event["event_type"], lifted.event["actor"]) == ("HALT_LIFTED", "ana")
        again = await commands.command("halt", ana.headers(code))
        assert again.event["event_type"] == "HALT_SET"
        replayed = await commands.command("resume", ana.headers(code))
        assert (replayed.event["event_type"], replayed.event["reason_code"]) == ("COMMAND_REFUSED", "TOTP_REPLAYED")
        for _ in range(5):
            wrong = await commands.command("resume", olga.headers(olga.wrong_code()), operator="olga")
            assert wrong.event["reason_code"] == "TOTP_INVALID"
        locked = await commands.command("resume", olga.headers(), operator="olga")
        assert locked.event["reason_code"] == "TOTP_LOCKED"
        assert "USER_LOCKED_TOTP" in [event["event_type"] for event in await commands.events("olga")]
        assert [(row["scope"], row["set_by"]) for row in await commands.halts()] == [("all", "ana")]
        assert len(await commands.rows("SELECT 1 FROM audit_events WHERE body::jsonb ->> 'event_type' = 'COMMAND_REFUSED'")) == (
            len(refused) + 7
        )

        producer = AIOKafkaProducer(bootstrap_servers=kafka)
        await producer.start()
        try:
            value = json.dumps(order(1, user_id="alice")).encode()
            sent = await producer.send_and_wait(made.topics.requests, value, key=b"alice", headers=alice.headers())
        finally:
            await producer.stop()
        answer = (await made.final_results([sent], 120))[sent.partition, sent.offset]
        assert answer["reason_code"] == "TRADING_HALTED"
        await asyncio.to_thread(_commands_work, cli_settings(made, tokens), ana, tmp_path)


def _commands_work(settings: dict[str, str], ana: Person, directory: Path) -> None:
    """The command line says what is stopped, refuses with 1 and a reason, and shows the state; `verify` agrees with the trail."""
    token_file = directory / "token"
    token_file.write_bytes(ana.token() + b"\n")
    reason = ("--reason", "after the test", "--token-file", str(token_file))

    def run(*arguments: str) -> tuple[int, str, str]:
        ended = orchestrator(directory, *arguments, settings=settings)
        return ended.code, ended.output, ended.errors

    code, output, errors = run("resume", *reason, "--totp", ana.wrong_code().decode())
    assert (code, output) == (1, "")
    assert "Refused, nothing was changed: TOTP_INVALID" in errors
    code, output, errors = run("resume", *reason, "--totp", ana.code().decode())
    assert code == 0, errors
    assert "Nothing is stopped." in output
    code, output, errors = run("resume", *reason)
    assert code == 2
    assert "--totp" in errors
    code, output, _ = run("status", "--json")
    assert code == 0
    report = json.loads(output)
    assert (report["halts"], report["frozen_users"], report["locked_second_factors"]) == ([], ["carl"], ["olga"])
    code, output, errors = run("verify")
    assert code == 0, output
