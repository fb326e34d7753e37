"""A sale's result is stated once per word of the exchange, and one word may differ from another by its fee alone."""

from alembic import op

revision = "0004"
down_revision = "0003"

_STATEMENTS = (
    # The fees that count in the order's results so far, in US dollars.
    "ALTER TABLE realised_results ADD COLUMN fee_usd numeric(38, 18) NOT NULL DEFAULT 0 CHECK (fee_usd >= 0)",
    "ALTER TABLE realised_results DROP CONSTRAINT realised_results_pkey, ADD PRIMARY KEY (order_id, cum_quantity, fee_usd)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
