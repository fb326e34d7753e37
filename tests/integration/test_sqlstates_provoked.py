"""Errors of a real server, each as a step meets it: what passes is tried again, what does not is told as it is."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from asyncpg.pool import PoolConnectionProxy
from sqlalchemy.engine import make_url

from infra.postgres.database import Database, InputPartition, connect
from infra.postgres.schema import DatabaseUnfit
from infra.postgres.sqlstates import BY_CLASS, BY_CODE, Reaction, reaction_to_code
from infra.postgres.step import open_step
from pipeline.model.invariants import InvariantViolation, Retryable
from tests.integration.step_database import open_database, plain_connection, take_in, taken
from tests.unit.builders import arrival, limit

Provoke = Callable[[PoolConnectionProxy, str], Awaitable[object]]
_RAISED = {
    Reaction.RETRY: Retryable,
    Reaction.RECONNECT: Retryable,
    Reaction.UNFIT: DatabaseUnfit,
    Reaction.REFUSED: InvariantViolation,
    Reaction.DEFECT: asyncpg.PostgresError,
}
# A class is tried by its general code; two that the table does not name must stay what they are.
_EVERY = sorted({f"{group}000" for group in BY_CLASS} | BY_CODE.keys() | {"42601", "XX000"})


async def _in_a_step(database: Database, provoke: Provoke, url: str) -> None:
    partition = await taken(database)
    async with open_step(database, partition) as step:
        await provoke(step.connection, url)


@pytest.mark.parametrize("sqlstate", _EVERY)
async def test_error_with_this_code_ends_a_step_as_the_table_says(sqlstate: str, database_url: str) -> None:
    """Every code of the table, raised by the server in the middle of a step."""

    async def provoke(connection: PoolConnectionProxy, _: str) -> None:
        await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '{sqlstate}'; END $$")

    async with open_database(database_url) as database:
        with pytest.raises(_RAISED[reaction_to_code(sqlstate)]) as raised:
            await _in_a_step(database, provoke, database_url)
    if reaction_to_code(sqlstate) is Reaction.DEFECT:
        assert raised.value.sqlstate == sqlstate  # type: ignore[attr-defined]


async def _transaction_timeout(connection: PoolConnectionProxy, _: str) -> None:
    # The limit of `connect`: twice that of one statement, which none of these reaches.
    for _ in range(30):
        await connection.execute("SELECT pg_sleep(0.2)")


async def _idle_in_transaction(connection: PoolConnectionProxy, _: str) -> None:
    await connection.execute("SET idle_in_transaction_session_timeout = '100ms'")
    await asyncio.sleep(0.5)
    await connection.execute("SELECT 1")


async def _statement_timeout(connection: PoolConnectionProxy, _: str) -> None:
    await connection.execute("SET LOCAL statement_timeout = '100ms'")
    await connection.execute("SELECT pg_sleep(5)")


async def _cancel(connection: PoolConnectionProxy, url: str) -> None:
    await _stopped_by(connection, url, "pg_cancel_backend")


async def _terminate(connection: PoolConnectionProxy, url: str) -> None:
    await _stopped_by(connection, url, "pg_terminate_backend")


async def _stopped_by(connection: PoolConnectionProxy, url: str, how: str) -> None:
    pid = connection.get_server_pid()

    async def stop() -> None:
        async with plain_connection(url) as other:
            await asyncio.sleep(0.2)
            await other.execute(f"SELECT {how}({pid})")

    stopping = asyncio.create_task(stop())
    try:
        await connection.execute("SELECT pg_sleep(5)")
    finally:
        await stopping


async def _lock_timeout(connection: PoolConnectionProxy, url: str) -> None:
    async with plain_connection(url) as other, other.transaction():
        await other.execute("LOCK TABLE users")
        await connection.execute("SET LOCAL lock_timeout = '100ms'")
        await connection.fetchval("SELECT count(*) FROM users")


async def _deadlock(connection: PoolConnectionProxy, url: str) -> None:
    async with plain_connection(url) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SET LOCAL deadlock_timeout = '10s'")
        await other.execute("SELECT pg_advisory_xact_lock(1)")
        await connection.execute("SET LOCAL deadlock_timeout = '50ms'")
        await connection.execute("SELECT pg_advisory_xact_lock(2)")
        waiting = asyncio.create_task(other.execute("SELECT pg_advisory_xact_lock(2)"))
        await asyncio.sleep(0.2)
        try:
            await connection.execute("SELECT pg_advisory_xact_lock(1)")
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


async def _read_only(connection: PoolConnectionProxy, _: str) -> None:
    await connection.execute("SET TRANSACTION READ ONLY")
    await connection.execute("UPDATE users SET status = status")


async def _temporary_files(connection: PoolConnectionProxy, _: str) -> None:
    await connection.execute("SET LOCAL temp_file_limit = 0")
    await connection.execute("SET LOCAL work_mem = '64kB'")
    await connection.fetch("SELECT n FROM generate_series(1, 200000) AS n ORDER BY md5(n::text)")


@pytest.mark.parametrize(
    ("provoke", "sqlstate"),
    [
        (_transaction_timeout, "25P04"),
        (_idle_in_transaction, "25P03"),
        (_statement_timeout, "57014"),
        (_cancel, "57014"),
        (_terminate, "57P01"),
        (_lock_timeout, "55P03"),
        (_deadlock, "40P01"),
        (_read_only, "25006"),
        (_temporary_files, "53400"),
    ],
)
async def test_limit_or_stop_of_the_server_ends_a_step_that_can_be_tried_again(
    provoke: Provoke, sqlstate: str, database_url: str
) -> None:
    """The server's own limits and an administrator's hand are no defects: the step is rolled back, and the next attempt is stored."""
    async with open_database(database_url, timeout_seconds=2) as database:
        with pytest.raises(Retryable) as raised:
            await _in_a_step(database, provoke, database_url)
        # A session that the server has closed fails once more when its transaction is left.
        errors: list[BaseException] = [raised.value]
        while (cause := errors[-1].__cause__ or errors[-1].__context__) is not None:
            errors.append(cause)
        codes = {getattr(error, "sqlstate", None) for error in errors}
        # What the server says while nothing is asked, the driver does not hand on: it finds the session closed.
        assert sqlstate in codes or (sqlstate == "25P03" and isinstance(errors[-1], asyncpg.InterfaceError)), errors
        await take_in(database, await taken(database), [arrival(limit())], 1)


async def test_serialization_failure_can_be_tried_again(database_url: str) -> None:
    """Two transactions that met, at the level where the server refuses one of them."""
    async with open_database(database_url) as database, plain_connection(database_url) as other:
        with pytest.raises(Retryable, match="SerializationError"):
            async with database.connection() as connection, connection.transaction(isolation="repeatable_read"):
                await connection.fetchval("SELECT count(*) FROM users")
                await other.execute("UPDATE users SET status = status")
                await connection.execute("UPDATE users SET status = status")


async def test_migration_under_a_running_worker_is_no_defect_of_it(database_url: str) -> None:
    """A newer worker adds a column while this one runs: its prepared statements are made anew, and its next step is stored."""
    async with open_database(database_url) as database:
        async with open_step(database, await taken(database)) as step:
            await step.orders(["none"])
        async with plain_connection(database_url) as other:
            await other.execute("ALTER TABLE orders ADD COLUMN new_in_the_next_release text")
        for _ in range(9):
            try:
                async with open_step(database, await taken(database)) as step:
                    await step.orders(["none"])
                break
            except Retryable:
                continue
        else:
            pytest.fail("the statements were not made anew")


async def test_read_only_server_is_left_for_its_successor(database_url: str) -> None:
    """After a switch-over the old primary refuses writes in sessions that stay open: the next step has a new session."""
    async with open_database(database_url) as database:
        async with database.connection() as connection:
            old = connection.get_server_pid()
            await connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(Retryable):
            async with open_step(database, await _taken_by_another(database_url)) as step:
                await step.connection.execute("UPDATE users SET status = status")
        async with database.connection() as connection:
            assert connection.get_server_pid() != old


async def _taken_by_another(url: str) -> InputPartition:
    """A partition, taken in a session of its own: that of the pool cannot write."""
    async with open_database(url, users=()) as writable:
        return await taken(writable)


@pytest.mark.parametrize("wrong", ["database", "username"])
async def test_wrong_database_or_user_is_for_a_person_to_change(wrong: str, database_url: str) -> None:
    """Waiting does not help: the settings name what is not there."""
    url = make_url(database_url).set(**{wrong: "nobody_has_made_this"}).render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnfit, match=r"SQLSTATE (3D000|28)"):
        await connect(url, 2, 5)


async def test_too_many_sessions_pass(database_url: str) -> None:
    """Others end theirs."""
    async with plain_connection(database_url) as administrator:
        name = await administrator.fetchval("SELECT current_database()")
        await administrator.execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
        try:
            url = make_url(database_url).set(username="crowded").render_as_string(hide_password=False)
            with pytest.raises(Retryable, match=r"53300|TooManyConnections"):
                await connect(url, 2, 5)
        finally:
            await administrator.execute(f'REVOKE ALL ON DATABASE "{name}" FROM crowded')
            await administrator.execute("DROP ROLE crowded")
