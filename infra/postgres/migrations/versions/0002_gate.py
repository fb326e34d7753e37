"""What the gate decides by: second factors, key permissions, limits and their use, conduct, cost of what was bought, halts."""

from alembic import op

revision = "0002"
down_revision = "0001"

_STATEMENTS = (
    """
    ALTER TABLE users
        ADD COLUMN role text NOT NULL DEFAULT 'trader' CHECK (role IN ('trader', 'operator')),
        -- When a key, a second factor or an address of the user was last changed.
        ADD COLUMN credentials_changed_at timestamptz
    """,
    """
    ALTER TABLE api_keys
        ADD COLUMN permissions text[] NOT NULL DEFAULT '{trade}' CHECK (permissions <@ ARRAY['trade', 'withdraw']),
        ADD COLUMN expires_at timestamptz,
        ADD COLUMN status_reason text,
        DROP CONSTRAINT api_keys_status_check,
        -- refused: the exchange itself said that the key may not be used.
        ADD CONSTRAINT api_keys_status_check CHECK (status IN ('active', 'revoked', 'expired', 'refused'))
    """,
    # The newest accepted time step, so that no code is taken twice, and the times of the newest wrong codes.
    """
    CREATE TABLE second_factors (
        user_id text PRIMARY KEY REFERENCES users,
        encryption_key_id text NOT NULL,
        ciphertext bytea NOT NULL,
        enrolled_at timestamptz NOT NULL,
        last_step bigint NOT NULL DEFAULT -1 CHECK (last_step >= -1),
        wrong_at timestamptz[] NOT NULL DEFAULT '{}' CHECK (cardinality(wrong_at) <= 5),
        locked boolean NOT NULL DEFAULT false
    ) WITH (fillfactor = 70)
    """,
    # A step that was accepted is never accepted again, whatever the code believes.
    """
    CREATE FUNCTION refuse_earlier_step() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.last_step < OLD.last_step AND NEW.enrolled_at = OLD.enrolled_at THEN
            RAISE EXCEPTION 'the second factor of % would go back from step % to %', NEW.user_id, OLD.last_step, NEW.last_step
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER steps_only_rise BEFORE UPDATE ON second_factors FOR EACH ROW EXECUTE FUNCTION refuse_earlier_step()",
    """
    CREATE TABLE user_limits (
        user_id text NOT NULL REFERENCES users,
        name text NOT NULL,
        amount numeric(38, 18) NOT NULL CHECK (amount >= 0),
        changed_at timestamptz NOT NULL,
        changed_by text NOT NULL,
        PRIMARY KEY (user_id, name)
    )
    """,
    # How the account behaves. It lies in the row that every step of the account locks and writes anyway: no further row per batch.
    """
    ALTER TABLE audit_chains
        ADD COLUMN failures_in_row integer NOT NULL DEFAULT 0 CHECK (failures_in_row >= 0),
        ADD COLUMN failed_at timestamptz,
        ADD COLUMN message_clock timestamptz
    """,
    """
    ALTER TABLE orders
        ADD COLUMN usd_value numeric(38, 18) NOT NULL DEFAULT 0 CHECK (usd_value >= 0),
        -- US dollars per unit of the quote asset when the order was accepted.
        ADD COLUMN usd_rate numeric(38, 18) NOT NULL DEFAULT 0 CHECK (usd_rate >= 0)
    """,
    "DROP INDEX orders_user_id",
    "CREATE INDEX orders_decided ON orders (user_id, decided_at) INCLUDE (usd_value)",
    "CREATE INDEX orders_open ON orders (user_id) WHERE executed_at IS NULL",
    # What was bought here and is not sold yet, and what it has cost: the average cost that a sale's result is taken against.
    """
    ALTER TABLE balances
        ADD COLUMN cost_quantity numeric(38, 18) NOT NULL DEFAULT 0 CHECK (cost_quantity >= 0),
        ADD COLUMN cost_usd numeric(38, 18) NOT NULL DEFAULT 0 CHECK (cost_usd >= 0)
    """,
    # A sale's result in US dollars, negative for a loss; one row per word of the exchange about the order.
    """
    CREATE TABLE realised_results (
        order_id text NOT NULL REFERENCES orders,
        cum_quantity numeric(38, 18) NOT NULL CHECK (cum_quantity > 0),
        user_id text NOT NULL,
        usd numeric(38, 18) NOT NULL,
        recorded_at timestamptz NOT NULL,
        PRIMARY KEY (order_id, cum_quantity)
    )
    """,
    "CREATE INDEX realised_results_recent ON realised_results (user_id, recorded_at) INCLUDE (usd)",
    # Sums per day, so that a month's mean does not read a month's orders. A user's days lie as far apart in the table as they do in time:
    # the index has the sums as well, so that a month is read from one of its pages and not from thirty of the table's.
    """
    CREATE TABLE user_days (
        user_id text NOT NULL REFERENCES users,
        day date NOT NULL,
        trades integer NOT NULL CHECK (trades > 0),
        volume_usd numeric(38, 18) NOT NULL CHECK (volume_usd >= 0),
        PRIMARY KEY (user_id, day) INCLUDE (volume_usd)
    )
    """,
    """
    CREATE TABLE user_symbols (
        user_id text NOT NULL REFERENCES users,
        symbol text NOT NULL,
        first_at timestamptz NOT NULL,
        PRIMARY KEY (user_id, symbol)
    )
    """,
    """
    CREATE TABLE halts (
        scope text NOT NULL CHECK (scope IN ('all', 'exchange', 'symbol', 'user')),
        target text NOT NULL CHECK ((scope = 'all') = (target = '')),
        level text NOT NULL CHECK (level IN ('halt', 'reduce')),
        reason text NOT NULL,
        set_by text NOT NULL,
        command_id text NOT NULL,
        set_at timestamptz NOT NULL,
        PRIMARY KEY (scope, target)
    )
    """,
    *(
        f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        for table in ("realised_results",)
    ),
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
