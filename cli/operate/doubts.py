"""`in-doubt`: what no look-up has proven yet, and an operator's last word on it.

Reading needs the database alone. `resolve` is a record on `trade.commands` with the operator's token and second factor, as a halt is: a
worker judges it (pipeline/commands/doubts), and what counts is the command's audit event.

Start with `show_doubts` and `resolve`.
"""

import uuid
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError
from sqlalchemy import text

from cli.access.credentials import operator_name, token_in, usage, words_of
from cli.access.database import Row, reading, rows_of
from cli.access.installation import Installation
from cli.access.operator_commands import send_command
from cli.access.operator_options import NO_CREDENTIALS, Credentials
from cli.show.entity import books_of, field_lines, history_lines
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import print_table, printable, say, to_json, to_text, write_line
from schemas.commands import DoubtDecision, DoubtWord

_LISTED: Final = ("id", "kind", "user_id", "exchange", "what", "usd_value", "in_doubt_since", "looks", "last_look", "proposed_by")
_DOUBTS: Final = text("""
    SELECT doubtful.*, looks.looks, looks.looked_at AS last_look_at, looks.detail AS last_look,
           proposals.operator AS proposed_by, proposals.figures AS proposed
    FROM (
        SELECT order_id AS id, 'order' AS kind, user_id, exchange, client_order_id AS client_id, api_key_id,
               side || ' ' || coalesce(quantity, quote_quantity) || ' ' || symbol AS what, usd_value, reason, attempt,
               submitting_at, updated_at AS in_doubt_since, absent_since
        FROM orders WHERE status = 'in_doubt' AND executed_at IS NULL AND mode = 'live'
        UNION ALL
        SELECT withdrawal_id, 'withdrawal', user_id, exchange, client_withdrawal_id, api_key_id,
               amount || ' ' || asset || ' to ' || address, usd_value, reason, attempt, submitting_at, updated_at, NULL
        FROM withdrawals WHERE status = 'in_doubt' AND executed_at IS NULL
    ) AS doubtful
    LEFT JOIN doubt_looks AS looks ON looks.order_id = doubtful.id
    LEFT JOIN doubt_proposals AS proposals ON proposals.target_id = doubtful.id
    WHERE CAST(:id AS text) IS NULL OR doubtful.id = :id OR doubtful.client_id = :id
    ORDER BY in_doubt_since, id LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class Resolution:
    """What an operator says: `executed` as `QUANTITY,COST[,AMOUNT ASSET…]`, or None where it was not executed."""

    target_id: str
    executed: str | None
    exchange_id: str | None
    evidence: str
    reason: str
    credentials: Credentials = NO_CREDENTIALS
    as_json: bool = False


async def show_doubts(installation: Installation, *, limit: int, as_json: bool) -> None:
    """Prints what is in doubt, the oldest first. Raises CommandFailed when the database is out of reach."""
    async with reading(installation) as connection:
        rows = await rows_of(connection, _DOUBTS, id=None, limit=limit)
    print_table(rows, _LISTED, as_json=as_json, nothing="Nothing is in doubt.")


async def show_doubt(installation: Installation, target_id: str, *, as_json: bool) -> None:
    """Prints one order or withdrawal in doubt, with what its look-ups saw and its audit history. Raises CommandFailed."""
    async with reading(installation) as connection:
        doubt = await _found(installation, target_id)
        books = await books_of(connection, doubt["id"])
    if as_json:
        write_line(to_json({"in_doubt": doubt, "history": books.history}))
        return
    write_line("\n".join([*field_lines(doubt), "", *history_lines(books.history)]))


async def _found(installation: Installation, target_id: str) -> Row:
    async with reading(installation) as connection:
        rows = await rows_of(connection, _DOUBTS, id=target_id, limit=1)
    if not rows:
        raise CommandFailed(
            f"Nothing in doubt is called {to_text(target_id)}. Nothing was changed. `orchestrator in-doubt list` shows all; "
            "`orchestrator order` shows what became of one.",
            Exit.NOT_SO,
        )
    return rows[0]


async def resolve(installation: Installation, asked: Resolution) -> Exit:
    """Sends an operator's word and waits until it is applied. Returns NOT_SO when it was refused; raises CommandFailed when nobody applied
    it."""
    doubt = await _found(installation, asked.target_id)
    decision = _decision(asked, str(doubt["id"]), token_in(asked.credentials.token_file))
    if not asked.as_json:
        say(printable(f"{doubt['kind']} {doubt['id']} of {doubt['user_id']}: {doubt['what']}, worth {to_text(doubt['usd_value'])} USD."))
    look_up = f"orchestrator in-doubt show {doubt['id']}"
    event = await send_command(installation, decision, decision.target_id, asked.credentials, look_up=look_up)
    if event is None:
        return Exit.NOT_SO
    waits = "waits for a second operator" in str(event["reason"])
    if asked.as_json:
        state = "proposed" if waits else "resolved"
        write_line(to_json({"command_id": decision.command_id, "id": decision.target_id, "word": decision.command.value, "state": state}))
    elif waits:
        say("Kept: a second operator must say the same, figures included. Nothing was changed yet.")
    else:
        say("Resolved. It is looked up for a day all the same; should the exchange show otherwise, it is corrected and its user halted.")
    return Exit.DONE


def _decision(asked: Resolution, target_id: str, token: str | None) -> DoubtDecision:
    figures: dict[str, object] = {}
    if asked.executed is not None:
        quantity, cost, *fees = [part.strip() for part in [*asked.executed.split(","), ""][: max(2, asked.executed.count(",") + 1)]]
        pairs = [fee.split() for fee in fees]
        if not quantity or not cost or any(len(pair) != 2 for pair in pairs):
            raise usage('--executed takes QUANTITY,COST and fees, such as "0.5,21000.10,0.0005 BTC".')
        figures = {"quantity": quantity, "cost": cost, "fees": [{"amount": amount, "asset": asset} for amount, asset in pairs]}
    try:
        return DoubtDecision.model_validate({
            "schema_version": 1,
            "command_id": str(uuid.uuid4()),
            "command": DoubtWord.NOT_EXECUTED if asked.executed is None else DoubtWord.EXECUTED,
            "operator": operator_name(asked.credentials, token),
            "reason": words_of("reason", asked.reason),
            "evidence": words_of("evidence", asked.evidence),
            "target_id": target_id,
            "exchange_id": asked.exchange_id,
            **figures,
        })
    except ValidationError as error:
        # Without the values.
        raise usage(f"The word cannot be sent: {error.errors(include_input=False, include_url=False)[0]['msg']}.") from None
