"""The command `deposits`. One function per command, which imports what it needs when it runs.

Invariant: as in `cli.main`, `--help` and a usage error load no library of the database, of Kafka or of an exchange.
"""

from typing import Annotated

import typer

from cli.terminal.ending import finish
from schemas.orders import AnnouncementStatus, DepositStatus

deposits_app = typer.Typer(invoke_without_command=True, help="What has arrived at the exchanges, and what is expected.")

_User = Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user.")]
_Status = Annotated[DepositStatus | None, typer.Option(help="Only deposits in this state.")]
_Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _list(user: str | None, status: DepositStatus | None, limit: int, as_json: bool) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.show.deposits import show_deposits  # noqa: PLC0415 — the module's invariant

    finish(show_deposits(find_installation(), user_id=user, status=status, limit=limit, as_json=as_json))


@deposits_app.callback()
def deposits(
    context: typer.Context, user: _User = None, status: _Status = None, limit: _Limit = 50, as_json: _AsJson = False
) -> None:
    """List deposits, the newest first; or see below."""
    if context.invoked_subcommand is None:
        _list(user, status, limit, as_json)


@deposits_app.command("list")
def deposits_list(user: _User = None, status: _Status = None, limit: _Limit = 50, as_json: _AsJson = False) -> None:
    """List deposits, the newest first."""
    _list(user, status, limit, as_json)


@deposits_app.command("show")
def deposits_show(
    deposit: Annotated[str, typer.Argument(metavar="ID", help="The deposit's id, the exchange's id of it, or its transaction.")],
    as_json: _AsJson = False,
) -> None:
    """Show one deposit with its audit history and its ledger transfers."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.show.deposits import show_deposit  # noqa: PLC0415 — the module's invariant

    finish(show_deposit(find_installation(), deposit, as_json=as_json))


@deposits_app.command("announced")
def deposits_announced(
    user: _User = None,
    status: Annotated[AnnouncementStatus | None, typer.Option(help="Only announcements in this state.")] = None,
    limit: _Limit = 50,
    as_json: _AsJson = False,
) -> None:
    """List the deposits that producers announced, the newest first."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.show.deposits import show_announcements  # noqa: PLC0415 — the module's invariant

    finish(show_announcements(find_installation(), user_id=user, status=status, limit=limit, as_json=as_json))


@deposits_app.command("disputed")
def deposits_disputed(user: _User = None, limit: _Limit = 50, as_json: _AsJson = False) -> None:
    """List what was not credited because it does not fit what is known; a person must look."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.show.deposits import show_disputes  # noqa: PLC0415 — the module's invariant

    finish(show_disputes(find_installation(), user_id=user, limit=limit, as_json=as_json))
