"""The outbox of administration: audit events that the broker has not acknowledged yet."""

from alembic import op

revision = "0016"
down_revision = "0015"

_STATEMENTS = (
    # Without a reference to `audit_events`: a table that is referred to refuses TRUNCATE in other words than that it is append-only.
    """
    CREATE TABLE audit_outbox (
        account text NOT NULL,
        seq bigint NOT NULL,
        PRIMARY KEY (account, seq)
    )
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
