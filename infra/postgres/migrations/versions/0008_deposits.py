"""Deposits, what producers announced of them, and what is disputed."""

from alembic import op

revision = "0008"
down_revision = "0007"

_STATEMENTS = (
    """
    CREATE TABLE deposits (
        deposit_id text PRIMARY KEY,
        exchange text NOT NULL,
        transaction_id text NOT NULL CHECK (transaction_id <> ''),
        asset text NOT NULL,
        address text NOT NULL,
        output_index text NOT NULL,
        exchange_deposit_id text NOT NULL,
        user_id text NOT NULL REFERENCES users,
        api_key_id text NOT NULL,
        network text NOT NULL,
        address_tag text,
        amount numeric(38, 18) NOT NULL CHECK (amount > 0),
        status text NOT NULL CHECK (status IN ('detected', 'confirming', 'credited', 'reversed', 'rejected')),
        advanced numeric(38, 18) NOT NULL CHECK (advanced >= 0 AND advanced <= amount),
        arrived_at timestamptz NOT NULL,
        looked_up_at timestamptz NOT NULL,
        detected_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        credited_at timestamptz,
        reversed_at timestamptz,
        -- One credit for what makes a deposit another than all others, and one for each entry of an exchange's history.
        UNIQUE (exchange, transaction_id, asset, address, output_index),
        UNIQUE (exchange, exchange_deposit_id),
        CHECK ((status IN ('credited', 'reversed')) = (credited_at IS NOT NULL)),
        CHECK ((status = 'reversed') = (reversed_at IS NOT NULL)),
        CHECK (status = 'reversed' OR advanced = 0)
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX deposits_user_id ON deposits (user_id, credited_at)",
    """
    CREATE FUNCTION refuse_other_deposit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (NEW.deposit_id, NEW.exchange, NEW.transaction_id, NEW.asset, NEW.address, NEW.output_index, NEW.exchange_deposit_id,
            NEW.user_id, NEW.amount) IS DISTINCT FROM
           (OLD.deposit_id, OLD.exchange, OLD.transaction_id, OLD.asset, OLD.address, OLD.output_index, OLD.exchange_deposit_id,
            OLD.user_id, OLD.amount)
            OR (OLD.credited_at IS NOT NULL AND NEW.credited_at IS DISTINCT FROM OLD.credited_at)
            OR OLD.status = 'reversed' THEN
            RAISE EXCEPTION 'deposit % is credited once, as it came, and reversed once', OLD.deposit_id
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER stays_what_it_is BEFORE UPDATE ON deposits FOR EACH ROW EXECUTE FUNCTION refuse_other_deposit()",
    """
    CREATE TABLE deposit_announcements (
        announcement_id text PRIMARY KEY,
        user_id text NOT NULL REFERENCES users,
        idempotency_key text NOT NULL,
        request_id text NOT NULL,
        source_topic text NOT NULL,
        source_partition integer NOT NULL,
        source_offset bigint NOT NULL,
        mode text NOT NULL CHECK (mode = 'live'),
        exchange text NOT NULL,
        api_key_id text NOT NULL,
        asset text NOT NULL,
        amount numeric(38, 18) NOT NULL CHECK (amount > 0),
        network text,
        address text,
        address_tag text,
        status text NOT NULL CHECK (status IN ('expected', 'completed', 'failed')),
        reason_code text,
        reason text,
        -- A deposit is the answer to one announcement at most.
        deposit_id text UNIQUE REFERENCES deposits,
        exchange_deposit_id text,
        expires_at timestamptz NOT NULL,
        requested_at timestamptz NOT NULL,
        decided_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        executed_at timestamptz,
        traceparent text,
        UNIQUE (source_topic, source_partition, source_offset, requested_at),
        CHECK ((status = 'expected') = (executed_at IS NULL)),
        CHECK ((status = 'completed') = (deposit_id IS NOT NULL)),
        CHECK ((deposit_id IS NULL) = (exchange_deposit_id IS NULL))
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX deposit_announcements_user_id ON deposit_announcements (user_id, announcement_id) WHERE executed_at IS NULL",
    "CREATE INDEX deposit_announcements_expected ON deposit_announcements (exchange, expires_at) WHERE executed_at IS NULL",
    # What did not fit, and for whom it was reported: of a deposit that another user has there is no row of this user's.
    """
    CREATE TABLE deposit_disputes (
        user_id text NOT NULL REFERENCES users,
        deposit_id text NOT NULL,
        kind text NOT NULL CHECK (kind IN ('foreign', 'changed', 'twin', 'returned')),
        what text NOT NULL,
        noted_at timestamptz NOT NULL,
        PRIMARY KEY (user_id, deposit_id, kind)
    )
    """,
    # When a user's opening balance was taken over: what was deposited before is part of it.
    "CREATE INDEX transfers_opening ON transfers (credit_owner, exchange) INCLUDE (recorded_at) WHERE kind = 'opening' AND book = 'live'",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
