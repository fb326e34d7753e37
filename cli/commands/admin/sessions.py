"""Trading sessions that users have begun with a code of their second factor."""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, Reason, with_credentials
from cli.terminal.ending import finish

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command("list")
def sessions_list(
    user: Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 1_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List sessions, the newest first: what each may confirm, and what it has confirmed."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.sessions import show  # noqa: PLC0415 — `--help` answers at once

    finish(show(find_installation(), user, everything=everything, limit=limit, as_json=as_json))


@app.command("revoke")
@with_credentials
def sessions_revoke(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose.")],
    reason: Reason,
    session: Annotated[str | None, typer.Option("--session", metavar="ID", help="Only this one; else all that are open.")] = None,
    *,
    credentials: Credentials,
) -> None:
    """End a user's sessions: what follows needs a code, or a new session."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.sessions import revoke  # noqa: PLC0415 — `--help` answers at once

    finish(revoke(find_installation(), user, session, reason=reason, credentials=credentials))
