"""List orders, the newest first."""

from typing import Annotated

import typer

from cli.access.options import AsJson, OneUser
from cli.terminal.ending import finish
from schemas.orders import OrderStatus

app = typer.Typer(add_completion=False)


@app.command()
def orders(
    user: OneUser = None,
    status: Annotated[OrderStatus | None, typer.Option(help="Only orders in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.show.orders import show_orders  # noqa: PLC0415 — `--help` answers at once

    finish(show_orders(find_installation(), user_id=user, status=status, limit=limit, as_json=as_json))
