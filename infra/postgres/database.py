"""The pool of connections: what may be asked outside a step, and how a session is set up."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from infra.postgres.sqlstates import OF_THE_DATABASE, Reaction, outside_a_step, reaction_of, within_a_step

Connection = PoolConnectionProxy


@dataclass(frozen=True, slots=True)
class InputPartition:
    """An input partition as this worker owns it. `fencing_epoch` is what it got when it took over."""

    consumer_group: str
    topic: str
    partition: int
    fencing_epoch: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Database:
    """The pool of connections. Made by `connect`."""

    def __init__(self, pool: asyncpg.Pool, timeout_seconds: float) -> None:
        self._pool = pool
        self._timeout = timeout_seconds

    async def close(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection outside any step, for reading and administration.

        Raises Retryable when the database is out of reach, DatabaseUnfit when it refuses us.
        """
        try:
            async with self._pool.acquire(timeout=self._timeout) as connection:
                yield connection
        except OF_THE_DATABASE as error:
            await self._replace_sessions(error)
            named = outside_a_step(error)
            if named is None:
                raise
            raise named from error

    @asynccontextmanager
    async def transaction(self, about: str) -> AsyncIterator[Connection]:
        """A transaction that commits when the block ends well. `about` names in errors what it was for.

        Raises InvariantViolation when the database refuses what the block stores, Retryable when it is out of reach, DatabaseUnfit when it
        refuses us. After Retryable the commit's outcome is unknown.
        """
        try:
            async with self._pool.acquire(timeout=self._timeout) as connection, connection.transaction():
                yield connection
        except OF_THE_DATABASE as error:
            await self._replace_sessions(error)
            named = within_a_step(error, about)
            if named is None:
                raise
            raise named from error

    async def _replace_sessions(self, error: Exception) -> None:
        """Lets no step have an old session again, where they are of no use any more."""
        if reaction_of(error) is Reaction.RECONNECT:
            await self._pool.expire_connections()


async def _leave_clean(connection: asyncpg.Connection) -> None:
    """Replaces asyncpg's reset, a round trip per step: no step changes its session, so only an open transaction has to be ended, and
    asyncpg has ended that before it calls this."""


def _transaction_limit(timeout_seconds: float) -> Callable[[asyncpg.Connection], Coroutine[None, None, None]]:
    """Lets the server end a session whose step takes longer than two statements may.

    A worker that is paused between two messages of one statement is not idle to the server, and asyncpg may wait for ever for that
    statement when the worker wakes up. Servers before PostgreSQL 17 have no such limit: there its locks stay until its process ends.
    """

    async def limit(connection: asyncpg.Connection) -> None:
        if connection.get_server_version().major >= 17:
            await connection.execute(f"SET transaction_timeout = {int(timeout_seconds * 2000)}")
        # Whatever somebody has set for the server, the database or the user: an intent is on the disk before its order is sent.
        await connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')"
        )

    return limit


async def connect(database_url: str, pool_size: int, timeout_seconds: float) -> Database:
    """Opens the pool. Raises Retryable when the database is out of reach, DatabaseUnfit when it refuses us."""
    try:
        pool = await asyncpg.create_pool(
            database_url,
            min_size=1,
            max_size=pool_size,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds,
            init=_transaction_limit(timeout_seconds),
            reset=_leave_clean,
            server_settings={
                "application_name": "orchestrator-worker",
                # A worker that is paused in the middle of a step holds the locks of its users and its partition. The server ends its
                # transaction, so that the partition's next owner can take over; the paused worker finds its connection closed.
                "idle_in_transaction_session_timeout": f"{int(timeout_seconds * 1000)}ms",
                # A batch joins a few hundred given rows with primary keys. On a fresh table, which has no statistics yet, the planner
                # would read or hash the whole table instead: 9 to 15 ms for one row, where the index takes 0.4 ms.
                "enable_seqscan": "off",
                "enable_hashjoin": "off",
                "enable_mergejoin": "off",
            },
        )
    except OF_THE_DATABASE as error:
        named = outside_a_step(error)
        if named is None:
            raise
        raise named from error
    return Database(pool, timeout_seconds)
