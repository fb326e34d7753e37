"""Show one order with its audit history and its ledger transfers; or a request that became none, with why."""

from typing import Annotated

import typer

from cli.access.options import AsJson, OneUser
from cli.terminal.ending import finish

app = typer.Typer(add_completion=False)


@app.command()
def order(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="An order id, client order id, exchange order id, request id or idempotency key.")
    ],
    user: OneUser = None,
    as_json: AsJson = False,
) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.show.order_search import show_order  # noqa: PLC0415 — `--help` answers at once

    finish(show_order(find_installation(), name, user_id=user, as_json=as_json))
