"""What is over is removed in bounded parts: how far the state topic is cleared, and indexes by when a row was over."""

from alembic import op

revision = "0024"
down_revision = "0023"

_STATEMENTS = (
    # Snapshots of what was over by `removed_until` are gone from the state topic; those up to `removing_until` may be.
    """
    CREATE TABLE state_retention (
        kind text NOT NULL CHECK (kind IN ('order', 'withdrawal', 'deposit')),
        exchange text NOT NULL,
        removed_until timestamptz NOT NULL,
        removed_id text NOT NULL,
        removing_until timestamptz NOT NULL CHECK (removing_until >= removed_until),
        PRIMARY KEY (kind, exchange)
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX orders_ended ON orders (exchange, executed_at, order_id) WHERE executed_at IS NOT NULL",
    "CREATE INDEX withdrawals_ended ON withdrawals (exchange, executed_at, withdrawal_id) WHERE executed_at IS NOT NULL",
    """
    CREATE INDEX deposits_ended ON deposits (exchange, updated_at, deposit_id)
        WHERE status IN ('credited', 'reversed', 'rejected')
    """,
    "CREATE INDEX cancels_ended ON cancels (decided_at) WHERE ended",
    "CREATE INDEX quarantine_moved ON quarantine (moved_at) WHERE moved_at IS NOT NULL",
    "CREATE INDEX doubt_looks_old ON doubt_looks (looked_at)",
    # Results count for a day; what counts is never removed, whatever a setting says.
    "DROP TRIGGER append_only ON realised_results",
    """
    CREATE TRIGGER append_only BEFORE UPDATE OR TRUNCATE ON realised_results FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """,
    """
    CREATE TRIGGER what_counts_stays BEFORE DELETE ON realised_results FOR EACH ROW
        WHEN (OLD.recorded_at > now() - interval '7 days') EXECUTE FUNCTION refuse_change()
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
