"""Changes that need two operators: what waits, and the second one's word."""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, Reason, with_credentials
from cli.terminal.ending import finish

app = typer.Typer(no_args_is_help=True, add_completion=False)

_Id = Annotated[str, typer.Argument(metavar="ID", help="The request's id, as `approvals list` shows it.")]


@app.command("list")
def approvals_list(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are used, refused or too old.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 1_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List requests, the newest first: what each would do, who asked and why, who decided and why."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.approvals import show  # noqa: PLC0415 — `--help` answers at once

    finish(show(find_installation(), everything=everything, limit=limit, as_json=as_json))


@app.command("approve")
@with_credentials
def approvals_approve(request: _Id, reason: Reason, *, credentials: Credentials) -> None:
    """Let another operator do what they asked for, once, within 24 hours of asking. Nobody approves what they asked for."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.approvals import decide  # noqa: PLC0415 — `--help` answers at once

    finish(decide(find_installation(), request, approve=True, reason=reason, credentials=credentials))


@app.command("refuse")
@with_credentials
def approvals_refuse(request: _Id, reason: Reason, *, credentials: Credentials) -> None:
    """End a request that waits. One's own may be refused as well."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.approvals import decide  # noqa: PLC0415 — `--help` answers at once

    finish(decide(find_installation(), request, approve=False, reason=reason, credentials=credentials))
