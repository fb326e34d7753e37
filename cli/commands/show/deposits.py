"""What has arrived at the exchanges, and what is expected."""

from typing import Annotated

import typer

from cli.access.options import AsJson, AtMost, OneUser
from cli.terminal.ending import finish
from schemas.orders import AnnouncementStatus, DepositStatus

app = typer.Typer(invoke_without_command=True, add_completion=False)

_Status = Annotated[DepositStatus | None, typer.Option(help="Only deposits in this state.")]


def _list(user: str | None, status: DepositStatus | None, limit: int, as_json: bool) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.show.deposits import show_deposits  # noqa: PLC0415 — `--help` answers at once

    finish(show_deposits(find_installation(), user_id=user, status=status, limit=limit, as_json=as_json))


@app.callback()
def deposits(
    context: typer.Context, user: OneUser = None, status: _Status = None, limit: AtMost = 50, as_json: AsJson = False
) -> None:
    """List deposits, the newest first; or see below."""
    if context.invoked_subcommand is None:
        _list(user, status, limit, as_json)


@app.command("list")
def deposits_list(user: OneUser = None, status: _Status = None, limit: AtMost = 50, as_json: AsJson = False) -> None:
    """List deposits, the newest first."""
    _list(user, status, limit, as_json)


@app.command("show")
def deposits_show(
    deposit: Annotated[str, typer.Argument(metavar="ID", help="The deposit's id, the exchange's id of it, or its transaction.")],
    as_json: AsJson = False,
) -> None:
    """Show one deposit with its audit history and its ledger transfers."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.show.deposits import show_deposit  # noqa: PLC0415 — `--help` answers at once

    finish(show_deposit(find_installation(), deposit, as_json=as_json))


@app.command("announced")
def deposits_announced(
    user: OneUser = None,
    status: Annotated[AnnouncementStatus | None, typer.Option(help="Only announcements in this state.")] = None,
    limit: AtMost = 50,
    as_json: AsJson = False,
) -> None:
    """List the deposits that producers announced, the newest first."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.show.deposits import show_announcements  # noqa: PLC0415 — `--help` answers at once

    finish(show_announcements(find_installation(), user_id=user, status=status, limit=limit, as_json=as_json))


@app.command("disputed")
def deposits_disputed(user: OneUser = None, limit: AtMost = 50, as_json: AsJson = False) -> None:
    """List what was not credited because it does not fit what is known; a person must look."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.show.deposits import show_disputes  # noqa: PLC0415 — `--help` answers at once

    finish(show_disputes(find_installation(), user_id=user, limit=limit, as_json=as_json))
