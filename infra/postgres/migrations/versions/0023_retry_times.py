"""What its exchange did not take waits in its row for the next attempt, not in a queue that runs in circles."""

from alembic import op

revision = "0023"
down_revision = "0022"

_TABLES = {"orders": "order_id", "withdrawals": "withdrawal_id"}


def _statements(table: str, key: str) -> tuple[str, ...]:
    return (
        f"ALTER TABLE {table} ADD COLUMN retry_at timestamptz",
        # Whoever moves it on, also a worker that does not know the column: it waits no more.
        f"""
        CREATE TRIGGER waits_while_accepted BEFORE UPDATE OF status ON {table} FOR EACH ROW
            WHEN (NEW.status <> 'accepted' AND NEW.retry_at IS NOT NULL) EXECUTE FUNCTION forget_retry()
        """,
        f"""
        ALTER TABLE {table} ADD CONSTRAINT waiting_is_accepted
            CHECK (retry_at IS NULL OR (status = 'accepted' AND attempt > 0 AND isfinite(retry_at)))
        """,
        f"CREATE INDEX {table}_waiting ON {table} (exchange, work_partition, retry_at, {key}) WHERE retry_at IS NOT NULL",
    )


_STATEMENTS = (
    """
    CREATE FUNCTION forget_retry() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.retry_at := NULL;
        RETURN NEW;
    END $$
    """,
    *(statement for table, key in _TABLES.items() for statement in _statements(table, key)),
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
