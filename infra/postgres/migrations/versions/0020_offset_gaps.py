"""Missing records of input partitions: where a partition stands, and who has accepted that it goes on without them."""

from alembic import op

revision = "0020"
down_revision = "0019"

_STATEMENTS = (
    """
    CREATE TABLE offset_gaps (
        gap_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        consumer_group text NOT NULL,
        topic text NOT NULL,
        partition integer NOT NULL,
        position bigint NOT NULL CHECK (position >= 0),
        log_start bigint NOT NULL CHECK (log_start >= 0),
        log_end bigint NOT NULL CHECK (log_end >= log_start),
        found_at timestamptz NOT NULL,
        accepted_at timestamptz,
        accepted_by text,
        reason text,
        passed_at timestamptz,
        CHECK (position < log_start OR position > log_end),
        CHECK ((accepted_at IS NULL) = (accepted_by IS NULL) AND (accepted_at IS NULL) = (reason IS NULL)),
        CHECK (passed_at IS NULL OR accepted_at IS NOT NULL)
    )
    """,
    # One partition stands at one place.
    "CREATE UNIQUE INDEX offset_gaps_open ON offset_gaps (consumer_group, topic, partition) WHERE passed_at IS NULL",
    # What was accepted stays as it was accepted.
    """
    CREATE FUNCTION refuse_change_of_accepted_gap() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.accepted_at IS NOT NULL AND (TG_OP = 'DELETE' OR (OLD.consumer_group, OLD.topic, OLD.partition, OLD.position, OLD.log_start,
            OLD.log_end, OLD.accepted_at, OLD.accepted_by, OLD.reason) IS DISTINCT FROM (NEW.consumer_group, NEW.topic, NEW.partition,
            NEW.position, NEW.log_start, NEW.log_end, NEW.accepted_at, NEW.accepted_by, NEW.reason) OR OLD.passed_at IS NOT NULL) THEN
            RAISE EXCEPTION 'an accepted gap of % does not change', OLD.topic USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN COALESCE(NEW, OLD);
    END $$
    """,
    # A partition goes back only to the end of a log that was cut, and only where somebody has accepted that.
    "ALTER TABLE input_partitions DROP CONSTRAINT input_partitions_check",
    """
    CREATE FUNCTION refuse_going_back() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM offset_gaps AS gaps
            WHERE (gaps.consumer_group, gaps.topic, gaps.partition) = (OLD.consumer_group, OLD.topic, OLD.partition)
              AND gaps.accepted_at IS NOT NULL AND gaps.position = OLD.next_offset AND gaps.log_end = NEW.next_offset
        ) THEN
            RAISE EXCEPTION 'input partition % goes back without an accepted loss', OLD.topic USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER goes_back_by_an_accepted_loss BEFORE UPDATE OF next_offset ON input_partitions FOR EACH ROW
        WHEN (NEW.next_offset < OLD.next_offset) EXECUTE FUNCTION refuse_going_back()
    """,
    """
    CREATE TRIGGER accepted_gap_stays BEFORE UPDATE OR DELETE ON offset_gaps
        FOR EACH ROW EXECUTE FUNCTION refuse_change_of_accepted_gap()
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
