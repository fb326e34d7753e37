"""Records that a step could not decide, kept for a person while everything else goes on."""

from alembic import op

revision = "0018"
down_revision = "0017"

_STATEMENTS = (
    """
    CREATE TABLE quarantine (
        quarantine_id text PRIMARY KEY,
        source_topic text NOT NULL,
        source_partition integer NOT NULL,
        source_offset bigint NOT NULL,
        appended_at timestamptz NOT NULL CHECK (isfinite(appended_at)),
        record_key bytea CHECK (octet_length(record_key) <= 65536),
        record_value bytea CHECK (octet_length(record_value) <= 65536),
        value_bytes bigint NOT NULL CHECK (value_bytes >= 0),
        record_headers bytea NOT NULL CHECK (octet_length(record_headers) <= 262144),
        stage text NOT NULL CHECK (stage IN ('decode', 'load', 'decide', 'store', 'call', 'conclude')),
        error text NOT NULL,
        place text NOT NULL,
        what text NOT NULL,
        user_id text NOT NULL,
        subject text NOT NULL,
        sparing boolean NOT NULL,
        repeats bigint NOT NULL DEFAULT 0 CHECK (repeats >= 0),
        state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'retried', 'dropped')),
        set_aside_at timestamptz NOT NULL,
        last_at timestamptz NOT NULL,
        moved_at timestamptz,
        moved_by text,
        -- A topic that is made anew counts its offsets from 0.
        UNIQUE (source_topic, source_partition, source_offset, appended_at),
        CHECK ((state = 'open') = (moved_at IS NULL)),
        CHECK ((moved_at IS NULL) = (moved_by IS NULL))
    )
    """,
    "CREATE INDEX quarantine_newest ON quarantine (source_topic, source_partition, set_aside_at)",
    "CREATE INDEX quarantine_subjects ON quarantine (subject) WHERE state = 'open'",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
