"""An operator accepts the loss of records that an input partition is missing."""

from infra.postgres.admin.accounts import store_events
from infra.postgres.admin.administration import ADMINISTRATION, Done, NotDone
from infra.postgres.admin.operators import By
from infra.postgres.database import Database
from infra.postgres.gaps import open_gaps_in
from infra.postgres.step import lock_chains
from pipeline.books.audit import AuditTrail
from schemas.audit import EventType


async def accept_loss(
    database: Database, consumer_group: str, topic: str, partition: int, position: int, resume_at: int, by: By
) -> Done:
    """Accepts that a partition goes on at `resume_at` instead of `position`. Raises NotDone where it does not stand at just that gap."""
    name = f"{topic}/{partition}"
    async with database.connection() as connection, connection.transaction():
        heads = await lock_chains(connection, [ADMINISTRATION])
        rows = await open_gaps_in(connection, consumer_group)
        found = next((row for row in rows if (row.topic, row.partition) == (topic, partition)), None)
        if found is None:
            raise NotDone(f"No worker of the group {consumer_group} stands at missing records of {name}. Nothing was changed.")
        if (found.gap.position, found.gap.resume_at) != (position, resume_at):
            raise NotDone(
                f"{name} stands at {found.gap.position} and can go on at {found.gap.resume_at}: {found.gap}. That is not what was asked to "
                "be accepted. Nothing was changed."
            )
        if found.accepted_at is not None:
            return Done(f"The loss at {name} was accepted by {found.accepted_by} already; nothing was changed.", changed=False)
        await connection.execute(
            """
            UPDATE offset_gaps SET accepted_at = $4, accepted_by = $5, reason = $6
            WHERE consumer_group = $1 AND topic = $2 AND partition = $3 AND passed_at IS NULL
            """,
            consumer_group,
            topic,
            partition,
            by.at,
            by.name,
            by.reason,
        )
        what = f"{name} of group {consumer_group} goes on at {resume_at} instead of {position}"
        trail = AuditTrail(heads, by.at)
        trail.append(ADMINISTRATION, None, EventType.OFFSETS_LOSS_ACCEPTED, {**by.facts(), "reason": what})
        await store_events(connection, trail, by.at)
    return Done(f"{name} goes on at {resume_at} within seconds, in the worker that owns it. What was lost before is not answered.")
