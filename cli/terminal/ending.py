"""How a command's coroutine is run, and the process ended with its exit code. Start with `finish`."""

from collections.abc import Coroutine
from typing import Any, NoReturn

import typer

from cli.terminal.exits import Exit


def finish(work: Coroutine[Any, Any, int | None]) -> NoReturn:
    """Runs a command's coroutine and ends with its exit code."""
    import asyncio  # noqa: PLC0415 — `--help` answers at once
    import logging  # noqa: PLC0415 — `--help` answers at once
    import sys  # noqa: PLC0415 — `--help` answers at once

    import structlog  # noqa: PLC0415 — `--help` answers at once

    # What the libraries would say about a service that is away, the command says in its own words; and a log line has no place on standard
    # output.
    for name in ("aiokafka", "ccxt", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    raise typer.Exit(int(asyncio.run(work) or Exit.DONE))
