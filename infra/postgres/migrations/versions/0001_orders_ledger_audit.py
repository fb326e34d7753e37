"""Users, keys, claims, orders, cancels, the ledger, the audit chains and the input partitions.

Every invariant that the code keeps is a constraint here as well: a defect in the code stops at the database.
"""

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = (
    # One row per input partition of a consumer group: who may write for it (fencing_epoch), how far the database is (next_offset), and what
    # the newest batch publishes, until the next batch proves that Kafka has it.
    """
    CREATE TABLE input_partitions (
        consumer_group text NOT NULL,
        topic text NOT NULL,
        partition integer NOT NULL CHECK (partition >= 0),
        fencing_epoch bigint NOT NULL CHECK (fencing_epoch > 0),
        base_offset bigint NOT NULL CHECK (base_offset >= -1),
        next_offset bigint NOT NULL CHECK (next_offset >= base_offset),
        outputs bytea,
        carried bytea,
        updated_at timestamptz NOT NULL,
        PRIMARY KEY (consumer_group, topic, partition)
    )
    """,
    """
    CREATE TABLE users (
        user_id text PRIMARY KEY CHECK (length(user_id) BETWEEN 1 AND 128 AND user_id NOT LIKE '@%'),
        status text NOT NULL CHECK (status IN ('pending', 'active', 'frozen', 'closed')),
        created_at timestamptz NOT NULL
    )
    """,
    """
    CREATE TABLE api_keys (
        user_id text NOT NULL REFERENCES users,
        api_key_id text NOT NULL,
        exchange text NOT NULL,
        encryption_key_id text NOT NULL,
        ciphertext bytea NOT NULL,
        status text NOT NULL CHECK (status IN ('active', 'revoked', 'expired')),
        created_at timestamptz NOT NULL,
        PRIMARY KEY (user_id, api_key_id)
    )
    """,
    # The head of each account's audit chain. Its row lock is the account's lock: every writer of a user's rows takes it first, in sorted
    # order, so that writers of the same user queue up and never wait for each other in a circle.
    """
    CREATE TABLE audit_chains (
        account text PRIMARY KEY,
        seq bigint NOT NULL CHECK (seq >= 0),
        hash text NOT NULL CHECK (length(hash) = 64)
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE audit_events (
        account text NOT NULL,
        seq bigint NOT NULL CHECK (seq > 0),
        event_id text NOT NULL,
        order_id text,
        hash text NOT NULL CHECK (length(hash) = 64),
        body text NOT NULL,
        recorded_at timestamptz NOT NULL,
        PRIMARY KEY (account, seq)
    )
    """,
    "CREATE INDEX audit_events_order_id ON audit_events (order_id) WHERE order_id IS NOT NULL",
    """
    CREATE TABLE claims (
        user_id text NOT NULL,
        idempotency_key text NOT NULL CHECK (length(idempotency_key) BETWEEN 1 AND 255),
        source_topic text NOT NULL,
        source_partition integer NOT NULL,
        source_offset bigint NOT NULL,
        request_id text NOT NULL,
        request_type text,
        fingerprint text NOT NULL,
        order_id text,
        claimed_at timestamptz NOT NULL,
        result text,
        PRIMARY KEY (user_id, idempotency_key)
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX claims_claimed_at ON claims (claimed_at)",
    """
    CREATE TABLE orders (
        order_id text PRIMARY KEY,
        client_order_id text NOT NULL UNIQUE,
        exchange_order_id text,
        user_id text NOT NULL REFERENCES users,
        idempotency_key text NOT NULL,
        request_id text NOT NULL,
        source_topic text NOT NULL,
        source_partition integer NOT NULL,
        source_offset bigint NOT NULL,
        mode text NOT NULL CHECK (mode IN ('live', 'paper')),
        exchange text NOT NULL,
        api_key_id text NOT NULL,
        symbol text NOT NULL,
        side text NOT NULL CHECK (side IN ('buy', 'sell')),
        order_type text NOT NULL,
        time_in_force text,
        quantity numeric(38, 18) CHECK (quantity > 0),
        quote_quantity numeric(38, 18) CHECK (quote_quantity > 0),
        price numeric(38, 18) CHECK (price > 0),
        status text NOT NULL CHECK (status IN ('accepted', 'submitting', 'in_doubt', 'new', 'partially_filled', 'filled', 'canceled',
                                               'expired', 'rejected')),
        reason_code text,
        reason text,
        cum_quantity numeric(38, 18) NOT NULL CHECK (cum_quantity >= 0),
        cum_quote numeric(38, 18) NOT NULL CHECK (cum_quote >= 0),
        fee numeric(38, 18) NOT NULL CHECK (fee >= 0),
        fee_asset text,
        -- All fees, one pair of asset and total each; fee and fee_asset show the first.
        fees text NOT NULL DEFAULT '[]',
        hold_asset text NOT NULL,
        hold_amount numeric(38, 18) NOT NULL CHECK (hold_amount >= 0),
        attempt integer NOT NULL CHECK (attempt >= 0),
        fencing_epoch bigint NOT NULL,
        work_partition integer NOT NULL,
        submitting_at timestamptz,
        expires_at timestamptz NOT NULL,
        requested_at timestamptz NOT NULL,
        decided_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        executed_at timestamptz,
        traceparent text,
        UNIQUE (source_topic, source_partition, source_offset, requested_at),
        CHECK ((quantity IS NULL) <> (quote_quantity IS NULL)),
        CHECK (quantity IS NULL OR cum_quantity <= quantity),
        -- What is over holds nothing and says when it ended; what runs does not.
        CHECK ((status IN ('filled', 'canceled', 'expired', 'rejected')) = (executed_at IS NOT NULL)),
        CHECK (executed_at IS NULL OR hold_amount = 0),
        CHECK (status NOT IN ('submitting', 'in_doubt', 'new', 'partially_filled', 'filled', 'expired') OR submitting_at IS NOT NULL)
    ) WITH (fillfactor = 60)
    """,
    "CREATE INDEX orders_user_id ON orders (user_id, requested_at)",
    "CREATE INDEX orders_unfinished ON orders (exchange, work_partition, order_id) WHERE executed_at IS NULL",
    """
    CREATE TABLE cancels (
        source_topic text NOT NULL,
        source_partition integer NOT NULL,
        source_offset bigint NOT NULL,
        order_id text NOT NULL REFERENCES orders,
        user_id text NOT NULL,
        idempotency_key text NOT NULL,
        request_id text NOT NULL,
        requested_at timestamptz NOT NULL,
        decided_at timestamptz NOT NULL,
        attempt integer NOT NULL CHECK (attempt > 0),
        ended boolean NOT NULL DEFAULT false,
        traceparent text,
        PRIMARY KEY (source_topic, source_partition, source_offset, requested_at)
    )
    """,
    "CREATE INDEX cancels_pending ON cancels (order_id) WHERE NOT ended",
    """
    CREATE TABLE balances (
        user_id text NOT NULL REFERENCES users,
        exchange text NOT NULL,
        book text NOT NULL CHECK (book IN ('live', 'paper')),
        asset text NOT NULL,
        posted numeric(38, 18) NOT NULL CHECK (posted >= 0),
        pending numeric(38, 18) NOT NULL CHECK (pending >= 0),
        PRIMARY KEY (user_id, exchange, book, asset),
        CHECK (posted >= pending)
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE transfers (
        transfer_id text PRIMARY KEY,
        kind text NOT NULL CHECK (kind IN ('opening', 'hold', 'post_held', 'post', 'release')),
        order_id text,
        exchange text NOT NULL,
        book text NOT NULL CHECK (book IN ('live', 'paper')),
        asset text NOT NULL,
        debit_owner text NOT NULL,
        credit_owner text NOT NULL,
        amount numeric(38, 18) NOT NULL CHECK (amount > 0),
        recorded_at timestamptz NOT NULL,
        CHECK ((kind IN ('hold', 'release')) = (debit_owner = credit_owner))
    )
    """,
    "CREATE INDEX transfers_order_id ON transfers (order_id) WHERE order_id IS NOT NULL",
    """
    CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
    END $$
    """,
    *(
        f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        for table in ("audit_events", "transfers")
    ),
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
