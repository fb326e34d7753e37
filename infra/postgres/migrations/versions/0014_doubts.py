"""An order that was in doubt is not sent again: what its look-ups saw is kept, and leaving an end needs a correction."""

from alembic import op

revision = "0014"
down_revision = "0013"

_STATEMENTS = (
    """
    ALTER TABLE orders
        ADD COLUMN absent_since timestamptz,
        ADD COLUMN watched_until timestamptz,
        ADD COLUMN corrected_at timestamptz,
        ADD CONSTRAINT absent_is_in_doubt CHECK (absent_since IS NULL OR (status = 'in_doubt' AND submitting_at IS NOT NULL)),
        ADD CONSTRAINT watched_is_over CHECK (watched_until IS NULL OR (executed_at IS NOT NULL AND mode = 'live'))
    """,
    "CREATE INDEX orders_watched ON orders (exchange, watched_until) WHERE watched_until IS NOT NULL",
    # Whoever moves an order, also a worker that does not know the column: what was seen of one doubt says nothing about the next.
    """
    CREATE FUNCTION forget_absent_look() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.absent_since := NULL;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER look_is_of_one_doubt BEFORE UPDATE OF status ON orders FOR EACH ROW
        WHEN (NEW.status <> OLD.status AND NEW.absent_since IS NOT NULL) EXECUTE FUNCTION forget_absent_look()
    """,
    # pipeline.model.order says the same. A worker of the release before it may still queue an order again that it has proven absent; so
    # that is not refused here yet.
    """
    CREATE FUNCTION refuse_leaving_an_end() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'order % is %, and becomes % only by a correction', OLD.order_id, OLD.status, NEW.status
            USING ERRCODE = 'restrict_violation';
    END $$
    """,
    """
    CREATE TRIGGER end_is_the_end BEFORE UPDATE OF status ON orders FOR EACH ROW
        WHEN (OLD.executed_at IS NOT NULL AND NEW.status <> OLD.status
              AND (OLD.watched_until IS NULL OR NEW.corrected_at IS NULL OR OLD.status = 'filled' OR NEW.status = 'rejected'))
        EXECUTE FUNCTION refuse_leaving_an_end()
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
