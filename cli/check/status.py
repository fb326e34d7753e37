"""`status`: what is stopped, by whom and why, and what else keeps orders from being sent. Reads only.

Start with `show_status`; `halts_in_force` is what the commands that stop and resume show as well.
"""

from typing import Final

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.access.database import Row, reading, rows_of
from cli.access.installation import Installation
from cli.admin.approvals import COLUMNS, REQUESTS
from cli.admin.cooldowns import COOLDOWN_COLUMNS, running_cooldowns
from cli.operate.quarantine import OpenEntries, open_entries
from cli.show.halts import halt_lines, halts_in_force
from cli.terminal.output import Cell, as_called, table_lines, to_json, to_text, write_line
from pipeline.model import order, withdrawal
from schemas.orders import OrderStatus, WithdrawalStatus

_LISTED_MAX: Final = 1_000

# The words that `orders` and `withdrawals` show, in the order of their life; what is over is left out, and what is received is not stored.
_ORDER_STATES: Final = tuple(status.value for status in OrderStatus if status not in {*order.TERMINAL, OrderStatus.RECEIVED})
_WITHDRAWAL_STATES: Final = tuple(
    status.value for status in WithdrawalStatus if status not in {*withdrawal.TERMINAL, WithdrawalStatus.RECEIVED}
)
_ORDERS: Final = text("SELECT exchange, status, count(*) FROM orders WHERE executed_at IS NULL GROUP BY exchange, status")
_WITHDRAWALS: Final = text("SELECT exchange, status, count(*) FROM withdrawals WHERE executed_at IS NULL GROUP BY exchange, status")
_DRIFTS: Final = text("""
    SELECT user_id, exchange, asset, ledger_amount, exchange_amount, usd, first_seen_at, above_since FROM balance_drifts
    ORDER BY first_seen_at, user_id, exchange, asset LIMIT :limit
""")
# By whom and why: a freeze is an event of its user, whose newest 1,000 are looked at.
_FROZEN: Final = text("""
    SELECT users.user_id, frozen.told ->> 'ts_event' AS frozen_at,
        COALESCE(frozen.told ->> 'operator_reason', frozen.told ->> 'reason') AS reason,
        COALESCE(frozen.told ->> 'claimed_operator' || ' (claimed)', frozen.told ->> 'actor') AS frozen_by
    FROM users LEFT JOIN LATERAL (
        SELECT newest.told FROM (
            SELECT seq, body::jsonb AS told FROM audit_events WHERE audit_events.account = users.user_id ORDER BY seq DESC LIMIT 1000
        ) AS newest WHERE newest.told ->> 'event_type' = 'USER_FROZEN' ORDER BY newest.seq DESC LIMIT 1
    ) AS frozen ON true
    WHERE users.status = 'frozen' ORDER BY users.user_id LIMIT :limit
""")
_LOCKED: Final = text("SELECT user_id FROM second_factors WHERE locked ORDER BY user_id LIMIT :limit")


async def _users(connection: AsyncConnection, statement: TextClause) -> list[str]:
    return [str(row.user_id) for row in await connection.execute(statement, {"limit": _LISTED_MAX})]


async def _by_state(connection: AsyncConnection, statement: TextClause, states: tuple[str, ...]) -> list[Row]:
    """One row per exchange, with how many there are in each state."""
    rows: dict[str, Row] = {}
    for exchange, status, count in await connection.execute(statement):
        row = rows.setdefault(exchange, {"exchange": exchange, **dict.fromkeys(states, 0)})
        if status in states:
            row[status] = count
    return [rows[exchange] for exchange in sorted(rows)]


def _set_aside_line(found: OpenEntries) -> str:
    if not found.entries:
        return "none is open"
    return as_called(f"{found.entries} open, the oldest since {to_text(found.oldest_at)}: see `orchestrator quarantine list --state open`")


async def show_status(installation: Installation, *, as_json: bool) -> None:
    """Prints the halts in force, unfinished orders and withdrawals, balances that differ, what waits for a second operator, records that
    were set aside, frozen users, locked second factors and running cooldowns."""
    async with reading(installation) as connection:
        halts = await halts_in_force(connection)
        orders = await _by_state(connection, _ORDERS, _ORDER_STATES)
        withdrawals = await _by_state(connection, _WITHDRAWALS, _WITHDRAWAL_STATES)
        drifts: list[Row] = [dict(row) for row in (await connection.execute(_DRIFTS, {"limit": _LISTED_MAX})).mappings()]
        frozen: list[Row] = [dict(row) for row in (await connection.execute(_FROZEN, {"limit": _LISTED_MAX})).mappings()]
        locked = await _users(connection, _LOCKED)
        waiting: list[Row] = await rows_of(connection, REQUESTS, all=False, limit=_LISTED_MAX)
        set_aside = await open_entries(connection)
        cooldowns = await running_cooldowns(connection, installation)
    if as_json:
        report: dict[str, Cell] = {"halts": halts, "orders": orders, "withdrawals": withdrawals}
        report |= {"balance_drifts": drifts, "frozen_users": [row["user_id"] for row in frozen], "freezes": frozen}
        report |= {"approvals": waiting, "quarantine": {"open": set_aside.entries, "oldest_at": set_aside.oldest_at}}
        report |= {"locked_second_factors": locked, "cooldowns": cooldowns}
        write_line(to_json(report))
        return
    lines = ["== stopped", *halt_lines(halts), "", "== orders that are not over"]
    lines += table_lines(orders, ("exchange", *_ORDER_STATES)) if orders else ["none"]
    lines += ["", "== withdrawals that are not over"]
    lines += table_lines(withdrawals, ("exchange", *_WITHDRAWAL_STATES)) if withdrawals else ["none"]
    lines += ["", "== balances that differ from the exchange's"]
    differing = ("user_id", "exchange", "asset", "ledger_amount", "exchange_amount", "usd", "first_seen_at", "above_since")
    lines += table_lines(drifts, differing) if drifts else ["none"]
    lines += ["", "== approvals that are not over"]
    lines += table_lines(waiting, COLUMNS) if waiting else ["none"]
    lines += ["", "== records that were set aside", _set_aside_line(set_aside)]
    lines += ["", "== frozen users"]
    lines += table_lines(frozen, ("user_id", "frozen_by", "frozen_at", "reason")) if frozen else ["none"]
    lines += ["", "== locked second factors"]
    lines += table_lines([{"user_id": user} for user in locked], ("user_id",)) if locked else ["none"]
    lines += ["", "== cooldowns", *(table_lines(cooldowns, COOLDOWN_COLUMNS) if cooldowns else ["none"])]
    write_line("\n".join(lines))
