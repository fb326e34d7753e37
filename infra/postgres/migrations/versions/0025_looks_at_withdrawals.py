"""Looks at withdrawals that proved nothing are counted as those at orders are: `order_id` is the id of either."""

from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    op.execute("ALTER TABLE doubt_looks DROP CONSTRAINT doubt_looks_order_id_fkey")


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
