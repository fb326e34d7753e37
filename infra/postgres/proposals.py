"""Operators' first words on what is in doubt, as a batch leaves them."""

from infra.postgres.drifts import Part
from infra.postgres.rows import columns_of
from pipeline.books.changes import Changes


def proposal_parts(changes: Changes) -> list[Part]:
    """The parts of a batch's statement that write words which wait for a second operator. They stay when it has come: an order is in doubt
    once, and a word names the attempt that it is about."""
    made = [changes.proposals[target_id] for target_id in sorted(changes.proposals_made)]
    if not made:
        return []
    rows = [(one.target_id, one.operator, one.command_id, one.figures, one.proposed_at) for one in made]
    return [("proposals_made", _insert, columns_of(rows, 5), len(rows))]


def _insert(first: int) -> str:
    return (
        "INSERT INTO doubt_proposals (target_id, operator, command_id, figures, proposed_at) "  # noqa: S608 — literals
        f"SELECT * FROM unnest(${first}::text[], ${first + 1}::text[], ${first + 2}::text[], ${first + 3}::text[], "
        f"${first + 4}::timestamptz[]) ON CONFLICT (target_id) DO UPDATE SET operator = EXCLUDED.operator, "
        "command_id = EXCLUDED.command_id, figures = EXCLUDED.figures, proposed_at = EXCLUDED.proposed_at"
    )
