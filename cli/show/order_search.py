"""`order ID`: one order by any id or key that belongs to it, or the request that became none. Reads only.

Order ids and client order ids are found by an index. The other names (the exchange's id, request ids, idempotency keys) are few people's
way in, and an index for each would cost every order: they are looked for in the whole table, within the time that a command may take.

Start with `show_order`.
"""

from collections.abc import Mapping
from typing import Final

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.access.database import Row, reading, require_user, rows_of
from cli.access.installation import Installation
from cli.show.entity import books_of, event_of, field_lines, history_lines, show_one
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import to_json, to_text, write_line

_LISTED_MAX: Final = 20
_BY_ID: Final = text("SELECT * FROM orders WHERE order_id = :name OR client_order_id = :name")
_BY_NAME: Final = text("""
    SELECT * FROM orders
    WHERE (CAST(:user_id AS text) IS NULL OR user_id = :user_id) AND (
        exchange_order_id = :name OR request_id = :name OR idempotency_key = :name
        OR order_id IN (SELECT order_id FROM cancels WHERE request_id = :name OR idempotency_key = :name)
    )
    ORDER BY requested_at DESC, order_id LIMIT :limit
""")
_WITHDRAWAL: Final = text("""
    SELECT withdrawal_id FROM withdrawals
    WHERE (CAST(:user_id AS text) IS NULL OR user_id = :user_id) AND (
        withdrawal_id = :name OR client_withdrawal_id = :name OR request_id = :name OR idempotency_key = :name
    )
    ORDER BY requested_at DESC LIMIT :limit
""")
_CLAIMS: Final = text("""
    SELECT user_id, idempotency_key, request_id, request_type, claimed_at, result FROM claims
    WHERE (CAST(:user_id AS text) IS NULL OR user_id = :user_id) AND (idempotency_key = :name OR request_id = :name)
    ORDER BY claimed_at DESC LIMIT :limit
""")
# `needles`: the names as JSON strings, quotation marks included.
_MENTIONS: Final = text("""
    SELECT account, seq, event_id, hash, body FROM audit_events
    WHERE (CAST(:user_id AS text) IS NULL OR account = :user_id) AND order_id IS NULL
        AND position('"event_type":"REQUEST_' IN body) > 0
        AND EXISTS (SELECT 1 FROM unnest(CAST(:needles AS text[])) AS needle WHERE position(needle IN body) > 0)
    ORDER BY account, seq LIMIT :limit
""")
_CANCELS: Final = text("""
    SELECT request_id, idempotency_key, requested_at, decided_at, attempt, ended FROM cancels WHERE order_id = :id ORDER BY requested_at
""")


async def show_order(installation: Installation, name: str, *, user_id: str | None, as_json: bool) -> None:
    """Prints one order with its audit history and its ledger transfers; or, where a request became no order, what was answered and why.

    Raises CommandFailed for what is not there, and for a name that several orders have.
    """
    names = {name}
    async with reading(installation) as connection:
        await require_user(connection, user_id)
        order = await _found(connection, name, user_id)
        if order is None:
            requests = await rows_of(connection, _CLAIMS, name=name, user_id=user_id, limit=_LISTED_MAX)
            names = {name, *(str(row["request_id"]) for row in requests)}
            needles = [orjson.dumps(each).decode() for each in sorted(names)]
            events = await rows_of(connection, _MENTIONS, needles=needles, user_id=user_id, limit=_LISTED_MAX)
            withdrawals = await rows_of(connection, _WITHDRAWAL, name=name, user_id=user_id, limit=1)
        else:
            books = await books_of(connection, order["order_id"])
            cancels = await rows_of(connection, _CANCELS, id=order["order_id"])
    if order is None:
        # The name may stand in a text as well.
        history = [event for event in map(event_of, events) if names & {event.get("request_id"), event.get("idempotency_key")}]
        if withdrawals:
            shown = to_text(withdrawals[0]["withdrawal_id"])
            raise CommandFailed(f"That is a withdrawal: `orchestrator withdrawals show {shown}` shows it.", Exit.NOT_SO)
        _show_request(name, requests, history, as_json=as_json)
        return
    show_one("order", order, books, as_json=as_json, more={"cancels": (cancels, ("request_id", "requested_at", "attempt", "ended"))})


async def _found(connection: AsyncConnection, name: str, user_id: str | None) -> Row | None:
    """The order of that name; None where there is none. Raises CommandFailed for several."""
    found = await rows_of(connection, _BY_ID, name=name)
    if not found:
        found = await rows_of(connection, _BY_NAME, name=name, user_id=user_id, limit=_LISTED_MAX)
    if len(found) > 1:
        named = ", ".join(f"{to_text(row['order_id'])} of {to_text(row['user_id'])} at {to_text(row['exchange'])}" for row in found)
        raise CommandFailed(f"{len(found)} orders have that name: {named}. Give an order id, or --user.", Exit.USAGE)
    return found[0] if found else None


def _show_request(name: str, requests: list[Row], history: list[Row], *, as_json: bool) -> None:
    """A request without an order: what was answered, and its events. Raises CommandFailed where nothing is known of it."""
    if not requests and not history:
        raise CommandFailed(
            f"There is no order {to_text(name)}, and no request of that name is known. Nothing was changed. `orchestrator orders` lists "
            f"orders; an answer is on trade.results for as long as that topic keeps it: `orchestrator results --id` finds it there.",
            Exit.NOT_SO,
        )
    shown: list[Row] = [{**row, "result": None if row["result"] is None else orjson.loads(str(row["result"]))} for row in requests]
    if as_json:
        write_line(to_json({"order": None, "requests": shown, "history": history, "transfers": [], "cancels": []}))
        return
    lines = ["No order came of it."]
    for row in shown:
        result = row["result"] if isinstance(row["result"], Mapping) else {}
        flat: Row = {**{field: value for field, value in row.items() if field != "result"}, **result}
        lines += ["", *field_lines(flat)]
    write_line("\n".join([*lines, "", *history_lines(history)]))


