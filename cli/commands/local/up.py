"""Run the services, a simulated exchange and workers until Ctrl-C, and print the addresses.

Ports that are not given are the same as at the last start in this data directory.
"""

from enum import StrEnum
from typing import Annotated

import typer

from cli.access.options import AsJson
from cli.terminal.ending import finish

app = typer.Typer(add_completion=False)


class _Authentication(StrEnum):
    REQUIRED = "required"
    SANDBOX = "sandbox"


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many worker processes.")] = 2,
    kafka_port: Annotated[int | None, typer.Option(min=1, max=65_535, metavar="PORT", help="The embedded broker's port.")] = None,
    exchange_port: Annotated[int | None, typer.Option(min=1, max=65_535, metavar="PORT", help="The simulated exchange's port.")] = None,
    web_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, metavar="PORT", help="Where worker 1 serves its health; worker n: PORT + n - 1.")
    ] = None,
    authentication: Annotated[
        _Authentication | None, typer.Option(help="Whether requests need tokens and codes. Else: not at the simulated exchange.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    from cli.local.up import UpOptions, run_up  # noqa: PLC0415 — `--help` answers at once

    asked = None if authentication is None else authentication.value
    finish(run_up(UpOptions(workers, kafka_port or 0, exchange_port or 0, web_port or 0, asked, as_json)))
