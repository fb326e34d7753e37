"""Withdrawals, and the addresses that users may withdraw to."""

from alembic import op

revision = "0005"
down_revision = "0004"

_STATEMENTS = (
    # A removed address stays, so that the history tells when it could be used. One that is added again begins to wait anew.
    """
    CREATE TABLE addresses (
        user_id text NOT NULL REFERENCES users,
        network text NOT NULL CHECK (length(network) BETWEEN 1 AND 64),
        address text NOT NULL CHECK (length(address) BETWEEN 1 AND 256),
        address_tag text NOT NULL DEFAULT '' CHECK (length(address_tag) <= 128),
        label text,
        added_at timestamptz NOT NULL,
        added_by text NOT NULL,
        removed_at timestamptz,
        CHECK (removed_at IS NULL OR removed_at >= added_at)
    )
    """,
    "CREATE UNIQUE INDEX addresses_allowed ON addresses (user_id, network, address, address_tag) WHERE removed_at IS NULL",
    """
    CREATE FUNCTION refuse_earlier_address() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.added_at <> OLD.added_at OR OLD.removed_at IS NOT NULL
            OR (NEW.user_id, NEW.network, NEW.address, NEW.address_tag) IS DISTINCT FROM
               (OLD.user_id, OLD.network, OLD.address, OLD.address_tag) THEN
            RAISE EXCEPTION 'an address of % is never changed, only removed', OLD.user_id USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER only_removed BEFORE UPDATE ON addresses FOR EACH ROW EXECUTE FUNCTION refuse_earlier_address()",
    """
    CREATE TABLE withdrawals (
        withdrawal_id text PRIMARY KEY,
        client_withdrawal_id text NOT NULL UNIQUE,
        exchange_withdrawal_id text,
        transaction_id text,
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
        network text NOT NULL,
        address text NOT NULL,
        address_tag text,
        amount numeric(38, 18) NOT NULL CHECK (amount > 0),
        fee numeric(38, 18) NOT NULL CHECK (fee >= 0),
        status text NOT NULL CHECK (status IN ('pending_approval', 'accepted', 'submitting', 'in_doubt', 'processing', 'completed',
                                               'failed', 'rejected')),
        reason_code text,
        reason text,
        hold_amount numeric(38, 18) NOT NULL CHECK (hold_amount >= 0),
        usd_value numeric(38, 18) NOT NULL CHECK (usd_value >= 0),
        approved_by text,
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
        -- What is over holds nothing and says when it ended; what runs holds all of it.
        CHECK ((status IN ('completed', 'failed', 'rejected')) = (executed_at IS NOT NULL)),
        CHECK (executed_at IS NULL OR hold_amount = 0),
        CHECK (executed_at IS NOT NULL OR hold_amount = amount + fee),
        CHECK (status NOT IN ('submitting', 'in_doubt', 'processing', 'completed', 'failed') OR submitting_at IS NOT NULL),
        CHECK (status NOT IN ('processing', 'completed', 'failed') OR exchange_withdrawal_id IS NOT NULL),
        -- Four eyes: nobody approves a withdrawal of their own.
        CHECK (approved_by IS NULL OR approved_by <> user_id)
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX withdrawals_decided ON withdrawals (user_id, decided_at)",
    "CREATE INDEX withdrawals_unfinished ON withdrawals (exchange, work_partition, withdrawal_id) WHERE executed_at IS NULL",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
