"""Halts that cancel what rests, and an index for the newest results of sales, which are looked at twice a second."""

from alembic import op

revision = "0003"
down_revision = "0002"

_STATEMENTS = (
    "ALTER TABLE halts ADD COLUMN cancel_open boolean NOT NULL DEFAULT false",
    "CREATE INDEX realised_results_newest ON realised_results (recorded_at) INCLUDE (user_id)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
