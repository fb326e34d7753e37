"""How much a user may do, where that differs from the settings."""

from typing import Annotated

import typer

from cli.access.operator_options import Credentials, MayHaveReason, Reason, with_credentials
from cli.access.options import AsJson, UserId
from cli.terminal.ending import finish

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command("show")
def limits_show(user: UserId, as_json: AsJson = False) -> None:
    """Show a user's limits, and which of them are its own."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.limits import show  # noqa: PLC0415 — `--help` answers at once

    finish(show(find_installation(), user, as_json=as_json))


@app.command("set")
@with_credentials
def limits_set(
    user: UserId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `limits show` lists it.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In its unit; 0 forbids, except for windows of time.")],
    reason: Reason,
    *,
    credentials: Credentials,
) -> None:
    """Give a user a limit of its own."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.limits import set_one  # noqa: PLC0415 — `--help` answers at once

    finish(set_one(find_installation(), user, name, amount, reason=reason, credentials=credentials))


@app.command("clear")
@with_credentials
def limits_clear(
    user: UserId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `limits show` lists it.")],
    reason: MayHaveReason = None,
    *,
    credentials: Credentials,
) -> None:
    """Take a user's own limit away: the one of the settings holds again."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.limits import clear  # noqa: PLC0415 — `--help` answers at once

    finish(clear(find_installation(), user, name, reason=reason, credentials=credentials))
