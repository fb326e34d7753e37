"""Fixtures that every kind of test may ask for. The servers start when the first test asks for one of them, once per run.

Tests keep apart by `unique_prefix` (topics and consumer groups) and by a database of their own (`database_url`).
"""

import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings

from embedded.services import Endpoints
from infra.postgres.migrate import migrate
from tests import kcat, last_release
from tests.servers import fresh_database, shared_servers, template_database

# The profile of tests that have none of their own: how long an example takes says nothing on a machine that is busy with others.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# A run in the background of a script ignores Ctrl-C, and so would every program that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Set where every test must run, as in CI: what is missing is an error there, and not a line in a report.
REQUIRE_KCAT = "TESTS_REQUIRE_KCAT"
REQUIRE_HISTORY = "TESTS_REQUIRE_HISTORY"
_OTHER_CLIENT = "ran with another client than kcat"


def pytest_configure(config: pytest.Config) -> None:
    """Ends the run before it begins where kcat or the last release must be there and is not. Raises UsageError."""
    config.addinivalue_line("markers", "deep: looks longer than `make test` does; `make deep` runs it")
    config.addinivalue_line("markers", "prefers_kcat: publishes with kcat, or where it is not installed with the library it is made of")
    if os.environ.get(REQUIRE_KCAT) and not kcat.IS_INSTALLED:
        raise pytest.UsageError(f"{REQUIRE_KCAT} is set and kcat is not installed: no test was run. Install it: apt-get install kcat")
    if os.environ.get(REQUIRE_HISTORY) and last_release.ABSENCE is not None:
        raise pytest.UsageError(f"{REQUIRE_HISTORY} is set and {last_release.LEFT_OUT}: no test was run. {last_release.ABSENCE}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Notes on tests that take another client in kcat's place that they do; the note reaches the report from any process of the run.

    In a run of several processes, tests that wait and tests that compute take turns.
    """
    if hasattr(config, "workerinput"):
        from tests.distribution import mixed

        items[:] = mixed(items)
    for item in items:
        if not kcat.IS_INSTALLED and item.get_closest_marker("prefers_kcat") is not None:
            item.user_properties.append((_OTHER_CLIENT, "true"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps groups together; see tests/distribution.py. None (pytest-xdist's own) where something else was asked for."""
    if config.getvalue("dist") != "loadgroup":
        return None
    # Loaded in the process that deals out alone, and only where pytest-xdist is.
    from tests.distribution import GroupScheduling, groups_of

    groups = groups_of(Path(__file__).parent)
    return GroupScheduling(config, log, {f"tests/{file}": group for file, group in groups.items()})


@pytest.fixture(autouse=True)
def undivided_group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fails a test whose group was divided among processes: what they share would be started in each, and nobody would notice."""
    group = request.node.get_closest_marker("xdist_group")
    worker = getattr(request.config, "workerinput", None)
    if group is None or worker is None or not request.config.option.loadgroup:
        return
    note = tmp_path_factory.getbasetemp().parent / f"group-{group.args[0]}"
    try:
        with note.open("x") as file:
            file.write(worker["workerid"])
    except FileExistsError:
        assert note.read_text() == worker["workerid"], f"the group {group.args[0]} was divided: see tests/distribution.py"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names what was not tested for want of kcat or of the last release, at the end, where nobody overlooks it."""
    stats = terminalreporter.stats
    others = sorted(report.nodeid for report in stats.get("passed", []) if (_OTHER_CLIENT, "true") in map(tuple, report.user_properties))
    _name_untested(terminalreporter, "kcat is not installed", "kcat", others, "Install it (apt-get install kcat, brew install kcat)")
    missing = "Take a checkout with its whole history (git fetch --unshallow), have git installed"
    _name_untested(terminalreporter, f"{last_release.LEFT_OUT}: {last_release.ABSENCE}", last_release.LEFT_OUT, [], missing)


def _name_untested(reporter: pytest.TerminalReporter, why: str, word: str, others: list[str], remedy: str) -> None:
    """A section with the tests that were left out for a reason that has this word, and the `others` that ran otherwise; none for none."""
    left_out = sorted(report.nodeid for report in reporter.stats.get("skipped", []) if word in str(report.longrepr))
    if not left_out and not others:
        return
    reporter.section(f"NOT TESTED: {why}", sep="=", red=True, bold=True)
    for name in left_out:
        reporter.write_line(f"did not run: {name}", red=True)
    for name in others:
        reporter.write_line(f"{_OTHER_CLIENT}: {name}")
    reporter.write_line(f"{remedy} and run these tests again.")


@pytest.fixture(scope="session")
def servers_directory(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """What the workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    # Each xdist worker has a directory of its own inside the run's.
    return (base.parent if hasattr(request.config, "workerinput") else base) / "servers"


@pytest.fixture(scope="session")
def servers(servers_directory: Path) -> Iterator[Endpoints]:
    """The run's broker and database."""
    with shared_servers(servers_directory) as endpoints:
        yield endpoints


@pytest.fixture(scope="session")
def kafka(servers: Endpoints) -> str:
    """Bootstrap servers of the run's broker, shared with all other tests: use `unique_prefix`."""
    return servers.kafka_bootstrap_servers


@pytest.fixture
def unique_prefix() -> str:
    """A prefix for the topics and groups of one test, such as `t3f9a1.`."""
    return f"t{uuid4().hex[:6]}."


@pytest.fixture(scope="session")
def migrate_database() -> Callable[[str], Awaitable[None]] | None:
    """The hook for a template: returns the coroutine function that brings an empty database, given by its URL, to the newest schema."""
    return migrate


@pytest.fixture(scope="session")
def database_template(
    servers: Endpoints, servers_directory: Path, migrate_database: Callable[[str], Awaitable[None]] | None
) -> str | None:
    """The database that `database_url` copies, made once per run; None when there is nothing to migrate."""
    return None if migrate_database is None else template_database(servers_directory, servers.database_url, migrate_database)


@pytest.fixture
def database_url(servers: Endpoints, database_template: str | None) -> Iterator[str]:
    """A database for one test alone, migrated when there is a template, dropped afterwards."""
    with fresh_database(servers.database_url, database_template) as url:
        yield url


@pytest.fixture
def empty_database_url(servers: Endpoints) -> Iterator[str]:
    """A database without any table, for tests of the migrations themselves."""
    with fresh_database(servers.database_url, None) as url:
        yield url
