"""The database moves balances itself, by the transfers that are written, and holds the ledger's rules over them.

Why by a trigger on transfers: docs/decisions/0015. The rules one by one: docs/ledger.md.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

# As in pipeline/books/ledger.SYSTEM_OWNERS; a test compares them.
_SYSTEM_OWNERS = "'@clearing', '@fees', '@opening', '@shortfall'"

_STATEMENTS = (
    # Plain numeric: numeric(38, 18) rounds silently what has more than 18 places, which the checks refuse.
    """
    ALTER TABLE transfers
        ALTER COLUMN amount TYPE numeric,
        DROP CONSTRAINT transfers_amount_check,
        DROP CONSTRAINT transfers_check,
        ADD CONSTRAINT amount_is_an_amount CHECK (amount > 0 AND amount < 1e20 AND amount = trunc(amount, 18))
    """,
    """
    ALTER TABLE balances
        ALTER COLUMN posted TYPE numeric,
        ALTER COLUMN pending TYPE numeric,
        ADD CONSTRAINT posted_is_an_amount CHECK (posted < 1e20 AND posted = trunc(posted, 18))
    """,
    # A fee of a sale may be told before any of its quantity is.
    """
    ALTER TABLE realised_results
        DROP CONSTRAINT realised_results_cum_quantity_check,
        ADD CONSTRAINT realised_results_cum_quantity_check CHECK (cum_quantity >= 0)
    """,
    # One kind of a transfer per line: who may stand on which side, and what it must name.
    f"""
    ALTER TABLE transfers ADD CONSTRAINT kind_fits_owners CHECK (
        CASE kind
            WHEN 'opening' THEN debit_owner = '@opening' AND credit_owner NOT LIKE '@%' AND order_id IS NULL
            WHEN 'hold' THEN debit_owner = credit_owner AND debit_owner NOT LIKE '@%' AND order_id IS NOT NULL
            WHEN 'release' THEN debit_owner = credit_owner AND debit_owner NOT LIKE '@%' AND order_id IS NOT NULL
            WHEN 'post_held' THEN debit_owner NOT LIKE '@%' AND credit_owner LIKE '@%' AND order_id IS NOT NULL
            ELSE debit_owner <> credit_owner AND (debit_owner LIKE '@%' OR credit_owner LIKE '@%') AND debit_owner <> '@opening'
        END
        AND credit_owner <> '@opening'
        AND (debit_owner NOT LIKE '@%' OR debit_owner IN ({_SYSTEM_OWNERS}))
        AND (credit_owner NOT LIKE '@%' OR credit_owner IN ({_SYSTEM_OWNERS}))
    )
    """,
    # Runs once per statement, after it. A row is moved once however many transfers touch it; what would become negative violates the checks
    # of `balances`. An account that is new is a user's: the foreign key says so.
    """
    CREATE FUNCTION move_balances() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        overdrawn text;
    BEGIN
        MERGE INTO balances AS held USING (
            SELECT user_id, exchange, book, asset, sum(posted) AS posted, sum(pending) AS pending FROM (
                SELECT debit_owner AS user_id, exchange, book, asset,
                    CASE WHEN kind IN ('hold', 'release') THEN 0 ELSE -amount END AS posted,
                    CASE kind WHEN 'hold' THEN amount WHEN 'post' THEN 0 ELSE -amount END AS pending
                FROM made WHERE debit_owner NOT LIKE '@%'
                UNION ALL
                SELECT credit_owner, exchange, book, asset, amount, 0
                FROM made WHERE credit_owner NOT LIKE '@%' AND kind NOT IN ('hold', 'release')
            ) AS side GROUP BY user_id, exchange, book, asset
        ) AS moved
        ON held.user_id = moved.user_id AND held.exchange = moved.exchange AND held.book = moved.book AND held.asset = moved.asset
        WHEN MATCHED THEN UPDATE SET posted = held.posted + moved.posted, pending = held.pending + moved.pending
        WHEN NOT MATCHED THEN INSERT (user_id, exchange, book, asset, posted, pending)
            VALUES (moved.user_id, moved.exchange, moved.book, moved.asset, moved.posted, moved.pending);
        SELECT min(order_id) INTO overdrawn FROM (
            SELECT transfers.order_id
            FROM (SELECT DISTINCT order_id FROM made WHERE kind IN ('post_held', 'release')) AS used
            JOIN transfers ON transfers.order_id = used.order_id AND transfers.kind IN ('hold', 'post_held', 'release')
            GROUP BY transfers.order_id, transfers.debit_owner, transfers.exchange, transfers.book, transfers.asset
            HAVING sum(CASE transfers.kind WHEN 'hold' THEN transfers.amount ELSE -transfers.amount END) < 0
        ) AS short;
        IF overdrawn IS NOT NULL THEN
            RAISE EXCEPTION 'more would be taken from the hold of % than was reserved for it', overdrawn
                USING ERRCODE = 'check_violation', CONSTRAINT = 'holds_cover_what_is_taken', TABLE = 'transfers';
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER move_balances AFTER INSERT ON transfers REFERENCING NEW TABLE AS made
        FOR EACH STATEMENT EXECUTE FUNCTION move_balances()
    """,
    # Nobody else moves a balance. A row may be begun without one, to note what was paid for what is about to come.
    """
    CREATE FUNCTION refuse_direct_move() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'balances are moved by transfers alone: % is refused', TG_OP
            USING ERRCODE = 'restrict_violation', HINT = 'Insert the transfers; their trigger moves the balances.';
    END $$
    """,
    """
    CREATE TRIGGER moved_by_transfers_alone
        BEFORE UPDATE OF user_id, exchange, book, asset, posted, pending OR DELETE OR TRUNCATE ON balances
        FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_direct_move()
    """,
    """
    CREATE TRIGGER begun_empty BEFORE INSERT ON balances FOR EACH ROW
        WHEN (pg_trigger_depth() = 0 AND (NEW.posted <> 0 OR NEW.pending <> 0)) EXECUTE FUNCTION refuse_direct_move()
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never migrated down: restore a backup instead")
