"""What stands at an exchange belongs to the account that it was sent with."""

from alembic import op

revision = "0017"
down_revision = "0016"

_STATEMENTS = (
    "ALTER TABLE api_keys ADD COLUMN version integer NOT NULL DEFAULT 1, ADD COLUMN account_id text",
    "ALTER TABLE orders ADD COLUMN key_version integer, ADD COLUMN account_id text",
    "ALTER TABLE withdrawals ADD COLUMN key_version integer, ADD COLUMN account_id text",
    # Counted here, so that a command of an earlier release counts as well. A key that is encrypted anew is the same key: it keeps its time.
    """
    CREATE FUNCTION count_replacement() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.version := OLD.version + 1;
        -- Whose it is must be asked anew.
        NEW.account_id := NULL;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER replacement_is_counted BEFORE UPDATE OF created_at ON api_keys FOR EACH ROW
        WHEN (NEW.created_at <> OLD.created_at) EXECUTE FUNCTION count_replacement()
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
