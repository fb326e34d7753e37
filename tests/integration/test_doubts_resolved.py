"""What no look-up proves is told, and ends by an operator's word at the command line, through a real worker."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from tests.installation import Installation, installation, order
from tests.integration.halted import commanding
from tests.withdrawing import QUICK, allow_withdrawals, withdrawal

_WHY = ("--reason", "asked the exchange", "--evidence", "its own page")


async def _run(made: Installation, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`orchestrator in-doubt …` with the settings of an installation."""
    argv = [sys.executable, "-m", "cli", "in-doubt", *arguments]
    return await asyncio.to_thread(
        subprocess.run, argv, env=made.environment({}), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
    )


async def _fails(made: Installation, code: int, words: str, *arguments: str) -> None:
    ran = await _run(made, *arguments)
    assert ran.returncode == code, f"{arguments}: {ran.stdout}{ran.stderr}"
    assert words in ran.stderr, ran.stderr
    assert "Traceback" not in ran.stderr


async def _done(made: Installation, *arguments: str) -> str:
    ran = await _run(made, *arguments)
    assert ran.returncode == 0, f"{arguments}: {ran.stdout}{ran.stderr}"
    return ran.stdout + ran.stderr


async def test_operators_have_the_last_word_on_orders_that_no_look_up_proves(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """The exchange's books may lag for longer than anybody waits. Both orders are listed with their looks and what those saw; a large one
    takes two operators who say the same, a small one takes one; wrong words change nothing; their producers are told what counts."""
    settings = {"venue_read_lag_ms": 3_000_000, "doubt_four_eyes_usd": "100"}
    async with (
        installation(kafka, database_url, unique_prefix, tmp_path, **settings) as made,
        commanding(made) as commands,
    ):
        await allow_withdrawals(made)
        # The history of withdrawals may lag for longer than this takes, too.
        own = {**QUICK, "ORCHESTRATOR_WITHDRAWAL_HISTORY_LAG_SECONDS": "600", "ORCHESTRATOR_DOUBT_FOUR_EYES_USD": "100"}
        made.start_worker(**own)
        await made.event(0, "worker_started", 120)
        await made.faults(
            {"kind": "hang_before_accept", "next_n": 2, "path": "/api/v3/order"},
            {"kind": "hang_before_accept", "next_n": 1, "path": "/sapi/v1/capital/withdraw/apply"},
        )
        sent = await made.publish([order(1, quantity="0.01"), order(3)])
        await made.publish([withdrawal(5)])
        await commands.until("looks", "SELECT count(*) FROM doubt_looks WHERE looks > 1 HAVING count(*) = 3", within_seconds=90)

        listed = json.loads(await _done(made, "list", "--json"))
        by_user = {row["user_id"]: row for row in listed}
        payout = by_user.pop("user-5")
        assert payout["kind"] == "withdrawal" and payout["looks"] > 1 and "does not show it" in payout["last_look"]
        listed.remove(payout)
        large, small = by_user["user-1"]["id"], by_user["user-3"]["id"]
        assert all(row["kind"] == "order" and row["looks"] > 1 and "does not show it" in row["last_look"] for row in listed)
        assert large in await _done(made, "list")
        shown = await _done(made, "show", large)
        assert "ORDER_IN_DOUBT" in shown and "does not show it" in shown
        assert json.loads(await _done(made, "show", by_user["user-3"]["client_id"], "--json"))["in_doubt"]["id"] == small

        await _fails(made, 1, "Nothing in doubt is called o-none", "show", "o-none")
        await _fails(made, 1, "Nothing in doubt is called o-none", "resolve", "o-none", "--not-executed", *_WHY, "--operator", "olga")
        await _fails(made, 2, "Say either", "resolve", large, *_WHY, "--operator", "olga")
        await _fails(made, 2, "Say either", "resolve", large, "--not-executed", "--executed", "1,2", *_WHY, "--operator", "olga")
        for figures in ("much", "0.01,500,1", "-0.01,500", "0.01,5e2x"):
            await _fails(made, 2, "", "resolve", large, "--executed", figures, *_WHY, "--operator", "olga")
        await _fails(made, 1, "Refused, nothing was changed", "resolve", small, "--executed", "7,500", *_WHY, "--operator", "olga")

        assert "a second operator must say the same" in await _done(made, "resolve", large, "--not-executed", *_WHY, "--operator", "olga")
        assert len(json.loads(await _done(made, "list", "--json", "--limit", "1"))) == 1
        proposed = {row["id"]: row["proposed_by"] for row in json.loads(await _done(made, "list", "--json"))}
        assert proposed == {large: "olga", small: None, payout["id"]: None}
        assert (await commands.rows("SELECT status FROM orders WHERE order_id = $1", large))[0]["status"] == "in_doubt"
        resolved = json.loads((await _run(made, "resolve", large, "--not-executed", "--json", *_WHY, "--operator", "otto")).stdout)
        assert (resolved["id"], resolved["state"]) == (large, "resolved")
        executed = ("--executed", "0.001,50,0.00005 USDT", "--exchange-id", "4711")
        assert "Resolved." in await _done(made, "resolve", small, *executed, *_WHY, "--operator", "olga")

        finals = await made.final_results(sent, 120)
        ends = {result["user_id"]: (result["status"], result["reason_code"]) for result in finals.values()}
        assert ends == {"user-1": ("rejected", "ORDER_NOT_EXECUTED"), "user-3": ("executed", None)}
        rows = {row["order_id"]: row for row in await commands.rows("SELECT * FROM orders")}
        assert (rows[large]["status"], rows[large]["hold_amount"]) == ("rejected", 0)
        assert rows[large]["watched_until"] is not None
        assert (rows[small]["status"], rows[small]["cum_quote"], rows[small]["exchange_order_id"]) == ("filled", 50, "4711")
        agreed = await commands.event_of(resolved["command_id"])
        assert "agreed by olga" in agreed["evidence"], agreed
        assert [row["id"] for row in json.loads(await _done(made, "list", "--json"))] == [payout["id"]]
        await _fails(made, 1, "Nothing in doubt is called", "resolve", large, "--not-executed", *_WHY, "--operator", "olga")
