"""`addresses`: where a user may withdraw to. Start with `add`."""

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text

from cli.access.administration import asking, change, user_id_of
from cli.access.credentials import usage
from cli.access.database import Row, reading, rows_of, unknown_user
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.terminal.output import print_table
from infra.postgres.admin.address_administration import NewAddress, add_address, remove_address
from pipeline.gate.addresses import address_problem

_LABEL_LENGTH_MAX: Final = 100
_EXISTS: Final = text("SELECT 1 AS found FROM users WHERE user_id = :user_id")
_LISTED: Final = text("""
    SELECT network, address, address_tag, label, added_at, added_by, removed_at FROM addresses
    WHERE user_id = :user_id AND (removed_at IS NULL OR CAST(:all AS boolean)) ORDER BY added_at, network, address
""")


def _checked(user_id: str, network: str, address: str, tag: str | None, label: str | None = None) -> NewAddress:
    """Raises CommandFailed for what is no address of the network."""
    problem = address_problem(network, address, tag)
    if problem is not None:
        raise usage(f"This is no address of that network: {problem}.")
    if label is not None and not (label.strip() and len(label) <= _LABEL_LENGTH_MAX and label.isprintable()):
        raise usage(f"The label must be 1 to {_LABEL_LENGTH_MAX} printable characters.")
    return NewAddress(user_id, network, address, tag or "", label)


async def add(
    installation: Installation,
    user_id: str,
    network: str,
    address: str,
    *,
    tag: str | None,
    label: str | None,
    reason: str,
    credentials: Credentials,
) -> None:
    """Puts an address on a user's list. Raises CommandFailed."""
    new = _checked(user_id_of(user_id), network, address, tag, label)
    asked = asking("addresses add", f"{new.user_id}/{address}", credentials, reason)
    hours = installation.settings.address_wait_hours
    await change(installation, asked, lambda database, by: add_address(database, new, hours, by))


async def remove(
    installation: Installation, user_id: str, network: str, address: str, *, tag: str | None, reason: str, credentials: Credentials
) -> None:
    """Takes an address off a user's list. Raises CommandFailed."""
    gone = _checked(user_id_of(user_id), network, address, tag)
    asked = asking("addresses remove", f"{gone.user_id}/{address}", credentials, reason)
    await change(installation, asked, lambda database, by: remove_address(database, gone, by))


async def show(installation: Installation, user_id: str, *, removed: bool, as_json: bool) -> None:
    """Prints a user's list; with `removed` also what was on it. Raises CommandFailed."""
    user_id = user_id_of(user_id)
    wait = timedelta(hours=installation.settings.address_wait_hours)
    async with reading(installation) as connection:
        if not await rows_of(connection, _EXISTS, user_id=user_id):
            raise unknown_user(user_id)
        found = await rows_of(connection, _LISTED, user_id=user_id, all=removed)
    rows: list[Row] = []
    for row in found:
        added_at = row["added_at"]
        usable = added_at + wait if isinstance(added_at, datetime) and row["removed_at"] is None else None
        rows.append({**row, "address_tag": row["address_tag"] or None, "usable_from": usable})
    columns = ("network", "address", "address_tag", "label", "added_at", "added_by", "usable_from", *(("removed_at",) if removed else ()))
    print_table(rows, columns, as_json=as_json, nothing="The list is empty: nothing can be withdrawn.")
