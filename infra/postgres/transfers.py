"""Transfers written outside a batch: openings, and what else is applied once for a cause that may be told twice.

Invariants:
1. Balances are never written here: the database moves them by the transfers that are (migration 0007).
2. A transfer that was applied before moves nothing, and the caller is told so; the same id with another content is refused by name.

A batch writes its own (infra/postgres/storing) and loads with `stored_transfers` those that it may meet again.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from asyncpg.pool import PoolConnectionProxy

from infra.postgres.rows import TRANSFERS, transfer_of
from pipeline.books.ledger import Outcome, Transfer, same_again


async def stored_transfers(connection: PoolConnectionProxy, transfer_ids: Iterable[str]) -> dict[str, Transfer]:
    """Those of these transfers that are there, by id."""
    sql = f"SELECT {TRANSFERS.names} FROM transfers WHERE transfer_id = ANY($1::text[])"  # noqa: S608 — literals
    rows = await connection.fetch(sql, sorted(set(transfer_ids)))
    return {row["transfer_id"]: transfer_of(row) for row in rows}


async def apply_transfers(connection: PoolConnectionProxy, transfers: Sequence[Transfer], now: datetime) -> dict[str, Outcome]:
    """Applies transfers inside the caller's transaction, which holds their users' locks; returns by id what became of each.

    Raises InvariantViolation, naming the transfer, where its id was applied for another movement: the caller rolls back.
    """
    outcomes: dict[str, Outcome] = {}
    given: dict[str, Transfer] = {}
    for transfer in transfers:
        before = given.setdefault(transfer.transfer_id, transfer)
        if before is not transfer:
            same_again(before, transfer)
    sql = f"{TRANSFERS.insert(1, 'recorded_at')} ON CONFLICT (transfer_id) DO NOTHING RETURNING transfer_id"
    rows = await connection.fetch(sql, *TRANSFERS.arrays(given.values()), now)
    outcomes.update((row["transfer_id"], Outcome.APPLIED) for row in rows)
    again = given.keys() - outcomes.keys()
    if again:
        # A later statement than the insert: it sees what another transaction has committed while the insert waited for it.
        stored = await stored_transfers(connection, again)
        outcomes.update((transfer_id, same_again(stored[transfer_id], given[transfer_id])) for transfer_id in again)
    return outcomes
