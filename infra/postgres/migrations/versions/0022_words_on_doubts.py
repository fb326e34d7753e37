"""Operators' words on what is in doubt, and what the look-ups saw that proved nothing."""

from alembic import op

revision = "0022"
down_revision = "0021"

_STATEMENTS = (
    """
    CREATE TABLE doubt_proposals (
        target_id text PRIMARY KEY,
        operator text NOT NULL,
        command_id text NOT NULL,
        figures text NOT NULL,
        proposed_at timestamptz NOT NULL
    )
    """,
    # An observation, not a state.
    """
    CREATE TABLE doubt_looks (
        order_id text PRIMARY KEY REFERENCES orders,
        looks bigint NOT NULL CHECK (looks > 0),
        detail text NOT NULL,
        looked_at timestamptz NOT NULL
    ) WITH (fillfactor = 70)
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
