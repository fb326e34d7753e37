"""What one operator asks for and another approves."""

from alembic import op

revision = "0021"
down_revision = "0020"

_STATEMENTS = (
    """
    CREATE TABLE administration_requests (
        request_id text PRIMARY KEY,
        command text NOT NULL,
        target_id text NOT NULL,
        what text NOT NULL,
        reason text,
        requested_by text NOT NULL REFERENCES users,
        requested_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL CHECK (expires_at > requested_at),
        approved_by text REFERENCES users CHECK (approved_by <> requested_by),
        approved_at timestamptz,
        refused_by text REFERENCES users,
        refused_at timestamptz,
        decision_reason text,
        used_at timestamptz,
        CHECK ((approved_by IS NULL) = (approved_at IS NULL)),
        CHECK ((refused_by IS NULL) = (refused_at IS NULL)),
        CHECK (approved_at IS NULL OR refused_at IS NULL),
        CHECK (used_at IS NULL OR (approved_at IS NOT NULL AND used_at < expires_at))
    )
    """,
    "CREATE INDEX administration_requests_asked ON administration_requests (target_id, command) WHERE used_at IS NULL",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
