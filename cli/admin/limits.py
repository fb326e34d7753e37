"""`limits`: how much one user may do, where that differs from what holds for everybody.

Start with `show`.
"""

from dataclasses import fields
from datetime import timedelta
from decimal import Decimal
from typing import Final

from pydantic_core import PydanticCustomError
from sqlalchemy import text

from cli.access.administration import asking, change, user_id_of
from cli.access.credentials import usage
from cli.access.database import Row, reading, rows_of, unknown_user
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.terminal.output import print_table
from infra.limits import limits_of
from infra.postgres.admin.administration import set_limit
from pipeline.gate.four_eyes import widens_limit
from pipeline.gate.limits import DEFAULT_LIMITS, Limits
from schemas.decimals import format_decimal, parse_decimal

NAMES: Final = tuple(item.name for item in fields(Limits))
# What is above can only be a mistake: a band of 10 that was meant as 10 %, a window longer than the ten minutes that are looked at.
_AMOUNT_MAX: Final = {"price_band": Decimal(1), "cooldown": Decimal(30 * 86_400), "duplicate_window": Decimal(600)}
_EXISTS: Final = text("SELECT 1 AS found FROM users WHERE user_id = :user_id")
_OWN: Final = text("SELECT name, amount, changed_at, changed_by FROM user_limits WHERE user_id = :user_id ORDER BY name")


def _amount_of(limits: Limits, name: str) -> Decimal:
    """A limit as it is written on the command line: durations in seconds."""
    value: Decimal | int | timedelta = getattr(limits, name)
    return Decimal(value // timedelta(microseconds=1)) / 1_000_000 if isinstance(value, timedelta) else Decimal(value)


def _unit_of(name: str) -> str:
    if isinstance(getattr(DEFAULT_LIMITS, name), timedelta):
        return "seconds"
    if name == "price_band":
        return "of 1"
    return "USD" if "usd" in name else ""


def checked_name(name: str) -> str:
    """A limit's name. Raises CommandFailed."""
    if name not in NAMES:
        raise usage(f"There is no limit of this name. The limits are: {', '.join(NAMES)}.")
    return name


def checked_amount(name: str, amount: str, defaults: Limits) -> Decimal:
    """A limit's amount. Raises CommandFailed for one that cannot be meant."""
    try:
        value = parse_decimal(amount)
        changed = defaults.with_overrides({name: value})
    except PydanticCustomError as error:
        raise usage(f"The amount {error.message()}.") from None
    except ValueError as error:
        raise usage(f"{error}.") from None
    if value > _AMOUNT_MAX.get(name, value):
        unit = _unit_of(name)
        what = "a fraction, and 0.10 is 10 %" if unit == "of 1" else f"in {unit}"
        raise usage(f"{name} is {what}: at most {format_decimal(_AMOUNT_MAX[name])}.")
    if changed.suspicion_block < changed.suspicion_flag and name.startswith("suspicion"):
        raise usage(
            f"suspicion_block ({changed.suspicion_block}) would be below suspicion_flag ({changed.suspicion_flag}), and what blocks is "
            "flagged too."
        )
    return value


async def show(installation: Installation, user_id: str, *, as_json: bool) -> None:
    """Prints every limit of a user: what holds, what holds for everybody, and who changed it when. Raises CommandFailed."""
    user_id = user_id_of(user_id)
    async with reading(installation) as connection:
        if not await rows_of(connection, _EXISTS, user_id=user_id):
            raise unknown_user(user_id)
        own = {str(row["name"]): row for row in await rows_of(connection, _OWN, user_id=user_id)}
    defaults = limits_of(installation.settings)
    rows: list[Row] = []
    for name in (*NAMES, *sorted(own.keys() - set(NAMES))):
        default = _amount_of(defaults, name) if name in NAMES else None
        row = own.get(name, {})
        rows.append({
            "name": name,
            "limit": row.get("amount", default),
            "unit": _unit_of(name) if name in NAMES else "not a limit of this version",
            "default": default,
            "own": name in own,
            "changed_at": row.get("changed_at"),
            "changed_by": row.get("changed_by"),
        })
    columns = ("name", "limit", "unit", "default", "own", "changed_at", "changed_by")
    print_table(rows, columns, as_json=as_json, nothing="There are no limits.")


async def set_one(installation: Installation, user_id: str, name: str, amount: str, *, reason: str, credentials: Credentials) -> None:
    """Gives a user a limit of its own. Raises CommandFailed."""
    user_id = user_id_of(user_id)
    asked = asking("limits set", user_id, credentials, reason)
    value = checked_amount(checked_name(name), amount, limits_of(installation.settings))
    widens = widens_limit(name, value, limits_of(installation.settings))
    await change(installation, asked, lambda database, by: set_limit(database, user_id, name, value, by, widens=widens))


async def clear(installation: Installation, user_id: str, name: str, *, reason: str | None, credentials: Credentials) -> None:
    """Takes a user's own limit away, so that the one for everybody holds. Raises CommandFailed."""
    user_id = user_id_of(user_id)
    asked = asking("limits clear", user_id, credentials, reason)
    if name not in NAMES:
        # A name of another version is taken too: it must be possible to get rid of it.
        async with reading(installation) as connection:
            if not any(row["name"] == name for row in await rows_of(connection, _OWN, user_id=user_id)):
                checked_name(name)
    await change(installation, asked, lambda database, by: set_limit(database, user_id, name, None, by))
