"""What a user has traded in a day is read from real orders alone, and still from the index alone."""

from alembic import op

revision = "0006"
down_revision = "0005"

_STATEMENTS = (
    "DROP INDEX orders_decided",
    "CREATE INDEX orders_decided ON orders (user_id, decided_at) INCLUDE (usd_value) WHERE mode = 'live'",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
