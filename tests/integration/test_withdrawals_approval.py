"""Withdrawals where it is asked who sends: token, second factor, the list of addresses, and an operator's approval by the command line."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.access.installation import Installation as Found
from cli.operate.decisions import show_withdrawals
from tests.installation import installation
from tests.integration.gate_installation import GateInstallation, Outgoing, bearer, gate_installation
from tests.integration.halted import commanding
from tests.promises import assert_promises_hold
from tests.unit.tokens import issuer
from tests.withdrawing import ADDRESS, QUICK, allow_withdrawals, balance, paid_out, run_sql, withdrawal

LISTED_NOW = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
POLL = {"WITHDRAWAL_POLL_MS": "300"}


def _record(user_id: str, number: int, code: str | None, scope: str = "withdraw", **fields: Any) -> Outgoing:
    return Outgoing(withdrawal(number, user_id=user_id, **fields), token=bearer(user_id, scope=scope), code=code)


async def _operator(at: GateInstallation, name: str, directory: Path) -> tuple[str, Any]:
    """An operator with a second factor and a token file; the file's path and the authenticator."""
    await at.command("users", "add", name, "--role", "operator")
    authenticator = await at.enrol(name)
    file = directory / f"{name}.jwt"
    file.write_bytes(bearer(name, scope="operate").removeprefix(b"Bearer "))
    return str(file), authenticator


