"""What the database gives back is what it was given: every column type of every table, through the driver, edges included.

The columns come from the lists that steps write by, and from the database's own catalogue: a new column is covered by being there.
"""

import asyncio
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import infra.postgres
from infra.postgres.migrate import migrate
from infra.postgres.rows import Columns
from infra.postgres.sqlstates import Reaction, reaction_of
from schemas.times import EARLIEST, END
from tests.integration.step_database import plain_connection

_LAST: Final = END - timedelta(microseconds=1)
_AMOUNTS: Final = st.decimals(min_value=-(10**20), max_value=10**20, places=18) | st.sampled_from(
    [Decimal("99999999999999999999.999999999999999999"), Decimal("1e-18"), Decimal(0), Decimal("-0.5")]
)
_BYTES: Final = st.binary(max_size=300)

# What our types let through, by the name that the catalogue has for the column's type.
_VALUES: Final[dict[str, st.SearchStrategy[Any]]] = {
    "text": st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=60),
    "numeric": _AMOUNTS,
    "integer": st.integers(-(2**31), 2**31 - 1),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "boolean": st.booleans(),
    "bytea": _BYTES,
    "timestamp with time zone": st.datetimes(EARLIEST.replace(tzinfo=None), _LAST.replace(tzinfo=None), timezones=st.just(UTC))
    | st.sampled_from([EARLIEST, _LAST]),
    "date": st.dates(date(1970, 1, 1), date(9998, 12, 31)),
}
# What must be refused on its way in, and never be stored as something else.
_POISON: Final[dict[str, list[object]]] = {
    "text": ["a\x00b", "\ud800", "\udfff\ud800"],
    "numeric": ["NaN?", b"1"],
    "integer": [2**31, -(2**31) - 1],
    "bigint": [2**63, -(2**63) - 1],
    "bytea": ["text"],
    "timestamp with time zone": ["2026-01-01", 1],
    "date": ["2026-01-01"],
}
_KEY: Final = """
    INSERT INTO api_keys (user_id, api_key_id, exchange, encryption_key_id, ciphertext, permissions, status, created_at, expires_at)
    VALUES ('alice', 'k1', 'binance', 'key', 'c', '{trade}', 'active', now(), $1)
"""
_ALIASES: Final = {"timestamptz": "timestamp with time zone"}


def _lists() -> list[Columns[Any]]:
    """Every list of columns there is in infra.postgres."""
    found: dict[tuple[str, tuple[str, ...]], Columns[Any]] = {}
    for module in pkgutil.iter_modules(infra.postgres.__path__):
        for value in vars(importlib.import_module(f"infra.postgres.{module.name}")).values():
            if isinstance(value, Columns):
                found[value.table, tuple(name for name, _, _ in value.columns)] = value
    return list(found.values())


@contextmanager
def _connected(url: str) -> Iterator[Callable[[str, Any], Any]]:
    """A function that sends a column of values through the driver, as steps do, and gives what came back."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(url))

        def through(sql_type: str, values: Any) -> Any:
            rows = runner.run(connection.fetch(f"SELECT given.* FROM unnest($1::{sql_type}[]) AS given", values))  # noqa: S608 — a type
            return [row[0] for row in rows]

        try:
            yield through
        finally:
            runner.run(connection.close())


async def test_column_lists_agree_with_the_catalogue(database_url: str) -> None:
    """Each listed column is there with the type it is written as, and each type of any column of ours is one that is tried below."""
    async with plain_connection(database_url) as connection:
        rows = await connection.fetch(
            "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> $1",
            "alembic_version",
        )
    stored = {(row["table_name"], row["column_name"]): row["data_type"] for row in rows}
    lists = _lists()
    assert len(lists) >= 10
    for columns in lists:
        for name, sql_type, _ in columns.columns:
            assert stored[columns.table, name] == _ALIASES.get(sql_type, sql_type), (columns.table, name)
    assert {kind for kind in stored.values() if kind != "ARRAY"} <= _VALUES.keys()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_values_of_every_column_type_come_back_unchanged(database_url: str, data: st.DataObject) -> None:
    """Equal, of the same type, and with its zone where it has one: alone, beside NULL, and in an array."""
    with _connected(database_url) as through:
        for sql_type, values in _VALUES.items():
            given_values = [*data.draw(st.lists(values, min_size=1, max_size=5), label=sql_type), None]
            came_back = through(sql_type, given_values)
            assert came_back == given_values
            for value in came_back:
                assert not isinstance(value, datetime) or value.utcoffset() == timedelta(0)


def test_value_that_no_column_can_hold_is_refused_and_never_waited_for(database_url: str) -> None:
    """NUL, halves of surrogate pairs, numbers that are too large, other types: an error of the value alone, not of the connection, or a
    worker would try the same record again for ever."""
    with _connected(database_url) as through:
        for sql_type, values in _POISON.items():
            for value in values:
                with pytest.raises((asyncpg.DataError, asyncpg.PostgresError, UnicodeError)) as refused:
                    through(sql_type, [value])
                assert reaction_of(refused.value) not in {Reaction.RETRY, Reaction.RECONNECT}, (sql_type, value)
                assert through(sql_type, [None]) == [None]


async def test_infinite_time_is_refused_by_every_column_that_others_fill(database_url: str) -> None:
    """What the driver makes of the last microsecond of the year 9999 cannot be stored any more, by whatever worker."""
    async with plain_connection(database_url) as connection:
        rows = await connection.fetch("SELECT conrelid::regclass::text AS name FROM pg_constraint WHERE conname LIKE '%_times_are_finite'")
        names = {row["name"] for row in rows}
        assert {"orders", "cancels", "withdrawals", "deposits", "deposit_announcements", "api_keys"} <= names
        await connection.execute("INSERT INTO users (user_id, status, created_at) VALUES ('alice', 'active', now())")
        with pytest.raises(asyncpg.CheckViolationError, match="times_are_finite"):
            await connection.execute(_KEY, datetime.max.replace(tzinfo=UTC))


async def test_infinite_time_of_an_older_version_is_mended_by_the_migration(empty_database_url: str) -> None:
    """A database that ended every worker at every start is one that works again; the moment is the latest there is."""
    await migrate(empty_database_url)
    async with plain_connection(empty_database_url) as connection:
        await connection.execute("ALTER TABLE api_keys DROP CONSTRAINT api_keys_times_are_finite")
        await connection.execute("INSERT INTO users (user_id, status, created_at) VALUES ('alice', 'active', now())")
        await connection.execute(_KEY, datetime.max.replace(tzinfo=UTC))
        assert await connection.fetchval("SELECT expires_at::text FROM api_keys") == "infinity"
        module = importlib.import_module("infra.postgres.migrations.versions.0015_finite_times")
        for statement in module.MENDING:
            await connection.execute(statement)
        await connection.execute(module.constraint_of("api_keys", ("expires_at",)))
        assert await connection.fetchval("SELECT expires_at FROM api_keys") == END - timedelta(microseconds=1)
