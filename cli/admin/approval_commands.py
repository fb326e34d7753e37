"""The command `approvals`. One function per command, which imports what it needs when it runs.

Invariant: as in `cli.main`, `--help` and a usage error load no library of the database, of Kafka or of an exchange.
"""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, Reason, with_credentials
from cli.terminal.ending import finish

approvals_app = typer.Typer(no_args_is_help=True, help="Changes that need two operators: what waits, and the second one's word.")

_Id = Annotated[str, typer.Argument(metavar="ID", help="The request's id, as `approvals list` shows it.")]


@approvals_app.command("list")
def approvals_list(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are used, refused or too old.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 1_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List requests, the newest first: what each would do, who asked and why, who decided and why."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.approvals import show  # noqa: PLC0415 — the module's invariant

    finish(show(find_installation(), everything=everything, limit=limit, as_json=as_json))


@approvals_app.command("approve")
@with_credentials
def approvals_approve(request: _Id, reason: Reason, *, credentials: Credentials) -> None:
    """Let another operator do what they asked for, once, within 24 hours of asking. Nobody approves what they asked for."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.approvals import decide  # noqa: PLC0415 — the module's invariant

    finish(decide(find_installation(), request, approve=True, reason=reason, credentials=credentials))


@approvals_app.command("refuse")
@with_credentials
def approvals_refuse(request: _Id, reason: Reason, *, credentials: Credentials) -> None:
    """End a request that waits. One's own may be refused as well."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — the module's invariant
    from cli.admin.approvals import decide  # noqa: PLC0415 — the module's invariant

    finish(decide(find_installation(), request, approve=False, reason=reason, credentials=credentials))
