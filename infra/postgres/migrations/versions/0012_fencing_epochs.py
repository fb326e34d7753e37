"""Fencing epochs from one sequence: no two owners ever have the same one, whatever group, topic or partition they own."""

from alembic import op

revision = "0012"
down_revision = "0011"

_STATEMENTS = (
    "CREATE SEQUENCE fencing_epochs",
    # A trigger and not a default: a worker of the release before counts each partition by itself and asks for one more; it reads what it
    # got from RETURNING, so it goes on with an epoch that nobody else has.
    """
    CREATE FUNCTION draw_fencing_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.fencing_epoch := nextval('fencing_epochs');
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER fencing_epoch_is_drawn_at_first BEFORE INSERT ON input_partitions
        FOR EACH ROW EXECUTE FUNCTION draw_fencing_epoch()
    """,
    # It holds the table until the end of this migration, so nobody takes a partition between what is counted below and the sequence.
    """
    CREATE TRIGGER fencing_epoch_is_drawn BEFORE UPDATE OF fencing_epoch ON input_partitions
        FOR EACH ROW EXECUTE FUNCTION draw_fencing_epoch()
    """,
    """
    SELECT setval('fencing_epochs', GREATEST(
        1,
        (SELECT max(fencing_epoch) FROM input_partitions),
        (SELECT max(fencing_epoch) FROM orders),
        (SELECT max(fencing_epoch) FROM withdrawals)
    ))
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