@pytest.mark.timeout(600)
async def test_withdrawal_needs_scope_code_listed_address_and_above_an_amount_an_operator(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """Each thing that is missing is refused and pays nothing; with all of them it is paid, once."""
    users = ("alice", "bob")
    async with gate_installation(kafka, database_url, unique_prefix, tmp_path, users, issuers=[issuer()], settings=POLL) as at:
        await allow_withdrawals(at.made, ADDRESS)
        alice = await at.enrol("alice")
        token, olga = await _operator(at, "olga", tmp_path)
        at.start_workers(1)

        async def refused(*given: Any, **fields: Any) -> str:
            result = await at.answer(_record("alice", *given, **fields))
            assert result["status"] == "rejected", result
            return str(result["reason_code"])

        assert await refused(1, None) == "TOTP_MISSING"
        assert await refused(1, alice.wrong_code()) == "TOTP_INVALID"
        assert await refused(1, "123456", scope="trade") == "AUTH_TOKEN_INVALID"
        await at.command("addresses", "add", "alice", "ETH", LISTED_NOW.lower(), "--reason", "x", code=2)
        await at.command("addresses", "add", "alice", "ETH", LISTED_NOW, "--reason", "her new wallet", "--label", "cold", code=2)
        proof = ("--token-file", token, "--totp", await olga.code())
        await at.command("addresses", "add", "alice", "ETH", LISTED_NOW, "--reason", "her new wallet", "--label", "cold", *proof)
        assert await refused(2, await alice.code(), address=LISTED_NOW) == "ADDRESS_NOT_ALLOWED"
        listed = json.loads((await at.command("addresses", "list", "alice", "--json")).output)
        assert [row["address"] for row in listed] == [ADDRESS, LISTED_NOW]
        assert paid_out(at.made).accepted == []

        # After the change of her list every withdrawal of hers waits for an operator, small ones too.
        (sent,) = await at.send(_record("alice", 1, await alice.code()))
        waiting = await at.results.until(sent, lambda result: result["order_status"] == "pending_approval", 60)
        assert (waiting["status"], waiting["final"]) == ("accepted", False)
        assert (await balance(at.made, "alice"))[1] == 100
        await at.command("withdrawals", "approve", waiting["order_id"], "--reason", "no token", "--yes", code=1)
        decide = ("--reason", "called back", "--yes", "--token-file", token, "--totp")
        wrong = await at.command("withdrawals", "approve", waiting["order_id"], *decide, olga.wrong_code(), code=1)
        assert "TOTP_INVALID" in wrong.errors
        assert paid_out(at.made).accepted == []
        approved = await at.command("withdrawals", "approve", waiting["order_id"], *decide, await olga.code())
        assert "Approved" in approved.errors
        final = await at.results.until(sent, lambda result: bool(result["final"]), 60)
        assert (final["status"], final["filled_quantity"]) == ("completed", "100")
        await at.command("withdrawals", "approve", waiting["order_id"], *decide, await olga.code(), code=1)
        assert len(paid_out(at.made).accepted) == 1
        shown = json.loads((await at.command("withdrawals", "show", waiting["order_id"], "--json")).output)
        assert [event["event_type"] for event in shown["history"]] == [
            "WITHDRAWAL_ACCEPTED", "WITHDRAWAL_APPROVED", "WITHDRAWAL_SUBMITTED", "WITHDRAWAL_PROCESSING", "WITHDRAWAL_COMPLETED",
        ]  # fmt: skip
        assert shown["withdrawal"]["approved_by"] == "olga"
        word = ("decision", "decided_by", "decision_reason")
        assert [shown["withdrawal"][name] for name in word] == ["approved", "olga", "called back"]
        listed = json.loads((await at.command("withdrawals", "list", "--json")).output)
        assert [[row[name] for name in word] for row in listed if row["withdrawal_id"] == waiting["order_id"]] == [
            ["approved", "olga", "called back"]
        ]
        told = [event["event_type"] for event in await at.events("olga")]
        assert told[-3:] == ["COMMAND_REFUSED", "OPERATOR_DECIDED", "COMMAND_REFUSED"]


@pytest.mark.timeout(600)
async def test_operator_neither_approves_an_own_withdrawal_nor_forgets_one(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four eyes in a sandbox too; what is refused, and what nobody approves in time, ends with its funds free and nothing paid."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        await allow_withdrawals(made)
        made.start_worker("agents", **QUICK)
        await made.event(0, "worker_started", 120)
        # Long enough to be taken in, however busy the machine is: what is late by then is refused at once, and no withdrawal.
        soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
        large = {"amount": "20000"}
        sent = await made.publish([withdrawal(0, **large), withdrawal(1, **large), withdrawal(2, **large, expires_at=soon)])
        by_user: dict[str, str] = {}
        async with asyncio.timeout(60):
            while len(by_user) < 3:
                await asyncio.sleep(0.1)
                rows = await run_sql(made, "SELECT user_id, withdrawal_id FROM withdrawals")
                by_user = {row["user_id"]: row["withdrawal_id"] for row in rows}
        async with commanding(made) as commands:

            async def decide(word: str, user: str, operator: str) -> dict[str, Any]:
                decision = {
                    "schema_version": 1, "command_id": f"{word}-{user}-{operator}", "command": word, "operator": operator, "reason": "x",
                    "withdrawal_id": by_user[user],
                }  # fmt: skip
                await commands.send(json.dumps(decision).encode())
                return await commands.event_of(str(decision["command_id"]))

            own = await decide("approve_withdrawal", "user-0", "user-0")
            assert (own["event_type"], own["reason_code"]) == ("COMMAND_REFUSED", "APPROVAL_NOT_ALLOWED")
            assert (await decide("refuse_withdrawal", "user-1", "ana"))["event_type"] == "OPERATOR_DECIDED"
            finals = await made.final_results(sent[1:], 120)
            codes = {result["user_id"]: result["reason_code"] for result in finals.values()}
            assert codes == {"user-1": "APPROVAL_REFUSED", "user-2": "REQUEST_EXPIRED"}
            assert (await decide("approve_withdrawal", "user-0", "ana"))["event_type"] == "OPERATOR_DECIDED"
            assert {result["status"] for result in (await made.final_results(sent, 120)).values()} == {"completed", "rejected"}
        # What is refused by an operator is told from what nobody decided in time.
        await show_withdrawals(Found(made.settings), user_id=None, status=None, limit=50, as_json=True)
        told = {row["user_id"]: row for row in json.loads(capsys.readouterr().out)}
        assert {user: [row[name] for name in ("status", "decision", "decided_by", "decision_reason")] for user, row in told.items()} == {
            "user-0": ["completed", "approved", "ana (claimed)", "x"],
            "user-1": ["rejected", "refused", "ana (claimed)", "x"],
            "user-2": ["rejected", None, None, None],
        }
        assert [record.label for record in paid_out(made).accepted] == ["user-0"]
        assert [await balance(made, user) for user in ("user-1", "user-2")] == [(1_000_000, 0)] * 2
        await assert_promises_hold(made)


@pytest.mark.timeout(600)
async def test_halt_stops_withdrawals_and_short_waits_are_refused_where_money_is_real(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """`reduce` stops them too; and no worker starts with a shorter wait than promised where it is asked who sends."""
    async with installation(kafka, database_url, unique_prefix, tmp_path) as made:
        await allow_withdrawals(made, waited=timedelta(hours=23))
        await allow_withdrawals(made, LISTED_NOW)
        made.start_worker("agents", **QUICK)
        async with commanding(made) as commands:
            await commands.command("reduce", scope="user", target="user-0")
            sent = await made.publish([withdrawal(0, address=LISTED_NOW), withdrawal(1, address=LISTED_NOW), withdrawal(2)])
            finals = await made.final_results(sent, 120)
        told = [(result["status"], result["reason_code"]) for result in (finals[record.partition, record.offset] for record in sent)]
        assert told == [("rejected", "TRADING_HALTED"), ("completed", None), ("rejected", "ADDRESS_NOT_ALLOWED")]
        # Without a base address of its own an exchange is the real one: it is refused before anything is opened.
        hasty = {"ORCHESTRATOR_AUTHENTICATION": "required", "ORCHESTRATOR_ADDRESS_WAIT_HOURS": "1", "ORCHESTRATOR_EXCHANGE_URLS": "{}"}
        keys = tmp_path / "keys.pem"
        keys.write_bytes(issuer().public_pem())
        worker = made.start_worker("agents", ORCHESTRATOR_TOKEN_KEYS_FILE=str(keys), **hasty)
        assert worker.wait(90) == 2
        assert "ADDRESS_WAIT_HOURS" in made.worker_log(1)
