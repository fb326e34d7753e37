"""Sessions: what one code of a user's second factor lets the trades that follow it do."""

from alembic import op

revision = "0013"
down_revision = "0012"

_STATEMENTS = (
    # Whatever changes a user's status, here or by hand, ends the sessions that were begun before: they are of an older generation.
    "ALTER TABLE users ADD COLUMN session_generation bigint NOT NULL DEFAULT 0 CHECK (session_generation >= 0)",
    """
    CREATE FUNCTION raise_session_generation() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.session_generation := OLD.session_generation + 1;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER status_ends_sessions BEFORE UPDATE ON users FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION raise_session_generation()
    """,
    """
    CREATE FUNCTION end_sessions_of_factor() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE users SET session_generation = session_generation + 1 WHERE user_id = OLD.user_id;
        RETURN NULL;
    END $$
    """,
    # A code moves its factor's row as well; a new time of enrolment makes another factor of it.
    """
    CREATE TRIGGER factor_ends_sessions AFTER UPDATE ON second_factors FOR EACH ROW
        WHEN (OLD.enrolled_at IS DISTINCT FROM NEW.enrolled_at) EXECUTE FUNCTION end_sessions_of_factor()
    """,
    """
    CREATE TRIGGER removal_ends_sessions AFTER DELETE ON second_factors FOR EACH ROW EXECUTE FUNCTION end_sessions_of_factor()
    """,
    # The id is a digest of user and `sid`: nothing of a token is stored.
    """
    CREATE TABLE sessions (
        session_id text PRIMARY KEY CHECK (session_id ~ '^s[0-9a-f]{32}$'),
        user_id text NOT NULL REFERENCES users,
        issuer_key text NOT NULL CHECK (length(issuer_key) BETWEEN 1 AND 64),
        generation bigint NOT NULL CHECK (generation >= 0),
        request_id text NOT NULL,
        started_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        amount_usd_max numeric NOT NULL CHECK (amount_usd_max >= 0),
        amount_usd_used numeric NOT NULL CHECK (amount_usd_used >= 0),
        orders_max bigint NOT NULL CHECK (orders_max >= 1),
        orders_used bigint NOT NULL CHECK (orders_used >= 0),
        symbols text CHECK (jsonb_array_length(symbols::jsonb) >= 1),
        ended_at timestamptz,
        ended_because text,
        CHECK (expires_at > started_at),
        CHECK (orders_used <= orders_max),
        CHECK (amount_usd_used <= amount_usd_max),
        CHECK ((ended_at IS NULL) = (ended_because IS NULL)),
        CHECK (ended_at >= started_at)
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX sessions_of_users ON sessions (user_id, expires_at)",
    # What was used stays used, and what has ended stays so, until a new code begins the session anew.
    """
    CREATE FUNCTION refuse_session_refund() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.request_id = OLD.request_id AND NEW.started_at = OLD.started_at AND (
            NEW.orders_used < OLD.orders_used OR NEW.amount_usd_used < OLD.amount_usd_used
            OR NEW.orders_max <> OLD.orders_max OR NEW.amount_usd_max <> OLD.amount_usd_max OR NEW.expires_at <> OLD.expires_at
            OR NEW.symbols IS DISTINCT FROM OLD.symbols OR NEW.generation <> OLD.generation
            OR (OLD.ended_at IS NOT NULL AND NEW.ended_at IS DISTINCT FROM OLD.ended_at)
        ) THEN
            RAISE EXCEPTION 'session % would be widened, refunded or opened again', OLD.session_id USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER session_only_shrinks BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION refuse_session_refund()
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
