"""Questions that change nothing: is the database there, how far is a partition."""

from infra.postgres.step import Database, Progress


async def orders_in_doubt(database: Database) -> dict[str, int]:
    """How many orders of each exchange are in doubt now, in the whole database. Raises Retryable when it is out of reach."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT exchange, count(*) AS orders FROM orders WHERE executed_at IS NULL AND status = 'in_doubt' GROUP BY exchange"
        )
    return {row["exchange"]: row["orders"] for row in rows}


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
