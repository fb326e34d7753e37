"""The halts in force, as commands show them."""

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.access.database import Row
from cli.terminal.output import table_lines
from schemas.commands import TRIPS_ACCOUNT

_HALTS: Final = text(
    "SELECT scope, target, level, cancel_open, set_by, set_at, reason, command_id FROM halts ORDER BY scope, target LIMIT 1000"
)


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
