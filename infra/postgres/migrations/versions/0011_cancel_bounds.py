"""What bounds a cancel (how many calls for it were handed to the exchange, and its own deadline), and an order's market by the name that
its exchange had for it when it was accepted."""

from alembic import op

revision = "0011"
down_revision = "0010"

_STATEMENTS = (
    "ALTER TABLE cancels ADD COLUMN attempts_sent integer NOT NULL DEFAULT 0 CHECK (attempts_sent >= 0)",
    "ALTER TABLE cancels ADD COLUMN expires_at timestamptz",
    "ALTER TABLE orders ADD COLUMN market_id text",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
