"""When the request of a claim ended: its key's lifetime counts from there.

Null in the rows of workers that do not know the column; their results say when they ended (infra/postgres/rows, KEY_LIVES_FROM).
"""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("ALTER TABLE claims ADD COLUMN ended_at timestamptz")


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
