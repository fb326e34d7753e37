"""No `infinity` in a time that comes from outside: the driver gives it back without a zone, and nothing can be compared with it."""

from alembic import op

revision = "0015"
down_revision = "0014"

# By table, the columns that hold what a producer, an operator or an exchange has said. Workers of the last release may still store a moment
# of the year 9999, which reads back well: so the constraint refuses what cannot be read alone (schemas.times has the bound).
_TIMES = {
    "orders": ("expires_at", "requested_at"),
    "cancels": ("requested_at", "expires_at"),
    "withdrawals": ("expires_at", "requested_at"),
    "deposits": ("arrived_at", "looked_up_at"),
    "deposit_announcements": ("expires_at", "requested_at"),
    "api_keys": ("expires_at",),
    "balance_drifts": ("last_seen_at",),
}
# A row with `infinity` ended every worker that read it. The latest moment there is means what its sender meant.
MENDING = tuple(
    f"UPDATE {table} SET expires_at = '9998-12-31 23:59:59.999999+00' WHERE expires_at = 'infinity'"  # noqa: S608 — literals
    for table in ("orders", "withdrawals", "deposit_announcements", "api_keys")
)


def constraint_of(table: str, columns: tuple[str, ...]) -> str:
    """The statement that refuses `infinity` in these columns."""
    finite = " AND ".join(f"isfinite({column})" for column in columns)
    return f"ALTER TABLE {table} ADD CONSTRAINT {table}_times_are_finite CHECK ({finite})"


def upgrade() -> None:
    for statement in MENDING:
        op.execute(statement)
    for table, columns in _TIMES.items():
        op.execute(constraint_of(table, columns))


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
