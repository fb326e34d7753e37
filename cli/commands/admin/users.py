"""Who may trade: users, their state and their second factor."""

from enum import StrEnum
from typing import Annotated

import typer

from cli.access.operator_options import Credentials, MayHaveReason, Reason, Yes, with_credentials
from cli.access.options import AsJson, AtMost, UserId
from cli.terminal.ending import finish

app = typer.Typer(no_args_is_help=True, add_completion=False)


class _Role(StrEnum):
    TRADER = "trader"
    OPERATOR = "operator"


class _Status(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    FROZEN = "frozen"
    CLOSED = "closed"


@app.command("add")
@with_credentials
def users_add(
    user: UserId,
    role: Annotated[_Role, typer.Option(help="An operator may also send commands.")] = _Role.TRADER,
    pending: Annotated[bool, typer.Option("--pending", help="No real money until `users verify`.")] = False,
    *,
    credentials: Credentials,
) -> None:
    """Add a user, without keys and money."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.users import add  # noqa: PLC0415 — `--help` answers at once

    finish(add(find_installation(), user, role=role.value, pending=pending, credentials=credentials))


@app.command("list")
def users_list(
    status: Annotated[_Status | None, typer.Option(help="Only users in this state.")] = None,
    limit: AtMost = 1_000,
    as_json: AsJson = False,
) -> None:
    """List users."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.users import show_users  # noqa: PLC0415 — `--help` answers at once

    finish(show_users(find_installation(), status=status.value if status else None, limit=limit, as_json=as_json))


@app.command("show")
def users_show(user: UserId, as_json: AsJson = False) -> None:
    """Show a user: second factor, keys, limits, and what was changed by whom."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.users import show_user  # noqa: PLC0415 — `--help` answers at once

    finish(show_user(find_installation(), user, as_json=as_json))


def _set_status(user: str, change: str, reason: str, credentials: Credentials) -> None:
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.users import set_status  # noqa: PLC0415 — `--help` answers at once
    from infra.postgres.admin.administration import StatusChange  # noqa: PLC0415 — `--help` answers at once

    finish(set_status(find_installation(), user, StatusChange(change), reason=reason, credentials=credentials))


@app.command("verify")
@with_credentials
def users_verify(user: UserId, reason: Reason, *, credentials: Credentials) -> None:
    """Let a user who waits for verification trade with real money."""
    _set_status(user, "verify", reason, credentials)


@app.command("freeze")
@with_credentials
def users_freeze(user: UserId, reason: Reason, *, credentials: Credentials) -> None:
    """Refuse every new order of a user, until it is unfrozen."""
    _set_status(user, "freeze", reason, credentials)


@app.command("unfreeze")
@with_credentials
def users_unfreeze(user: UserId, reason: Reason, *, credentials: Credentials) -> None:
    """Let a frozen user trade again."""
    _set_status(user, "unfreeze", reason, credentials)


@app.command("close")
@with_credentials
def users_close(user: UserId, reason: Reason, yes: Yes = False, *, credentials: Credentials) -> None:
    """Close a user for good. Its history stays. Ends with 1 where the user has money, orders, withdrawals or usable keys."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.users import close  # noqa: PLC0415 — `--help` answers at once

    finish(close(find_installation(), user, reason=reason, yes=yes, credentials=credentials))


@app.command("enrol-totp")
@with_credentials
def users_enrol_totp(
    user: UserId,
    replace: Annotated[bool, typer.Option("--replace", help="In place of a second factor that the user has.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Make a second factor and show its QR code and URI, once."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.users import enrol_totp  # noqa: PLC0415 — `--help` answers at once

    finish(enrol_totp(find_installation(), user, replace=replace, yes=yes, credentials=credentials, as_json=as_json))


@app.command("unlock-totp")
@with_credentials
def users_unlock_totp(user: UserId, reason: MayHaveReason = None, *, credentials: Credentials) -> None:
    """Unlock a second factor after too many wrong codes."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.users import unlock_totp  # noqa: PLC0415 — `--help` answers at once

    finish(unlock_totp(find_installation(), user, reason=reason, credentials=credentials))


@app.command("clear-cooldown")
@with_credentials
def users_clear_cooldown(user: UserId, reason: Reason, *, credentials: Credentials) -> None:
    """Forget a user's failures in a row, and with them the cooldown that they began."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once
    from cli.admin.users import end_cooldown  # noqa: PLC0415 — `--help` answers at once

    finish(end_cooldown(find_installation(), user, reason=reason, credentials=credentials))


@app.command("publish")
def users_publish(
    users: Annotated[list[str] | None, typer.Argument(metavar="[USER…]", help="Whose events, all of them again.")] = None,
    as_json: AsJson = False,
) -> None:
    """Publish audit events that wait because the broker was away; with users, all of theirs again. Changes nothing."""
    from cli.access.administration import publish, user_id_of  # noqa: PLC0415 — `--help` answers at once
    from cli.access.installation import find_installation  # noqa: PLC0415 — `--help` answers at once

    finish(publish(find_installation(), [user_id_of(user) for user in users or ()], as_json=as_json))
