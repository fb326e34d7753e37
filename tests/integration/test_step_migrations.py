"""The schema: made once however many workers start, the same again when it is there."""

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from infra.postgres import migrations
from infra.postgres.migrate import engine_url, migrate
from infra.postgres.schema import is_newest
from infra.postgres.step import take_partition
from tests.integration.step_database import open_database, plain_connection, take_in, taken
from tests.unit.builders import NOW, arrival, limit


def _revision_before(name: str) -> str:
    """The revision that the migration of this name is applied to."""
    (file,) = Path(migrations.__file__).parent.glob(f"versions/[0-9]*_{name}.py")
    found = re.search(r'^down_revision = "(\d+)"', file.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


async def _tables(url: str) -> set[str]:
    async with plain_connection(url) as connection:
        return {row["tablename"] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


async def test_workers_that_start_at_once_migrate_once(empty_database_url: str) -> None:
    """Four at the same moment: one makes the tables, the others wait and find them."""
    await asyncio.gather(*(migrate(empty_database_url) for _ in range(4)))
    expected = {"users", "api_keys", "claims", "orders", "cancels", "balances", "transfers", "audit_chains", "audit_events"}
    expected |= {"second_factors", "user_limits", "realised_results", "user_days", "user_symbols", "halts"}
    assert expected | {"input_partitions", "alembic_version"} <= await _tables(empty_database_url)


async def test_migration_of_a_database_in_use_changes_nothing(database_url: str) -> None:
    """Every start migrates; what is there stays."""
    async with open_database(database_url) as database:
        await take_in(database, await taken(database), [arrival(limit())], 1)
        before = await _tables(database_url)
        await migrate(database_url)
        assert await _tables(database_url) == before
        async with plain_connection(database_url) as connection:
            assert await connection.fetchval("SELECT count(*) FROM orders") == 1


async def test_fencing_epochs_go_on_above_those_that_the_release_before_gave(empty_database_url: str) -> None:
    """An order that was sent under an epoch of the old count is nobody's own under a new one: the sequence begins above every old epoch."""
    await migrate(empty_database_url, _revision_before("fencing_epochs"))
    async with plain_connection(empty_database_url) as connection:
        await connection.execute(
            "INSERT INTO input_partitions (consumer_group, topic, partition, fencing_epoch, base_offset, next_offset, updated_at) "
            "VALUES ('g', 't', 0, 7, -1, -1, now()), ('g', 't', 1, 31, -1, -1, now())"
        )
    await migrate(empty_database_url)
    async with open_database(empty_database_url) as database:
        owned, _ = await take_partition(database, "g", "t", 0, NOW)
        assert owned.fencing_epoch > 31


async def test_schema_is_newest_when_every_migration_is_applied_and_only_then(empty_database_url: str) -> None:
    """An empty database is not, nor is one of an older or of a newer version; the one that was migrated is."""
    assert not await is_newest(empty_database_url)
    await migrate(empty_database_url)
    assert await is_newest(empty_database_url)
    for other in ("0001", "9999"):
        async with plain_connection(empty_database_url) as connection:
            await connection.execute(f"UPDATE alembic_version SET version_num = '{other}'")  # noqa: S608 — a literal of the test
        assert not await is_newest(empty_database_url)


async def test_append_only_triggers_are_there_for_every_kind_of_change(database_url: str) -> None:
    """One trigger per table, for UPDATE, DELETE and TRUNCATE, switched on."""
    async with plain_connection(database_url) as connection:
        rows = await connection.fetch(
            "SELECT tgrelid::regclass::text AS table, tgtype, tgenabled FROM pg_trigger WHERE tgname = 'append_only' ORDER BY 1"
        )
    # pg_trigger.tgtype: 2 before, 8 delete, 16 update, 32 truncate
    assert [(row["table"], row["tgtype"], row["tgenabled"]) for row in rows] == [
        ("audit_events", 2 + 8 + 16 + 32, b"O"),
        ("balance_imports", 2 + 8 + 16 + 32, b"O"),
        # Its rows go when they count for nothing any more; what still counts stays by a trigger of its own.
        ("realised_results", 2 + 16 + 32, b"O"),
        ("transfers", 2 + 8 + 16 + 32, b"O"),
    ]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p%40w@h:5433/db", {"username": "u", "password": "p@w", "host": "h", "port": 5433, "query": {}}),
        ("postgres://u@h/db", {"username": "u", "host": "h"}),
        ("postgresql://postgres@/db?host=/run/socket", {"query": {"host": "/run/socket"}}),
        ("postgresql://u@h/db?sslmode=require&application_name=x", {"query": {"ssl": "require", "application_name": "x"}}),
    ],
)
def test_database_address_means_the_same_to_both_drivers(url: str, expected: dict[str, object]) -> None:
    """Whatever asyncpg takes for the pool, the migration's engine takes as well."""
    parsed = make_url(engine_url(url))
    assert (parsed.drivername, parsed.database) == ("postgresql+asyncpg", "db")
    for name, value in expected.items():
        assert getattr(parsed, name) == value


async def test_error_of_the_database_is_an_error_of_asyncpg(empty_database_url: str) -> None:
    """A pool on a database without tables says so plainly."""
    with pytest.raises(asyncpg.UndefinedTableError):
        async with open_database(empty_database_url):
            pass
