"""Operators' first words on what is in doubt, as a batch leaves them."""

from typing import Final

from infra.postgres.drifts import Part
from infra.postgres.rows import Columns, plain
from pipeline.books.changes import Changes, Proposal

PROPOSALS: Final[Columns[Proposal]] = Columns(
    "doubt_proposals", plain(text="target_id operator command_id figures", timestamptz="proposed_at")
)


def proposal_parts(changes: Changes) -> list[Part]:
    """The parts of a batch's statement that write words which wait for a second operator. They stay when it has come: an order is in doubt
    once, and a word names the attempt that it is about."""
    made = [changes.proposals[target_id] for target_id in sorted(changes.proposals_made)]
    if not made:
        return []
    return [("proposals_made", lambda first: PROPOSALS.upsert(first, 1), PROPOSALS.arrays(made), len(made))]
