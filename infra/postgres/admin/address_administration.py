"""What operators change about withdrawal addresses: one transaction under the user's lock, with its event (see `administration`).

Invariants:
1. An address is never changed, only removed and added again; then it waits anew. SQL refuses anything else.
2. It waits from the database's own time on, or the operator's where that is later: a clock that is behind does not shorten it.

Start with `add_address`.
"""

from dataclasses import dataclass

from infra.postgres.admin.administration import Done, NotDone, changing_user
from infra.postgres.admin.operators import By
from infra.postgres.database import Database
from pipeline.books.audit import Value
from pipeline.gate.four_eyes import address_needs_two
from schemas.audit import EventType


@dataclass(frozen=True, slots=True)
class NewAddress:
    """An address to allow, whose form was checked. `address_tag` is '' where it has none; `label` is for people."""

    user_id: str
    network: str
    address: str
    address_tag: str
    label: str | None

    def facts(self) -> dict[str, Value]:
        """What an audit event says of it."""
        tag = self.address_tag or None
        return {"target_id": self.address, "network": self.network, "address": self.address, "address_tag": tag}

    def __str__(self) -> str:
        tag = f" (tag {self.address_tag})" if self.address_tag else ""
        return f"{self.address}{tag} on {self.network}"


async def add_address(database: Database, new: NewAddress, wait_hours: int, by: By) -> Done:
    """Puts an address on a user's list. Raises NotDone for a closed user. `wait_hours` is what workers go by, for the sentence alone."""
    async with changing_user(database, new.user_id, by) as changing:
        if changing.status == "closed":
            raise NotDone(f"User {new.user_id} is closed for good. Nothing was changed.")
        added = await changing.connection.fetchval(
            """
            INSERT INTO addresses (user_id, network, address, address_tag, label, added_at, added_by)
            VALUES ($1, $2, $3, $4, $5, GREATEST($6, clock_timestamp()), $7)
            ON CONFLICT (user_id, network, address, address_tag) WHERE removed_at IS NULL DO NOTHING RETURNING added_at
            """,
            new.user_id,
            new.network,
            new.address,
            new.address_tag,
            new.label,
            by.at,
            by.name,
        )
        if added is None:
            what = f"{new} is on the list of {new.user_id} already; nothing was changed, it waits from when it was added."
            return Done(what, changed=False)
        if address_needs_two(wait_hours):
            await changing.require_approval("addresses add", f"{new}, to be used at once")
        changing.record(EventType.ADDRESS_ADDED, f"{new} may be withdrawn to after {wait_hours} hours", more=new.facts())
        await changing.note_credentials()
    return Done(
        f"{new} is on the list of {new.user_id}. It can be used after {wait_hours} hours; until then withdrawals to other addresses of the "
        "list need an operator's approval."
    )


async def remove_address(database: Database, gone: NewAddress, by: By) -> Done:
    """Takes an address off a user's list, for the very next request. Raises NotDone where it is not there."""
    async with changing_user(database, gone.user_id, by) as changing:
        removed = await changing.connection.fetchval(
            """
            UPDATE addresses SET removed_at = GREATEST($5, added_at)
            WHERE user_id = $1 AND network = $2 AND address = $3 AND address_tag = $4 AND removed_at IS NULL RETURNING user_id
            """,
            gone.user_id,
            gone.network,
            gone.address,
            gone.address_tag,
            by.at,
        )
        if removed is None:
            raise NotDone(f"{gone} is not on the list of {gone.user_id}. Nothing was changed. `orchestrator addresses list` shows it.")
        changing.record(EventType.ADDRESS_REMOVED, f"{gone} may not be withdrawn to any more", more=gone.facts())
    return Done(
        f"{gone} is off the list of {gone.user_id}: no further withdrawal to it is accepted. One that was accepted before goes its way; "
        "`orchestrator withdrawals` shows it, and `orchestrator halt --user` stops what was not sent yet."
    )
