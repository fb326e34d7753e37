"""Questions that change nothing: is the database there, how far is a partition."""

from dataclasses import dataclass

from infra.postgres.database import Database
from infra.postgres.step import Progress


@dataclass(frozen=True, slots=True)
class Doubts:
    """What is in doubt at an exchange, and for how long the oldest of it is."""

    orders: int = 0
    withdrawals: int = 0
    age_seconds: float = 0.0


async def doubts_by_exchange(database: Database) -> dict[str, Doubts]:
    """What is in doubt now, in the whole database. Raises Retryable when it is out of reach."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            """
            SELECT exchange, sum(orders)::bigint, sum(withdrawals)::bigint,
                greatest(0, extract(epoch FROM now() - min(since)))::double precision
            FROM (
                SELECT exchange, count(*) AS orders, 0 AS withdrawals, min(updated_at) AS since
                FROM orders WHERE executed_at IS NULL AND status = 'in_doubt' GROUP BY exchange
                UNION ALL SELECT exchange, 0, count(*), min(updated_at)
                FROM withdrawals WHERE executed_at IS NULL AND status = 'in_doubt' GROUP BY exchange
            ) AS doubtful GROUP BY exchange
            """
        )
    return {exchange: Doubts(*figures) for exchange, *figures in map(tuple, rows)}


async def partition_progress(database: Database, consumer_group: str, topic: str, partition: int) -> Progress:
    """How far the database is with an input partition, without its outputs and without taking it over; -1 where it has never been owned.

    Raises Retryable when the database is out of reach.
    """
    async with database.connection() as connection:
        row = await connection.fetchrow(
            "SELECT base_offset, next_offset FROM input_partitions WHERE consumer_group = $1 AND topic = $2 AND partition = $3",
            consumer_group,
            topic,
            partition,
        )
    return Progress(-1, -1, (), ()) if row is None else Progress(row["base_offset"], row["next_offset"], (), ())
