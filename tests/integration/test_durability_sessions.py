"""A worker's sessions commit to the disk, whatever the database's default is."""

import pytest
from sqlalchemy.engine import make_url

from infra.postgres.database import connect
from infra.postgres.durability import require_durable
from tests.integration.step_database import plain_connection


@pytest.mark.parametrize(("default", "used"), [("off", "on"), ("local", "on"), ("remote_write", "on"), ("remote_apply", "remote_apply")])
async def test_sessions_raise_a_commit_that_could_be_lost(default: str, used: str, database_url: str) -> None:
    """What is weaker is raised, what is stronger is kept; and then real money is permitted."""
    async with plain_connection(database_url) as administrator:
        await administrator.execute(f'ALTER DATABASE "{make_url(database_url).database}" SET synchronous_commit = {default}')
    database = await connect(database_url, 2, 5)
    try:
        async with database.connection() as connection:
            assert await connection.fetchval("SHOW synchronous_commit") == used
        await require_durable(database)
    finally:
        await database.close()
