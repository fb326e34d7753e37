"""`status`: what is stopped, by whom and why, and what else keeps orders from being sent. Reads only.

Start with `show_status`; `halts_in_force` is what the commands that stop and resume show as well.
"""

from typing import Final

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.installation import Installation
from cli.orders import Row, reading
from cli.output import Cell, table_lines, to_json, write_line
from schemas.commands import TRIPS_ACCOUNT

_LISTED_MAX: Final = 1_000

_HALTS: Final = text(
    "SELECT scope, target, level, cancel_open, set_by, set_at, reason, command_id FROM halts ORDER BY scope, target LIMIT 1000"
)
_ORDERS: Final = text("""
    SELECT exchange, count(*) FILTER (WHERE status = 'in_doubt') AS in_doubt,
        count(*) FILTER (WHERE status IN ('new', 'partially_filled')) AS open,
        count(*) FILTER (WHERE status = 'submitting') AS being_sent, count(*) FILTER (WHERE status = 'accepted') AS queued
    FROM orders WHERE executed_at IS NULL GROUP BY exchange ORDER BY exchange
""")
_WITHDRAWALS: Final = text("""
    SELECT exchange, count(*) FILTER (WHERE status = 'pending_approval') AS waiting_for_approval,
        count(*) FILTER (WHERE status = 'in_doubt') AS in_doubt, count(*) FILTER (WHERE status = 'processing') AS being_paid,
        count(*) FILTER (WHERE status = 'submitting') AS being_sent, count(*) FILTER (WHERE status = 'accepted') AS queued
    FROM withdrawals WHERE executed_at IS NULL GROUP BY exchange ORDER BY exchange
""")
_DRIFTS: Final = text("""
    SELECT user_id, exchange, asset, ledger_amount, exchange_amount, usd, first_seen_at, above_since FROM balance_drifts
    ORDER BY first_seen_at, user_id, exchange, asset LIMIT :limit
""")
# By whom and why: a freeze is an event of its user, whose newest 1,000 are looked at.
_FROZEN: Final = text("""
    SELECT users.user_id, frozen.told ->> 'ts_event' AS frozen_at, frozen.told ->> 'reason' AS reason,
        COALESCE(frozen.told ->> 'claimed_operator' || ' (claimed)', frozen.told ->> 'actor') AS frozen_by
    FROM users LEFT JOIN LATERAL (
        SELECT newest.told FROM (
            SELECT seq, body::jsonb AS told FROM audit_events WHERE audit_events.account = users.user_id ORDER BY seq DESC LIMIT 1000
        ) AS newest WHERE newest.told ->> 'event_type' = 'USER_FROZEN' ORDER BY newest.seq DESC LIMIT 1
    ) AS frozen ON true
    WHERE users.status = 'frozen' ORDER BY users.user_id LIMIT :limit
""")
_LOCKED: Final = text("SELECT user_id FROM second_factors WHERE locked ORDER BY user_id LIMIT :limit")

_HALT_COLUMNS: Final = ("scope", "target", "level", "cancels", "set_by", "set_at", "reason")


async def halts_in_force(connection: AsyncConnection) -> list[Row]:
    """Every stop in force. `target` is None for `all`; `set_by` is the operator, or `@trips` for the system itself."""
    rows = (await connection.execute(_HALTS)).mappings()
    return [{**row, "target": row["target"] or None} for row in rows]


def halt_lines(halts: list[Row]) -> list[str]:
    """The stops in force, for people."""
    if not halts:
        return ["Nothing is stopped."]
    shown = [
        {**row, "cancels": bool(row["cancel_open"]), "set_by": "the system" if row["set_by"] == TRIPS_ACCOUNT else row["set_by"]}
        for row in halts
    ]
    return table_lines(shown, _HALT_COLUMNS)


async def _users(connection: AsyncConnection, statement: TextClause) -> list[str]:
    return [str(row.user_id) for row in await connection.execute(statement, {"limit": _LISTED_MAX})]


async def show_status(installation: Installation, *, as_json: bool) -> None:
    """Prints the halts in force, unfinished orders and withdrawals, balances that differ, frozen users and locked second factors."""
    async with reading(installation) as connection:
        halts = await halts_in_force(connection)
        orders: list[Row] = [dict(row) for row in (await connection.execute(_ORDERS)).mappings()]
        withdrawals: list[Row] = [dict(row) for row in (await connection.execute(_WITHDRAWALS)).mappings()]
        drifts: list[Row] = [dict(row) for row in (await connection.execute(_DRIFTS, {"limit": _LISTED_MAX})).mappings()]
        frozen: list[Row] = [dict(row) for row in (await connection.execute(_FROZEN, {"limit": _LISTED_MAX})).mappings()]
        locked = await _users(connection, _LOCKED)
    if as_json:
        report: dict[str, Cell] = {"halts": halts, "orders": orders, "withdrawals": withdrawals}
        report |= {"balance_drifts": drifts, "frozen_users": [row["user_id"] for row in frozen], "freezes": frozen}
        report["locked_second_factors"] = locked
        write_line(to_json(report))
        return
    lines = ["== stopped", *halt_lines(halts), "", "== orders that are not over"]
    lines += table_lines(orders, ("exchange", "in_doubt", "open", "being_sent", "queued")) if orders else ["none"]
    lines += ["", "== withdrawals that are not over"]
    paying = ("exchange", "waiting_for_approval", "in_doubt", "being_paid", "being_sent", "queued")
    lines += table_lines(withdrawals, paying) if withdrawals else ["none"]
    lines += ["", "== balances that differ from the exchange's"]
    differing = ("user_id", "exchange", "asset", "ledger_amount", "exchange_amount", "usd", "first_seen_at", "above_since")
    lines += table_lines(drifts, differing) if drifts else ["none"]
    lines += ["", "== frozen users"]
    lines += table_lines(frozen, ("user_id", "frozen_by", "frozen_at", "reason")) if frozen else ["none"]
    lines += ["", "== locked second factors"]
    lines += table_lines([{"user_id": user} for user in locked], ("user_id",)) if locked else ["none"]
    write_line("\n".join(lines))
