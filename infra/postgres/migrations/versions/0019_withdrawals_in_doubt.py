"""A withdrawal that was in doubt is not sent again: when it was first sent and what looks at the history saw is kept, and leaving an end
needs a correction."""

from alembic import op

revision = "0019"
down_revision = "0018"

_STATEMENTS = (
    """
    ALTER TABLE withdrawals
        ADD COLUMN first_submitting_at timestamptz,
        ADD COLUMN absent_since timestamptz,
        ADD COLUMN watched_until timestamptz,
        ADD COLUMN corrected_at timestamptz,
        ADD CONSTRAINT absent_is_in_doubt CHECK (absent_since IS NULL OR (status = 'in_doubt' AND submitting_at IS NOT NULL)),
        ADD CONSTRAINT watched_was_sent CHECK (watched_until IS NULL OR submitting_at IS NOT NULL)
    """,
    # What runs holds all of it, but for what was found after its funds had been released: it holds what was left of them.
    """
    DO $$
    DECLARE found text;
    BEGIN
        SELECT conname INTO STRICT found FROM pg_constraint
        WHERE conrelid = 'withdrawals'::regclass AND contype = 'c' AND pg_get_constraintdef(oid) LIKE '%hold_amount = (amount + fee)%';
        EXECUTE format('ALTER TABLE withdrawals DROP CONSTRAINT %I', found);
    END $$
    """,
    """
    ALTER TABLE withdrawals ADD CONSTRAINT what_runs_is_held
        CHECK (executed_at IS NOT NULL OR hold_amount = amount + fee OR (corrected_at IS NOT NULL AND hold_amount <= amount + fee))
    """,
    "CREATE INDEX withdrawals_watched ON withdrawals (exchange, work_partition, withdrawal_id) WHERE watched_until IS NOT NULL",
    # Whoever moves a withdrawal, also a worker that does not know the column: what was seen of one doubt says nothing about the next.
    """
    CREATE FUNCTION forget_absent_history() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.absent_since := NULL;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER history_is_of_one_doubt BEFORE UPDATE OF status ON withdrawals FOR EACH ROW
        WHEN (NEW.status <> OLD.status AND NEW.absent_since IS NOT NULL) EXECUTE FUNCTION forget_absent_history()
    """,
    # pipeline.model.withdrawal says the same. A worker of the release before it may still queue one again that it has proven absent; so
    # that is not refused here yet.
    """
    CREATE FUNCTION refuse_leaving_a_payouts_end() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'withdrawal % is %, and becomes % only by a correction', OLD.withdrawal_id, OLD.status, NEW.status
            USING ERRCODE = 'restrict_violation';
    END $$
    """,
    """
    CREATE TRIGGER end_is_the_end BEFORE UPDATE OF status ON withdrawals FOR EACH ROW
        WHEN (OLD.executed_at IS NOT NULL AND NEW.status <> OLD.status
              AND (OLD.watched_until IS NULL OR NEW.corrected_at IS NULL OR OLD.status <> 'rejected'))
        EXECUTE FUNCTION refuse_leaving_a_payouts_end()
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
