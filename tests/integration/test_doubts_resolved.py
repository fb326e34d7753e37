"""What no look-up proves is told, and ends by an operator's word through a real worker."""

import json
from pathlib import Path
from typing import Any

from tests.installation import installation, order
from tests.integration.halted import commanding


async def test_operator_has_the_last_word_on_an_order_that_no_look_up_proves(
    kafka: str, database_url: str, unique_prefix: str, tmp_path: Path
) -> None:
    """The exchange's books may lag for longer than anybody waits: its looks are counted with what they saw, two operators say that it was
    not executed, and its producer is told so."""
    async with (
        installation(
            kafka, database_url, unique_prefix, tmp_path, venue_read_lag_ms=3_000_000, doubt_four_eyes_usd="1"
        ) as made,
        commanding(made) as commands,
    ):
        made.start_worker(ORCHESTRATOR_DOUBT_FOUR_EYES_USD="1")
        await made.faults({"kind": "hang_before_accept", "next_n": 1})
        sent = await made.publish([order(1)])
        (row,) = await commands.until("looks", "SELECT * FROM doubt_looks WHERE looks > 1", within_seconds=60)
        assert "does not show it" in row["detail"]

        async def say(operator: str) -> dict[str, Any]:
            word = {
                "schema_version": 1, "command_id": f"word-{operator}", "command": "resolve_not_executed", "operator": operator,
                "reason": "asked the exchange", "evidence": "its own page", "target_id": row["order_id"],
            }  # fmt: skip
            await commands.send(json.dumps(word).encode())
            return await commands.event_of(f"word-{operator}")

        assert "waits for a second operator" in (await say("olga"))["reason"]
        assert (await commands.rows("SELECT status FROM orders"))[0]["status"] == "in_doubt"
        assert "agreed by olga" in (await say("otto"))["evidence"]
        (final,) = (await made.final_results(sent, 120)).values()
        assert (final["status"], final["reason_code"]) == ("rejected", "ORDER_NOT_EXECUTED")
        (ended,) = await commands.rows("SELECT status, watched_until, hold_amount FROM orders")
        assert (ended["status"], ended["hold_amount"]) == ("rejected", 0)
        assert ended["watched_until"] is not None
