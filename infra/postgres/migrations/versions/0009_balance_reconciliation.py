"""What was imported from exchange accounts, and where the ledger differs from what they show."""

from alembic import op

revision = "0009"
down_revision = "0008"

_STATEMENTS = (
    # The exchange's own name of the account is its identity: neither a second key nor a second user imports the same money again.
    """
    CREATE TABLE balance_imports (
        exchange text NOT NULL,
        account_id text NOT NULL CHECK (length(account_id) BETWEEN 1 AND 128),
        user_id text NOT NULL REFERENCES users,
        api_key_id text NOT NULL,
        amounts text NOT NULL,
        looked_up_at timestamptz NOT NULL,
        imported_at timestamptz NOT NULL,
        imported_by text NOT NULL,
        PRIMARY KEY (exchange, account_id),
        CHECK (imported_at >= looked_up_at)
    )
    """,
    "CREATE INDEX balance_imports_of_users ON balance_imports (user_id, exchange)",
    """
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON balance_imports
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """,
    # Money begins in three ways, each with ids of its own: users that are added with it (demonstrations, tests, benchmarks), real money
    # that an exchange account held, and simulated money that an operator gives.
    """
    ALTER TABLE transfers ADD CONSTRAINT opening_has_a_source CHECK (
        kind <> 'opening' OR transfer_id LIKE 'opening:%'
        OR (transfer_id LIKE 'import:%' AND book = 'live') OR (transfer_id LIKE 'fund:%' AND book = 'paper')
    )
    """,
    # Real money is imported only together with the row that keeps it from being imported again.
    """
    CREATE FUNCTION refuse_unrecorded_import() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM balance_imports AS known
            WHERE known.exchange = NEW.exchange AND known.user_id = NEW.credit_owner
              AND NEW.transfer_id = 'import:' || known.exchange || ':' || known.account_id || ':' || NEW.asset
        ) THEN
            RAISE EXCEPTION 'transfer % imports what no import is recorded for', NEW.transfer_id USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER import_is_recorded BEFORE INSERT ON transfers FOR EACH ROW
        WHEN (NEW.kind = 'opening' AND NEW.transfer_id LIKE 'import:%') EXECUTE FUNCTION refuse_unrecorded_import()
    """,
    "CREATE INDEX transfers_advanced ON transfers (exchange, order_id) WHERE debit_owner = '@shortfall'",
    # An observation, not a movement: a row is there while the exchange shows another amount than the ledger can explain.
    """
    CREATE TABLE balance_drifts (
        user_id text NOT NULL REFERENCES users,
        exchange text NOT NULL,
        asset text NOT NULL,
        ledger_amount numeric NOT NULL,
        exchange_amount numeric NOT NULL CHECK (exchange_amount >= 0),
        usd numeric CHECK (usd >= 0),
        first_seen_at timestamptz NOT NULL,
        last_seen_at timestamptz NOT NULL,
        found_at timestamptz,
        above_since timestamptz,
        PRIMARY KEY (user_id, exchange, asset),
        CHECK (ledger_amount <> exchange_amount),
        CHECK (last_seen_at >= first_seen_at)
    )
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
